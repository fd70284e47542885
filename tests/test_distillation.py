"""Distillation: the losses against their formulas in NumPy, the teacher's memory, hidden states, what is refused."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import Mlp, Residual, images, rows
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autogreen.anatomy import Anatomy
from autogreen.controls import controls_of
from autogreen.errors import ConfigError, EvaluationError, RefusedError
from autogreen.space import SearchSpace
from autogreen.tasks import digest
from autogreen.tasks.given import Given
from autogreen.techniques import Context, Target
from autogreen.techniques.distillation import Distillation, hidden_loss, soft_loss
from autogreen.techniques.quantization.schemes import missing_instructions
from autogreen.techniques.teacher import Teacher, matching_blocks, recorded
from autogreen.testing import scripted_evaluation
from autogreen.wording import words


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def hinton(student: Any, teacher: Any, temperature: float) -> float:
    """T² times the mean over examples of sum p log(p / q)."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return float(temperature**2 * (p * np.log(p / q)).sum(-1).mean())


class Counting(nn.Module):
    """A teacher that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.net(x)
        return y


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def hits(outputs: Tensor, batch: Any) -> Tensor:
    return (outputs.argmax(1) == batch[1]).float()


def context(teacher: nn.Module, loader: Any, **changes: Any) -> Context:
    task = Given(
        model=teacher,
        train=loader,
        validation=loader,
        test=loader,
        loss_fn=changes.pop("loss_fn", cross_entropy),
        score_fn=hits,
        outputs=changes.pop("outputs", "logits"),
    )
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "check": lambda: None, "cache": {}}
    return Context(task=task, example=((rows(),), {}), teacher=teacher, **{**settings, **changes})


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(rows(6, seed), torch.arange(6) % 5) for seed in range(count)]


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 7)])
def test_the_soft_loss_is_the_formula(temperature: float, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, *shape))
    found = soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature, "logits")
    assert float(found) == pytest.approx(hinton(student, teacher, temperature), rel=1e-9)


def test_the_soft_loss_of_equals_is_0_and_its_gradient_hardly_depends_on_the_temperature() -> None:
    teacher = torch.randn(8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(soft_loss(teacher, teacher, 3.0, "logits")) == pytest.approx(0, abs=1e-12)
    norms = []
    for temperature in (50.0, 100.0):  # Hinton 2015, section 2.1: T² makes up for the shrinking gradient
        student = torch.zeros(8, 10, dtype=torch.float64, requires_grad=True)
        soft_loss(student, teacher, temperature, "logits").backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_values_are_compared_by_squares() -> None:
    student, teacher = np.random.default_rng(1).normal(size=(2, 5, 3))
    found = soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), 4.0, "values")
    assert float(found) == pytest.approx(((student - teacher) ** 2).mean())


@pytest.mark.parametrize("rows_at_once", [1, 3, 4, 24])
def test_a_large_vocabulary_is_compared_in_pieces(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = soft_loss(whole, teacher, 2.0, "logits")
    loss.backward()
    monkeypatch.setattr("autogreen.techniques.distillation.CHUNK", 50 * rows_at_once)
    again = soft_loss(parts, teacher, 2.0, "logits")
    again.backward()
    assert again.item() == pytest.approx(loss.item(), rel=1e-12)
    assert again.item() == pytest.approx(hinton(student.numpy(), teacher.numpy(), 2.0), rel=1e-9)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)


def test_a_piecewise_comparison_keeps_no_whole_copy_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(chunk: int) -> int:
        """Numbers that the gradient keeps, beside the logits themselves."""
        monkeypatch.setattr("autogreen.techniques.distillation.CHUNK", chunk)
        student, teacher = torch.randn(32, 50, requires_grad=True), torch.randn(32, 50)
        known, saved = {student.untyped_storage().data_ptr(), teacher.untyped_storage().data_ptr()}, {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in known:
                saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            soft_loss(student, teacher, 2.0, "logits")
        return sum(saved.values())

    assert kept(32 * 50) >= 32 * 50 and kept(50) < 50


def test_a_teacher_in_16_bits_is_compared_in_the_students_precision() -> None:
    student, teacher = np.random.default_rng(3).normal(size=(2, 4, 5)).astype(np.float32)
    rounded = torch.from_numpy(teacher).bfloat16()
    for outputs in ("logits", "values"):
        found = soft_loss(torch.from_numpy(student), rounded, 2.0, outputs)
        wanted = soft_loss(torch.from_numpy(student), rounded.float(), 2.0, outputs)
        assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_the_hidden_loss_is_the_formula() -> None:
    """Relative squares, averaged over the blocks and the times each ran; the scale of a block says nothing."""
    random = np.random.default_rng(2)
    ours = {"a": [random.normal(size=(2, 3, 4, 4)), random.normal(size=(2, 5))], "b": [random.normal(size=(2, 7, 3))]}
    theirs = {name: [leaf + random.normal(size=leaf.shape) for leaf in found] for name, found in ours.items()}

    def tensors(states: Any, scale: float = 1.0) -> Any:
        return {name: [torch.from_numpy(scale * leaf) for leaf in found] for name, found in states.items()}

    pairs = [(s, t) for name in ours for s, t in zip(ours[name], theirs[name], strict=True)]
    wanted = np.mean([((s - t) ** 2).sum() / (t**2).sum() for s, t in pairs])
    for scale in (1.0, 1e3):
        assert float(hidden_loss(tensors(ours, scale), tensors(theirs, scale))) == pytest.approx(wanted, rel=1e-5)
    assert float(hidden_loss(tensors(ours), tensors(ours))) == 0
    nothing = {name: [0 * leaf for leaf in found] for name, found in ours.items()}
    assert float(hidden_loss(tensors(nothing), tensors(theirs))) == pytest.approx(1)
    assert float(hidden_loss(tensors(nothing), tensors(nothing))) == 0, "a block that answers 0 divides by nothing"


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_that_is_trained_on(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha · T² · KL + (1 − alpha) · hard, computed from the very first batch in NumPy."""
    seen: list[float] = []

    def spy(model: nn.Module, task: Any, loss: Any, **settings: Any) -> nn.Module:
        batch = task.train[0]
        seen.append(loss(task.forward(model, batch), batch).item())
        return model

    monkeypatch.setattr("autogreen.tasks.training.train", spy)
    torch.manual_seed(0)
    teacher, student = Mlp().eval(), Mlp().eval()
    effect = Distillation.effect((Distillation(epochs=1, alpha=alpha, temperature=3.0),), ())
    Distillation.apply(effect, student, context(teacher, batches()))
    inputs, labels = batches()[0]
    with torch.no_grad():
        ours, theirs = student(inputs).double().numpy(), teacher(inputs).double().numpy()
    hard = -np.log(softmax(ours)[np.arange(6), labels.numpy()]).mean()
    assert seen == [pytest.approx(alpha * hinton(ours, theirs, 3.0) + (1 - alpha) * hard, rel=1e-4)]


