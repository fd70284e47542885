"""From probes to a forecast: which holes it can know, what is asked of the model, and what the answers mean.

losses     divergences of outputs, in their own unit: the search learns from its first trials what they cost quality
together   what two neighbours hurt on top of each alone, each at its worst option: one more probe a pair
savings    of a cut: the share of the multiply-accumulates that goes
           of a scheme: the layers' share, times what the measured kernel saves; where nobody has measured it on
           this device, a guess, which trials correct
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from autogreen.anatomy import Anatomy
from autogreen.errors import RefusedError
from autogreen.kernels import Case, Kernels, Shape
from autogreen.probe import Probed
from autogreen.space import SearchSpace
from autogreen.strategies.forecast import Choice, Forecast, interactions
from autogreen.techniques import Unit

FIELDS = {"pruning": "ratio", "quantization": "scheme"}
GUESSED = {"fp16": 0.4, "bf16": 0.4, "fp8": 0.4, "w8a8": 0.5, "w8a8_static": 0.5, "w8a16": 0.0, "w4a16": 0.0}
"""Share of a layer's energy that a scheme saves where its kernel was not measured."""
ERROR = 0.1  # relative, of a divergence on the calibration examples


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One option of a hole, and what it does alone: the effect of its section. beside: the next hole, and its option
    that is taken with it."""

    hole: str
    option: Any
    section: str
    effect: Any
    beside: tuple[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.hole}: {self.option}" + (f" beside {self.beside[0]}: {self.beside[1]}" if self.beside else "")


def asked(space: SearchSpace, anatomy: Anatomy) -> tuple[tuple[Asked, ...], dict[str, str]]:
    """What to probe, in the order of the data path, of an expanded space; and holes that cannot be, with the reason."""
    found: list[Asked] = []
    left_out: dict[str, str] = {}
    for name, hole in space.holes().items():
        section = name.partition("[")[0]
        if FIELDS.get(section) != name.rpartition(".")[2] or hole.options is None:
            continue
        try:
            found += [
                Asked(hole=name, option=option, section=section, effect=policy.alone(anatomy).get(section, {}))
                for option, policy in space.alone(name)
            ]
        except RefusedError as error:  # it cannot be changed alone
            left_out[name] = str(error)
    places = {member: place for place, unit in enumerate(_units(anatomy)) for member in unit.members}
    found.sort(key=lambda one: (one.section, min(_touched(one, places), default=0)))
    return tuple(found), left_out


def paired(alone: Mapping[Asked, Probed]) -> tuple[Asked, ...]:
    """What to probe next: neighbours of one section, both at the option that hurt most."""
    worst: dict[str, tuple[float, Asked]] = {}
    for one, answer in alone.items():
        if answer.divergence and answer.divergence > worst.get(one.hole, (0.0, one))[0]:
            worst[one.hole] = answer.divergence, one
    found = []
    for hole, following in pairwise(dict.fromkeys(one.hole for one in alone)):
        if hole in worst and following in worst and worst[hole][1].section == worst[following][1].section:
            one, other = worst[hole][1], worst[following][1]
            found.append(replace(one, effect=_both(one.effect, other.effect), beside=(other.hole, other.option)))
    return tuple(found)


def forecast(
    answers: Mapping[Asked, Probed], anatomy: Anatomy, kernels: Kernels | None, batch: int
) -> tuple[Forecast, dict[str, str]]:
    """The forecast, and holes left out of it with the reason: an option that could not be probed."""
    by_hole: dict[str, list[tuple[Asked, Probed]]] = {}
    for question, answer in answers.items():
        if question.beside is None:
            by_hole.setdefault(question.hole, []).append((question, answer))
    shares = _shares(anatomy)
    choices, left_out = [], {}
    for name, found in by_hole.items():
        refused = [(one.option, answer.refused) for one, answer in found if answer.divergence is None]
        if refused:
            left_out[name] = "; ".join(f"{option}: {reason}" for option, reason in refused)
            continue
        choices.append(
            Choice(
                name=name,
                options=tuple(one.option for one, _ in found),
                losses=tuple(answer.divergence or 0.0 for _, answer in found),
                savings=tuple(_saving(one, answer, anatomy, shares, kernels, batch) for one, answer in found),
                group=found[0][0].section,
            )
        )
    if not choices:
        why = left_out or "the space leaves no ratio and no scheme open"
        raise RefusedError(f"nothing could be probed: {why}.")
    together = _together(choices, {one.hole: (one, answer) for one, answer in answers.items() if one.beside})
    known = [replace(choice, together=together.get(choice.name, 0.0)) for choice in choices]
    return Forecast(choices=tuple(known), unit="divergence"), left_out


def _together(choices: Sequence[Choice], pairs: Mapping[str, tuple[Asked, Probed]]) -> dict[str, float]:
    """What choices do together with the next, where that was probed."""
    found = {}
    for choice, following in pairwise(choices):
        one, answer = pairs.get(choice.name, (None, Probed()))
        if one is None or one.beside is None or answer.divergence is None or one.beside[0] != following.name:
            continue
        mine, theirs = choice.options.index(one.option), following.options.index(one.beside[1])
        found[choice.name] = choice.losses[mine], following.losses[theirs], answer.divergence
    if not found:
        return {}
    mine_alone, theirs_alone, both = np.array(list(found.values())).T
    return dict(zip(found, interactions(mine_alone, theirs_alone, both, ERROR).tolist(), strict=True))


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two effects of a section as one."""
    merged = dict(one)
    for name, value in other.items():
        mine = merged.get(name)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            merged[name] = {**mine, **value}
        elif isinstance(mine, Sequence) and isinstance(value, Sequence) and not isinstance(value, str):
            merged[name] = [*mine, *value]
        else:
            merged[name] = value
    return merged


