"""Importance: scores equal their published formulas, and what they say of a loss is what leaving out one unit does."""

import copy
from typing import Any

import pytest
import torch
from nets import Keywords, Mlp, Residual, Stacked, images, rows, settled
from pruning_toys import Labelled, context, kept, labelled, prune, units
from torch import Tensor, nn

from autogreen.errors import RefusedError
from autogreen.techniques.pruning import Pruning
from autogreen.techniques.pruning.graph import groups
from autogreen.techniques.pruning.importance import Evidence
from autogreen.techniques.pruning.ranking import Ranked, removals
from autogreen.techniques.pruning.surgery import Removable


def group(model: nn.Module, example: Any, name: str) -> Removable:
    found = dict(groups(model, example, lambda layer: layer == name))[name].removable
    assert found is not None
    return found


def rank_correlation(ours: Tensor, theirs: Tensor) -> float:
    """Spearman's, without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (ours, theirs)])
    return float(torch.corrcoef(ranks)[0, 1])


def trained() -> tuple[nn.Module, Labelled]:
    """A network that has learnt a good part, and data on which its loss has a slope: at a minimum gradients vanish, and
    a first-order estimate with them."""
    torch.manual_seed(0)
    teacher, model = Mlp(), Mlp()
    inputs = torch.randn(512, 12)
    labels = (3 * teacher(inputs)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[:256]), labels[:256]).backward()
        optimizer.step()
    fresh = list(zip(inputs[256:].split(64), labels[256:].split(64), strict=True))
    return model.eval(), Labelled(fresh)


# --- of groups --------------------------------------------------------------------------------------------------------


def parts(model: nn.Module, channel: int) -> list[tuple[str, Any]]:
    """What goes with a channel of `Residual`'s stem: parameter and index, written out by hand."""
    return [
        ("stem.0.weight", channel),
        ("outer.0.weight", channel),
        ("inner.0.weight", (slice(None), channel)),
        ("head.weight", (slice(None), channel)),
        *((f"{norm}.{leaf}", channel) for norm in ("stem.1", "outer.1") for leaf in ("weight", "bias")),
    ]


def test_magnitude_is_the_l2_norm_of_all_weights_of_the_index() -> None:
    model, example = settled(Residual()), ((images(),), {})
    (found,) = Evidence(model, context(model, example)).removables([group(model, example, "stem.0")], "magnitude")
    for channel in range(16):
        weights = [
            model.get_parameter(name)[at].flatten() for name, at in parts(model, channel) if not name.endswith("bias")
        ]
        torch.testing.assert_close(found[channel], torch.cat(weights).norm())


def test_gradient_is_the_square_of_the_sum_of_gradient_times_weight() -> None:
    model, example = settled(Residual()), ((images(),), {})
    model.requires_grad_(False)  # a frozen model has gradients all the same
    task = labelled(images(8, seed=2), images(8, seed=3), images(8, seed=4))
    (found,) = Evidence(model, context(model, example, task)).removables([group(model, example, "stem.0")], "gradient")
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    twin = copy.deepcopy(model).requires_grad_(True)
    sum(task.loss(twin(given), (given, labels)) / 3 for given, labels in task.batches("calibration")).backward()
    for channel in range(16):
        pairs = [(twin.get_parameter(name).grad[at], twin.get_parameter(name)[at]) for name, at in parts(twin, channel)]
        total = sum((gradient * weight).sum() for gradient, weight in pairs)
        torch.testing.assert_close(found[channel], total.detach().square())


def test_activation_is_the_mean_of_what_is_read() -> None:
    model = Mlp().eval()
    example, task = ((rows(),), {}), labelled(rows(8, seed=2), rows(5, seed=3))
    (found,) = Evidence(model, context(model, example, task)).removables(
        [group(model, example, "layers.0")], "activation"
    )
    with torch.no_grad():
        hidden = torch.cat([model.layers[:2](given) for given, _ in task.batches("calibration")])  # after the ReLU
    torch.testing.assert_close(found, hidden.abs().mean(0))


def test_activation_of_channels_that_are_read_twice_and_flattened() -> None:
    model = settled(Residual())
    example, task = ((images(),), {}), labelled(images(8, seed=2))
    (found,) = Evidence(model, context(model, example, task)).removables(
        [group(model, example, "stem.0")], "activation"
    )
    with torch.no_grad():
        x = model.stem(task.batches("calibration")[0][0])
        pooled = (x + model.outer(model.inner(x))).relu().mean((2, 3))
    torch.testing.assert_close(found, (x.abs().mean((0, 2, 3)) + pooled.abs().mean(0)) / 2)