# --- the teacher ------------------------------------------------------------------------------------------------------


def run(teacher: nn.Module, loader: Any, **settings: Any) -> nn.Module:
    torch.manual_seed(7)
    changes = {key: settings.pop(key) for key in ("seed", "cache", "loss_fn", "outputs") if key in settings}
    effect = Distillation.effect((Distillation(**{"epochs": 1, "alpha": 0.5, **settings}),), ())
    return Distillation.apply(effect, Mlp(), context(teacher, loader, **changes))


def test_alpha_0_never_asks_the_teacher() -> None:
    teacher = Counting()
    plain = run(teacher, batches(), alpha=0.0, temperature=2.0)
    assert teacher.calls == 0
    assert digest(plain.state_dict()) == digest(run(Counting(), batches(), alpha=0.0, temperature=9.0).state_dict())


def test_the_teacher_is_asked_once_for_a_batch_even_over_trials() -> None:
    teacher, cache = Counting(), dict[str, Any]()
    run(teacher, batches(4), epochs=3, cache=cache)
    run(teacher, batches(4), epochs=2, temperature=1.0, cache=cache)
    assert teacher.calls == 4


def test_the_teacher_answers_the_batch_that_is_asked_whatever_the_order() -> None:
    torch.manual_seed(0)
    teacher = Counting().eval()
    loader = DataLoader(TensorDataset(rows(30), torch.arange(30) % 5), batch_size=6, shuffle=True)
    answers = Teacher(context(teacher, loader))
    for _ in range(3):
        for batch in loader:
            with torch.no_grad():
                assert torch.equal(answers.logits(batch), teacher.net(batch[0]))


