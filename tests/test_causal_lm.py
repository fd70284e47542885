"""Decoders over Python sources: the text and its splits, the size, both phases against plain transformers, engines."""

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autogreen import evaluate
from autogreen.anatomy import survey
from autogreen.compress import compress
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import ConfigError, RefusedError
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.experiment import build_task
from autogreen.measurement import Beside, Interval, Protocol
from autogreen.policy import Effect
from autogreen.tasks import digest, sizing, sources
from autogreen.tasks.causal_lm import CausalLM
from autogreen.tasks.decoding import Decoding, attention
from autogreen.techniques import Context
from autogreen.testing import scripted_evaluation
from autogreen.workbench import Setup
from autogreen.workload import Workload

pytestmark = [  # of compilers
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]
CONTEXT = 16
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def tiny(**changes: Any) -> CausalLM:
    settings = {"sources": ("json",), "vocab_size": 300, "context": CONTEXT, "sequences": 5, "batch_size": 16}
    return CausalLM(**{**settings, "epoch_tokens": 2048, "passes": 3, "config": SIZES, **changes})


def plain(cache: Path) -> Any:
    """The one trained model in that folder, as transformers alone loads and runs it."""
    import transformers

    tiny().build(cache)
    folder = tiny()._folder({**tiny()._dimensions()}, cache)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def steps(call: Any, ids: Tensor) -> Tensor:
    """Logits [n, context, vocabulary] of a decoder that is fed one token after the other."""
    with torch.no_grad():
        return torch.stack([call(ids[:, at : at + 1], torch.tensor(at)) for at in range(ids.shape[1])], 1)


def exported(model: nn.Module, example: Any, engine: str, folder: Path, batch: int) -> Program:
    ENGINES[engine].save(model, example, folder)
    return Program(folder, Recipe(engine=engine, batch=batch, threads=1, device="cpu"))


