"""The training loop: schedules by their formulas, mixed precision, early stop, and what ends a training."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nets import Mlp, Residual, images, rows
from torch import Tensor, nn

from autogreen.errors import EvaluationError
from autogreen.tasks import digest
from autogreen.tasks.given import Given
from autogreen.tasks.training import MAX_SKIPPED, _rate, calibration_loss, train


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def hits(outputs: Tensor, batch: Any) -> Tensor:
    return (outputs.argmax(1) == batch[1]).float()


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(rows(6, seed), torch.arange(6) % 5) for seed in range(count)]


def task_of(train: Any = None, calibration: Any = None, loss: Any = cross_entropy) -> Given:
    loader = batches() if train is None else train
    given = {"train": loader, "validation": loader, "test": loader, "calibration": calibration}
    return Given(model=Mlp(), loss_fn=loss, score_fn=hits, **given)


def trained(model: nn.Module, task: Any = None, **changes: Any) -> nn.Module:
    task = task or task_of()
    settings = {"epochs": 2, "learning_rate": 0.01, "seed": 0, "device": "cpu", **changes}
    return train(model, task, settings.pop("loss", task.loss), **settings)


def mlp(seed: int = 0) -> Mlp:
    torch.manual_seed(seed)
    return Mlp()


# --- schedules --------------------------------------------------------------------------------------------------------


def rates(schedule: Any, steps: int, peak: float = 0.5) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=peak)
    rate = _rate(schedule, optimizer, peak, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rate.step()
    return found


@pytest.mark.parametrize("steps", [2, 3, 10, 57])
def test_the_cosine_follows_a_linear_warm_up(steps: int) -> None:
    warm = max(1, round(steps / 10))
    after = np.arange(steps - warm)
    wanted = [0.5 * (step + 1) / (warm + 1) for step in range(warm)]
    wanted += list(0.25 * (1 + np.cos(np.pi * after / (steps - warm))))
    assert rates("cosine", steps) == pytest.approx(wanted)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    library = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warm)
    for found in rates("cosine", steps)[warm:]:
        assert found == pytest.approx(library.get_last_lr()[0])
        optimizer.step()
        library.step()


def test_a_constant_rate_and_one_cycle() -> None:
    assert rates("constant", 7) == [0.5] * 7
    cycle = rates("one_cycle", 20)
    assert max(cycle) == pytest.approx(0.5, rel=0.05) and cycle[0] < 0.05 and cycle[-1] < 0.02
    top = cycle.index(max(cycle))
    assert cycle[: top + 1] == sorted(cycle[: top + 1]) and cycle[top:] == sorted(cycle[top:], reverse=True)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_schedule_trains_any_number_of_steps_and_repeats_itself(schedule: Any, count: int) -> None:
    task = task_of(batches(count))
    one, same = (digest(trained(mlp(), task, schedule=schedule, epochs=1).state_dict()) for _ in range(2))
    assert one == same != digest(mlp().state_dict())


# --- data order -------------------------------------------------------------------------------------------------------


class Noting(Given):
    """Notes the epochs that it is asked for."""

    def batches(self, split: Any, epoch: int = 0) -> Any:
        self.asked.append((split, epoch))  # type: ignore[attr-defined]
        return super().batches(split, epoch)


def test_a_training_in_parts_goes_on_with_its_epochs_and_shuffles_anew() -> None:
    order: list[Any] = []

    class Shuffled(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            places = torch.randperm(len(self)).tolist()
            order.append(places)
            return (self[place] for place in places)

    loader = Shuffled(batches(6))
    task = Noting(model=Mlp(), train=loader, validation=[], test=[], loss_fn=cross_entropy, score_fn=hits)
    object.__setattr__(task, "asked", [])
    trained(mlp(), task, first_epoch=3)
    assert {epoch for _, epoch in task.asked} == {3, 4}  # type: ignore[attr-defined]
    for first in (0, 3):
        trained(mlp(), task, first_epoch=first, epochs=1)
    assert order[-1] == order[0] != order[-2]


# --- 16 bits ----------------------------------------------------------------------------------------------------------


class Watching(nn.Module):
    """Tells in which data type its product came out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if torch.is_grad_enabled():
            self.seen.add(y.dtype)
        return y


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", list(DTYPES))
def test_products_take_the_precision_and_the_loss_sees_float32(precision: Any) -> None:
    seen = set()

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.add(outputs.dtype)
        return cross_entropy(outputs, batch)

    model = Watching()
    trained(model, loss=loss, precision=precision)
    assert model.seen == {DTYPES[precision]} and seen == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(rows()).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_as_float32_does(precision: Any) -> None:
    task = task_of()

    def reached(kind: Any) -> float:
        return calibration_loss(trained(mlp(), task, epochs=15, precision=kind), task, "cpu")

    start, exact, mixed = calibration_loss(mlp(), task, "cpu"), reached("float32"), reached(precision)
    assert exact < start / 2 and mixed == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_stored_in_16_bits_is_trained_in_float32(dtype: torch.dtype) -> None:
    """Bit for bit what the float32 model with the same weights learns, cast at the end: small steps are not lost."""
    half, full = mlp().to(dtype), mlp().to(dtype).float()
    before = dict(half.named_parameters())
    trained(half, learning_rate=1e-4)
    trained(full, learning_rate=1e-4)
    assert all(parameter is before[name] and parameter.dtype == dtype for name, parameter in half.named_parameters())
    assert digest(half.state_dict()) == digest(full.to(dtype).state_dict())
    assert half(rows().to(dtype)).dtype == dtype, "what raised its inputs is gone"