def test_a_full_memory_still_answers_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "MAX_BYTES", 2 * 6 * 5 * 4)  # two batches of logits
    teacher, cache = Counting().eval(), dict[str, Any]()
    answers = Teacher(context(teacher, batches(), cache=cache))
    for _ in range(2):
        for batch in batches(4):
            with torch.no_grad():
                assert torch.equal(answers.logits(batch), teacher.net(batch[0]))
    assert len(cache["teacher"].logits) == 2 and teacher.calls == 4 + 2


def test_the_memory_counts_the_bytes_of_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (rows(2, 1), torch.arange(2)), (rows(20, 2), torch.arange(20) % 5)
    monkeypatch.setattr(Teacher, "MAX_BYTES", 22 * 5 * 4 - 1)
    for order, kept in (((large, small), 20), ((small, large), 2)):
        cache = dict[str, Any]()
        teacher = Teacher(context(Mlp().eval(), [], cache=cache))
        for batch in (*order, *order):
            teacher.logits(batch)
        held = cache["teacher"].logits.values()
        assert [len(logits) for logits in held] == [kept] and cache["teacher"].size_bytes == kept * 5 * 4


@pytest.mark.gpu
def test_a_gpus_memory_is_left_to_models() -> None:
    cache = dict[str, Any]()
    teacher = Mlp().eval()
    answers = Teacher(context(teacher, batches(), cache=cache, device="cuda:0"))
    batch = tuple(part.to("cuda:0") for part in batches()[0])
    assert answers.logits(batch).device.type == answers.logits(batch).device.type == "cuda"
    assert all(logits.device.type == "cpu" for logits in cache["teacher"].logits.values())


def test_the_teacher_is_in_inference_mode_and_learns_nothing() -> None:
    teacher = Counting().train()
    before = digest(teacher.state_dict())
    run(teacher, batches())
    assert not teacher.training and digest(teacher.state_dict()) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_students_come_nearer_to_their_teacher() -> None:
    torch.manual_seed(1)
    teacher = Mlp().eval()
    student = run(teacher, batches(8), epochs=60, alpha=1.0, learning_rate=0.01)
    torch.manual_seed(7)
    untaught = Mlp().eval()
    inputs = batches(1)[0][0]
    with torch.no_grad():
        theirs = teacher(inputs).numpy()
        near, far = (hinton(model(inputs).numpy(), theirs, 1.0) for model in (student, untaught))
    assert near < far / 5


def test_a_seed_gives_one_student() -> None:
    loader = DataLoader(TensorDataset(rows(30), torch.arange(30) % 5), batch_size=6, shuffle=True)
    teacher = Mlp()
    one, same, other = (digest(run(teacher, loader, seed=seed).state_dict()) for seed in (1, 1, 2))
    assert one == same != other


def test_outputs_that_are_values_are_distilled() -> None:
    def squares(outputs: Tensor, batch: Any) -> Tensor:
        return outputs.square().mean()

    run(Mlp(), batches(), outputs="values", loss_fn=squares)


# --- hidden states ----------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A residual block that returns a tuple, as decoders' do; its inner width is its own."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, inner), nn.Linear(inner, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.down(self.up(x).tanh()), None


