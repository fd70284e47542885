"""A user's own checkpoint and labelled texts: splits, columns, labels, metrics, padding, engines, hub names."""

import copy
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import bert, jsonl, texts

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import ConfigError
from autogreen.experiment import build_task
from autogreen.tasks import digest, tables
from autogreen.tasks.huggingface import METRICS, HuggingFace


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return jsonl(tmp_path_factory.mktemp("data") / "all.jsonl", texts(120))


def task(model: str, data: str, **changes: Any) -> HuggingFace:
    return HuggingFace(**{"model": model, "dataset": data, "max_length": 8, "batch_size": 8, **changes})


def all_rows(made: HuggingFace, split: Any) -> list[str]:
    return [digest(row) for batch in made.batches(split) for row in batch["input_ids"]]


# --- what is computed -------------------------------------------------------------------------------------------------


def test_it_is_made_from_yaml_keys(model: str, data: str) -> None:
    made = build_task({"huggingface": {"model": model, "dataset": data, "metric": "log_likelihood"}}, "x.task")
    assert isinstance(made, HuggingFace) and made.metric == "log_likelihood" and made.outputs == "logits"


def test_accuracy_is_that_of_the_plain_model_text_by_text(model: str, data: str) -> None:
    """Unpadded and one at a time, with transformers alone: padding and batches change nothing."""
    import transformers

    made = task(model, data)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = {row["text"]: row for row in texts(120)}
    scores, likelihoods = made.score(made.build(Path()), "validation").values, []
    found = [ids for batch in made.batches("validation") for ids in batch["input_ids"]]
    assert len(found) == len(scores) == 12  # a tenth
    for ids, score in zip(found, scores, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        with torch.no_grad():
            logits = plain(**tokenizer(text, return_tensors="pt")).logits[0]
        right = {"bad": 0, "good": 1}[rows[text]["label"]]
        assert score == float(logits.argmax() == right)
        likelihoods.append(float(logits.double().log_softmax(0)[right]))
    other = task(model, data, metric="log_likelihood")
    assert np.allclose(other.score(other.build(Path()), "validation").values, likelihoods, atol=1e-5)
    losses = [other.loss(other.forward(plain_logits(plain), batch), batch) for batch in other.batches("validation")]
    weights = [len(batch["labels"]) for batch in other.batches("validation")]
    assert np.average([loss.item() for loss in losses], weights=weights) == pytest.approx(
        -np.mean(likelihoods), abs=1e-5
    )


def plain_logits(plain: Any) -> Any:
    return lambda **inputs: plain(**inputs).logits.detach()


@pytest.mark.parametrize("engine", ["eager"])
def test_programs_give_the_scores_of_the_model(model: str, data: str, engine: str, tmp_path: Path) -> None:
    """Seven a call, twelve texts: cut, filled up, joined."""
    made = task(model, data, metric="log_likelihood")
    built = made.build(tmp_path)
    example = made.inputs({name: part[:7] for name, part in made.batches("validation")[0].items()})
    ENGINES[engine].save(copy.deepcopy(built), example, tmp_path)
    program = Program(tmp_path, Recipe(engine=engine, batch=7, threads=1, device="cpu"))
    scores = made.score(program, "validation").values
    assert np.allclose(scores, made.score(built, "validation").values, atol=1e-4)


def test_words_are_labelled_by_their_first_token(tmp_path: Path) -> None:
    """A word of two tokens is counted once; the score is the mean over a text's words."""
    folder = bert(tmp_path / "model", "ForTokenClassification")
    rows = [{"tokens": [*row["text"].split()[:3], "film-was"], "tags": [0, 1, 0, "good"]} for row in texts(30)]
    made = task(folder, jsonl(tmp_path / "words.jsonl", rows), text="tokens", label="tags", max_length=12)
    batch = made.batches("validation")[0]
    counted = batch["labels"] != -100
    assert counted.sum(1).tolist() == [4] * len(counted) and batch["labels"][0][counted[0]].tolist() == [0, 1, 0, 1]
    built = made.build(tmp_path)
    outputs = made.forward(built, batch).detach()
    assert outputs.shape == (*batch["labels"].shape, 2)
    by_hand = [
        np.mean([float(row[at].argmax() == labels[at]) for at in range(12) if labels[at] != -100])
        for row, labels in zip(outputs, batch["labels"], strict=True)
    ]
    assert made.score(built, "validation").values[: len(by_hand)].tolist() == by_hand
    assert torch.isfinite(made.loss(outputs, batch))


def test_words_of_which_nothing_is_left_are_refused(tmp_path: Path) -> None:
    """A text without a labelled token has no score."""
    folder = bert(tmp_path / "model", "ForTokenClassification")
    rows: list[dict[str, Any]] = [{"tokens": row["text"].split()[:3], "tags": [0, 1, 0]} for row in texts(30)]
    rows += [{"tokens": [" "], "tags": [0]}]
    made = task(folder, jsonl(tmp_path / "words.jsonl", rows), text="tokens", label="tags", max_length=12)
    with pytest.raises(ConfigError, match=r"makes no token of any word of \[' '\]"):
        made.build(tmp_path)


@pytest.mark.parametrize(("metric", "power"), [("squared_error", 2), ("absolute_error", 1)])
def test_numbers_are_judged_by_their_distance(tmp_path: Path, metric: str, power: int) -> None:
    folder = bert(tmp_path / "model", num_labels=1, id2label={0: "value"}, label2id={"value": 0})
    rows = [{"text": row["text"], "label": str(number / 10)} for number, row in enumerate(texts(30))]
    made = task(folder, jsonl(tmp_path / "all.jsonl", rows), metric=metric)
    assert made.outputs == "values"
    built, batch = made.build(tmp_path), made.batches("validation")[0]
    apart = (made.forward(built, batch)[:, 0].double() - batch["labels"]).abs().detach()
    assert np.allclose(made.score(built, "validation").values, -apart.pow(power).numpy())
    assert made.loss(made.forward(built, batch), batch).item() == pytest.approx(apart.square().mean().item(), rel=1e-5)


def test_pairs_of_texts(model: str, tmp_path: Path) -> None:
    rows = [{"a": row["text"], "b": "the film", "y": 1} for row in texts(30)]
    made = task(model, jsonl(tmp_path / "p.jsonl", rows), text="a", text_pair="b", label="y", max_length=12)
    batch = made.batches("train")[0]
    assert batch["input_ids"][0].tolist()[7:10] == [11, 12, 3]  # the, film, [SEP]
    assert batch["labels"].tolist() == [1] * 8


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_carved_by_content_whatever_the_order(model: str, data: str, tmp_path: Path) -> None:
    made = task(model, data)
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    turned = task(model, jsonl(tmp_path / "turned.jsonl", [*rows[::-1], *rows[:20]]))  # twenty texts stand twice
    sizes = {}
    for split in ("train", "calibration", "validation", "test"):
        assert set(all_rows(made, split)) == set(all_rows(turned, split))
        sizes[split] = len(all_rows(made, split))
    assert sizes == {"train": 90, "calibration": 6, "validation": 12, "test": 12}
    assert set(all_rows(made, "test")) != set(all_rows(task(model, data, seed=1), "test"))


def test_splits_of_a_folder_are_taken_as_they_are(model: str, tmp_path: Path) -> None:
    rows = texts(60)
    jsonl(tmp_path / "train.jsonl", rows[:40])
    jsonl(tmp_path / "dev.jsonl", rows[40:50])
    with (tmp_path / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows[50:])
    (tmp_path / "README.md").write_text("no data")
    made = task(model, str(tmp_path))
    sizes = {split: len(all_rows(made, split)) for split in ("train", "validation", "test", "calibration")}
    assert sizes == {"train": 38, "validation": 10, "test": 10, "calibration": 2}


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet"])
def test_any_file_gives_the_same_batches(model: str, data: str, kind: str, tmp_path: Path) -> None:
    rows, path = texts(120), tmp_path / f"all.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], dialect="excel-tab" if kind == "tsv" else "excel")
            writer.writeheader()
            writer.writerows(rows)
    for split in ("train", "test"):
        assert digest(task(model, str(path)).batches(split)) == digest(task(model, data).batches(split))


def test_what_a_study_must_not_change_is_in_the_fingerprint(model: str, data: str, tmp_path: Path) -> None:
    import shutil

    made = task(model, data).fingerprint()
    rows = texts(120)
    rows[3]["label"] = {"good": "bad", "bad": "good"}[rows[3]["label"]]
    assert task(model, jsonl(tmp_path / "other.jsonl", rows)).fingerprint()["data"] != made["data"]
    same, other = shutil.copytree(model, tmp_path / "same"), bert(tmp_path / "other", num_hidden_layers=1)
    assert task(str(same), data).fingerprint()["model"] == made["model"] != task(other, data).fingerprint()["model"]


# --- hub names --------------------------------------------------------------------------------------------------------


def test_a_hub_name_is_passed_on(model: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked = []
    for kind in ("AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification"):
        auto = getattr(transformers, kind)

        def from_pretrained(name: str, _own: Any = auto.from_pretrained, _kind: str = kind, **settings: Any) -> Any:
            asked.append((_kind, str(name), dict(settings)))
            return _own(name.replace("someone/sentiment", model), **settings)

        monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    task("someone/sentiment", data).build(Path())
    kinds = {
        kind for kind, name, settings in asked if name == "someone/sentiment" and "local_files_only" not in settings
    }
    assert kinds == {"AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification"}


def test_a_hub_name_that_does_not_come(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def unreachable(name: str, **settings: Any) -> Any:
        raise OSError("We couldn't connect to the hub.\nMore lines.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ConfigError, match=r"someone/x is no local folder.*couldn't connect.*local path, or a hub name"):
        task("someone/x", data).build(Path())


def test_a_dataset_of_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    asked = []

    def load_dataset(name: str, subset: str | None) -> dict[str, list[dict[str, Any]]]:
        asked.append((name, subset))
        return {"train": texts(60)[:50], "dev": texts(60)[50:], "unsupervised": []}

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    made = task(model, "someone/reviews", subset="small")
    assert len(all_rows(made, "validation")) == 10 and asked == [("someone/reviews", "small")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install datasets, or name a csv"):
        task(model, "someone/other").batches("train")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_columns_that_are_not_there(model: str, data: str) -> None:
    with pytest.raises(ConfigError, match=r"row 1 has no 'lable'. Did you mean 'label'\? It has: label, text."):
        task(model, data, label="lable").build(Path())
    with pytest.raises(ConfigError, match=r"row 1 has no 'review'.*It has: label, text."):
        task(model, data, text="review").build(Path())


@pytest.mark.parametrize("label", ["ugly", 2, -1, 0.5, "1.5"])
def test_labels_that_the_model_does_not_know(model: str, label: Any, tmp_path: Path) -> None:
    rows = texts(30)
    rows[7]["label"] = label
    with pytest.raises(ConfigError, match=r"knows no label .*it knows bad, good \(0 to 1\)"):
        task(model, jsonl(tmp_path / "x.jsonl", rows)).build(Path())


def test_a_folder_without_a_config(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        task(str(tmp_path), data).build(Path())


def test_a_checkpoint_without_a_head(data: str, tmp_path: Path) -> None:
    folder = bert(tmp_path, "ForMaskedLM")
    with pytest.raises(ConfigError, match=r"is a BertForMaskedLM; this task takes those that end in ForSequence"):
        task(folder, data).build(Path())


def test_settings_that_do_not_fit(model: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'acuracy'. Did you mean 'accuracy'\?"):
        task(model, data, metric="acuracy")
    with pytest.raises(ConfigError, match=r"metric 'squared_error' does not fit .* 2 output"):
        task(model, data, metric="squared_error").build(Path())
    with pytest.raises(ConfigError, match=r"max_length is 17, and .* has 16 positions"):
        task(model, data, max_length=17).build(Path())
    with pytest.raises(ConfigError, match="batch_size must be from 1"):
        task(model, data, batch_size=0)
    assert set(METRICS) == {"accuracy", "log_likelihood", "squared_error", "absolute_error"}


def test_files_that_cannot_be_read(model: str, tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"text": "a", "label"')
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "notes.txt").write_text("text")
    for name, told in (
        ("torn.jsonl", "cannot be read"),
        ("empty.csv", "holds no rows"),
        ("notes.txt", "files are read as .csv"),
        ("missing.csv", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=told):
            tables.read(str(tmp_path / name), None)
    (tmp_path / "only").mkdir()
    jsonl(tmp_path / "only" / "test.jsonl", texts(5))
    with pytest.raises(ConfigError, match="has no train split; it has: test"):
        tables.read(str(tmp_path / "only"), None)
    with pytest.raises(ConfigError, match=r"3 different rows cannot give train and calibration, validation, test"):
        task(model, jsonl(tmp_path / "few.jsonl", texts(3))).build(Path())
