"""Policy: what to do to a model, as frozen settings; Effect: what that does to one model, and its identity.

    pruning:       [{target: "blocks.*", ratio: 0.5}]         ordered rules, the first match wins
    distillation:  {epochs: 2, alpha: 0.5, temperature: 4}
    quantization:  [{target: "head", scheme: none}, {target: "*", scheme: w8a8_static}]
    precision:     {dtype: bf16}                              of all else
    parallelism:   {threads: 1}
    runtime:       {engine: inductor}

Every section may be left out. A search space is the same text with holes (`autogreen.space`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.engines import Runtime
from autogreen.schema import build
from autogreen.techniques import TECHNIQUES, Target

SECTIONS = (*TECHNIQUES, "runtime")
FORMAT = 2  # of effects; 1 knew channels only, named without their structure, and called calibrated int8 w8a8


def section_class(name: str) -> Any:
    """The settings class of a section."""
    return Runtime if name == "runtime" else TECHNIQUES[name]


def build_setting(section: str, data: Any, where: str) -> Any:
    """Build one rule or section from plain data, strictly."""
    return build(section_class(section), data, where)


@dataclass(frozen=True)
class Policy:
    """settings: for each section its rules in order; a section that is one mapping holds one."""

    settings: Mapping[str, tuple[Any, ...]]

    def to_json(self) -> dict[str, Any]:
        """The plain data that `SearchSpace.from_json(...).policy()` reads, every field written out."""
        return {
            section: [asdict(rule) for rule in rules] if section_class(section).ordered else asdict(rules[0])
            for section, rules in self.settings.items()
            if rules
        }

    def effect(self, anatomy: Anatomy) -> "Effect":
        """What the policy does to a model of this anatomy.

        Raises:
            RefusedError: a target that matches nothing treatable, conflicting rules, or sections that cannot go
                together.
        """
        parts = self.alone(anatomy)
        runtime = parts.pop("runtime")
        settled = {section: TECHNIQUES[section].settle(part, parts) for section, part in parts.items()}
        return Effect.of({**settled, "runtime": runtime})

    def alone(self, anatomy: Anatomy) -> dict[str, Any]:
        """What each section does by itself: plain data, not yet settled with the others.

        Raises:
            RefusedError: a target that matches nothing treatable, or conflicting rules.
        """
        parts: dict[str, Any] = {}
        for section, technique in TECHNIQUES.items():
            units = anatomy.units.get(section, ())
            if part := technique.effect(self.settings.get(section, ()), units):
                parts[section] = part
        runtime = self.settings.get("runtime") or (Runtime(),)
        return {**parts, "runtime": runtime[0].effect()}


@dataclass(frozen=True)
class Effect:
    """Canonical JSON of what is done, section by section; equal effects are one policy."""

    text: str

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> "Effect":
        """From plain data."""
        return cls(json.dumps(parts, sort_keys=True))

    @property
    def id(self) -> str:
        """First 12 hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def parts(self) -> dict[str, Any]:
        """A fresh copy of the sections."""
        parts: dict[str, Any] = json.loads(self.text)
        return parts

    @property
    def engine(self) -> str:
        return str(self.parts["runtime"]["engine"])

    def refusal(self, anatomy: Anatomy, device: str, batch: int | None, room: int | None = None) -> str | None:
        """Why this cannot really be applied on the device, or None. batch: the workload's, where it fixes one. room:
        see `Target`."""
        parts = self.parts
        batch = batch or parts.get("parallelism", {}).get("batch")
        target = Target(device=device, engine=self.engine, batch=batch, room=room, mutated=anatomy.mutated)
        for section, technique in TECHNIQUES.items():
            if section in parts:
                units: Sequence[Any] = anatomy.units.get(section, ())
                reason: str | None = technique.refusal(parts[section], units, target)
                if reason:
                    return f"{section}: {reason}"
        reason = Runtime.refusal(parts["runtime"], device, parts.get("parallelism", {}).get("pipeline", 1))
        return f"runtime: {reason}" if reason else None