class Skip(nn.Module):
    """What stays of a block that was removed."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


class Decoder(nn.Module):
    """[n, 12] -> logits [n, 5], past `layers.0` to `layers.2`; passes: how often the layers run."""

    def __init__(self, inner: int = 32, passes: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(Layer(inner) for _ in range(3))
        self.head = nn.Linear(12, 5)
        self.passes = passes

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        for _ in range(self.passes):
            for layer in self.layers:
                x, _nothing = layer(x)
        return self.head(x), 3


def first_cross_entropy(outputs: Any, batch: Any) -> Tensor:
    return cross_entropy(outputs[0], batch)


def test_blocks_match_by_name_and_shape() -> None:
    example = ((rows(),), {})
    layers = ("layers.0", "layers.1", "layers.2")
    assert matching_blocks(Decoder(inner=8), Decoder(inner=32), example) == layers, "pruned within"
    student = Decoder()
    student.layers[1] = Skip()
    assert matching_blocks(student, Decoder(), example) == layers, "a removed block hands its input on"
    narrow = Residual()
    narrow.inner = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    narrow.outer[0] = nn.Conv2d(8, 16, 3, padding=1)
    assert matching_blocks(narrow, Residual(), ((images(),), {})) == ("stem", "outer")
    plain = [nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)) for _ in range(2)]
    assert matching_blocks(*plain, example) == ("0",), "layers stand for blocks; the model's own outputs are none"


def test_no_block_that_matches_is_refused_before_training_with_the_shapes() -> None:
    teacher, student = Mlp(), Mlp()
    student.layers = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 7), nn.ReLU())
    student.head = nn.Linear(7, 5)
    asked: list[int] = []
    effect = Distillation.effect((Distillation(hidden=1.0),), ())
    with pytest.raises(RefusedError, match=r"layers \[\(4, 7\)\] for \[\(4, 24\)\].*Set hidden to 0"):
        Distillation.apply(effect, student, context(teacher, batches(), check=lambda: asked.append(1)))
    assert not asked
    with pytest.raises(RefusedError, match="they share no block"):
        matching_blocks(nn.Sequential(nn.Flatten()), Mlp(), ((rows(),), {}))


def test_states_are_kept_for_passes_that_learn_and_hooks_are_gone_afterwards() -> None:
    model = Decoder(passes=2)
    with recorded(model, ("layers.0",), learning=True) as states:
        with torch.no_grad():
            model(rows())
        assert not states
        model(rows())
    assert [leaf.requires_grad for leaf in states["layers.0"]] == [True, True]
    model(rows())
    assert len(states["layers.0"]) == 2


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_loss_with_hidden_states_that_is_trained_on(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice on the same batch: states of one step do not reach into the next."""
    seen: list[float] = []

    def spy(model: nn.Module, task: Any, loss: Any, **settings: Any) -> nn.Module:
        for _ in range(2):
            seen.append(loss(task.forward(model, task.train[0]), task.train[0]).item())
            with torch.no_grad():
                task.forward(model, task.train[1])  # as for a calibration loss
        return model

    monkeypatch.setattr("autogreen.tasks.training.train", spy)
    teacher, student = Decoder(passes=2), Decoder(inner=8, passes=2, seed=1)
    effect = Distillation.effect((Distillation(alpha=alpha, temperature=3.0, hidden=0.7),), ())
    Distillation.apply(effect, student, context(teacher, batches(), loss_fn=first_cross_entropy))
    inputs, labels = batches()[0]
    blocks, states, answers = ("layers.0", "layers.1", "layers.2"), [], []
    for model in (student, teacher):
        with torch.no_grad(), recorded(model, blocks, learning=False) as found:
            answers.append(model(inputs)[0].double().numpy())
        states.append(np.stack([leaf.double().numpy() for name in blocks for leaf in found[name]]))
    (ours, theirs), (mine, known) = answers, states
    hard = -np.log(softmax(ours)[np.arange(6), labels.numpy()]).mean()
    inner = np.mean([((s - t) ** 2).sum() / (t**2).sum() for s, t in zip(mine, known, strict=True)])
    wanted = (1 - alpha) * hard + (alpha * hinton(ours, theirs, 3.0) if alpha else 0) + 0.7 * inner
    assert len(mine) == 6 and seen == [pytest.approx(wanted, rel=1e-4)] * 2


