"""Anatomy: what of a model each technique can treat; plain data, so that the coordinator needs no model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autogreen.errors import RefusedError
from autogreen.techniques import TECHNIQUES, Unit

if TYPE_CHECKING:
    from torch import nn

    from autogreen.tasks import Inputs


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """units: by technique. parameters: number of scalars. model: class name."""

    model: str
    parameters: int
    units: Mapping[str, tuple[Unit, ...]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Anatomy":
        units = {
            technique: tuple(Unit(**{**unit, "members": tuple(unit["members"])}) for unit in found)
            for technique, found in data["units"].items()
        }
        return cls(model=data["model"], parameters=data["parameters"], units=units)


def survey(model: "nn.Module", example: "Inputs", techniques: tuple[str, ...]) -> Anatomy:
    """Find the units of the named techniques.

    Raises:
        RefusedError: the model has no parameters, ties weights, or returns non-finite values on real data.
    """
    import torch

    from autogreen.techniques.trace import tensors

    name = type(model).__name__
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not parameters:
        raise RefusedError(f"{name} has no parameters: there is nothing to compress. Is it the module that you meant?")
    owners: dict[int, str] = {}
    for path, parameter in parameters.items():
        if (first := owners.setdefault(id(parameter), path)) != path:
            raise RefusedError(
                f"{name} ties {first!r} and {path!r} to one tensor, and compressing one would silently change the "
                "other. Untie them first: give the second its own clone()."
            )
    model.eval()
    args, kwargs = example
    with torch.no_grad():
        for leaf in tensors(model(*args, **kwargs)):
            if leaf.is_floating_point() and not torch.isfinite(leaf).all():
                raise RefusedError(f"{name} returns NaN or infinity on the first validation batch; mend it first.")
    return Anatomy(
        model=name,
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        units={technique: TECHNIQUES[technique].units(model, example) for technique in techniques},
    )
