"""May a challenger follow the champion? It keeps its promise here, and nothing is proven worse than what it follows.

    promise     the challenger beside its own reference, as `verify` does
    energy      the challenger beside the champion, in turns, in one fresh process, as `compare` does
    quality     by both manifests, on the test split: it takes the task's data to judge again

"Not proven worse" lets through what cannot be told apart, so that of two equal ones the newer serves.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autogreen import hardware
from autogreen.bundle import Manifest, read
from autogreen.bundle.check import Check, Finding, check
from autogreen.bundle.manifest import DRIFT
from autogreen.comparison import Comparison, compare
from autogreen.errors import ConfigError, RefusedError
from autogreen.measurement import Interval
from autogreen.outcome import Outcome, worst


@dataclass(frozen=True, kw_only=True)
class Terms:
    """max_ratio: energy per item over the champion's that is not too much, above 0. max_loss: quality on test, 0 or
    more, that it may lose against the champion."""

    max_ratio: float = 1.0
    max_loss: float = 0.0

    def __post_init__(self) -> None:
        for name, lowest in (("max_ratio", "above 0"), ("max_loss", "of 0 or more")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0 and (value or name != "max_ratio")):
                raise ConfigError(f"{name} is {value!r}; allowed: a number {lowest}.")


@dataclass(frozen=True, kw_only=True)
class Succession:
    """What came of it. comparison: None where there is no champion, or measuring it would prove nothing."""

    findings: tuple[Finding, ...]
    promise: Check
    comparison: Comparison | None = None

    @property
    def outcome(self) -> Outcome:
        """The worst of all findings."""
        return worst(finding.outcome for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """One plain object without NaN or infinity."""
        return {
            "outcome": self.outcome,
            "findings": [asdict(finding) for finding in self.findings],
            "promise": self.promise.to_json(),
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }


def succeed(
    challenger: Path,
    champion: Path | None,
    terms: Terms | None = None,
    *,
    names: tuple[str, str] = ("challenger", "champion"),
    protocol: Mapping[str, Any] | None = None,
    native_code: bool = False,
) -> Succession:
    """Measure a challenger's bundle, and beside the champion's if there is one.

    Args:
        names: of both, for people.
        protocol: settings to change of the comparison.
        native_code: run machine code that came with them, where their format holds some.

    Raises:
        RefusedError: they do different work; neither says anything about the other.
        AutogreenError: the champion's bundle was changed, or one of them cannot be measured.
    """
    terms = terms or Terms()
    old = None if champion is None else read(champion)
    if old is not None:
        _refuse_other_work(read(challenger), old)
    promise = check(challenger, native_code=native_code)
    findings = promise.findings
    if promise.manifest is not None and promise.manifest.energy is None:
        reason = f"converted from {promise.manifest.converted_from!r}: search with its engine, so that it is measured"
        findings = (*findings, Finding(asked="a promise of energy", outcome="unmeasured", reason=reason))
        return Succession(findings=findings, promise=promise)
    if champion is None or old is None or promise.manifest is None or promise.outcome != "kept":
        return Succession(findings=findings, promise=promise)
    new = promise.manifest
    findings = (*findings, _quality(new, old, terms.max_loss))
    if elsewhere := _elsewhere(new, old):
        apart = Finding(asked="energy beside the champion", outcome="unmeasured", reason=elsewhere)
        return Succession(findings=(*findings, apart), promise=promise)
    found = compare(str(challenger), str(champion), runs=Path(), changes=protocol, native_code=native_code)
    found = replace(found, a=names[0], b=names[1])
    return Succession(findings=(*findings, _energy(found, terms.max_ratio)), promise=promise, comparison=found)


def _refuse_other_work(new: Manifest, old: Manifest) -> None:
    for what, ours, theirs in (
        ("task", new.task, old.task),
        ("workload", new.workload, old.workload),
        ("item", new.item, old.item),
    ):
        if ours != theirs:
            raise RefusedError(
                f"the challenger's {what} is {ours!r}, the champion's {theirs!r}: neither says what the other saves or "
                "loses. Register it under a model of its own."
            )


def _elsewhere(new: Manifest, old: Manifest) -> str | None:
    if new.energy is None or old.energy is None:
        return "the champion was only converted, and its energy never measured"
    for what, ours, theirs in (
        ("hardware", hardware.name(new.hardware), hardware.name(old.hardware)),
        ("tier of energy", new.energy.tier, old.energy.tier),
        ("boundary of energy", new.energy.boundary, old.energy.boundary),
    ):
        if ours != theirs:
            return (
                f"the champion's {what} is {theirs}, the challenger's {ours}: which is cheaper depends on it. Register "
                "one of them for each, under a name of its own"
            )
    return None


def _energy(found: Comparison, limit: float) -> Finding:
    """How programs were laid out in one process can make a difference of `DRIFT`; within it nothing is proven."""
    ratio = found.ratio
    outcome: Outcome = (
        "kept" if ratio.low <= limit else "inconclusive" if ratio.mean <= limit * (1 + DRIFT) else "broken"
    )
    reason = f"{ratio.mean:.4g} ({ratio.low:.4g} to {ratio.high:.4g}) of the champion's energy per item"
    if outcome == "inconclusive":
        reason += f"; up to {DRIFT:.0%} can come from how programs were laid out in this process: promote again"
    return Finding(asked=f"energy at most {limit:g} of the champion's", outcome=outcome, reason=reason)


def _quality(new: Manifest, old: Manifest, limit: float) -> Finding:
    """The difference of two means; their intervals are taken as independent, which for one test split is careful."""
    asked = f"test quality lost at most {limit:g} against the champion"
    if new.test is None or old.test is None:
        which = "challenger" if new.test is None else "champion"
        return Finding(asked=asked, outcome="inconclusive", reason=f"the {which} was never judged on the test split")
    ours, theirs = new.test.quality, old.test.quality
    lost = theirs.mean - ours.mean
    worse = math.hypot(theirs.mean - theirs.low, ours.high - ours.mean)
    better = math.hypot(theirs.high - theirs.mean, ours.mean - ours.low)
    found = Interval(mean=lost, low=lost - worse, high=lost + better)
    outcome: Outcome = "broken" if found.low > limit else "kept"
    reason = f"{ours.mean:.4g} against {theirs.mean:.4g}: lost {found.mean:.4g} ({found.low:.4g} to {found.high:.4g})"
    return Finding(asked=asked, outcome=outcome, reason=reason)
