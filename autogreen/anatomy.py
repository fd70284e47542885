"""Anatomy: what of a model each technique can treat; plain data, so that the coordinator needs no model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autogreen.errors import RefusedError
from autogreen.techniques import TECHNIQUES, Unit

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autogreen.tasks import Inputs


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """units: by technique. parameters: number of scalars. model: class name. mutated: names of the buffers that a call
    changes: a decoder's cache, for one."""

    model: str
    parameters: int
    units: Mapping[str, tuple[Unit, ...]]
    mutated: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Anatomy":
        units = {
            technique: tuple(Unit(**{**unit, "members": tuple(unit["members"])}) for unit in found)
            for technique, found in data["units"].items()
        }
        mutated = tuple(data.get("mutated", ()))
        return cls(model=data["model"], parameters=data["parameters"], units=units, mutated=mutated)


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
        before = _stamps(model)  # the first call may have made what later ones only read
        model(*args, **kwargs)
    mutated = tuple(
        name
        for name, (buffer, version) in _stamps(model).items()
        if name not in before or before[name][0] is not buffer or before[name][1] != version
    )
    return Anatomy(
        model=name,
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        units={technique: TECHNIQUES[technique].units(model, example) for technique in techniques},
        mutated=mutated,
    )


def _stamps(model: "nn.Module") -> "dict[str, tuple[Tensor, int]]":
    """Each buffer, and how often it was written to; those of inference mode do not count that."""
    return {name: (buffer, 0 if buffer.is_inference() else buffer._version) for name, buffer in model.named_buffers()}