def guessed(questions: Sequence[Asked], anatomy: Anatomy, kernels: Kernels | None, batch: int) -> tuple[str, ...]:
    """Schemes of which some layer's kernel was never measured on this device."""
    units = _layers(anatomy)
    unknown = {scheme for layer, scheme in _given(questions) if _cell(units[layer], scheme, kernels, batch) is None}
    return tuple(sorted(unknown))


def unmeasured(questions: Sequence[Asked], anatomy: Anatomy, kernels: Kernels | None, batch: int) -> tuple[Case, ...]:
    """What would have to be measured to guess no longer, the layers that do most work first; equal shapes once."""
    units, shares = _layers(anatomy), _shares(anatomy)
    work: dict[Case, float] = {}
    for layer, scheme in _given(questions):
        unit = units[layer]
        if (shape := Shape.of(unit)) and _cell(unit, scheme, kernels, batch) is None:
            case = Case(shape=shape, rows=unit.rows * batch, scheme=scheme)
            work[case] = work.get(case, 0.0) + shares[layer]
    return tuple(sorted(work, key=lambda case: (-work[case], case)))


def _given(questions: Sequence[Asked]) -> set[tuple[str, str]]:
    """Layers, and schemes that some option gives them."""
    return {
        (layer, word.partition("+")[0])
        for one in questions
        if one.section == "quantization"
        for layer, word in one.effect.items()
    }


def _saving(
    one: Asked, answer: Probed, anatomy: Anatomy, shares: Mapping[str, float], kernels: Kernels | None, batch: int
) -> float:
    if one.section == "pruning":
        return 1.0 - answer.kept
    units = _layers(anatomy)
    return sum(
        shares[layer] * _saved(units[layer], word.partition("+")[0], kernels, batch)
        for layer, word in one.effect.items()
    )


def _saved(unit: Unit, scheme: str, kernels: Kernels | None, batch: int) -> float:
    """Share of a layer's energy that a scheme saves."""
    ratio = _cell(unit, scheme, kernels, batch)
    return GUESSED.get(scheme, 0.0) if ratio is None else 1.0 - ratio


def _cell(unit: Unit, scheme: str, kernels: Kernels | None, batch: int) -> float | None:
    """Energy of a scheme in such a layer over the plain layer's, as measured; None where it was not."""
    shape = Shape.of(unit)
    cell = kernels.nearest(Case(shape=shape, rows=unit.rows * batch, scheme=scheme)) if kernels and shape else None
    return None if cell is None or cell.ratio is None else cell.ratio.mean


def _shares(anatomy: Anatomy) -> dict[str, float]:
    """Each layer's share of the multiply-accumulates that quantization could treat."""
    work = {
        layer: unit.inputs * unit.width * unit.taps * unit.rows * unit.calls // unit.groups
        for layer, unit in _layers(anatomy).items()
    }
    total = max(1, sum(work.values()))
    return {layer: products / total for layer, products in work.items()}


def _layers(anatomy: Anatomy) -> dict[str, Unit]:
    """The unit of each layer that quantization could treat."""
    return {member: unit for unit in anatomy.units.get("quantization", ()) for member in unit.members}


def _units(anatomy: Anatomy) -> list[Unit]:
    return [unit for units in anatomy.units.values() for unit in units]


def _touched(one: Asked, places: Mapping[str, int]) -> list[int]:
    names = list(one.effect) if one.section == "quantization" else [n for part in one.effect.values() for n in part]
    return [places[name] for name in names if name in places]
