"""Public fakes for what needs hardware, and the contract that each family's members must keep.

Nothing here sleeps or reads a real counter; a third party may test its own members with it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from autogreen.errors import MeterError
from autogreen.meters import LIMITS, TIERS, Meter, Reading, Tier

if TYPE_CHECKING:
    from autogreen.evaluation import Evaluation
    from autogreen.policy import Policy
    from autogreen.results import Results
    from autogreen.space import SearchSpace
    from autogreen.strategies.forecast import Forecast
    from autogreen.strategies.knapsack import Array, Chain

T = TypeVar("T")

# --- meters ---------------------------------------------------------------------------------------------------------


class ScriptedClock:
    """Monotonic seconds that move only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(kw_only=True)
class ScriptedMeter:
    """A meter of known power. Each script is one value for all windows, or one a window, the last one repeating.

    Attributes:
        watts: power in a window; an exception in its place is raised by `stop`.
        clock: monotonic seconds; a `ScriptedClock` makes every number exact.
        uncertainty: half width of low_j to high_j relative to energy_j.
        busy_cores, foreign_cores: what the reading reports per second; None: it does not look.
        told: other fields of the reading.
        opened: windows opened so far.
    """

    watts: float | Sequence[float | Exception] = 100.0
    clock: Callable[[], float] = time.perf_counter
    tier: Tier = "measured"
    resolution_s: float = 0.001
    boundary: str = "scripted"
    uncertainty: float = 0.0
    busy_cores: float | Sequence[float] | None = None
    foreign_cores: float | Sequence[float] | None = None
    told: Mapping[str, Any] | Sequence[Mapping[str, Any]] = field(default_factory=dict)
    opened: int = 0
    _began: list[float] = field(default_factory=list, repr=False)

    def start(self) -> None:
        if self._began:
            raise MeterError("a window is open already.")
        self._began.append(self.clock())
        self.opened += 1

    def stop(self) -> Reading:
        if not self._began:
            raise MeterError("no window is open.")
        duration_s = self.clock() - self._began.pop()
        watts = self._at(self.watts)
        if isinstance(watts, Exception):
            raise watts
        busy, foreign = (
            None if script is None else self._at(script) * duration_s
            for script in (self.busy_cores, self.foreign_cores)
        )
        energy_j = watts * duration_s
        reading = Reading(
            energy_j=energy_j,
            low_j=energy_j * (1 - self.uncertainty),
            high_j=energy_j * (1 + self.uncertainty),
            duration_s=duration_s,
            busy_s=busy,
            foreign_busy_s=foreign,
        )
        told = self._at(self.told)
        return replace(reading, **told) if told else reading

    def _at(self, script: Any) -> Any:
        return script[min(self.opened, len(script)) - 1] if isinstance(script, Sequence) else script


def check_meter(meter: Meter, work: Callable[[], object]) -> Reading:
    """The contract of a meter. `work` keeps the device busy for several steps of it. Returns its last reading."""
    assert meter.tier in TIERS, f"{meter.tier!r} is no tier"
    assert meter.resolution_s > 0, "the resolution is a time above 0"
    assert meter.boundary.strip(), "a number needs its boundary in words"
    _refuses(meter.stop, "stop without start")
    readings = []
    for _ in range(2):  # one instance is used again and again
        meter.start()
        _refuses(meter.start, "a second start")
        work()
        readings.append(meter.stop())
        _refuses(meter.stop, "a second stop")
    for reading in readings:
        assert 0 < reading.low_j <= reading.energy_j <= reading.high_j < math.inf, f"not a range of joules: {reading}"
        assert 0 < reading.duration_s < math.inf, f"not a time: {reading}"
        assert reading.busy_s is None or reading.busy_s >= 0, f"negative processor time: {reading}"
        assert reading.foreign_busy_s is None or reading.foreign_busy_s >= 0, f"negative foreign time: {reading}"
        for power_w in (reading.sampled_w, reading.memory_w, reading.limit_w):
            assert power_w is None or 0 <= power_w < math.inf, f"not a power: {reading}"
        assert set(reading.limited) <= set(LIMITS), f"limited by what is not in LIMITS: {reading}"
        assert reading.clock_hz is None or 0 < reading.clock_hz[0] <= reading.clock_hz[1], f"no clocks: {reading}"
        if reading.steps:
            seconds, joules = zip(*reading.steps, strict=True)
            assert list(seconds) == sorted(seconds), f"steps go back in time: {reading}"
            assert list(joules) == sorted(joules), f"energy falls: {reading}"
            end = (reading.duration_s, reading.energy_j)
            assert reading.steps[-1] == end, f"the last step is not the end: {reading}"
    return readings[-1]


