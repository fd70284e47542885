"""Techniques: how one section of a policy changes a model.

Sections run in the order of `TECHNIQUES`: prune -> distil -> quantize -> parallelise. Quantizing early and distilling
late is known to collapse (arXiv 2511.19495), so the order in a file means nothing. Precision does nothing to a model
that is trained; it stands first because what ships is cast before the others put their kernels into it.

    settings (what the user wrote)  --effect-->  effect (what it does to this model; JSON)
    model  --apply-->  a model that can still be trained  --lower-->  the kernels that ship

A policy's identity is its effect, and `apply` and `lower` see nothing but the effect: two texts with one effect are one
policy.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from autogreen.errors import AutogreenError, RefusedError
from autogreen.registry import Table

if TYPE_CHECKING:
    from torch import nn

    from autogreen.tasks import Inputs, Task

TECHNIQUES = Table(
    "technique",
    {
        "precision": "autogreen.techniques.precision:Precision",
        "pruning": "autogreen.techniques.pruning:Pruning",
        "distillation": "autogreen.techniques.distillation:Distillation",
        "quantization": "autogreen.techniques.quantization:Quantization",
        "parallelism": "autogreen.techniques.parallelism:Parallelism",
    },
)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one rule can treat.

        quantization   a layer, or linear layers fed by one tensor that servers fuse (q, k and v; gate and up)
        pruning        what shrinks together: a dependency group, the heads of an attention, the blocks of a stack

    name: dotted name of the first layer; members: all layers in it. structure: of pruning, what is removed.
    width: how many there are: output channels, features, heads, blocks. inputs: channels or features that go in.
    calls: how often one forward pass runs it. rows: rows of its matrix product for one example (positions for a
    convolution, tokens for a linear layer). groups, taps: of a convolution; a 3 x 3 kernel has 9 taps.
    block: the repeated block it stands in.
    """

    name: str
    members: tuple[str, ...]
    kind: Literal["conv", "linear", "attention", "block"]
    width: int
    calls: int
    block: str
    structure: str = ""
    inputs: int = 0
    rows: int = 1
    groups: int = 1
    taps: int = 1


def unseen(model: "nn.Module", epochs: int) -> None:
    """Nobody looks."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a technique may need besides the effect. `check` raises when the trial's time limit has passed. `look` is
    shown a model in its final shape, and how many epochs it was trained; it may raise to end the training."""

    task: "Task"
    example: "Inputs"  # at the batch size that will run
    seed: int
    device: str
    teacher: "nn.Module"
    check: Callable[[], None]
    cache: dict[str, Any]  # lives as long as the worker: teacher logits, for one
    engine: str = "inductor"  # what the model is lowered for
    look: "Callable[[nn.Module, int], None]" = unseen


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an effect shall run, and on what. batch: examples a call, None where policies still choose. room: see
    `engines.room`, as a worker tells it; None: as on this machine. mutated: the model's buffers that a call changes
    (see `Anatomy`)."""

    device: str
    engine: str
    batch: int | None = None
    room: int | None = None
    mutated: tuple[str, ...] = ()


class Technique(ABC):
    """One section of a policy; an instance is one rule of it, or the whole section where `ordered` is False."""

    ordered: ClassVar[bool]

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        """What of this model the technique can treat."""
        return ()

    @classmethod
    @abstractmethod
    def effect(cls, settings: Sequence[Self], units: Sequence[Unit]) -> Any:
        """What the settings do to these units: JSON, canonical, ``None`` or empty where they do nothing.

        Raises:
            RefusedError: a target matches nothing treatable, or two rules conflict within one unit.
        """

    @classmethod
    def settle(cls, effect: Any, parts: Mapping[str, Any]) -> Any:
        """The effect beside the policy's other sections: without what does nothing there.

        Raises:
            RefusedError: the sections cannot go together.
        """
        return effect

    @classmethod
    def refusal(cls, effect: Any, units: Sequence[Unit], target: Target) -> str | None:
        """Why the effect cannot really be applied there, or None."""
        return None

    @classmethod
    def apply(cls, effect: Any, model: "nn.Module", context: Context) -> "nn.Module":
        """Return the changed model, which can still be trained; `model` itself may be changed and is not used
        afterwards."""
        return model

    @classmethod
    @contextmanager
    def aware(cls, effect: Any, model: "nn.Module", context: Context) -> Iterator[None]:
        """While it lasts, `model` computes, in place, as if it were lowered already; at the end it is plain again."""
        yield

    @classmethod
    def in_turn(
        cls, effects: Sequence[Any], model: "nn.Module", context: Context
    ) -> "Iterator[nn.Module | AutogreenError]":
        """For each effect the model as it would compute under that alone, untrained and good until the next; or why
        there is none."""
        import copy

        for effect in effects:
            try:
                yield cls.apply(effect, copy.deepcopy(model), context)
            except AutogreenError as error:
                yield error

    @classmethod
    def lower(cls, effect: Any, model: "nn.Module", context: Context) -> "nn.Module":
        """Return the trained model in the kernels that it ships with."""
        return model


def matches(pattern: str, unit: Unit) -> bool:
    """Tell whether a glob, in which ``*`` crosses dots, names any member of the unit."""
    return any(fnmatchcase(member, pattern) for member in unit.members)


def unreached(pattern: str, structure: str, units: Sequence[Unit]) -> str:
    """How a message about a glob without a match of this structure ends: what there is, and as what it would match."""
    there = ", ".join(unit.name for unit in units if unit.structure == structure) or "nothing"
    others = (unit for unit in units if unit.structure != structure and matches(pattern, unit))
    elsewhere = dict.fromkeys(unit.structure for unit in others)
    hint = f" It would match as {' or '.join(map(repr, elsewhere))}." if elsewhere else ""
    return f"{f' as {structure!r}' if structure else ''}. Treatable: {there}.{hint}"


class Rule(Protocol):
    """A setting with a target."""

    @property
    def target(self) -> str: ...


def assign(rules: Sequence[Any], units: Sequence[Unit], technique: str) -> Iterator[tuple[Unit, Any]]:
    """Yield (unit, rule) by first match among the rules of the unit's structure; units that no rule names are left
    out.

    Raises:
        RefusedError: a target matches no treatable unit (those there are named), or the members of one unit fall
            under rules that say different things.
    """
    for rule in rules:
        structure = _structure(rule)
        if not any(matches(rule.target, unit) for unit in units if unit.structure == structure):
            told = unreached(rule.target, structure, units)
            raise RefusedError(
                f"{technique}: target {rule.target!r} matches nothing that {technique} can treat in this model{told}"
            )
    for unit in units:
        reaching = [rule for rule in rules if _structure(rule) == unit.structure]
        found = {member: _first(reaching, member) for member in unit.members}
        chosen = [rule for rule in found.values() if rule is not None]
        if not chosen:
            continue
        said = {member: _saying(rule) for member, rule in found.items() if rule is not None}
        if len(set(map(repr, said.values()))) > 1:
            told = "; ".join(f"{member} {saying}" for member, saying in said.items())
            raise RefusedError(
                f"{technique}: {', '.join(unit.members)} depend on each other and need one setting, but the rules "
                f"conflict: {told}. Target the whole group, or only {unit.name!r}."
            )
        yield unit, chosen[0]


def _structure(rule: Any) -> str:
    return str(getattr(rule, "structure", ""))


def _first(rules: Iterable[Any], member: str) -> Any | None:
    return next((rule for rule in rules if fnmatchcase(member, rule.target)), None)


def _saying(rule: Any) -> Mapping[str, Any]:
    return {key: value for key, value in vars(rule).items() if key != "target"}
