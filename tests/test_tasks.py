"""The contract of a task over every entry, the data of the digits, and a user's own loaders and functions."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from checkpoints import bert, jsonl, texts
from nets import Keywords, Mlp, Output, Wrapped, rows
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from autogreen.errors import ConfigError, EvaluationError
from autogreen.tasks import TASKS, Split, Task, corpus, cut, digest, plain, to_device
from autogreen.tasks import rows as count_rows
from autogreen.tasks.digits import SPLITS, Digits
from autogreen.tasks.given import Given
from autogreen.tasks.training import train

CHEAP: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 1, "width": 8},
    "retrieval": {"epochs": 0, "length": 48, "batch_size": 8},  # as published; over one package of the library
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(TASKS))
def task(request: pytest.FixtureRequest) -> Iterator[Task]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "library", lambda: Path(sysconfig.get_path("stdlib")) / "email")
        yield TASKS[request.param](**CHEAP.get(request.param, {}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "not made yet"


@pytest.fixture(autouse=True, scope="module")
def cheap_texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A handful of Python files and steps; a checkpoint and texts made here."""
    CHEAP["causal_lm"] = {
        "sources": ("json",),
        "phase": "prefill",
        "vocab_size": 300,
        "context": 32,
        "sequences": 4,
        "passes": 1,
        "epoch_tokens": 2048,
        "batch_size": 16,
        "config": {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 16},
    }
    folder = tmp_path_factory.mktemp("texts")
    CHEAP["huggingface"] = {
        "model": bert(folder / "model"),
        "dataset": jsonl(folder / "all.jsonl", texts(60)),
        "max_length": 8,
    }


# --- every task -------------------------------------------------------------------------------------------------------


def test_the_contract_of_a_task(task: Task, cache: Path) -> None:
    assert isinstance(task, Task) and task.item and task.outputs in ("logits", "values")
    name = next(name for name in TASKS if TASKS[name] is type(task))
    assert TASKS[name].__doc__
    model = task.build(cache)
    assert isinstance(model, nn.Module) and not model.training
    again = task.build(cache)
    assert again is not model  # policies change their copy
    assert digest(model.state_dict()) == digest(again.state_dict())
    split: Split
    for split in get_args(Split):
        first = [digest(batch) for batch in task.batches(split)]
        assert first and first == [digest(batch) for batch in task.batches(split)], "a split must repeat itself"
        changed = [digest(batch) for batch in task.batches(split, epoch=1)]
        assert (changed == first) == (split != "train")
    batch = next(iter(task.batches("validation")))
    outputs = task.forward(model, batch)
    value = task.loss(outputs, batch)
    assert value.ndim == 0 and torch.isfinite(value) and task.logits(outputs).shape[0] == count_rows(task.inputs(batch))
    scores = task.score(model, "validation")
    assert scores.values.dtype == np.float64 and scores.values.ndim == 1 and np.isfinite(scores.values).all()
    assert scores.clusters is None or scores.clusters.shape == scores.values.shape
    assert np.array_equal(scores.values, task.score(model, "validation").values)
    assert all(isinstance(text, str) for text in task.fingerprint().values()) and task.fingerprint()
    assert task.fingerprint() == type(task)(**CHEAP.get(name, {})).fingerprint()


def test_no_example_stands_in_two_splits(task: Task) -> None:
    seen = {}
    split: Split
    for split in get_args(Split):
        examples = (row for batch in task.batches(split) for row in zip(*tree_leaves(task.inputs(batch)), strict=True))
        seen[split] = {digest(row) for row in examples}
    for one, other in combinations(seen, 2):
        assert not seen[one] & seen[other]  # type: ignore[index]


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_split_by_source_image(cache: Path) -> None:
    spans = sorted(SPLITS.values())
    assert spans[0][0] == 0 and spans[-1][1] == 1797
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    task = Digits(epochs=1, width=8)
    model = task.build(cache)
    for split in ("validation", "test"):
        sources = task.score(model, split).clusters  # type: ignore[arg-type]
        assert sources is not None and sources.min() >= SPLITS[split][0] and sources.max() < SPLITS[split][1]
    assert len(task.score(model, "test").values) >= 4000


