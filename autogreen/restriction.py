"""Which options of a space are worth a trial on this device: those with a real kernel, less those that cost for sure.

every option  ->  no kernel computes it here:  ->  measured kernels (`autogreen kernels`)  ->  what is searched
                  taken out and told;              say that it costs more for sure:
                  a literal stops the search       taken out and told; a literal stays
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.errors import RefusedError
from autogreen.kernels import ENGINE, SAME_AS_PLAIN, Case, Cell, Kernels, Shape, kept
from autogreen.policy import Effect, Policy, build_setting
from autogreen.space import Hole, SearchSpace, hole_name
from autogreen.techniques import Unit

DEAR = 1.05  # the low end of the interval of an option's energy over the plain layer's, from which it is not tried

Dear = Mapping[str, Mapping[str, str]]  # by name of the hole: its options that cost for sure, and why
Told = dict[str, list[str]]  # by reason: the holes that lost an option


def surveyed(space: SearchSpace) -> tuple[str, ...]:
    """Sections that have to know what of a model they can treat: parallelism only where a degree splits tensors."""
    splits = set(space.options("parallelism", "tensor")) - {1}
    return tuple(section for section in space.sections if section != "parallelism" or splits)


def restrict(
    space: SearchSpace, anatomy: Anatomy, *, device: str, batch: int | None, room: int | None = None
) -> tuple[SearchSpace, Told]:
    """Take out of an expanded space what cannot run here.

    Args:
        batch: examples a call, where the workload fixes it.
        room: see `techniques.Target`.

    Raises:
        RefusedError: a literal cannot run here, or a hole is left without options.
    """
    engines = space.options("runtime", "engine") or ("eager",)
    others = set(space.sections).difference(("parallelism", "runtime"))

    def refusal(policy: Policy) -> str | None:
        """Of one rule by itself: what it lacks may stand in another section, unless there is none."""
        whole = others <= set(policy.settings)
        return refusal_everywhere(policy, engines, anatomy, device, batch, room, whole=whole)

    return space.restrict(refusal)


def without(space: SearchSpace, dear: Dear) -> tuple[SearchSpace, Told]:
    """Take out what costs for sure."""
    told: Told = {}
    for name, options in dear.items():
        for option, reason in options.items():
            told.setdefault(f"{name.rpartition('.')[2]} {option!r}: {reason}", []).append(name)
    return space.without(dear), told


def refusal_everywhere(
    policy: Policy,
    engines: tuple[str, ...],
    anatomy: Anatomy,
    device: str,
    batch: int | None,
    room: int | None = None,
    *,
    whole: bool = True,
) -> str | None:
    """Why none of the engines can run the policy, or None if one can. whole: False for a part of one, whose sections
    may find what they need beside others."""
    reason, parts = None, policy.effect(anatomy).parts if whole else policy.alone(anatomy)
    for engine in engines:
        effect = Effect.of({**parts, "runtime": {**parts["runtime"], "engine": engine}})
        if (reason := effect.refusal(anatomy, device, batch, room)) is None:
            return None
    return reason


def dear_here(
    space: SearchSpace, anatomy: Anatomy, found: Mapping[str, Any], *, batch: int | None, cache: Path
) -> Dear:
    """What the kernels kept in `cache` for this machine and meter rule out; nothing, where none were measured.

    Args:
        space: expanded, without what cannot run. found: `hardware`, `meter` and the model's `dtype`, as
            `Evaluator.prepare` tells them.

    Raises:
        ConfigError: the kept file is damaged.
    """
    meter, described = found["meter"], found["hardware"]
    known = kept(described, meter["tier"], meter["boundary"], cache)
    if known is None:
        return {}
    return dear_options(space, anatomy, known, device=described["device"], batch=batch, dtype=found["dtype"])


def dear_options(
    space: SearchSpace, anatomy: Anatomy, kernels: Kernels, *, device: str, batch: int | None, dtype: str
) -> Dear:
    """Schemes that cost more than the plain layer for sure, in every layer that their hole reaches.

    Only where the hole offers the plain layer as well: the same weights in the same data type, or what makes it of a
    model in another one. Nothing is said where the batch is open, or where the engine that cells are measured in is not
    in the space.
    """
    batches = [batch] if batch else [size for size in space.options("parallelism", "batch") if size]
    if len(batches) != 1 or ENGINE not in space.options("runtime", "engine"):
        return {}
    same = SAME_AS_PLAIN[device.partition(":")[0]]
    plain = {"none", same} if dtype == kernels.plain else {same} - {"none"}
    found: dict[str, dict[str, str]] = {}
    for name, hole in space.holes().items():
        scheme = name.startswith("quantization[") and name.endswith("].scheme")
        options = hole.options or ()
        if not scheme or plain.isdisjoint(options):
            continue
        for option in options:
            known = option in plain or option == "none"
            if not known and (reason := _dear(space, name, option, anatomy, kernels, batches[0])):
                found.setdefault(name, {})[option] = reason
    return found


def _dear(space: SearchSpace, name: str, option: str, anatomy: Anatomy, kernels: Kernels, batch: int) -> str | None:
    """Why an option costs more in all layers that the hole reaches, by the layer in which it costs least; or None."""
    reached = _reached(space, name, option, anatomy)
    units = [unit for unit in anatomy.units.get("quantization", ()) if reached & {*unit.members}]
    cells = [_cell(unit, option, kernels, batch) for unit in units]
    costly = [cell for cell in cells if cell is not None and cell.ratio is not None and cell.ratio.low > DEAR]
    if not cells or len(costly) < len(cells):
        return None
    least = min(costly, key=lambda cell: (cell.ratio.mean if cell.ratio else 0.0, cell.case))
    return f"measured to take {_figures(least)} times the plain layer at {least.case.rows} x {least.case.shape}"


def _reached(space: SearchSpace, name: str, option: str, anatomy: Anatomy) -> set[str]:
    """The layers that a hole gives an option to; earlier rules keep theirs."""
    rules = []
    for rule in space.sections["quantization"]:
        ours = isinstance(rule.get("scheme"), Hole) and hole_name("quantization", rule, "scheme") == name
        alone = {"target": rule["target"], "scheme": option if ours else "none"}
        rules.append(build_setting("quantization", alone, "quantization"))
    try:
        return {*Policy({"quantization": tuple(rules)}).alone(anatomy).get("quantization", {})}
    except RefusedError:  # layers that depend on each other under two holes: trials will say so
        return set()


def _cell(unit: Unit, option: str, kernels: Kernels, batch: int) -> Cell | None:
    if (shape := Shape.of(unit)) is None:
        return None
    return kernels.nearest(Case(shape=shape, rows=unit.rows * batch, scheme=option))


def _figures(cell: Cell) -> str:
    assert cell.ratio is not None
    return f"{cell.ratio.mean:.2f} ({cell.ratio.low:.2f}–{cell.ratio.high:.2f})"