def _refuses(action: Callable[[], object], what: str) -> None:
    try:
        action()
    except MeterError:
        return
    raise AssertionError(f"{what} must raise MeterError")


# --- results of a study that never ran ------------------------------------------------------------------------------


def scripted_evaluation(
    loss: float | None,
    ratio: float | None,
    *,
    name: str = "",
    latency_s: float = 0.01,
    noise: tuple[float, float] = (0.002, 0.02),
    tier: Tier = "estimated",
    status: Literal["measured", "gated"] = "measured",
) -> "Evaluation":
    """An evaluation at this place: baseline of quality 0.98 and 1 mJ per item. loss, ratio None: a reference's own.

    noise: half widths of the intervals, of the loss as it is, of the energy relative. name tells effects apart.
    """
    from autogreen.engines import Kernel, Recipe
    from autogreen.evaluation import Evaluation
    from autogreen.measurement import Interval, Measurement, Window
    from autogreen.policy import Effect

    def around(mean: float, half: float) -> Interval:
        return Interval(mean=mean, low=mean - half, high=mean + half)

    energy_j = 1e-3 * (1.0 if ratio is None else ratio)
    reading = Reading(energy_j=64 * energy_j, low_j=32 * energy_j, high_j=192 * energy_j, duration_s=0.5)
    measurement = Measurement(
        energy_per_item_j=around(energy_j, energy_j * noise[1]),
        latency_s=around(latency_s, 0.01 * latency_s),
        items_per_call=64,
        tier=tier,
        boundary="scripted",
        windows=(Window(reading=reading, calls=1, duration_s=0.5, used=True),),
    )
    parts = {"quantization": {name: "w8a8_static"} if name else {}, "runtime": {"engine": "inductor"}}
    effect, measured = Effect.of(parts), status == "measured"
    return Evaluation(
        key=f"{effect.id}-baseline-s0",
        effect=effect,
        start="baseline",
        seed=0,
        status=status,
        quality=around(0.98 - (loss or 0.0), 0.01),
        loss=None if loss is None else around(loss, noise[0]),
        ratio=None if ratio is None or not measured else around(ratio, ratio * noise[1]),
        measurement=measurement if measured else None,
        size_bytes=100_000 if measured else None,
        memory_bytes=300_000 if measured else None,
        recipe=Recipe(engine="inductor", batch=64, threads=1, device="cpu") if measured else None,
        kernels=(Kernel(name="qlinear", precision="int8", calls=1),) if measured else (),
        seconds={"measuring": 1.0},
        spent_j=10.0,
    )