def files(folder: Path, count: int, words: int = 60) -> str:
    """So many different files; returns the folder as a source."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        lines = [f"value_{number}_{line} = {line} + {number * line}" for line in range(words // 6)]
        (folder / f"part{number}.py").write_text("\n".join(lines))
    return f"{folder}/"


# --- the text ---------------------------------------------------------------------------------------------------------


def test_files_are_split_by_name_and_none_stands_in_two(tmp_path: Path) -> None:
    source = files(tmp_path / "code", 60)
    (tmp_path / "code" / "zcopy.py").write_text((tmp_path / "code" / "part7.py").read_text())
    (tmp_path / "code" / "latin.py").write_bytes("é = 1".encode("latin-1"))
    (tmp_path / "code" / "empty.py").write_text("")
    parts = sources.split_files((source,))
    names = [file.name for part in parts.values() for file in part]
    assert len(names) == len(set(names)) == 60 and "code/latin.py" not in names and "code/empty.py" not in names
    assert {split: len(part) for split, part in parts.items()} == {
        "calibration": 1,
        "validation": 2,
        "test": 3,
        "train": 54,
    }
    moved = files(tmp_path / "elsewhere" / "code", 60)
    again = sources.split_files((moved,))
    first = {file.sha256: split for split, part in parts.items() for file in part}
    assert {file.sha256: split for split, part in again.items() for file in part} == first


def test_packages_are_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "never_to_be_run"
    files(package, 6)
    (package / "__init__.py").write_text("raise SystemExit('this code was run')")
    (tmp_path / "single_file_package.py").write_text("raise SystemExit('this too')")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {file.name for file in sources.listed(("never_to_be_run", "single_file_package"))}
    assert "never_to_be_run/__init__.py" in names and "single_file_package.py" in names and len(names) == 8
    assert "never_to_be_run" not in sys.modules


def test_the_standard_library_is_there_without_what_is_installed() -> None:
    names = [file.name for file in sources.listed(("stdlib",))]
    assert "stdlib/argparse.py" in names and not any("site-packages" in name for name in names)


def test_tokens_are_the_text_and_a_second_process_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(tmp_path / "code", 30)
    task = tiny(sources=(source,), passes=0)
    task.build(tmp_path / "cache")
    made = sources.tokenizer((source,), 300, None)
    found = task._tokens()
    for split, part in sources.split_files((source,)).items():
        begin = 0
        for file, end in zip(part, found.ends[split].tolist(), strict=True):
            ids = found.ids[split][begin:end].tolist()
            assert made.decode(ids[: -1 if split == "train" else None]) == file.path.read_text()
            assert (ids[-1] == 0) == (split == "train")
            begin = end
    before = [digest(task.batches(split)) for split in ("train", "test")]
    monkeypatch.setattr(sources, "_held", {})
    monkeypatch.setattr(sources, "_tokenizers", {})
    monkeypatch.setattr(sources, "_encoded", None)  # nothing is tokenized again
    task.build(tmp_path / "cache")
    assert [digest(task.batches(split)) for split in ("train", "test")] == before
    assert {path.suffix for path in (tmp_path / "cache" / "sources").iterdir()} == {".json", ".safetensors"}


def test_held_out_sequences_are_of_one_file_each_and_of_many_files() -> None:
    ids = torch.arange(100, dtype=torch.int32)
    tokens = sources.Tokens({"test": ids}, {"test": torch.tensor([45, 52, 100])})
    chunks, of_file = tokens.held_out("test", 10, 5)
    assert chunks[:, 0].tolist() == [0, 52, 10, 62, 20] and of_file.tolist() == [0, 2, 0, 2, 0]
    assert (chunks == chunks[:, :1] + torch.arange(10)).all() and chunks.dtype == torch.int64
    assert len(tokens.held_out("test", 10, 99)[0]) == 8


def test_epochs_walk_through_the_text_pass_after_pass(cache: Path) -> None:
    task = tiny(epoch_tokens=CONTEXT * 64)
    whole = {digest(row) for row in task._chunks().long()}
    seen = [
        digest(row)
        for epoch in range(2 * len(task._chunks()) // 64)
        for batch in task.batches("train", epoch)
        for row in batch
    ]
    first = seen[: len(task._chunks())]
    assert set(first) == whole  # in the first pass every chunk
    assert seen[: len(first)] != seen[len(first) : 2 * len(first)]
    assert digest(task.batches("train", 3)) == digest(task.batches("train", 3))
    assert digest(tiny(seed=1).batches("train")) != digest(tiny().batches("train"))


# --- the size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [10**6, 10**7, 3 * 10**7, 10**8, 10**9, 10**11])
def test_the_size_follows_from_the_tokens(tokens: int) -> None:
    found = sizing.fitting(tokens, 4)
    wanted = tokens * 4 / 20
    heads, layers = found["num_attention_heads"], found["num_hidden_layers"]
    assert 2 / 3 < layers * sizing.block_parameters(found) / wanted < 3 / 2 or layers == 2
    assert 1 / 2 <= layers / heads <= 2
    assert found["hidden_size"] == 64 * heads and found["intermediate_size"] % 64 == 0
    assert heads % found["num_key_value_heads"] == 0
    assert heads < 4 or (2 <= heads / found["num_key_value_heads"] <= 5 and found["num_key_value_heads"] > 1)
    assert sizing.fitting(tokens, 9) == found != sizing.fitting(tokens * 4, 4)  # the fifth pass brings nothing


def test_the_size_is_what_transformers_counts() -> None:
    import transformers

    found = sizing.fitting(10**7, 4)
    with torch.device("meta"):
        lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **found))
    matrices = sum(part.numel() for part in lm.model.layers.parameters() if part.ndim == 2)
    assert matrices == found["num_hidden_layers"] * sizing.block_parameters(found)


def test_a_narrower_one_keeps_its_depth() -> None:
    large = sizing.fitting(10**9, 4)
    small = sizing.narrower(large, 0.5)
    assert small["num_hidden_layers"] == large["num_hidden_layers"] and small["hidden_size"] * 2 == large["hidden_size"]
    assert sizing.block_parameters(small) / sizing.block_parameters(large) == pytest.approx(0.25, rel=0.1)
    assert small["num_attention_heads"] % small["num_key_value_heads"] == 0


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_is_trained_once(cache: Path) -> None:
    task = tiny(phase="prefill")
    model = task.build(cache)
    untrained = tiny(phase="prefill", passes=0).build(cache)
    before, after = (-task.score(found, "validation").values.mean() for found in (untrained, model))
    assert before == pytest.approx(math.log(300), abs=0.2) and after < before - 1
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    again = tiny(phase="decode", sequences=3).build(cache)  # how it is called and judged changes no weight
    assert digest(again.state_dict()) == digest(model.state_dict())
    assert kept == {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_the_control_is_half_as_wide_and_trained_on_the_same(cache: Path) -> None:
    task = tiny(phase="prefill")
    smaller = task.smaller(0.5, cache)
    assert smaller is not None and smaller.lm.config.hidden_size == 32 and smaller.lm.config.num_hidden_layers == 2
    assert -task.score(smaller, "validation").values.mean() < math.log(300) - 0.5


def test_the_training_loss_is_that_of_transformers(cache: Path) -> None:
    task = tiny()
    model, batch = task.build(cache), task.batches("train")[0]
    outputs = task.forward(model, batch)
    own = plain(cache)(input_ids=batch, labels=batch)
    assert torch.allclose(outputs, own.logits, atol=1e-4)
    assert task.loss(outputs, batch).item() == pytest.approx(own.loss.item(), abs=1e-5)
    task.loss(outputs, batch).backward()
    assert all(part.grad is not None for part in model.parameters())


# --- both phases, plain and exported ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_prefill_gives_the_log_probabilities_of_transformers(cache: Path, engine: str, tmp_path: Path) -> None:
    task = tiny(phase="prefill")
    ids, lm = task.batches("validation")[0], plain(cache)
    with torch.no_grad():
        expected = lm(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    model = task.build(cache)
    assert torch.allclose(model(ids), expected, atol=1e-4)
    program = exported(model, task.inputs(ids[:2]), engine, tmp_path, 2)
    assert torch.allclose(program(ids), expected, atol=1e-4)  # five texts, two a call
    assert np.allclose(task.score(program, "validation").values, expected.double().mean(1).numpy(), atol=1e-4)
    assert task.items(task.inputs(ids)) == ids.numel()


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_decoding_gives_the_logits_of_transformers(cache: Path, engine: str, tmp_path: Path) -> None:
    """Token by token through the program, text after text: nothing of the one before is left over."""
    task = tiny()
    ids, lm = task.batches("validation")[0], plain(cache)
    with torch.no_grad():
        expected = lm(ids).logits
    model = task.build(cache)
    assert torch.allclose(steps(model, ids), expected, atol=1e-4)
    model(*task.inputs(ids[:2])[0])  # another batch: the caches are made anew
    program = exported(model, task.inputs(ids[:2]), engine, tmp_path, 2)
    for first in (0, 2, 1):
        assert torch.allclose(steps(program, ids[first : first + 2]), expected[first : first + 2], atol=1e-4)
    scores, whole = task.score(program, "validation"), tiny(phase="prefill")
    assert np.allclose(scores.values, whole.score(whole.build(cache), "validation").values, atol=1e-4)
    assert scores.clusters is not None and scores.clusters.tolist() == [0] * 5
    assert task.items(task.inputs(ids)) == len(ids)


def test_a_step_sees_nothing_beyond_its_position(cache: Path) -> None:
    task = tiny()
    model, ids = task.build(cache), task.batches("test")[0][:2]
    expected = steps(model, ids)
    for name, buffer in model.named_buffers():
        if name.startswith(("keys", "values")):
            buffer[:, :, 3:] = 1e3
    for at in range(3):
        model(ids[:, at : at + 1], torch.tensor(at))
    assert torch.equal(model(ids[:, 3:4], torch.tensor(3)), expected[:, 3])


def test_the_caches_are_no_weights_and_are_filled_with_text(cache: Path) -> None:
    """A first step stands deep in a text; ranges and joules would be others in an empty cache."""
    task = tiny()
    model = task.build(cache)
    model(*task.inputs(task.batches("validation")[0][:3])[0])
    names = set(model.state_dict())
    assert (
        names == {f"lm.{name}" for name in plain(cache).state_dict()}
        and "lm.model.layers.0.mlp.gate_proj.weight" in names
    )
    prompt, lm = task.batches("calibration")[0], plain(cache)
    with torch.no_grad():
        kept = lm(prompt, use_cache=True).past_key_values.layers[1].keys
    assert model.get_buffer("keys_1").shape == (3, 2, CONTEXT, 16)
    assert torch.allclose(model.get_buffer("keys_1")[0, :, :-1], kept[0, :, :-1], atol=1e-5)


class Removed(nn.Module):
    """What stands where a block was."""

    def forward(self, x: Tensor, **settings: Any) -> Tensor:
        return x


def test_a_model_that_was_cut_decodes_right(cache: Path) -> None:
    """Layers, groups of keys and their width are those of the model as it is now."""
    import transformers

    task = tiny()
    model, ids = task.build(cache), task.batches("test")[0]
    steps(model, ids)
    model.lm.model.layers = model.lm.model.layers[:1]
    model.lm.config.num_hidden_layers = 1
    with torch.no_grad():
        assert torch.allclose(steps(model, ids), model.lm(ids, use_cache=False).logits, atol=1e-4)
    fresh = task.build(cache)
    steps(fresh, ids)
    fresh.lm.model.layers[0] = Removed()  # and its place stays, while the others move up
    fresh.lm.model.layers[1].self_attn.layer_idx = 0
    with torch.no_grad():
        assert torch.allclose(steps(fresh, ids), fresh.lm(ids, use_cache=False).logits, atol=1e-4)
    assert {name for name, _ in fresh.named_buffers() if name.startswith("keys")} == {"keys_0"}
    sizes = {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1}
    model.lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes)).eval()
    model.lm.set_attn_implementation("autogreen")
    with torch.no_grad():
        assert torch.allclose(steps(model, ids), model.lm(ids, use_cache=False).logits, atol=1e-4)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_model_that_was_never_called_loses_its_layers(cache: Path, phase: Any) -> None:
    """The first call fills the caches with a whole text: seen by hooks, it looks like a second run of every layer."""
    task = tiny(phase=phase)
    model, example = task.build(cache), task.inputs(task.batches("validation")[0][:1])
    context = Context(task=task, example=example, seed=0, device="cpu", teacher=model, check=lambda: None, cache={})
    parts = {"pruning": {"depth": {"lm.model.layers": {"width": 1, "of": 2, "importance": "activation"}}}}
    layers = compress(parts, model, context).lm.model.layers  # type: ignore[union-attr]
    assert sorted(type(layer).__name__ for layer in layers) == ["LlamaDecoderLayer", "Skip"]


def test_exporting_before_the_first_call_is_refused(cache: Path, tmp_path: Path) -> None:
    task = tiny()
    example = task.inputs(task.batches("validation")[0][:2])
    with pytest.raises(RefusedError, match="do not fit a batch of 2; call the model once before exporting it"):
        ENGINES["eager"].save(task.build(cache), example, tmp_path)


def test_layers_are_seen_by_techniques(cache: Path) -> None:
    for phase in ("prefill", "decode"):
        task = tiny(phase=phase)
        found = survey(task.build(cache), task.inputs(task.batches("validation")[0][:1]), ("quantization",))
        units = {name: unit for unit in found.units["quantization"] for name in unit.members}
        assert len(units) == 2 * 7 + 1 and units["lm.model.layers.1.mlp.up_proj"].block == "lm.model.layers.1"
        for one, other in (("mlp.up_proj", "mlp.gate_proj"), ("self_attn.v_proj", "self_attn.q_proj")):
            assert units[f"lm.model.layers.0.{one}"] is units[f"lm.model.layers.0.{other}"]  # servers fuse them


def test_sixteen_bits(cache: Path) -> None:
    task = tiny(dtype="bfloat16")
    model = task.build(cache)
    assert {part.dtype for part in model.parameters()} == {torch.bfloat16}
    exact = tiny(phase="prefill")
    scores = task.score(model, "validation").values, exact.score(exact.build(cache), "validation").values
    assert np.allclose(*scores, atol=0.05) and not np.array_equal(*scores)
    assert model.get_buffer("keys_0").dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "inductor"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_programs_on_a_gpu(cache: Path, engine: str, phase: Any, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    task = tiny(phase=phase)
    expected = task.score(task.build(cache), "validation").values
    model = task.build(cache).to("cuda:0")
    args, kwargs = task.inputs(task.batches("validation")[0][:2].to("cuda:0"))
    model(*args, **kwargs)
    ENGINES[engine].save(model, (args, kwargs), tmp_path)
    program = Program(tmp_path, Recipe(engine=engine, batch=2, threads=1, device="cuda:0"))
    assert np.allclose(task.score(program, "validation").values, expected, atol=1e-3)


# --- through the evaluator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "each"), [("prefill", CONTEXT), ("decode", 1)])
def test_joules_are_per_token(
    cache: Path, tmp_path: Path, phase: Any, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is real but the joules: what they are divided by is what is looked at."""
    told: list[dict[str, Any]] = []
    measurement = scripted_evaluation(None, None).measurement

    def alone(call: Any, **settings: Any) -> Any:
        call()
        told.append(settings)
        return measurement

    def beside(call: Any, other: Any, **settings: Any) -> Any:
        other()
        return Beside(candidate=alone(call, **settings), reference=measurement, ratio=Interval(mean=1, low=1, high=1))

    for name, fake in (("measure", alone), ("measure_beside", beside), ("rest_w", lambda *_: None)):
        monkeypatch.setattr(evaluate, name, fake)
    monkeypatch.setattr(evaluate, "lease", nullcontext)
    monkeypatch.setattr(evaluate, "survey", lambda model, example, _: survey(model, example, ("quantization",)))
    setup = Setup(
        task=tiny(phase=phase),
        workload=Workload(batch=2),
        protocol=Protocol(),
        device="cpu",
        folder=tmp_path,
        cache=cache,
        meter={"name": "estimate"},
    )
    first = Evaluator(setup)
    first.prepare()
    reference = first.evaluate(Request(effect=Effect.of({"runtime": {"engine": "eager"}})))
    tuning = {"epochs": 1, "alpha": 0.5, "temperature": 2.0, "learning_rate": 1e-4}
    effect = Effect.of({"runtime": {"engine": "eager"}, "distillation": tuning})
    found = Evaluator(setup).evaluate(
        Request(effect=effect, reference=reference.key)
    )  # as a worker that follows a dead one
    assert [settings["items"] for settings in told] == [2 * each] * 2 and told[1]["reference_items"] == 2 * each
    assert found.loss is not None and -0.5 < found.loss.mean < 0.1 and found.recipe is not None


