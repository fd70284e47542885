"""The data type of what no scheme names: attention, normalisation, activations on their way, layers left as trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autogreen.engines import Precision as EnginePrecision
from autogreen.errors import RefusedError
from autogreen.techniques import Context, Target, Technique, Unit
from autogreen.techniques.quantization.schemes import DTYPES, TORCHAO, missing_instructions, missing_kernel

if TYPE_CHECKING:
    from torch import nn

DType = Literal["none", "bf16", "fp16"]


def rest(parts: Mapping[str, Any]) -> EnginePrecision | None:
    """The data type that an effect gives to what it names no scheme for; None where that stays as trained."""
    return DTYPES.get(parts.get("precision", {}).get("dtype"))


@dataclass(frozen=True, kw_only=True)
class Precision(Technique):
    """dtype: of the whole model but the layers that `quantization` gives a scheme; `none` leaves it as trained.

    A layer's scheme ends at its edges: between int8 layers everything else stays as it was trained, attention above
    all. This casts the model before it is lowered, as `model.to(torch.bfloat16)` does; inputs and outputs keep their
    type. Training stays in the model's own type.

    Source: int8-mixed-bf16 of PyTorch 2 Export quantization (docs.pytorch.org/ao); Kalamkar et al., A Study of BFLOAT16
    for Deep Learning Training, 2019.
    """

    ordered: ClassVar[bool] = False

    dtype: DType = "none"

    @classmethod
    def effect(cls, settings: Sequence["Precision"], units: Sequence[Unit]) -> dict[str, str]:
        dtype = settings[0].dtype if settings else "none"
        return {} if dtype == "none" else {"dtype": dtype}

    @classmethod
    def refusal(cls, effect: Mapping[str, str], units: Sequence[Unit], target: Target) -> str | None:
        if not effect:
            return None
        if target.engine == TORCHAO:  # whose checkpoints have one type, though no layer of another
            return missing_instructions(DTYPES[effect["dtype"]], target.device)
        return missing_kernel(effect["dtype"], device=target.device, engine=target.engine)

    @classmethod
    def lower(cls, effect: Mapping[str, str], model: "nn.Module", context: Context) -> "nn.Module":
        """Raises:
        RefusedError: the model's own code does not run in that type.
        """
        if not effect:
            return model
        import torch

        from autogreen.techniques.quantization.folding import fold_batch_norm
        from autogreen.techniques.trace import call_once

        fold_batch_norm(model, context.example)  # its statistics want more than 8 bits
        _cast(model, getattr(torch, DTYPES[effect["dtype"]]))
        try:
            call_once(model, context.example)
        except Exception as error:  # the model's own code may raise anything
            raise RefusedError(
                f"precision: {type(model).__name__} does not run in {effect['dtype']} ({type(error).__name__}: "
                f"{(str(error).strip().splitlines() or [''])[0]}). Where its forward makes tensors of its own (masks, "
                "positions), make them in the type of its weights; or leave precision out."
            ) from error
        return model


def _cast(model: "nn.Module", dtype: Any) -> None:
    """In place, under the same names of submodules; what goes in is cast, and what comes out is cast back."""
    from torch.utils._pytree import tree_map

    from autogreen.tasks import plain

    original = type(model)
    own = next(leaf.dtype for leaf in model.parameters() if leaf.is_floating_point())

    def to(kind: Any) -> Any:
        return lambda leaf: leaf.to(kind) if hasattr(leaf, "is_floating_point") and leaf.is_floating_point() else leaf

    def forward(self: "nn.Module", *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(to(dtype), (args, kwargs))
        return tree_map(to(own), plain(original.forward(self, *args, **kwargs)))

    model.to(dtype)
    model.__class__ = type(original.__name__, (original,), {"forward": forward})