def test_hidden_states_bring_a_student_nearer_to_its_teacher() -> None:
    """The same training with and without: far nearer within, on inputs that it never saw, and its answers taught too.

    Nearer answers are no law: on this small net the soft loss alone finds answers as near in another way."""
    teacher = Decoder().eval()
    loader, unseen = batches(8), rows(64, 99)
    blocks = ("layers.0", "layers.1", "layers.2")

    def distances(hidden: float, epochs: int = 30) -> tuple[float, float]:
        student: nn.Module = Decoder(inner=8, seed=1)
        settings = Distillation(epochs=epochs, alpha=1.0, temperature=1.0, hidden=hidden, learning_rate=0.01)
        given = context(teacher, loader, loss_fn=first_cross_entropy)
        student = Distillation.apply(Distillation.effect((settings,), ()), student, given)
        found = []
        for model in (student, teacher):
            with torch.no_grad(), recorded(model, blocks, learning=False) as states:
                found.append((model(unseen)[0].numpy(), states))
        (ours, inner), (theirs, known) = found
        return float(hidden_loss(inner, known)), hinton(ours, theirs, 1.0)

    (_, untaught), (apart, _), (within, near) = distances(0.0, epochs=0), distances(0.0), distances(3.0)
    assert within < apart / 4 and near < untaught / 10


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_hidden_states_go_with_early_stop_and_mixed_precision(precision: Any) -> None:
    settings = Distillation(epochs=3, hidden=1.0, patience=1, precision=precision, schedule="cosine")
    student = Decoder(inner=8, passes=2, seed=1)
    before = digest(student.state_dict())
    given = context(Decoder(passes=2), batches(), loss_fn=first_cross_entropy)
    found = Distillation.apply(Distillation.effect((settings,), ()), student, given)
    assert digest(found.state_dict()) != before
    assert not any(module._forward_hooks for model in (found, given.teacher) for module in model.modules())


def test_what_the_teacher_answers_does_not_depend_on_the_students_precision() -> None:
    teacher, cache = Mlp().eval(), dict[str, Any]()
    run(teacher, batches(), cache=cache, precision="bf16")
    kept = copy.deepcopy(cache["teacher"].logits)
    cache.clear()
    run(teacher, batches(), cache=cache)
    assert digest(kept) == digest(cache["teacher"].logits)


# --- what a setting does to a policy ----------------------------------------------------------------------------------

BARE = Anatomy(model="Net", parameters=1, units={})


def effect_of(**settings: Any) -> Any:
    return SearchSpace.from_json({"distillation": settings}).policy().effect(BARE).parts.get("distillation")


def test_settings_that_do_nothing_are_no_part_of_the_effect() -> None:
    plain = {"epochs": 1, "alpha": 0.5, "learning_rate": 0.001, "temperature": 4.0}
    assert effect_of() == plain
    untouched = {"hidden": 0, "precision": "float32", "schedule": "one_cycle", "patience": None, "student": 1}
    assert effect_of(**untouched, rounds=1, stop_loss=None) == plain
    changed = {"hidden": 0.5, "precision": "bf16", "schedule": "cosine", "patience": 2, "student": 0.5}
    assert effect_of(**changed) == {**plain, **changed}
    assert effect_of(epochs=0, alpha=0.3, hidden=1.0, student=0.5) == {"epochs": 0, "student": 0.5}
    assert effect_of(epochs=0, hidden=1.0) is None


def test_a_student_may_be_taken_as_the_task_trained_it() -> None:
    model = Mlp()
    assert Distillation.apply({"epochs": 0, "student": 0.5}, model, context(model, [])) is model