# --- checkpoints and random weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another architecture, with tied embeddings and a tokenizer of its own."""
    import transformers

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(7)
    config = transformers.GPT2Config(vocab_size=280, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    made = sources.tokenizer(("json",), 280, None)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=sources.END).save_pretrained(folder)
    return str(folder)


def own(folder: str, **changes: Any) -> CausalLM:
    return tiny(model=folder, config={}, **changes)


def test_a_checkpoint_of_ones_own_in_both_phases(gpt2: str, cache: Path, tmp_path: Path) -> None:
    import transformers

    lm = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    task = own(gpt2)
    ids = task.batches("validation")[0]
    with torch.no_grad():
        expected = lm(ids).logits
    model = task.build(cache)
    assert torch.allclose(steps(model, ids), expected, atol=1e-4)
    program = exported(model, task.inputs(ids), "eager", tmp_path, len(ids))
    assert torch.allclose(steps(program, ids), expected, atol=1e-4)
    assert task.smaller(0.5, cache) is None and not (cache / "gpt2").exists()
    assert task.fingerprint()["model"] == own(gpt2, phase="prefill").fingerprint()["model"]


def test_tied_embeddings_are_untied(gpt2: str, cache: Path) -> None:
    task = own(gpt2, phase="prefill")
    model = task.build(cache)
    inside, outside = model.lm.get_input_embeddings().weight, model.lm.get_output_embeddings().weight
    assert inside is not outside and torch.equal(inside, outside)
    survey(model, task.inputs(task.batches("validation")[0]), ())  # which refuses what is tied