def test_every_canvas_shows_its_digit() -> None:
    """Only the split's own digits are on a canvas, and the named one wholly so (the brighter value wins)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    images, labels = data.images[order] / 16, data.target[order]
    canvases, named = next(iter(Digits().batches("test")))
    assert canvases.shape[1:] == (1, 16, 16) and canvases.min() >= 0 and canvases.max() <= 1
    for place in range(40):  # 20 canvases of each source, in order
        source = SPLITS["test"][0] + place // 20
        assert int(named[place]) == labels[source]
        canvas = canvases[place, 0].numpy()
        spots = (canvas[y : y + 8, x : x + 8] for y in range(9) for x in range(9))
        assert any((spot >= images[source] - 1e-6).all() for spot in spots)


def test_digits_are_those_of_their_seed() -> None:
    one, same, other = (digest(Digits(seed=seed).batches("train")[0]) for seed in (0, 0, 1))
    assert one == same != other
    assert {len(labels) for _, labels in Digits().batches("train")} == {64}


def test_digits_are_trained_once(tmp_path: Path) -> None:
    task = Digits(epochs=1, width=8)
    first = task.build(tmp_path)
    (kept,) = tmp_path.iterdir()
    stamp = kept.stat().st_mtime_ns
    second = task.build(tmp_path)
    assert kept.stat().st_mtime_ns == stamp and digest(first.state_dict()) == digest(second.state_dict())
    smaller = task.smaller(0.5, tmp_path)
    assert sum(map(torch.numel, smaller.parameters())) <= sum(map(torch.numel, first.parameters()))


# --- one's own --------------------------------------------------------------------------------------------------------


def hits(outputs: Tensor, batch: Any) -> Tensor:
    return (outputs.argmax(1) == batch[1]).float()


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def given(**changes: Any) -> Given:
    batches = [(rows(6, seed), torch.arange(6) % 5) for seed in range(10)]
    settings = {"model": Mlp(), "train": batches, "validation": batches[:3], "test": batches[3:5]}
    return Given(**{**settings, "loss_fn": cross_entropy, "score_fn": hits, **changes})


def test_a_model_of_ones_own() -> None:
    task = given()
    model = task.build(Path())
    scores = task.score(model, "validation")
    assert scores.values.shape == (18,) and scores.clusters is None
    images, labels = task.batches("validation")[0]  # type: ignore[index]
    with torch.no_grad():
        assert scores.values[:6].tolist() == (model(images).argmax(1) == labels).double().tolist()
    assert len(list(task.batches("calibration"))) == 8
    assert len(list(given(calibration=[1, 2]).batches("calibration"))) == 2
    assert task.fingerprint() == given(model=task.model).fingerprint()
    assert given(model=Mlp()).fingerprint()["model"] != task.fingerprint()["model"]
    assert given(score_fn=cross_entropy).fingerprint()["score code"] != task.fingerprint()["score code"]


@pytest.mark.parametrize("split", ["train", "validation", "test", "calibration"])
def test_a_loader_that_can_be_walked_once_is_refused(split: str) -> None:
    with pytest.raises(ConfigError, match=f"{split} can be walked through only once .*generator.*DataLoader or a list"):
        given(**{split: (batch for batch in ())})


@pytest.mark.parametrize("score", [lambda out, batch: out, lambda out, batch: out.mean(), lambda out, batch: 1.0])
def test_a_score_that_is_not_one_number_per_example(score: Any) -> None:
    with pytest.raises(ConfigError, match=r"score must return a tensor \[n\]"):
        given(score_fn=score).score(Mlp(), "validation")


def test_empty_loaders() -> None:
    with pytest.raises(EvaluationError, match="validation loader gave no batch"):
        given(validation=[]).score(Mlp(), "validation")
    with pytest.raises(EvaluationError, match="train split gave no batch"):
        train(Mlp(), given(train=[]), cross_entropy, epochs=1, learning_rate=0.1, seed=0, device="cpu")


def test_what_the_model_is_called_with() -> None:
    batch = {"values": rows(), "mask": torch.ones(4, 12), "labels": torch.zeros(4)}
    task = given()
    assert set(task.inputs(batch)[1]) == {"values", "mask"} and task.inputs(batch)[0] == ()
    assert task.forward(Keywords(), batch)["logits"].shape == (4, 5)
    assert task.inputs([rows(), 1])[0][0].shape == (4, 12) and task.inputs(rows())[0][0].shape == (4, 12)
    two = given(inputs_fn=lambda batch: (batch["values"], batch["mask"]))
    assert len(two.inputs(batch)[0]) == 2
    named = given(inputs_fn=lambda batch: {"x": batch["values"]})
    assert list(named.inputs(batch)[1]) == ["x"]


def test_logits_are_found_in_dicts_and_dataclasses() -> None:
    task, inputs = given(), rows()
    assert torch.equal(task.logits(Wrapped().eval()(inputs)), Wrapped().eval()(inputs).logits) is False
    output = Output(logits=inputs, hidden=inputs + 1)
    assert task.logits(output) is inputs and task.logits({"hidden": inputs + 1, "logits": inputs}) is inputs
    assert task.logits((inputs, 3)) is inputs
    with pytest.raises(EvaluationError, match="hold no tensor"):
        task.logits({"text": "a"})


# --- training ---------------------------------------------------------------------------------------------------------


def trained(seed: int, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 5))
    loader = DataLoader(TensorDataset(rows(32), torch.arange(32) % 5), batch_size=8, shuffle=True)
    task = given(train=changes.pop("loader", loader))
    return train(model, task, cross_entropy, epochs=2, learning_rate=0.01, seed=seed, device="cpu", **changes)


def test_training_repeats_itself_by_seed() -> None:
    one, same, other = trained(1), trained(1), trained(2)
    assert digest(one.state_dict()) == digest(same.state_dict()) != digest(other.state_dict())
    assert not one.training


def test_training_learns() -> None:
    task = given()
    model = Mlp()

    def total() -> float:
        return sum(task.loss(task.forward(model, batch), batch).item() for batch in task.batches("train"))

    before = total()
    train(model, task, task.loss, epochs=20, learning_rate=0.01, seed=0, device="cpu")
    assert total() < before / 2


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("epochs", [1, 2])
def test_any_number_of_steps_has_a_schedule(count: int, epochs: int) -> None:
    task = given(train=[(rows(6, seed), torch.arange(6) % 5) for seed in range(count)])
    train(Mlp(), task, task.loss, epochs=epochs, learning_rate=0.01, seed=0, device="cpu")


def test_a_loss_that_is_not_a_number_ends_the_training() -> None:
    batches = [(rows(6) * float("nan"), torch.arange(6) % 5)]
    with pytest.raises(EvaluationError, match="training loss is nan in epoch 1; lower learning_rate"):
        train(Mlp(), given(train=batches), cross_entropy, epochs=1, learning_rate=0.1, seed=0, device="cpu")


def test_time_limits_are_asked_for_before_every_step() -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise EvaluationError("time is up")

    with pytest.raises(EvaluationError, match="time is up"):
        trained(0, check=check)
    assert len(asked) == 3


def test_a_loader_that_gives_more_batches_than_it_promised() -> None:
    class Modest(list[Any]):
        def __len__(self) -> int:
            return 1

    trained(0, loader=Modest([(rows(6, seed), torch.arange(6) % 5) for seed in range(5)]))


def test_a_model_frozen_for_inference_is_trained() -> None:
    model = Mlp().requires_grad_(False)
    before = digest(model.state_dict())
    train(model, given(), cross_entropy, epochs=1, learning_rate=0.01, seed=0, device="cpu")
    assert digest(model.state_dict()) != before
    half = Mlp()
    half.layers.requires_grad_(False)
    before = digest(half.layers.state_dict())
    train(half, given(), cross_entropy, epochs=1, learning_rate=0.01, seed=0, device="cpu")
    assert digest(half.layers.state_dict()) == before


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, size, parts", [(5, 2, 3), (4, 2, 2), (4, 4, 1), (3, 8, 1), (1, 4, 1)])
def test_batches_are_cut_to_one_size_and_the_last_is_filled_up(count: int, size: int, parts: int) -> None:
    values, scale = torch.arange(count), torch.tensor(3.0)
    found = cut(((values, scale), {"deep": {"mask": values + 10}, "flag": True}), size)
    assert len(found) == parts
    joined = torch.cat([args[0] for args, _ in found])
    assert joined.tolist() == [place % count for place in range(parts * size)]
    for args, kwargs in found:
        assert torch.equal(kwargs["deep"]["mask"], args[0] + 10) and args[1] is scale and kwargs["flag"] is True


def test_a_model_without_batched_tensors() -> None:
    with pytest.raises(EvaluationError, match="no tensor that has a batch dimension"):
        count_rows(((torch.tensor(1.0), "x"), {}))


@dataclass
class Record:
    values: Any
    label: int = 0


class Box(dict[str, Any]):
    """A mapping that tree functions take for a leaf, as tokenizers return it."""


def test_digests_tell_batches_apart_by_content() -> None:
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    different = [
        a,
        b,
        a.double(),
        a.bfloat16(),
        a.reshape(3, 2),
        [a],
        [a, b],
        [b, a],
        {"x": a},
        {"y": a},
        Box(x=b),
        Record(a),
        Record(b),
        Record(a, label=1),
        (a, Record(b)),
        a.numpy().astype(np.float16),
        b.numpy().astype(np.float16),
        ["a text"],
        ["a text", "another"],
        3,
        torch.tensor(True),
        torch.empty(0),
    ]
    digests = [digest(batch) for batch in different]
    assert len(set(digests)) == len(digests)
    assert digests == [digest(batch) for batch in different]
    assert digest(a.t().contiguous().t()) == digest(a) and digest(Record(a.clone())) == digest(Record(a))


def test_moving_keeps_types() -> None:
    moved = to_device(Record(torch.zeros(2), label=3), "cpu")
    assert isinstance(moved, Record) and moved.label == 3
    assert to_device({"x": [torch.zeros(1), "text"]}, "cpu")["x"][1] == "text"
    assert plain(Output(logits=1, hidden=2)) == {"logits": 1, "hidden": 2}  # type: ignore[arg-type]
