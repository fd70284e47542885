"""What a survey finds in a model, and which models it refuses."""

from typing import Any

import pytest
import torch
from nets import (
    Attention,
    Concatenated,
    Depthwise,
    Keywords,
    Mlp,
    Plain,
    Position,
    Residual,
    SharedConv,
    Wrapped,
    images,
    rows,
    settled,
)
from torch import Tensor, nn

from autogreen.anatomy import Anatomy, survey
from autogreen.errors import RefusedError
from autogreen.techniques import TECHNIQUES
from autogreen.techniques.trace import block_of

pytestmark = pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")


def found(model: nn.Module, *args: Any, **kwargs: Any) -> Anatomy:
    return survey(settled(model), (args, kwargs), tuple(TECHNIQUES))


def groups(anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
    grouped = (unit for unit in anatomy.units["pruning"] if unit.structure in ("channel", "neuron"))
    return {unit.name: unit.members for unit in grouped}


def layers(anatomy: Anatomy) -> list[str]:
    return [unit.name for unit in anatomy.units["quantization"]]


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_model_without_parameters() -> None:
    with pytest.raises(RefusedError, match="Flatten has no parameters"):
        found(nn.Flatten(), rows())


def test_tied_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    model[1].weight = model[0].weight
    with pytest.raises(RefusedError, match=r"ties '0\.weight' and '1\.weight'.*clone"):
        found(model, rows())


@pytest.mark.parametrize("section", ["pruning", "quantization"])
def test_weights_that_are_made_of_others_are_named(section: str) -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 4)))
    with pytest.raises(RefusedError, match="the weight of 2 is computed from other tensors"):
        survey(model, ((rows(),), {}), (section,))
    assert survey(model, ((rows(),), {}), ("distillation",)).units["distillation"] == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite(value: float) -> None:
    class Broken(Mlp):
        def forward(self, x: Tensor) -> Any:
            return {"good": super().forward(x), "bad": x * value}

    with pytest.raises(RefusedError, match="Broken returns NaN or infinity"):
        found(Broken(), rows())


# --- found ------------------------------------------------------------------------------------------------------------


def test_what_a_call_changes_is_named() -> None:
    from nets import Lm, tokens

    from autogreen.tasks.decoding import Decoding

    ids = tokens(2)
    steps = Decoding(Lm(layers=2).lm, ids)
    found = survey(steps, ((ids[:, -1:], torch.tensor(7)), {}), ())
    assert set(found.mutated) == {"keys_0", "keys_1", "values_0", "values_1"}
    assert Anatomy.from_json(found.to_json()) == found
    assert survey(Residual().train(), ((images(),), {}), ()).mutated == (), "statistics stay in inference"


def test_what_is_assigned_anew_is_named_and_what_is_made_once_is_not() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.5 * self.mean + 0.5 * self.layer(x).mean(0)
            return self.layer(x) - self.mean

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            if "mask" not in self._buffers:
                self.register_buffer("mask", torch.ones(4, 4).triu_(1))
            return self.layer(x) @ self.mask

    assert survey(Averaging(), ((rows(),), {}), ()).mutated == ("mean",)
    assert survey(Lazy(), ((rows(),), {}), ()).mutated == ()
    with torch.inference_mode():
        made = Plain()
    assert survey(made, ((images(),), {}), ()).mutated == ()


def test_a_plain_network() -> None:
    anatomy = found(Plain(), images())
    assert layers(anatomy) == ["features.0", "features.3", "head"]
    assert groups(anatomy) == {"features.0": ("features.0",), "features.3": ("features.3",)}  # the head stays
    assert [unit.width for unit in anatomy.units["pruning"] if unit.structure == "channel"] == [16, 24]
    assert [unit.kind for unit in anatomy.units["quantization"]] == ["conv", "conv", "linear"]
    assert anatomy.model == "Plain" and anatomy.parameters == sum(map(torch.numel, Plain().parameters()))
    assert anatomy.units["distillation"] == anatomy.units["parallelism"] == ()


def test_a_residual_connection_makes_a_group() -> None:
    assert groups(found(Residual(), images())) == {
        "stem.0": ("stem.0", "outer.0"),
        "inner.0": ("inner.0",),
    }


def test_a_depthwise_convolution_belongs_to_what_feeds_it() -> None:
    anatomy = found(Depthwise(), images())
    assert groups(anatomy) == {"expand.0": ("expand.0", "depth.0"), "project.0": ("project.0",)}


def test_concatenated_branches_are_groups_of_their_own() -> None:
    assert list(groups(found(Concatenated(), images()))) == ["left.0", "right.0", "joint.0"]


def test_a_layer_used_twice_is_told() -> None:
    anatomy = found(SharedConv(), images())
    assert {unit.name: unit.calls for unit in anatomy.units["quantization"]} == {"conv": 2, "head": 1}
    assert groups(anatomy) == {"conv": ("conv",)}


def test_a_layer_that_does_not_run_is_not_treatable() -> None:
    model = Plain()
    model.spare = nn.Linear(5, 5)
    anatomy = found(model, images())
    assert "spare" not in layers(anatomy) and "spare" not in groups(anatomy)


def test_linear_layers_fed_by_one_tensor_are_one_unit() -> None:
    units = found(Attention(), rows()).units["quantization"]
    assert [unit.members for unit in units] == [("q", "k", "v"), ("o",), ("head",)]


def test_dicts_and_dataclasses_in_and_out() -> None:
    asked = found(Keywords(), values=rows(), mask=torch.ones(4, 12))
    assert layers(asked) == ["body.layers.0", "body.layers.2", "body.head"]
    assert list(groups(asked)) == ["body.layers.0", "body.layers.2"]
    wrapped = found(Wrapped(), rows())
    assert list(groups(wrapped)) == ["body.layers.0"]  # the second layer's width is seen from outside


def test_layers_called_by_keyword_and_parameters_outside_layers() -> None:
    anatomy = found(Position(), images())
    assert layers(anatomy) == ["layers.conv", "head"] and groups(anatomy) == {"layers.conv": ("layers.conv",)}


def test_frozen_parameters_hide_nothing() -> None:
    model = Residual().requires_grad_(False)
    assert groups(found(model, images())) == groups(found(Residual(), images()))


def test_a_survey_leaves_the_model_as_it_was() -> None:
    model = settled(Residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    survey(model, ((images(),), {}), tuple(TECHNIQUES))
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "name, block",
    [
        ("blocks.0.conv1", "blocks.0"),
        ("model.layers.11.mlp.up", "model.layers.11"),
        ("stem.0", "stem"),
        ("head", "head"),
        ("encoder.body.q", "encoder.body"),
        ("a.1.b.2.c", "a.1.b.2"),
    ],
)
def test_blocks(name: str, block: str) -> None:
    assert block_of(name) == block
