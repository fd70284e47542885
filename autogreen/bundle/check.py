"""Is a bundle fit for production? Its promise, and the limits of who deploys it, each with what came of it.

A limit is kept when the whole 95 % interval lies on its good side, broken when it lies on the other, and inconclusive
in between. Energy is measured here. Quality cannot be: that takes the task's data; it is the manifest's, of the test
split.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autogreen.bundle.manifest import Manifest
from autogreen.bundle.read import read
from autogreen.bundle.verify import LIMIT_S, Verification, examine
from autogreen.errors import BundleError, ConfigError
from autogreen.measurement import Interval, Protocol
from autogreen.outcome import EXIT_CODES, Outcome, worst


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was asked. reason: one sentence, with the figures."""

    asked: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """max_ratio: energy per item over the reference's, above 0. min_quality: mean score on the test split.
    max_loss: of that score, against the reference."""

    max_ratio: float | None = None
    min_quality: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and (name != "max_ratio" or value > 0)):
                allowed = "a number above 0" if name == "max_ratio" else "a finite number"
                raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of it. manifest, verified: None where the bundle did not get as far."""

    folder: Path
    limits: Limits
    findings: tuple[Finding, ...]
    manifest: Manifest | None
    verified: Verification | None

    @property
    def outcome(self) -> Outcome:
        """The worst of all findings."""
        return worst(finding.outcome for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """One plain object without NaN or infinity."""
        manifest = self.manifest
        return {
            "bundle": str(self.folder),
            "outcome": self.outcome,
            "exit_code": EXIT_CODES[self.outcome],
            "findings": [asdict(finding) for finding in self.findings],
            "limits": asdict(self.limits),
            "study": None if manifest is None else manifest.study,
            "key": None if manifest is None else manifest.key,
            "task": None if manifest is None else manifest.task,
            "test": None if manifest is None or manifest.test is None else asdict(manifest.test),
            "verification": None if self.verified is None else self.verified.to_json(),
        }

    def summary(self) -> str:
        """A line for each finding, and what they come to."""
        lines = [f"{finding.outcome}: {finding.asked}: {finding.reason}" for finding in self.findings]
        warnings = () if self.verified is None else self.verified.warnings
        return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings), f"{self.folder}: {self.outcome}"])


def check(
    folder: Path,
    limits: Limits | None = None,
    *,
    protocol: Protocol | None = None,
    meter: Mapping[str, Any] | None = None,
    limit_s: float = LIMIT_S,
    native_code: bool = False,
) -> Check:
    """Hold a bundle to its promise and to limits; what does not hold is told, not raised.

    Args:
        protocol, meter, limit_s, native_code: as of `verify.examine`.
    """
    folder, limits = Path(folder), limits or Limits()
    manifest: Manifest | None = None
    try:
        manifest = read(folder)
        verified = examine(folder, protocol=protocol, meter=meter, limit_s=limit_s, native_code=native_code)
    except BundleError as error:
        broken = Finding(asked="files and outputs", outcome="broken", reason=str(error))
        return Check(folder=folder, limits=limits, findings=(broken,), manifest=manifest, verified=None)
    findings = [
        Finding(
            asked="files and outputs",
            outcome="kept",
            reason=f"every hash is the manifest's, and {verified.examples} golden outputs differ by at most "
            f"{verified.difference:.2g} of their largest value (allowed: {verified.tolerance:g})",
        ),
        Finding(asked="promised energy", outcome=verified.outcome, reason=verified.told),
    ]
    if limits.max_ratio is not None:
        findings.append(_ratio(verified, limits.max_ratio))
    if limits.min_quality is not None:
        findings.append(_quality(manifest, limits.min_quality))
    if limits.max_loss is not None:
        findings.append(_loss(manifest, limits.max_loss))
    return Check(folder=folder, limits=limits, findings=tuple(findings), manifest=manifest, verified=verified)


def below(found: Interval, limit: float) -> Outcome:
    """Whether what an interval is about lies below a limit."""
    return "kept" if found.high <= limit else "broken" if found.low > limit else "inconclusive"


def _ratio(verified: Verification, limit: float) -> Finding:
    asked = f"energy ratio at most {limit:g}"
    if verified.ratio is None:
        return Finding(asked=asked, outcome="unmeasured", reason=verified.told)
    outcome: Outcome = "inconclusive" if verified.busy else below(verified.ratio, limit)
    return Finding(asked=asked, outcome=outcome, reason=f"{_told(verified.ratio)}, measured here")


def _quality(manifest: Manifest, limit: float) -> Finding:
    asked = f"test quality at least {limit:g}"
    if manifest.test is None:
        return _untested(asked)
    found = manifest.test.quality
    turned = Interval(mean=-found.mean, low=-found.high, high=-found.low)
    return Finding(asked=asked, outcome=below(turned, -limit), reason=f"{_told(found)}, by the manifest")


def _loss(manifest: Manifest, limit: float) -> Finding:
    asked = f"test quality lost at most {limit:g}"
    if manifest.test is None:
        return _untested(asked)
    found = manifest.test.quality_loss or Interval(mean=0.0, low=0.0, high=0.0)  # the reference, against itself
    return Finding(asked=asked, outcome=below(found, limit), reason=f"{_told(found)}, by the manifest")


def _untested(asked: str) -> Finding:
    return Finding(
        asked=asked,
        outcome="inconclusive",
        reason="never judged on the test split, which only finalists are; validation steered the search and proves "
        "nothing. Raise `finalists`, run the sweep again and export anew",
    )


def _told(found: Interval) -> str:
    return f"{found.mean:.4g} ({found.low:.4g} to {found.high:.4g})"
