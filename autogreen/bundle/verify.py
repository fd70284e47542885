"""Does a bundle keep its promise here? Hashes in this process; outputs and energy in a fresh one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autogreen.bundle.manifest import Manifest, workload
from autogreen.bundle.read import read
from autogreen.errors import BundleError, NotConclusiveError
from autogreen.measurement import Interval, Protocol
from autogreen.outcome import Outcome
from autogreen.process import ask

LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked: files and outputs hold; what came of the energy is its `outcome`.

    Attributes:
        study, key: which policy it is.
        hardware: this machine in one line.
        examples: golden examples that ran. difference: largest of their outputs' (see `golden.difference`), at most
            `tolerance`.
        ratio: energy per item over the reference's, measured here in turns; None: not measured, `notes` say why.
        promised: where the manifest promised it to fall.
        busy: what other programs did meanwhile, where the ratio fell outside of the promise: then nothing is proven;
            None: it fell inside, or was not measured.
        notes: what was not checked and why. warnings: of the measurement.
    """

    study: str
    key: str
    hardware: str
    examples: int
    difference: float
    tolerance: float
    ratio: Interval | None
    promised: Interval | None
    busy: str | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """Of the promised energy; `kept` where none was promised."""
        if self.promised is None:
            return "kept"
        if self.ratio is None:
            return "unmeasured"
        if kept(self.ratio, self.promised):
            return "kept"
        return "inconclusive" if self.busy or self._reaches else "broken"

    @property
    def _reaches(self) -> bool:
        """The interval of what was measured reaches into the promise, though its mean does not."""
        assert self.ratio is not None and self.promised is not None
        return self.ratio.low <= self.promised.high and self.promised.low <= self.ratio.high

    @property
    def told(self) -> str:
        """What came of the energy, and the next step where one is wanted."""
        if self.ratio is None or self.promised is None:
            return ". ".join(self.notes)
        found = f"{self.ratio.mean:.4g} of the reference's energy per item ({_ends(self.ratio)})"
        promised = f"promised were {self.promised.mean:.4g}, and in a fresh measurement {_ends(self.promised)}"
        if self.outcome == "inconclusive":
            why = (
                f"the machine was busy. {self.busy}"
                if self.busy
                else "what was measured here is not known well enough."
            )
            return (
                f"not conclusive: {why} Files and outputs are as recorded; it came out at {found}, {promised}. Stop "
                "the other programs and verify again."
            )
        if self.outcome == "broken":
            return (
                f"does not keep its promise: measured here beside its reference, it takes {found}; {promised}. Quiet "
                "the machine and verify again; if it stays, search again here."
                + "".join(f" Warning: {warning}" for warning in self.warnings)
            )
        return f"it takes {found}; {promised}"

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes and `from_json` turns back into an equal object."""
        return asdict(self) | {"notes": list(self.notes), "warnings": list(self.warnings)}

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.key} of {self.study}, on {self.hardware}",
            "files: every hash is the manifest's",
            f"outputs: {self.examples} golden examples differ by at most {self.difference:.2g} of their largest value "
            f"(allowed: {self.tolerance:g})",
        ]
        if self.ratio is not None and self.promised is not None:
            lines.append(
                f"energy: {self.ratio.mean:.4g} ({self.ratio.low:.4g} to {self.ratio.high:.4g}) of the reference's per "
                f"item; promised: {self.promised.low:.4g} to {self.promised.high:.4g}"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Verification":
        """The inverse of `to_json`."""
        intervals = {key: None if data[key] is None else Interval(**data[key]) for key in ("ratio", "promised")}
        return cls(**{**data, **intervals, "notes": tuple(data["notes"]), "warnings": tuple(data["warnings"])})


def verify(
    folder: Path,
    *,
    protocol: Protocol | None = None,
    meter: Mapping[str, Any] | None = None,
    native_code: bool = False,
    limit_s: float = LIMIT_S,
) -> Verification:
    """Hold a bundle to its promise on this machine: `examine`, where a promise that is missed is an error.

    Raises:
        BundleError: what does not hold, with the figures.
        NotConclusiveError: the energy is outside the promise, and other programs ran in many of the windows.
    """
    found = examine(folder, protocol=protocol, meter=meter, native_code=native_code, limit_s=limit_s)
    if found.outcome == "inconclusive":
        raise NotConclusiveError(f"{folder}: {found.told}")
    if found.outcome == "broken":
        raise BundleError(f"{folder} {found.told}")
    return found


def examine(
    folder: Path,
    *,
    protocol: Protocol | None = None,
    meter: Mapping[str, Any] | None = None,
    native_code: bool = False,
    limit_s: float = LIMIT_S,
) -> Verification:
    """Check a bundle on this machine.

    1. manifest, names, sizes, hashes, archives, before anything is opened;
    2. in a fresh process: the program loads, and its golden outputs are as recorded;
    3. there, on the hardware, tier and boundary of the manifest: its energy over the reference's, measured in turns;
       kept is a promise whose prediction interval that falls into. Elsewhere it is left out, and a note says so.

    Args:
        protocol: how long to measure; by default as many pairs as the promise rests on, which is what it is made for.
        meter: settings of the meter, `name` among them; by default those of the search.
        native_code: run machine code that came with the bundle, where its format holds some.
        limit_s: seconds after which the fresh process is stopped; a server's windows, which last as long as its stream
            of requests, come on top.

    Raises:
        BundleError: what does not hold of files and outputs.
    """
    folder = Path(folder).absolute()
    manifest = read(folder)
    job = {
        "folder": str(folder),
        "protocol": None if protocol is None else asdict(protocol),
        "meter": None if meter is None else dict(meter),
        "native_code": native_code,
    }
    found = ask(
        "autogreen.bundle.worker",
        job,
        device=manifest.recipe.device,
        what=str(folder),
        done="verified",
        limit_s=limit_s + _serving_s(manifest, protocol),
        failure=BundleError,
    )
    return Verification.from_json(found)


def kept(ratio: Interval, promised: Interval | None) -> bool:
    """Whether a fresh measurement fell where it was promised to."""
    return promised is None or promised.low <= ratio.mean <= promised.high


def _serving_s(manifest: Manifest, protocol: Protocol | None) -> float:
    """Seconds of a server's windows, its own and its reference's, if half of them have to be taken again."""
    energy, recipe = manifest.energy, manifest.recipe
    load = workload(manifest, "the manifest").load(recipe.batch, recipe.batch_delay_s)
    if energy is None or load is None:
        return 0.0
    asked = protocol or energy.protocol
    return 4 * asked.max_windows * load.stretch_s(asked.window_s)


def _ends(interval: Interval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"
