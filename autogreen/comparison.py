"""Which of two programs takes less energy per item, here and now, and how sure that is.

    A, B  ->  entrants  ->  one fresh process: both resident, A B, B A, ...  ->  ratio, interval  ->  a verdict in words

The verdict is the interval's: when it leaves out 1 one of them is cheaper; else nothing was found beyond the noise.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autogreen import hardware, recording
from autogreen.bundle.manifest import DRIFT
from autogreen.entrant import Entrant, find
from autogreen.errors import EvaluationError, RefusedError
from autogreen.measurement import Beside, Interval, Measurement, Protocol
from autogreen.process import ask
from autogreen.queueing import Load
from autogreen.schema import build
from autogreen.wording import latency, spread

TARGET = 0.01  # half width of the interval of the ratio that ends a comparison
CAP_S = 60.0  # of windows, where that is not reached before
LIMIT_S = 1800.0  # loading, compiling and measuring
# A difference is found in 95 of 100 cases when it is 1.96 + 1.645 standard errors large; an interval shows 1.96.
POWER = (1.96 + 1.645) / 1.96


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A beside B.

    a, b: what they are, in words. item: what is counted. hardware: the machine in one line.
    beside: A as the candidate, B as the reference, every window. notes: what is to be known about it.
    """

    a: str
    b: str
    item: str
    hardware: str
    beside: Beside
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> Interval:
        """Energy per item, A over B, with its 95 % interval."""
        return self.beside.ratio

    @property
    def cheaper(self) -> Literal["a", "b"] | None:
        """The one that takes less energy per item beyond the noise, or None."""
        return "a" if self.ratio.high < 1 else "b" if self.ratio.low > 1 else None

    @property
    def measured_s(self) -> float:
        """Seconds in windows that count, of both."""
        sides = (self.beside.candidate, self.beside.reference)
        return math.fsum(window.duration_s for side in sides for window in side.windows if window.used)

    @property
    def pairs(self) -> int:
        """Pairs of windows that the ratio rests on."""
        return sum(window.used for window in self.beside.candidate.windows)

    @property
    def settles(self) -> tuple[float, float] | None:
        """(relative difference, seconds of windows that are still wanted to find it in 95 of 100 cases), or None where
        something was found.

        The difference is the one seen now, but at least half the half width of the interval. The half width falls as
        the square root of the time, somewhat faster where few windows left much unknown about their correlation.
        """
        if self.cheaper is not None:
            return None
        half = math.log(self.ratio.high / self.ratio.low) / 2
        difference = max(abs(math.log(self.ratio.mean)), half / 2)
        if difference == 0:
            return None
        return math.expm1(difference), self.measured_s * max(0.0, (POWER * half / difference) ** 2 - 1)

    @property
    def verdict(self) -> str:
        """One sentence."""
        ratio = self.ratio
        if self.cheaper == "a":
            return f"A is cheaper by {_saved(ratio)}"
        if self.cheaper == "b":
            return f"B is cheaper by {_saved(Interval(mean=1 / ratio.mean, low=1 / ratio.high, high=1 / ratio.low))}"
        told = f"no difference beyond the noise: ratio {ratio.mean:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"
        if self.settles is None:
            return told
        difference, seconds = self.settles
        return f"{told}; {_more(seconds)} would settle a difference of {100 * difference:.2g} %"

    @property
    def cautions(self) -> tuple[str, ...]:
        """What no interval of one process can show."""
        if self.cheaper is None or abs(math.log(self.ratio.mean)) > math.log1p(DRIFT):
            return ()
        return (
            f"differences under {DRIFT:.0%} can also come from how programs were compiled and laid out in this one "
            "process; compare again in another before you rely on it",
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the ratio and of both measurements."""
        sides = {"A": self.beside.candidate, "B": self.beside.reference}
        return (*self.beside.warnings, *(f"{name}: {text}" for name, side in sides.items() for text in side.warnings))

    def to_json(self) -> dict[str, Any]:
        """One plain object without NaN or infinity."""
        sides = {"a": (self.a, self.beside.candidate), "b": (self.b, self.beside.reference)}
        return {
            **{
                key: {
                    "name": name,
                    "energy_per_item_j": asdict(side.energy_per_item_j),
                    "range_per_item_j": asdict(side.range_per_item_j),
                    "latency_s": asdict(side.latency_s),
                    "served": None if side.served is None else asdict(side.served),
                    "items_per_call": side.items_per_call,
                    "idle_w": side.idle_w,
                    "limited": list(side.limited),
                }
                for key, (name, side) in sides.items()
            },
            "unit": f"J per {self.item}",
            "tier": self.beside.candidate.tier,
            "boundary": self.beside.candidate.boundary,
            "hardware": self.hardware,
            "ratio": asdict(self.ratio),
            "cheaper": self.cheaper,
            "verdict": self.verdict,
            "pairs": self.pairs,
            "measured_s": self.measured_s,
            "notes": [*self.notes, *self.cautions],
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for people."""
        origin = self.beside.candidate
        sides = {"A": self.beside.candidate, "B": self.beside.reference}
        lines = [
            f"{letter}  {name}: {spread(side.energy_per_item_j, 'J')} per {self.item}{_served(side)}"
            for letter, name, side in (("A", self.a, self.beside.candidate), ("B", self.b, self.beside.reference))
        ]
        lines += [
            self.verdict,
            f"energy: {origin.tier}, {origin.boundary}; on {self.hardware}; {self.pairs} pairs of windows, "
            f"{self.measured_s:.1f} s",
            *(
                f"{letter} was held back by: {', '.join(side.limited)}"
                for letter, side in sides.items()
                if side.limited
            ),
            *(f"note: {note}" for note in (*self.notes, *self.cautions)),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def compare(
    a: str,
    b: str,
    *,
    runs: Path,
    changes: Mapping[str, Any] | None = None,
    record: Path | None = None,
    native_code: bool = False,
    limit_s: float = LIMIT_S,
) -> Comparison:
    """Measure A beside B on this machine.

    Args:
        a, b: each the folder of a bundle, or STUDY:RULE (see `entrant.find`).
        runs: folder that holds the studies.
        changes: of the protocol, which is else A's own, to ±1 % or one minute of windows.
        record: file to write every reading to, for `replay`.
        native_code: run machine code that came with a bundle, where its format holds some.
        limit_s: seconds after which the process that measures is stopped.

    Raises:
        AutogreenError: says what, why and the next step.
    """
    if record is not None:
        recording.check_new(record)
    first, second = find(a, runs, native_code=native_code), find(b, runs, native_code=native_code)
    _check_comparable(first, second)
    if record is not None and first.workload.kind == "server":
        raise RefusedError(
            "a recording holds windows and no latencies, so that of a server would not judge again what was measured. "
            "Compare without --record; --json keeps what was found."
        )
    protocol = build(Protocol, {**asdict(patient(first.protocol, first.load)), **(changes or {})}, "protocol")
    told = ask(
        "autogreen.compare_worker",
        {"a": first.to_json(), "b": second.to_json(), "protocol": asdict(protocol)},
        device=first.recipe.device,
        what=f"{a} beside {b}",
        done="compared",
        limit_s=limit_s,
        failure=EvaluationError,
    )
    if record is not None:
        recording.save(told["recording"], record)
    found = told["recording"]
    return Comparison(
        a=first.name,
        b=second.name,
        item=first.item,
        hardware=hardware.name(found["hardware"]),
        beside=Beside.from_json(told["beside"]),
        notes=tuple(found["notes"]),
    )


def replay(path: Path, changes: Mapping[str, Any] | None = None) -> Comparison:
    """Judge a recorded comparison once more, without the machine; see `recording.replay`."""
    beside, found = recording.replay(path, changes)
    return Comparison(
        a=found.sides["candidate"].name,
        b=found.sides["reference"].name,
        item=found.item,
        hardware=hardware.name(found.hardware),
        beside=beside,
        notes=(*found.notes, f"replayed from {path}: nothing was measured now"),
    )


def patient(protocol: Protocol, load: Load | None = None) -> Protocol:
    """The same to ±1 %, with about a minute of windows where its own cap comes sooner.

    Not the final rule: that looks first after 40 pairs, which guards a published interval against strong drift. In
    turns drift hits both alike, and somebody waits for the answer.
    """
    window_s = protocol.window_s if load is None else load.stretch_s(protocol.window_s)
    most = max(80, protocol.max_windows, math.ceil(CAP_S / (2 * window_s)))
    return replace(protocol, max_windows=min(1000, most), target_relative=min(TARGET, protocol.target_relative))


def _check_comparable(a: Entrant, b: Entrant) -> None:
    if a.item != b.item:
        raise RefusedError(
            f"A counts energy per {a.item} and B per {b.item}: neither says what the other costs. Compare two that "
            "treat the same kind of item."
        )
    if a.tier != b.tier:
        raise RefusedError(
            f"the energy of A is {a.tier} and that of B {b.tier}: tiers are never ranked against each other. Search "
            "both with the same meter."
        )
    if "server" in (a.workload.kind, b.workload.kind) and a.workload != b.workload:
        raise RefusedError(
            f"A was searched in {a.workload} and B in {b.workload}: a request to a server also pays for the time "
            "between requests, so both need the same rate and limit. Search both in one workload."
        )
    if a.recipe.device != b.recipe.device:
        raise RefusedError(
            f"A runs on {a.recipe.device} and B on {b.recipe.device}: no meter covers both. Search both on one device."
        )


def _served(side: Measurement) -> str:
    return "" if side.served is None else f"; {latency(side)}"


def _saved(ratio: Interval) -> str:
    """How much less the cheaper one takes, from its ratio to the other."""
    mean, low, high = (100 * (1 - value) for value in (ratio.mean, ratio.high, ratio.low))
    return f"{mean:.2f} % (95 % interval {low:.2f} to {high:.2f} %)"


def _more(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} more minutes" if minutes > 1 else "less than one more minute"