def scripted_results(
    places: Sequence[tuple[float, ...]],
    *,
    noise: tuple[float, float] = (0.002, 0.02),
    tier: Tier = "estimated",
    study: str = "scripted",
) -> "Results":
    """Results with one measured, feasible trial at each (loss, energy ratio); plain use at 1.5, one control at 1.2.
    With a third number, seconds of a call, latency is an objective; references take 0.01 s."""
    from autogreen.results import Bill, Results, TrialResult

    trials = tuple(
        TrialResult(
            number=number,
            state="measured",
            params={"width": round(1 - loss, 6), "scheme": "w8a8_static"},
            policy={"quantization": [{"target": f"layer{number}", "scheme": "w8a8_static"}]},
            evaluation=scripted_evaluation(
                loss,
                ratio,
                name=f"layer{number}",
                latency_s=latency_s[0] if latency_s else 0.01,
                noise=noise,
                tier=tier,
            ),
            feasible=True,
        )
        for number, (loss, ratio, *latency_s) in enumerate(places)
    )
    by_latency = any(len(place) == 3 for place in places)
    return Results(
        study=study,
        experiment={
            "name": study,
            "seed": 0,
            **({"objectives": ["quality", "energy", "latency"]} if by_latency else {}),
        },
        task="toy",
        workload={"kind": "offline", "batch": 64},
        hardware={"device": "cpu", "cpu": "Scripted CPU", "cores": 2, "cpu_capability": "AVX512"},
        item="sample",
        tier=tier,
        boundary="scripted",
        baseline=scripted_evaluation(None, None, tier=tier),
        plain=scripted_evaluation(0.0, 1.5, name="plain", noise=noise, tier=tier),
        controls={"scratch": scripted_evaluation(0.03, 1.2, name="scratch", noise=noise, tier=tier)},
        trials=trials,
        published={},
        reference_point=(0.1, 2.0, 0.02)[: 2 + by_latency],
        max_loss=None,
        bill=Bill(
            energy_j=900.0,
            seconds={"training": 60.0, "measuring": 30.0, "total": 100.0},
            joules={"training": 540.0, "measuring": 270.0, "wasted": 90.0},
        ),
    )