def test_a_model_stored_in_16_bits_may_be_fed_in_16_bits() -> None:
    class Bfloat16(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    task = Given(
        model=Mlp(),
        train=batches(),
        validation=[],
        test=[],
        loss_fn=cross_entropy,
        score_fn=hits,
        inputs_fn=lambda batch: batch[0].bfloat16(),
    )
    for precision in ("float32", "bf16"):
        model = Bfloat16().to(torch.bfloat16)
        before = digest(model.state_dict())
        trained(model, task, precision=precision)
        assert digest(model.state_dict()) != before


def test_single_weights_and_buffers_keep_their_own_precision() -> None:
    model = mlp()
    model.head.to(torch.bfloat16)
    model.register_buffer("table", torch.ones(3, dtype=torch.float16))
    model.register_buffer("number", torch.tensor(3))
    with_head = nn.Sequential(model)
    trained(with_head, precision="bf16")
    assert model.head.weight.dtype == torch.bfloat16 and model.layers[0].weight.dtype == torch.float32
    assert model.table.dtype == torch.float16 and model.number.dtype == torch.int64


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("precision", list(DTYPES))
def test_hooks_that_keep_pruned_weights_at_zero_survive(precision: Any, register: str) -> None:
    model = mlp().to(torch.bfloat16)
    weight = model.layers[0].weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5

    def gradient(grad: Tensor) -> Tensor:
        return grad * mask

    def accumulated(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(mask)

    model(rows().bfloat16()).sum().backward()  # the graph knows the weight as bfloat16
    model.zero_grad()
    with torch.no_grad():
        weight.mul_(mask)
    getattr(weight, register)(gradient if register == "register_hook" else accumulated)
    before = weight.detach().clone()
    trained(model, precision=precision)
    assert (weight[~mask] == 0).all() and not torch.equal(weight, before)


# --- fp16 and its overflows -------------------------------------------------------------------------------------------


def overflowing(at: Callable[[int], bool], by: float = 1e35) -> tuple[Any, list[int]]:
    """A loss whose gradient overflows at the given steps, once scaled by 2^16 or more."""
    step = [0]

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        step[0] += 1
        value = cross_entropy(outputs, batch)
        return value * by if at(step[0]) else value

    return loss, step


@pytest.mark.parametrize("by", [1e35, float("inf"), float("nan")])
def test_a_step_that_overflows_is_left_out(by: float) -> None:
    data = batches(4)
    loss, step = overflowing(lambda number: number == 1, by)
    found = trained(mlp(), task_of(data), loss=loss, epochs=1, schedule="constant", precision="fp16")
    assert step == [4]
    wanted = trained(mlp(), task_of(data[1:]), epochs=1, schedule="constant", precision="fp16")
    for ours, theirs in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # another scale rounds differently


def test_overflows_that_do_not_end_are_an_error() -> None:
    loss, step = overflowing(lambda number: number > 2, float("inf"))
    with pytest.raises(EvaluationError, match=r"21 steps in a row overflowed in fp16, up to epoch 6.*bf16 or float32"):
        trained(mlp(), loss=loss, epochs=10, precision="fp16")
    assert step == [2 + MAX_SKIPPED + 1]
    loss, _ = overflowing(lambda number: True, float("nan"))
    with pytest.raises(EvaluationError, match="all 8 steps overflowed in fp16"):
        trained(mlp(), loss=loss, precision="fp16")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_without_a_scale_a_loss_that_is_not_finite_ends_the_training(precision: Any) -> None:
    loss, step = overflowing(lambda number: number == 2, float("inf"))
    with pytest.raises(EvaluationError, match="training loss is inf in epoch 1; lower learning_rate"):
        trained(mlp(), loss=loss, precision=precision)
    assert step == [2]


# --- early stop -------------------------------------------------------------------------------------------------------


class Walker(nn.Module):
    """One weight, which the training loss pushes up by the learning rate at every step; a buffer counts the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return self.weight * torch.ones_like(x)


def walk(task: Given, **changes: Any) -> Walker:
    model = Walker()
    settings = {"epochs": 20, "learning_rate": 0.1, "schedule": "constant", "loss": lambda out, batch: -out.mean()}
    trained(model, task, **{**settings, **changes})
    return model


def distance(place: float) -> Any:
    return lambda outputs, batch: (outputs - place).square().mean()


@pytest.mark.parametrize("patience, steps_taken", [(1, 4), (3, 6), (50, 20)])
def test_the_best_epochs_weights_are_kept(patience: int, steps_taken: int) -> None:
    """One step of about 0.1 an epoch: after the third one 0.3 is passed."""
    epochs: list[int] = []
    task = task_of([(rows(),)], [(rows(),)], distance(0.3))
    loss = lambda out, batch: (epochs.append(1), -out.mean())[1]  # noqa: E731
    model = walk(task, patience=patience, loss=loss)
    assert len(epochs) == steps_taken
    assert model.weight.item() == pytest.approx(0.3, abs=0.01) and model.steps.item() == 3
    assert not model.training


def test_without_patience_the_last_weights_are_kept_and_calibration_is_not_asked() -> None:
    task = task_of([(rows(),)], [(rows() * float("nan"),)], distance(0.3))
    assert walk(task).weight.item() == pytest.approx(2.0, abs=0.05)


def test_a_loss_that_goes_on_falling_never_stops() -> None:
    task = task_of([(rows(),)], [(rows(),)], distance(9.0))
    assert walk(task, patience=1).steps.item() == 20


def test_the_calibration_loss_is_the_mean_over_examples_in_inference_mode() -> None:
    data = [(rows(6, 1), torch.arange(6) % 5), (rows(2, 2), torch.arange(2))]
    task, model = task_of(calibration=data), nn.Sequential(mlp(), nn.Dropout(0.9)).train()
    with torch.no_grad():
        each = [nn.functional.cross_entropy(model[0](x), y, reduction="none") for x, y in data]
    assert calibration_loss(model, task, "cpu") == pytest.approx(torch.cat(each).mean().item())


def test_calibration_data_is_looked_at_before_anything_is_trained() -> None:
    good, bad = (rows(), torch.arange(4)), (rows().masked_fill(rows() > 1, float("nan")), torch.arange(4))
    asked: list[int] = []
    for data, said in (([], "gave no batch"), ([good, bad], "calibration batch 2 holds NaN")):
        with pytest.raises(EvaluationError, match=said):
            trained(mlp(), task_of(calibration=data), patience=1, check=lambda: asked.append(1))
    assert not asked
    with pytest.raises(EvaluationError, match="gave no batch"):
        calibration_loss(mlp(), task_of(calibration=[]), "cpu")


def test_a_calibration_loss_that_is_not_a_number() -> None:
    task = task_of(loss=lambda outputs, batch: outputs.mean() / 0)
    with pytest.raises(EvaluationError, match=r"calibration loss is -?(inf|nan) after epoch 1"):
        trained(mlp(), task, loss=cross_entropy, patience=1)


def test_time_is_asked_for_during_calibration_too() -> None:
    asked: list[int] = []
    trained(mlp(), task_of(batches(3), batches(2)), epochs=2, patience=2, check=lambda: asked.append(1))
    assert len(asked) == 2 * (3 + 2)


# --- layout, gradients ------------------------------------------------------------------------------------------------


def test_only_weights_of_four_dimensions_are_laid_out_for_convolutions() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.flat = nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.head = nn.Linear(4, 5)
            self.strides: set[bool] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.strides.add(self.flat.weight.is_contiguous(memory_format=torch.channels_last))
            return self.head(self.flat(self.conv(x).mean(2)).mean((2, 3)))

    data = [(torch.randn(4, 1, 5, 6, 6), torch.arange(4))]
    model = Volume()
    trained(model, task_of(data))
    assert model.strides == {True} and all(parameter.is_contiguous() for parameter in model.parameters())


class Narrow(nn.Module):
    """A strided convolution of one pixel, of a few channels, as a pruned shortcut is. strides: of its weight while it
    was trained, and of the gradients that came back."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.stem, self.short = nn.Conv2d(3, inside, 3, padding=1), nn.Conv2d(inside, 32, 1, stride=2, bias=False)
        self.head = nn.Linear(32, 5)
        self.last: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.last.add(self.stem.weight.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.short(self.stem(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("inside", [1, 4, 7, 8, 15])
def test_narrow_strided_convolutions_are_not_trained_in_channels_last(inside: int) -> None:
    """oneDNN writes past a buffer there. Their gradients are those of float64, which it does not compute."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(64, 3, 16, 16, generator=generator), torch.arange(64) % 5) for _ in range(4)]
    model = Narrow(inside)
    reference = copy.deepcopy(model).double()
    for images_, labels in data:
        cross_entropy(reference(images_.double()), (images_, labels)).backward()
    seen: list[Tensor] = []
    model.short.weight.register_hook(lambda gradient: seen.append(gradient.detach().clone()))
    trained(model, task_of(data), epochs=1, learning_rate=1e-9, schedule="constant")
    assert model.last == {False}
    expected = reference.short.weight.grad
    assert expected is not None and torch.allclose(sum(seen).double(), expected, rtol=1e-3, atol=1e-6)  # type: ignore[union-attr]
    wide = Narrow(16)
    trained(wide, task_of(data), epochs=1)
    assert wide.last == {True}


def test_a_trained_model_holds_no_gradients() -> None:
    torch.manual_seed(0)
    data = [(images(), torch.arange(4))]
    assert all(parameter.grad is None for parameter in trained(Residual(), task_of(data)).parameters())


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", list(DTYPES))
def test_a_gpu_learns_in_every_precision(precision: Any) -> None:
    task = task_of(calibration=batches(2))
    model = trained(mlp(), task, epochs=15, precision=precision, device="cuda:0", patience=15)
    assert next(model.parameters()).device.type == "cuda" and next(model.parameters()).dtype == torch.float32
    start = calibration_loss(mlp().to("cuda:0"), task, "cuda:0")
    assert calibration_loss(model, task, "cuda:0") < start / 2


@pytest.mark.gpu
def test_a_gpu_leaves_out_steps_that_overflow() -> None:
    loss, _ = overflowing(lambda number: number == 1)
    model = trained(mlp(), loss=loss, epochs=1, precision="fp16", device="cuda:0")
    assert all(math.isfinite(parameter.sum().item()) for parameter in model.parameters())
    loss, _ = overflowing(lambda number: True, float("inf"))
    with pytest.raises(EvaluationError, match="21 steps in a row"):
        trained(mlp(), loss=loss, epochs=10, precision="fp16", device="cuda:0")


@pytest.mark.gpu
def test_a_gpu_keeps_pruned_weights_at_zero_whatever_the_precision() -> None:
    model = mlp().to(torch.bfloat16)
    weight = model.layers[0].weight
    mask = (torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5).to("cuda:0")
    with torch.no_grad():
        weight.mul_(mask.cpu())
    weight.register_hook(lambda grad: grad * mask)
    for precision in DTYPES:
        trained(model, precision=precision, device="cuda:0")
        assert model.layers[0].weight is weight and (weight[~mask] == 0).all()
