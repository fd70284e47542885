"""Prune, train, and again: the order of things, rounds, the bounded loss, and which model comes out of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from nets import rows
from torch import Tensor, nn

from autogreen.anatomy import Anatomy, survey
from autogreen.compress import compress, lower
from autogreen.errors import EvaluationError, RefusedError
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.measurement import Protocol
from autogreen.policy import Effect
from autogreen.space import SearchSpace
from autogreen.tasks import digest
from autogreen.tasks.given import Given
from autogreen.tasks.training import calibration_loss
from autogreen.techniques import Context, Technique, Unit
from autogreen.techniques.distillation import Distillation
from autogreen.testing import ScriptedMeter
from autogreen.workbench import Setup
from autogreen.workload import Workload

WIDTH = 24


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net() -> nn.Sequential:
    """Sure of itself: its own answers are the labels here, so that whatever is removed costs loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5))
    with torch.no_grad():
        model[2].weight.mul_(40)
    return model


def width_of(model: Any) -> int:
    return len(model[0].weight)


class Narrowing(Technique):
    """Stands in for pruning: {"width", "of"} features of the first layer stay, those with the largest weights."""

    ordered = True

    @classmethod
    def effect(cls, settings: Any, units: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def part(cls, effect: dict[str, int], share: float) -> dict[str, int]:
        return {**effect, "width": effect["of"] - round((effect["of"] - effect["width"]) * share)}

    @classmethod
    def apply(cls, effect: dict[str, int], model: Any, context: Context) -> nn.Module:
        LOG.append(("prune", effect["width"], digest(model.state_dict())))
        first, last = model[0], model[2]
        kept = first.weight.norm(dim=1).topk(effect["width"]).indices.sort().values
        for layer, weight, bias in ((first, first.weight[kept], first.bias[kept]), (last, last.weight[:, kept], None)):
            layer.weight = nn.Parameter(weight.detach().clone())
            if bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone())
        return model


class Rounding(Technique):
    """Stands in for quantization."""

    ordered = True
    inside = False

    @classmethod
    def effect(cls, settings: Any, units: Any) -> Any:
        raise NotImplementedError

    @classmethod
    @contextmanager
    def aware(cls, effect: Any, model: nn.Module, context: Context) -> Iterator[nn.Module]:
        LOG.append(("aware", width_of(model)))
        cls.inside = True
        try:
            yield model
        finally:
            cls.inside = False

    @classmethod
    def apply(cls, effect: Any, model: nn.Module, context: Context) -> nn.Module:
        LOG.append(("quantize", width_of(model)))
        return model

    @classmethod
    def lower(cls, effect: Any, model: nn.Module, context: Context) -> nn.Module:
        return model.double()


class Training(Distillation):
    """Distillation that says when it runs."""

    @classmethod
    def apply(cls, effect: Any, model: nn.Module, context: Context) -> nn.Module:
        LOG.append(("train", effect["first_epoch"], effect["epochs"], Rounding.inside))
        return super().apply(effect, model, context)

    @classmethod
    def excess_loss(cls, model: nn.Module, context: Context) -> float:
        excess = super().excess_loss(model, context)
        LOG.append(("excess", excess, width_of(model)))
        return excess


LOG: list[Any] = []


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    LOG.clear()
    table = {"pruning": Narrowing, "distillation": Training, "quantization": Rounding}
    monkeypatch.setattr("autogreen.compress.TECHNIQUES", table)


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def hits(outputs: Tensor, batch: Any) -> Tensor:
    return (outputs.argmax(1) == batch[1]).float()


TEACHER = net()
BATCHES = [(x, TEACHER(x).argmax(1)) for x in (rows(16, seed) for seed in range(6))]


def context(**changes: Any) -> Context:
    data = {"train": BATCHES, "validation": BATCHES, "test": BATCHES, **changes}
    task = Given(model=TEACHER, loss_fn=cross_entropy, score_fn=hits, **data)
    made = {"teacher": TEACHER, "check": lambda: None, "cache": {}}
    return Context(task=task, example=((rows(),), {}), seed=0, device="cpu", **made)