@pytest.mark.parametrize("precision, dtype", [("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_precision_without_instructions_is_refused_with_the_reason(
    precision: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    effect = Distillation.effect((Distillation(precision=precision),), ())
    target = Target(device="cpu", engine="eager")
    reason = missing_instructions(dtype, "cpu")
    assert Distillation.refusal(effect, (), target) == (f"precision '{precision}': {reason}" if reason else None)
    monkeypatch.setattr("autogreen.techniques.distillation.missing_instructions", lambda dtype, device: f"no {dtype}")
    assert Distillation.refusal(effect, (), target) == f"precision '{precision}': no {dtype}"
    assert Distillation.refusal(Distillation.effect((Distillation(),), ()), (), target) is None


HOLES = {
    "epochs": {"int": {"low": 1, "high": 4}},
    "temperature": {"float": {"low": 1, "high": 8, "log": True}},
    "alpha": {"float": {"low": 0, "high": 1}},
    "hidden": {"choice": [0.0, 0.1, 1.0]},
    "learning_rate": {"float": {"low": 1e-4, "high": 1e-2, "log": True}},
    "schedule": {"choice": ["one_cycle", "cosine", "constant"]},
    "precision": {"choice": ["float32", "bf16", "fp16"]},
    "patience": {"choice": [None, 1, 3]},
    "student": {"choice": [0.25, 0.5, 1.0]},
    "rounds": {"choice": [1, 2, 5]},
    "stop_loss": {"choice": [None, 0.01, 0.1]},
}


def test_every_setting_may_be_left_open() -> None:
    space = SearchSpace.from_json({"distillation": HOLES})
    assert {name.removeprefix("distillation.") for name in space.holes()} == set(HOLES)
    assert SearchSpace.from_json(space.to_json()) == space
    for level in (0.0, 0.5, 1.0):
        policy = space.at(level)
        assert policy.effect(BARE).parts["distillation"]["epochs"] >= 1
        assert SearchSpace.from_json(policy.to_json()).policy() == policy
    refused = {"bf16", "fp16"}

    def refusal(policy: Any) -> str | None:
        precision = policy.effect(BARE).parts.get("distillation", {}).get("precision")
        return "not here" if precision in refused else None

    left, told = space.restrict(refusal)
    assert left.options("distillation", "precision") == ("float32",) and len(told) == 2
    assert left.options("distillation", "rounds") == (1, 2, 5)


def test_the_shipped_spaces_load() -> None:
    paths = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))
    assert paths and all(SearchSpace.load(path).holes() for path in paths)


def test_the_control_is_the_full_model_that_learns_without_a_teacher() -> None:
    space = SearchSpace.from_json({"distillation": {**HOLES, "epochs": 2, "hidden": 1.0, "student": 0.5}})
    baseline = scripted_evaluation(0.0, 1.0, name="baseline")
    (name, request), *_ = controls_of(space, BARE, baseline, "cpu")
    tuned = request.effect.parts["distillation"]
    assert name == "fine-tuned, uncompressed" and tuned["alpha"] == 0 and tuned["epochs"] == 2
    assert not {"temperature", "hidden", "student", "rounds", "stop_loss"} & set(tuned)
    nothing = SearchSpace.from_json({"distillation": {"epochs": 0, "student": 0.5}})
    assert [name for name, _ in controls_of(nothing, BARE, baseline, "cpu")] == ["half width from scratch"]


def test_a_policy_is_told_in_words() -> None:
    for part, said in (
        ({"epochs": 3}, "distilled 3 epochs"),
        (
            {"epochs": 4, "rounds": 2, "stop_loss": 0.05},
            "distilled 4 epochs in 2 rounds as far as the loss stays within",
        ),
        ({"epochs": 1, "student": 0.5}, "student of 0.5 the width distilled 1 epoch"),
        ({"epochs": 0, "student": 0.5}, "student of 0.5 the width"),
    ):
        assert words({"distillation": part, "runtime": {"engine": "eager"}}).startswith(said)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number() -> None:
    def broken(outputs: Tensor, batch: Any) -> Tensor:
        return outputs.mean() * float("nan")

    with pytest.raises(EvaluationError, match="training loss is nan in epoch 1"):
        run(Mlp(), batches(), loss_fn=broken)


def test_a_teacher_that_returns_nan() -> None:
    class Nan(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(EvaluationError, match="training loss is nan"):
        run(Nan(), batches())


def test_settings_that_are_refused() -> None:
    nan, inf = float("nan"), float("inf")
    broken = {
        "epochs": (-1,),
        "alpha": (-0.1, 1.1, nan),
        "learning_rate": (0.0, nan, inf),
        "temperature": (-1.0, 0.0, nan),
        "hidden": (-1.0, nan, inf),
        "student": (0.0, 1.5, -1.0, nan),
        "stop_loss": (-0.1, nan, inf),
        "rounds": (0, -1),
        "patience": (0, -2),
    }
    for name, values in broken.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"{name} must be"):
                Distillation(**{name: value})  # type: ignore[arg-type]
    for name, value in (("precision", "fp8"), ("schedule", "linear"), ("rounds", 1.5), ("student", "half")):
        with pytest.raises(ConfigError, match=rf"distillation\.{name}"):
            SearchSpace.from_json({"distillation": {name: value}})
        with pytest.raises(ConfigError, match=rf"distillation\.{name}"):
            SearchSpace.from_json({"distillation": {name: {"choice": [value, 1]}}})


def test_no_epochs_is_no_effect() -> None:
    assert Distillation.effect((Distillation(epochs=0),), ()) is None and Distillation.effect((), ()) is None
    model = Mlp()
    assert Distillation.apply(None, model, context(model, [])) is model