@pytest.mark.parametrize("layer", ["layers.0", "layers.2"])
def test_gradient_ranks_as_leaving_out_one_unit_after_the_other_does(layer: str) -> None:
    model, task = trained()
    example = ((rows(),), {})
    removable = group(model, example, layer)
    (found,) = Evidence(model, context(model, example, task)).removables([removable], "gradient")
    batches = task.batches("calibration")

    def loss(of: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.stack([task.loss(of(given), (given, labels)) for given, labels in batches]).mean()

    assert loss(model) < 1.2  # of log(5) = 1.61
    changes = []
    for unit in range(removable.width):
        without = copy.deepcopy(model)
        with torch.no_grad():
            without.get_parameter(f"{layer}.weight")[unit] = 0
            without.get_parameter(f"{layer}.bias")[unit] = 0
        changes.append((loss(without) - loss(model)).square())
    dead = torch.stack(changes) == 0  # never active: nothing to rank
    assert rank_correlation(found[~dead], torch.stack(changes)[~dead]) >= 0.8


@pytest.mark.parametrize("importance", ["gradient", "activation"])
def test_keyword_inputs(importance: str) -> None:
    model = Keywords().eval()
    given = {"values": rows(), "mask": torch.ones(4, 12)}
    task = labelled(given)
    task.loss = lambda outputs, batch: nn.functional.cross_entropy(outputs["logits"], batch[1])  # type: ignore[method-assign]
    rule = Pruning(target="*", structure="neuron", importance=importance, ratio=0.5)
    narrow, _ = prune(model, ((), given), rule, task=task)
    assert narrow.get_parameter("body.layers.0.weight").shape == (16, 12)


def test_the_weakest_by_the_named_importance_go() -> None:
    model = Mlp().eval()
    task, example = labelled(rows(16, seed=2)), ((rows(),), {})
    (scores,) = Evidence(model, context(model, example, task)).removables(
        [group(model, example, "layers.0")], "activation"
    )
    rule = Pruning(target="layers.0", structure="neuron", importance="activation", ratio=0.5)
    narrow, _ = prune(model, example, rule, task=task)
    stay = kept(model.layers[0].weight, narrow.get_parameter("layers.0.weight"))
    assert stay == scores.topk(16).indices.sort().values.tolist()


# --- of single weights and blocks -------------------------------------------------------------------------------------


def test_scores_of_single_weights() -> None:
    model = Mlp().eval()
    task, example = labelled(rows(16, seed=2), rows(16, seed=3)), ((rows(),), {})
    evidence = Evidence(model, context(model, example, task))
    weight = model.layers[2].weight.detach()
    torch.testing.assert_close(evidence.weights(["layers.2"], "magnitude")["layers.2"], weight.abs())
    with torch.no_grad():
        hidden = torch.cat([model.layers[:2](given) for given, _ in task.batches("calibration")])
    wanda = weight.abs() * hidden.square().sum(0).sqrt()
    torch.testing.assert_close(evidence.weights(["layers.2"], "activation")["layers.2"], wanda)
    twin = copy.deepcopy(model)
    sum(task.loss(twin(given), (given, labels)) / 2 for given, labels in task.batches("calibration")).backward()
    taylor = (twin.layers[2].weight.grad * weight).abs()
    torch.testing.assert_close(evidence.weights(["layers.2"], "gradient")["layers.2"], taylor)


def test_the_norms_of_a_convolution_are_of_the_channels_that_its_group_reads() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(6 * 36, 5))
    task = labelled(torch.randn(4, 4, 8, 8))
    evidence = Evidence(model, context(model, ((task.batches("calibration")[0][0],), {}), task))
    found = evidence.weights(["0"], "activation")["0"]
    norms = task.batches("calibration")[0][0].square().sum((0, 2, 3)).sqrt()
    weight = model[0].weight.detach().abs()
    torch.testing.assert_close(found[:3], weight[:3] * norms[:2].reshape(1, 2, 1, 1))
    torch.testing.assert_close(found[3:], weight[3:] * norms[2:].reshape(1, 2, 1, 1))


def test_scores_of_blocks() -> None:
    model, example = settled(Stacked()), ((images(),), {})
    task = labelled(images(6, seed=2), images(6, seed=3))
    evidence = Evidence(model, context(model, example, task))
    names = [f"blocks.{n}" for n in range(4)]
    influence, magnitude = evidence.blocks(names, "activation"), evidence.blocks(names, "magnitude")
    gradient = evidence.blocks(names, "gradient")
    twin = copy.deepcopy(model)
    sum(task.loss(twin(given), (given, labels)) / 2 for given, labels in task.batches("calibration")).backward()
    with torch.no_grad():
        x = model.stem(torch.cat([given for given, _ in task.batches("calibration")]))
        for n, block in enumerate(model.blocks):
            y = block(x)
            cosines = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-8)
            torch.testing.assert_close(influence[n], 1 - cosines.mean(), rtol=1e-4, atol=1e-5)
            weights = [part.flatten() for name, part in block.named_parameters() if not name.endswith("bias")]
            torch.testing.assert_close(magnitude[n], torch.cat(weights).norm())
            x = y
    for n, block in enumerate(twin.blocks):
        total = sum((part.grad * part).sum() for part in block.parameters())
        torch.testing.assert_close(gradient[n], total.detach().square(), rtol=1e-4, atol=1e-9)


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranked(scores: list[float], step: int = 1, of: int | None = None) -> Ranked:
    return Ranked(scores=(torch.tensor(scores),), of=of or len(scores), step=step)