def test_random_weights_say_so(cache: Path) -> None:
    before = {path.name for path in cache.iterdir()}
    task = tiny(weights="random", config={**SIZES, "vocab_size": 1000})
    model = task.build(cache)
    assert model.lm.config.vocab_size == 1000 and {path.name for path in cache.iterdir()} == before
    assert task.item == "token (random weights)" and "random weights" in task.fingerprint()["weights"]
    assert "weights='random'" in task.fingerprint()["task"] and tiny().item == "token"
    assert np.isfinite(task.score(model, "validation").values).all() and task.smaller(0.5, cache) is None
    assert digest(model.state_dict()) == digest(task.build(cache).state_dict())
    told = build_task({"causal_lm": {"weights": "random", "sources": ["json"], "config": SIZES}}, "x.task")
    assert told.item == "token (random weights)"


def test_random_weights_of_a_checkpoints_shape(gpt2: str, cache: Path) -> None:
    task = own(gpt2, weights="random", vocab_size=270, phase="prefill")
    model = task.build(cache)
    assert type(model.lm).__name__ == "GPT2LMHeadModel"
    assert not torch.equal(model.lm.transformer.wte.weight, own(gpt2).build(cache).lm.transformer.wte.weight)


def test_a_hub_name_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked = []

    def unreachable(name: str, **settings: Any) -> Any:
        asked.append((name, settings.get("dtype")))
        raise OSError("We couldn't connect to the hub.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", unreachable)
    with pytest.raises(ConfigError, match=r"someone/lm is no local folder, .*local path, or a hub name and access"):
        own("someone/lm", dtype="bfloat16").build(Path())
    assert asked == [("someone/lm", torch.bfloat16)]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_settings_out_of_bounds() -> None:
    for changes, told in (
        ({"context": 1}, "context must be from 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"sources": ()}, "sources must name"),
        ({"config": {"hiden_size": 64}}, "config.hiden_size must be one of hidden_size"),
        ({"config": {"vocab_size": 1000}}, "config.vocab_size is for random weights"),
        ({"model": "someone/lm"}, "config is for the model that is made here"),
    ):
        with pytest.raises(ConfigError, match=told):
            tiny(**changes)
    with pytest.raises(ConfigError, match=r"x\.task\.causal_lm\.phase"):
        build_task({"causal_lm": {"phase": "both"}}, "x.task")


def test_heads_that_cannot_share(cache: Path) -> None:
    with pytest.raises(ConfigError, match="4 heads cannot share 3 key/value heads"):
        tiny(config={**SIZES, "num_key_value_heads": 3}).build(cache)


def test_a_checkpoint_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        own(str(tmp_path)).build(tmp_path)


def test_a_context_beyond_the_positions(gpt2: str, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"context is 40, and .* has 32 positions"):
        own(gpt2, context=40).build(cache)


def test_a_tokenizer_of_another_model(gpt2: str, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer gives 400 tokens, and the model knows 280"):
        own(gpt2, weights="random", vocab_size=400).build(cache)


def test_without_transformers_it_says_what_to_install(gpt2: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "autogreen.tasks.decoding"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for task in (tiny(), tiny(weights="random"), own(gpt2), own(gpt2, phase="prefill")):
        with pytest.raises(ConfigError, match=r"^transformers is not installed .*autogreen\[llm\]"):
            task.build(cache)
    assert len(tiny().fingerprint()["task code"]) == 16


def test_texts_that_are_too_small(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no Python file"):
        tiny(sources=(f"{tmp_path}/none",)).build(cache)
    with pytest.raises(ConfigError, match="is no folder"):
        tiny(sources=(f"{tmp_path}/missing",)).build(cache)
    with pytest.raises(ConfigError, match="3 files cannot be split in 4"):
        tiny(sources=(files(tmp_path / "three", 3),)).build(cache)
    with pytest.raises(ConfigError, match=r"vocab_size is 8000, and the text yields \d+ tokens; lower it"):
        tiny(sources=(files(tmp_path / "ten", 10),), vocab_size=8000).build(cache)
    with pytest.raises(ConfigError, match=r"the longest of the 1 files of the calibration split .* context is 600"):
        tiny(sources=(files(tmp_path / "ten", 10),), vocab_size=270, context=600).build(cache)
    with pytest.raises(ConfigError, match="no package 'no_such_package' is installed here"):
        tiny(sources=("no_such_package",)).build(cache)
    with pytest.raises(ConfigError, match=r"no package 'os\.path' is installed"):
        tiny(sources=("os.path",)).build(cache)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("weights", ["trained", "random"])
def test_windows_shorter_than_the_context_are_refused(phase: Any, weights: Any, cache: Path, tmp_path: Path) -> None:
    """Prefill builds no masks, so it would score what such a model never sees."""
    import transformers

    made = sources.tokenizer(("json",), 280, None)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=sources.END).save_pretrained(tmp_path)
    sizes = {**SIZES, "vocab_size": 300, "max_position_embeddings": 64}
    for kind, window, refused in (("Mistral", CONTEXT - 1, True), ("Mistral", CONTEXT, False), ("Qwen2", 4, False)):
        config = getattr(transformers, f"{kind}Config")(**sizes, sliding_window=window)  # Qwen2 says not to use it
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path)
        task = own(str(tmp_path), phase=phase, weights=weights)
        if not refused:
            assert task.build(cache) is not None
            continue
        with pytest.raises(ConfigError, match=rf"context is {CONTEXT}, and layers of .* see {CONTEXT - 1} positions"):
            task.build(cache)


@pytest.mark.parametrize("wanted", ["softcap", "s_aux", "position_bias"])
@pytest.mark.parametrize("queries", [1, 3])
def test_attention_of_another_kind_is_refused_by_name(wanted: str, queries: int) -> None:
    query, keys = torch.randn(1, 2, queries, 4), torch.randn(1, 2, 3, 4)
    mask = torch.ones(1, 1, queries, 3, dtype=torch.bool)
    with pytest.raises(RefusedError, match=f"Linear wants {wanted} of its attention"):
        attention(torch.nn.Linear(1, 1), query, keys, keys, mask, **{wanted: torch.ones(2)})


def test_windows_shorter_than_the_context_cannot_decode() -> None:
    import transformers

    sizes = {**SIZES, "vocab_size": 300, "sliding_window": 8}
    lm = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
    model = Decoding(lm, torch.zeros(1, CONTEXT, dtype=torch.long))
    with pytest.raises(RefusedError, match=r"layer 0 of MistralForCausalLM does not keep .* 16 positions"):
        model(torch.zeros(1, 1, dtype=torch.long), torch.tensor(0))
    assert copy.deepcopy(model)._shape == ()