# --- a search whose true front is known -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """A made-up model of many layers, each in one of several widths, whose true front is known.

    Layers hurt very unequally (lognormal), narrow widths hurt more and mostly save more; a width can be dearer than
    none. All layers at the narrowest lose ten times `max_loss`. Neighbours at unequal widths cost a cast between them.

    interaction: how much neighbours hurt together beyond each alone, as a multiple of the root of the product of their
    losses, exponentially distributed; sign: 1 they hurt more, -1 less, 0 some more and some less.
    cast: of the two layers' mean energy. noise: standard deviation of a measured loss, and of a measured energy
    relative to it. probe_error: standard deviation of the logarithm of what probes say of one option's loss; they are
    also off by a common factor (0.3 in its logarithm), and say energies to 3 %. pairs: neighbours are probed together
    too, at their narrowest and as well.
    """

    layers: int = 150
    widths: int = 6
    interaction: float = 0.0
    sign: Literal[-1, 0, 1] = 1
    cast: float = 0.02
    noise: tuple[float, float] = (0.003, 0.02)
    probe_error: float = 0.1
    pairs: bool = True
    max_loss: float = 0.03
    seed: int = 0

    WIDTHS: ClassVar = ("none", "bf16", "fp8", "w8a8", "w8a16", "w4a16")

    @cached_property
    def true(self) -> "Chain":
        """Loss and energy ratio less 1 of every policy, as the knapsack of the strategies."""
        import numpy as np

        from autogreen.strategies.knapsack import Chain

        rng, shape = np.random.default_rng(self.seed), (self.layers, self.widths - 1)
        hurt = rng.lognormal(0.0, 1.5, (self.layers, 1)) * np.geomspace(0.01, 1.0, self.widths - 1)
        hurt = np.hstack([np.zeros((self.layers, 1)), hurt * rng.lognormal(0.0, 0.3, shape)])
        hurt *= 10 * self.max_loss / hurt[:, -1].sum()
        energy = rng.lognormal(0.0, 0.8, self.layers)
        energy *= 0.95 / energy.sum()
        left = np.geomspace(0.8, 0.33, self.widths - 1) * rng.lognormal(0.0, 0.12, shape)
        costs = energy[:, None] * (np.hstack([np.ones((self.layers, 1)), left]) - 1.0)
        together = self.interaction * rng.exponential(1.0, self.layers - 1)
        together *= self.sign or rng.choice([-1.0, 1.0], self.layers - 1)
        together = np.maximum(together, -0.95)  # two layers never hurt less than none
        casts = self.cast * (energy[:-1] + energy[1:]) / 2
        return Chain(
            losses=list(hurt),
            costs=list(costs),
            pair_losses=[
                weight * np.sqrt(np.outer(one, other))
                for weight, one, other in zip(together, hurt[:-1], hurt[1:], strict=True)
            ]
            if self.interaction
            else None,
            pair_costs=[cast * (1.0 - np.eye(self.widths)) for cast in casts],
        )

    @cached_property
    def space(self) -> "SearchSpace":
        from autogreen.space import SearchSpace

        scheme = {"ordered": list(self.WIDTHS[: self.widths])}
        rules = [{"target": f"layer{number}", "scheme": scheme} for number in range(self.layers)]
        return SearchSpace.from_json({"quantization": rules})

    @cached_property
    def forecast(self) -> "Forecast":
        """What probes would say."""
        import numpy as np

        from autogreen.strategies.forecast import Choice, Forecast, interactions

        rng, true = np.random.default_rng((self.seed, 1)), self.true
        common = rng.lognormal(0.0, 0.3)
        assert true.pair_costs is not None
        casts = [float(matrix[0, -1]) for matrix in true.pair_costs] + [0.0]
        losses = [values * common * rng.lognormal(0.0, self.probe_error, self.widths) for values in true.losses]
        together = [0.0] * self.layers
        if self.pairs:
            hurt = np.array([values[-1] for values in true.losses])
            both = hurt[:-1] + hurt[1:]
            if true.pair_losses is not None:
                both = both + [joint[-1, -1] for joint in true.pair_losses]
            both = both * common * rng.lognormal(0.0, self.probe_error, self.layers - 1)
            alone = np.array([values[-1] for values in losses])
            together[:-1] = interactions(alone[:-1], alone[1:], both, self.probe_error).tolist()
        return Forecast(
            choices=tuple(
                Choice(
                    name=name,
                    options=self.WIDTHS[: self.widths],
                    losses=tuple(losses[number]),
                    savings=tuple(-true.costs[number] * (1.0 + 0.03 * rng.standard_normal(self.widths))),
                    group=f"quarter {4 * number // self.layers}",
                    cast=casts[number],
                    together=together[number],
                )
                for number, name in enumerate(self.space.holes())
            )
        )

    def evaluate(self, policy: "Policy", repeat: int = 0) -> "Evaluation":
        """As a machine would measure it: the same for one policy and repeat, fresh noise for another repeat."""
        import numpy as np

        loss, energy = self.places([policy])[0]
        picks = self._picks([policy])[0]
        noise = np.random.default_rng((self.seed, 2, repeat, *picks.tolist())).standard_normal(2) * self.noise
        halves = (1.96 * self.noise[0], 1.96 * self.noise[1])
        name = "".join(map(str, picks))
        return scripted_evaluation(loss + noise[0], math.exp(energy + noise[1]), name=name, noise=halves)

    def places(self, policies: "Sequence[Policy]") -> "Array":
        """True loss and logarithm of the energy ratio: float64 [n, 2]."""
        import numpy as np

        picks = self._picks(policies)
        return np.stack([self.true.loss(picks), np.log(1.0 + self.true.cost(picks))], axis=1)

    def share(self, policies: "Sequence[Policy]") -> float:
        """True hypervolume of these policies over that of the true front, within (max_loss, the reference's energy)."""
        import numpy as np

        from autogreen.strategies.knapsack import solve

        best = solve(self.true, prices=2000)
        front = np.stack([self.true.loss(best), np.log(1.0 + self.true.cost(best))], axis=1)
        return self._covered(self.places(policies)) / self._covered(front)

    def _covered(self, places: "Array") -> float:
        from autogreen.point import hypervolume

        return hypervolume((tuple(place) for place in places), (self.max_loss, 0.0))

    def _picks(self, policies: "Sequence[Policy]") -> "Array":
        import numpy as np

        numbers = {width: number for number, width in enumerate(self.WIDTHS)}
        return np.array([[numbers[rule.scheme] for rule in policy.settings["quantization"]] for policy in policies])
