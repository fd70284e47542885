"""Distillation: the loss against its formula in NumPy, the teacher's memory, and what is refused."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nets import Mlp, rows
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autogreen.errors import ConfigError, EvaluationError
from autogreen.tasks import digest
from autogreen.tasks.given import Given
from autogreen.techniques import Context
from autogreen.techniques.distillation import Distillation, soft_loss
from autogreen.techniques.teacher import Teacher


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
    for settings in ({"alpha": -0.1}, {"alpha": float("nan")}, {"learning_rate": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Distillation(**settings)  # type: ignore[arg-type]


def test_no_epochs_is_no_effect() -> None:
    assert Distillation.effect((Distillation(epochs=0),), ()) is None and Distillation.effect((), ()) is None
    model = Mlp()
    assert Distillation.apply(None, model, context(model, [])) is model