def test_together_the_weakest_of_all_go_whatever_the_scale_of_a_layer() -> None:
    flat, steep = ranked([1.0, 1.0, 1.0, 1.0]), ranked([1e-3, 2e-3, 8e-2, 9e-2])
    assert removals([flat, steep], 0.25) == [0, 2]
    assert removals([flat, steep], 0.0) == [0, 0]


def test_together_everybody_keeps_at_least_one_step() -> None:
    weak, strong = ranked([0.1] * 8 + [9.0] * 8, step=8), ranked([1.0] * 16, step=8)
    assert removals([weak, strong], 0.97) == [8, 8]
    assert removals([ranked([1.0] * 6, step=8), strong], 0.9) == [0, 8]  # narrower than a step: left alone


def test_together_the_share_of_the_sum_is_the_ratio_also_in_rounds() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = [torch.rand(width, generator=generator).tolist() for width in (64, 32, 96)]
    for ratio in (0.1, 0.25, 0.5, 0.75):
        for step in (1, 8):
            gone = removals([ranked(score, step) for score in scores], ratio)
            assert abs(sum(gone) - ratio * 192) <= step / 2
            assert all((len(score) - lost) % step == 0 for score, lost in zip(scores, gone, strict=True))
    halfway = removals([ranked(score) for score in scores], 0.25)
    left = [sorted(score)[lost:] for score, lost in zip(scores, halfway, strict=True)]
    more = removals([ranked(score, of=len(full)) for score, full in zip(left, scores, strict=True)], 0.5)
    assert sum(halfway) + sum(more) == 96


def test_a_global_policy_on_a_model_in_rounds() -> None:
    torch.manual_seed(0)
    model, example = settled(Residual()), ((images(),), {})
    rule = Pruning(target="*", ranking="global", ratio=0.4)
    found = units(model, example)
    effect = Pruning.effect((rule,), found)
    once = Pruning.apply(effect, copy.deepcopy(model), context(model, example))
    widths = [once.get_parameter(f"{name}.weight").shape[0] for name in ("stem.0", "inner.0")]
    assert sum(widths) == 24 and all(width % 8 == 0 for width in widths)  # of 40, 16 are gone
    twice = Pruning.apply(Pruning.part(effect, 0.5), copy.deepcopy(model), context(model, example))
    assert sum(twice.get_parameter(f"{name}.weight").shape[0] for name in ("stem.0", "inner.0")) == 32
    twice = Pruning.apply(effect, twice, context(model, example))
    assert sum(twice.get_parameter(f"{name}.weight").shape[0] for name in ("stem.0", "inner.0")) == 24
    assert twice(images()).shape == (4, 5)


def test_rounds_end_at_the_widths_of_the_whole() -> None:
    model, example = settled(Residual()), ((images(),), {})
    effect = Pruning.effect((Pruning(target="*", ratio=0.5, round_to=4),), units(model, example))
    narrow = copy.deepcopy(model)
    for share in (0.4, 0.7, 1.0, 1.0):
        narrow = Pruning.apply(Pruning.part(effect, share), narrow, context(model, example))
    assert narrow.get_parameter("inner.0.weight").shape[:2] == (12, 8)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["gradient", "activation"])
def test_calibration_data_with_nan_is_refused(importance: str) -> None:
    model, bad = Mlp().eval(), rows(4, seed=2)
    bad[2, 3] = float("nan")
    rule = Pruning(target="*", structure="neuron", importance=importance, ratio=0.5)
    with pytest.raises(RefusedError, match="calibration batch 2 holds NaN"):
        prune(model, ((rows(),), {}), rule, task=labelled(rows(), bad))
    with pytest.raises(RefusedError, match="calibration split gave no batch"):
        prune(model, ((rows(),), {}), rule, task=labelled())


def test_scores_that_are_no_numbers_are_refused_by_name() -> None:
    model = Mlp().eval()
    example = ((rows(),), {})
    removable = group(model, example, "layers.0")
    with torch.no_grad():
        model.layers[0].weight[3, 2] = float("nan")
    with pytest.raises(RefusedError, match=r"scores of 'layers\.0' are NaN"):
        Evidence(model, context(model, example)).removables([removable], "magnitude")