def training(**settings: Any) -> dict[str, Any]:
    found = Distillation.effect((Distillation(**{"learning_rate": 0.01, **settings}),), ())
    assert found is not None
    return found


PRUNING = {"width": 6, "of": WIDTH}


def steps(kind: str) -> list[Any]:
    return [entry for entry in LOG if entry[0] == kind]


# --- one round --------------------------------------------------------------------------------------------------------


def test_sections_run_in_their_order_whatever_the_policy_says() -> None:
    parts = {"runtime": {}, "quantization": {}, "distillation": training(), "pruning": PRUNING}
    model = compress(parts, net(), context())
    assert [entry[0] for entry in LOG] == ["prune", "aware", "train", "quantize"]
    assert width_of(model) == 6 and not model.training
    assert lower(parts, model, context())[0].weight.dtype == torch.float64  # type: ignore[index]


def test_without_training_there_is_one_round_and_nothing_to_be_aware_of() -> None:
    model = compress({"pruning": PRUNING, "quantization": {}}, net().train(), context())
    assert [entry[0] for entry in LOG] == ["prune", "quantize"] and width_of(model) == 6 and not model.training
    assert compress({"runtime": {}}, model, context()) is model


# --- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds, epochs", [(1, 3), (2, 4), (3, 3), (3, 7), (4, 6)])
def test_rounds_reach_the_target_and_share_out_the_epochs(rounds: int, epochs: int) -> None:
    parts = {"pruning": PRUNING, "distillation": training(rounds=rounds, epochs=epochs), "quantization": {}}
    model = compress(parts, net(), context())
    assert width_of(model) == 6
    assert [entry[1] for entry in steps("prune")] == [WIDTH - round(18 * n / rounds) for n in range(1, rounds + 1)]
    trained = steps("train")
    assert [entry[0] for entry in LOG if entry[0] in ("prune", "train")] == ["prune", "train"] * rounds
    shares = [count for _, _, count, _ in trained]
    assert sum(shares) == epochs and min(shares) >= 1 and max(shares) - min(shares) <= 1
    assert [first for _, first, _, _ in trained] == [sum(shares[:place]) for place in range(rounds)]
    assert [aware for *_, aware in trained] == [False] * (rounds - 1) + [True], "the last training is the aware one"


def test_each_round_scores_what_the_round_before_has_learnt() -> None:
    compress({"pruning": PRUNING, "distillation": training(rounds=3, epochs=3)}, net(), context())
    assert len({scored for _, _, scored in steps("prune")}) == 3


def test_a_seed_gives_one_model_after_any_number_of_rounds() -> None:
    def run() -> str:
        parts = {"pruning": PRUNING, "distillation": training(rounds=2, epochs=4)}
        return digest(compress(parts, net(), context()).state_dict())

    assert run() == run()


# --- the bounded loss -------------------------------------------------------------------------------------------------


def bounded(stop_loss: float, **changes: Any) -> tuple[nn.Module, Context]:
    made = context(**changes)
    settings = training(rounds=4, epochs=8, stop_loss=stop_loss)
    parts = {"pruning": {"width": 1, "of": WIDTH}, "distillation": settings, "quantization": {}}
    return compress(parts, net(), made), made


def test_the_loop_ends_with_the_last_model_within_the_loss() -> None:
    bounded(1e9)
    excess = [(loss, width) for _, loss, width in steps("excess")]
    assert [width for _, width in excess] == [18, 12, 7, 1], "all four rounds"
    losses = [loss for loss, _ in excess]
    assert losses[3] > max(losses[:3]), "one feature cannot tell five classes: the case is a real one"
    LOG.clear()
    limit = (max(losses[:3]) + losses[3]) / 2
    model, made = bounded(limit)
    assert width_of(model) == 7 and len(steps("excess")) == 4, "the fourth round was tried and undone"
    above = calibration_loss(model, made.task, "cpu") - calibration_loss(TEACHER, made.task, "cpu")
    assert above == pytest.approx(losses[2]) and above <= limit
    assert LOG[-1] == ("quantize", 7) and not model.training
    assert len(steps("aware")) == 4, "any round may be the last"
    assert all(aware for *_, aware in steps("train"))


