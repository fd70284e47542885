"""Layers of the 2:4 pattern on NVIDIA's sparse matrix units, through cuSPARSELt.

Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autogreen.errors import EvaluationError, RefusedError
from autogreen.techniques import Unit
from autogreen.techniques.pruning.blocks import gone
from autogreen.techniques.pruning.masks import is_two_of_four

CAPABILITY = (8, 0)
SIZES = 16  # outputs and inputs of a layer in 16 bits are multiples of it
ROWS = 8  # of the other operand


class SemiSparse(nn.Module):
    """A linear layer, in float16 where it was trained so and else in bfloat16; casts stand at its edges.

    packed: what cuSPARSELt makes of the weight, values and places in one tensor: a plain buffer, so that archives hold
    it. Inputs [..., in] and outputs [..., out] are of the model's own type.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        kind = layer.weight.dtype if layer.weight.dtype == torch.float16 else torch.bfloat16
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("packed", torch._cslt_compress(layer.weight.detach().to(kind).contiguous()))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(kind))

    def forward(self, input: Tensor) -> Tensor:
        packed: Tensor = self.get_buffer("packed")
        rows = input.reshape(-1, self.in_features).to(packed.dtype)
        missing = -rows.shape[0] % ROWS
        padded = nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        y: Tensor = torch._cslt_sparse_mm(packed, padded.t(), bias=self.bias, transpose_result=True)  # type: ignore[arg-type]
        return y[: rows.shape[0]].reshape(*input.shape[:-1], self.out_features).to(input.dtype)


def misfit(unit: Unit, device: str) -> str | None:
    """Why the kernel cannot run this layer on this GPU, or None."""
    if not torch.backends.cusparselt.is_available():
        return "this build of torch has no cuSPARSELt, the zeros would save nothing"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return f"sparse matrix units came with compute capability 8.0, this GPU has {'.'.join(map(str, found))}"
    if unit.width % SIZES or unit.inputs % SIZES:
        return f"cuSPARSELt wants sizes that {SIZES} divides, the layer has {unit.inputs} x {unit.width}"
    return None


def check_size(name: str, layer: nn.Module) -> None:
    """Refuse a layer that pruning has narrowed to a size that the kernel does not take.

    Raises:
        RefusedError: so it is.
    """
    outputs, inputs = layer.get_parameter("weight").shape
    if outputs % SIZES or inputs % SIZES:
        raise RefusedError(
            f"pruning: {name!r} was narrowed to {inputs} x {outputs}; cuSPARSELt wants sizes that {SIZES} divides. "
            f"Give the layers around it round_to: {SIZES}."
        )


def to_sparse(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Replace the named linear layers, in place; those that went with a block are skipped.

    Raises:
        EvaluationError: a layer has lost the pattern.
    """
    for name in sorted(names):
        if gone(model, name):
            continue
        owner, _, key = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), "only linear layers are units of n:m"
        check_size(name, layer)
        if not is_two_of_four(layer.weight):
            raise EvaluationError(f"pruning: {name!r} is not 2:4: training lost its zeros.")
        model.get_submodule(owner)._modules[key] = SemiSparse(layer)
    return model