def test_where_no_round_is_within_the_model_stays_whole() -> None:
    model, _ = bounded(0.0)
    assert len(steps("train")) == 1 and steps("excess")[0][1] > 0
    assert width_of(model) == WIDTH and digest(model.state_dict()) == digest(net().state_dict())


def test_a_bound_needs_sound_calibration_data() -> None:
    for data, said in (
        ([], "calibration split gave no batch"),
        ([(rows() * float("nan"), torch.arange(4))], "calibration batch 1 holds NaN"),
        ([(rows() * float("inf"), torch.arange(4))], "the teacher's nan: stop_loss can tell nothing"),
    ):
        with pytest.raises(EvaluationError, match=said):
            bounded(0.1, calibration=data)


# --- with pruning and quantization as they are ------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["weight", "neuron"])
@pytest.mark.parametrize("changes", [{}, {"stop_loss": 1e9}, {"precision": "bf16", "patience": 2}])
def test_real_pruning_goes_in_rounds(structure: str, changes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = context()
    anatomy = survey(net(), made.example, ("pruning", "quantization"))
    rules = [{"target": "0", "structure": structure, "ratio": 0.66}]
    looped = {"epochs": 6, "rounds": 3, "learning_rate": 0.01, **changes}
    policy = SearchSpace.from_json({"pruning": rules, "distillation": looped}).policy()
    model: Any = compress(policy.effect(anatomy).parts, net(), made)
    weight = model[0].weight
    if structure == "neuron":
        assert width_of(model) == 8 and model[2].in_features == 8
    else:
        assert (weight == 0).float().mean().item() == pytest.approx(0.66, abs=0.01)
    before = net()[0].weight
    assert not any(torch.equal(row, other) for row in weight for other in before), "every row has learnt"


# --- identity and refusals --------------------------------------------------------------------------------------------

ANATOMY = Anatomy(
    model="Net",
    parameters=1,
    units={
        "pruning": (
            Unit(name="0", members=("0",), kind="linear", width=32, inputs=12, calls=1, block="0", structure="channel"),
        )
    },
)
PRUNED = [{"target": "*", "ratio": 0.5}]


def effect(**sections: Any) -> Effect:
    return SearchSpace.from_json(sections).policy().effect(ANATOMY)


def test_rounds_are_part_of_a_policy_only_beside_pruning() -> None:
    plain = effect(distillation={"epochs": 3})
    assert effect(distillation={"epochs": 3, "rounds": 3, "stop_loss": 0.1}) == plain
    assert effect(distillation={"epochs": 3, "rounds": 5}) == plain, "and nothing is wrong with them there"
    looped = effect(pruning=PRUNED, distillation={"epochs": 3, "rounds": 3, "stop_loss": 0.1})
    assert looped.parts["distillation"]["rounds"] == 3 and looped.parts["distillation"]["stop_loss"] == 0.1
    assert looped != effect(pruning=PRUNED, distillation={"epochs": 3})
    ratio_0 = [{"target": "*", "ratio": 0.0}]
    assert effect(pruning=ratio_0, distillation={"epochs": 3, "rounds": 3}) == plain
    assert effect(pruning=PRUNED, distillation={"epochs": 0, "rounds": 3}) == effect(pruning=PRUNED)


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(RefusedError, match="4 rounds of pruning need an epoch each, and there are 3 epochs"):
        effect(pruning=PRUNED, distillation={"epochs": 3, "rounds": 4})
    for epochs in (0, 3):
        with pytest.raises(RefusedError, match=r"student 0\.5 is a smaller network.*Use one of the two"):
            effect(pruning=PRUNED, distillation={"epochs": epochs, "student": 0.5})


# --- a smaller student, in the worker ---------------------------------------------------------------------------------


class Small(toys.Corners):
    """Corners with networks of any width."""

    def smaller(self, fraction: float, cache: Path) -> nn.Module:
        return Small(width=round(self.width * fraction)).build(cache)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    return made(Small(), tmp_path_factory.mktemp("study"))


def made(task: Any, folder: Path) -> Evaluator:
    (folder / "artifacts").mkdir()
    protocol = Protocol(**toys.QUICK)  # type: ignore[arg-type]
    found = Evaluator(
        Setup(task=task, workload=Workload(batch=64), protocol=protocol, device="cpu", folder=folder, cache=folder)
    )
    found.prepare()
    return found


def request(distillation: Mapping[str, Any]) -> Request:
    runtime = {"runtime": {"engine": "eager"}, "parallelism": {"threads": 1}}
    return Request(effect=Effect.of({"distillation": distillation, **runtime}))


def test_a_smaller_student_learns_from_the_full_model(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    seen: list[tuple[int, int]] = []
    apply = Distillation.apply.__func__  # type: ignore[attr-defined]

    def spy(cls: Any, effect: Any, model: Any, context: Context) -> Any:
        teacher: Any = context.teacher
        seen.append((model[0].out_channels, teacher[0].out_channels))
        return apply(cls, effect, model, context)

    monkeypatch.setattr(Distillation, "apply", classmethod(spy))
    found = evaluator.evaluate(request(training(student=0.25)))
    assert seen == [(4, 16)] and found.status == "measured" and found.quality.mean > 0.5
    full = evaluator.evaluate(request(training(epochs=1)))
    assert seen[1:] == [(16, 16)]
    assert found.work is not None and full.work is not None and found.work.weights < full.work.weights / 3


def test_training_elsewhere_gives_the_same_and_is_billed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu:0` is another name of the same device: all that changes is the road."""
    monkeypatch.undo()
    seen: list[tuple[str, Any]] = []
    apply = Distillation.apply.__func__  # type: ignore[attr-defined]

    def spy(cls: Any, effect: Any, model: Any, context: Context) -> Any:
        seen.append((context.device, context.teacher))
        return apply(cls, effect, model, context)

    monkeypatch.setattr(Distillation, "apply", classmethod(spy))
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    plain, elsewhere = made(Small(), here), made(Small(), there)
    elsewhere.setup = replace(elsewhere.setup, training_device="cpu:0")
    elsewhere._cache["meter elsewhere"] = ScriptedMeter(watts=1e6)
    one, other = (found.evaluate(request(training(epochs=1))) for found in (plain, elsewhere))
    assert one.quality == other.quality
    assert [device for device, _ in seen] == ["cpu", "cpu:0"]
    assert seen[0][1] is plain._start("baseline") and seen[1][1] is not elsewhere._start("baseline")
    assert other.spent_j > 1e6 * 0.5 * other.seconds["training"] > one.spent_j


def test_a_task_without_smaller_networks_refuses_a_student(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="cannot tell what a smaller network is"):
        made(toys.Corners(), tmp_path).evaluate(request(training(student=0.5)))


def test_two_of_four_does_not_go_with_a_loss_that_may_undo_it() -> None:
    """Rounds that end before the last would leave layers dense that the policy says are 2:4."""
    unit = Unit(name="a", members=("a",), kind="linear", width=16, inputs=16, calls=1, block="a", structure="n:m")
    anatomy = Anatomy(model="Net", parameters=1, units={"pruning": (unit,)})

    def effect(**training: Any) -> Effect:
        rule = {"target": "a", "structure": "n:m", "ratio": 0.5}
        space = SearchSpace.from_json({"pruning": [rule], "distillation": {"epochs": 2, **training}})
        return space.policy().effect(anatomy)

    for rounds in (1, 2):
        with pytest.raises(RefusedError, match="n:m for a beside stop_loss"):
            effect(rounds=rounds, stop_loss=0.1)
    assert effect(rounds=2).parts["distillation"]["rounds"] == 2
