"""What speaks against a window: a reading -> why it must not count; the windows that do -> warnings with advice.

Nothing is discarded for being far off, only for a physical reason, which is kept with it. All of it is decided from
readings alone, so that a recording, measured again, is judged again.

    discarded    disturbed · thermal or hardware slowdown, power brake · power beyond the limit · power below rest
    warned of    guests · counter against power samples · unsteady power within windows · foreign load · spinning
    told         power cap (`Measurement.limited`): normal at full load
"""

import math
import sys
from collections.abc import Sequence

from autogreen.measurement import WARMING_UP, Window
from autogreen.meters import Reading

OVER_LIMIT = 1.1  # power above so many times the limit in force is no power that the device can take
UNDER_REST = 0.9  # power below so many times that at rest: less than leakage and fans take
SAMPLES_OFF = 0.05  # relative difference of counter and power samples
UNSTEADY = 0.05  # of a window's energy: departure of energy over time from a straight line
SPINNING = 1.5  # processor time per call, against the least of any window, that is no longer the work's own

SLOWED = {
    "thermal slowdown": "it was too hot: see to its cooling, or lower its power limit",
    "hardware slowdown": "its hardware halved the clocks to protect itself: see to cooling and power supply",
    "power brake": "the power supply asked it to slow down: see to the supply of the machine",
}


def against(reading: Reading, idle_w: float | None) -> str | None:
    """Why this reading must not count, with advice where there is any; None where nothing speaks against it.

    Args:
        idle_w: power of the device at rest; None: not known.
    """
    if not all(math.isfinite(number) and number > 0 for number in (reading.energy_j, reading.duration_s)):
        return f"the meter read {reading.energy_j} J in {reading.duration_s} s"
    power_w = reading.energy_j / reading.duration_s
    if reading.disturbed is not None:
        return reading.disturbed
    slowed = [name for name in SLOWED if name in reading.limited]
    if slowed:
        return "; ".join(f"{name}, {SLOWED[name]}" for name in slowed)
    if reading.limit_w is not None and power_w > OVER_LIMIT * reading.limit_w:
        return f"{power_w:.4g} W is more than the device can take (limit {reading.limit_w:.4g} W)"
    if idle_w is not None and power_w < UNDER_REST * idle_w:
        return f"{power_w:.4g} W is less than the device takes at rest ({idle_w:.4g} W)"
    return None


def warnings(windows: Sequence[Window]) -> tuple[str, ...]:
    """About one measurement: all of its windows, in order."""
    used = [window for window in windows if window.used]
    readings = [window.reading for window in used if window.reading is not None]
    return (
        *_foreign_load(windows, used),
        *_guests(readings),
        *_against_samples(readings),
        *_unsteady([window.reading for window in used if window.reading is not None and window.batches is None]),
        *_spinning(used),
    )


def _foreign_load(windows: Sequence[Window], used: Sequence[Window]) -> tuple[str, ...]:
    loaded = sum(window.reason is not None for window in used)
    if loaded:
        return (
            f"{loaded} of {len(used)} windows ran beside other programs ({used[-1].reason or 'gone since'}), which "
            "can change processor time several-fold: stop them and measure again, or compare interleaved only.",
        )
    discarded = [window.reason for window in windows if not window.used and window.reason != WARMING_UP]
    if discarded:
        return (
            f"{len(discarded)} of {len(windows)} windows were discarded, the first because: {discarded[0]}. Each one's "
            "reason is kept.",
        )
    return ()


def _guests(readings: Sequence[Reading]) -> tuple[str, ...]:
    guests = tuple(dict.fromkeys(guest for reading in readings for guest in reading.guests))
    if not guests:
        return ()
    return (
        f"other programs were on the device all the time ({', '.join(guests)}): what they took is counted in. Stop "
        "them and measure again.",
    )


def _against_samples(readings: Sequence[Reading]) -> tuple[str, ...]:
    sampled = [(reading, reading.sampled_w) for reading in readings if reading.sampled_w is not None]
    if not sampled:
        return ()
    seconds = math.fsum(reading.duration_s for reading, _ in sampled)
    counted_w = math.fsum(reading.energy_j for reading, _ in sampled) / seconds
    sampled_w = math.fsum(reading.duration_s * power_w for reading, power_w in sampled) / seconds
    if abs(counted_w - sampled_w) <= SAMPLES_OFF * sampled_w:
        return ()
    return (
        f"the energy counter says {counted_w:.4g} W and the power samples {sampled_w:.4g} W: one of them is off, or "
        "the power swings faster than it is sampled. Ratios on this device stand; doubt the joules.",
    )


def _unsteady(readings: Sequence[Reading]) -> tuple[str, ...]:
    """Of windows in which the work never paused; a server's power comes and goes with its requests."""
    worst = max((_bend(reading) for reading in readings), default=0.0)
    if worst <= UNSTEADY:
        return ()
    return (
        f"the power was unsteady within windows: energy over time departs from a straight line by up to {worst:.0%} of "
        "a window's energy. With calls longer than a step of the meter that is natural; else warm up longer (warmup_s) "
        "or feed the device without pauses.",
    )


def _bend(reading: Reading) -> float:
    """Greatest departure of energy over time from the straight line, over the energy."""
    power_w = reading.energy_j / reading.duration_s
    return max((abs(joules - power_w * seconds) for seconds, joules in reading.steps), default=0.0) / reading.energy_j


def _spinning(used: Sequence[Window]) -> tuple[str, ...]:
    """OpenMP threads that wait by spinning count as busy: processor time grows while the work does not."""
    busy = [
        (w.reading.busy_s, w.reading.duration_s, w.batches or w.calls) for w in used if w.reading and w.reading.busy_s
    ]
    if not busy:
        return ()
    advice = "set OMP_WAIT_POLICY=passive before Python starts, and keep other programs away."
    per_call_s = [seconds / calls for seconds, _, calls in busy]
    worst = max(per_call_s) / min(per_call_s)
    if worst > SPINNING:
        return (f"processor time per call grew {worst:.1f}-fold between windows, as when threads spin: {advice}",)
    torch = sys.modules.get("torch")  # asked only where somebody has loaded it
    cores = max(seconds / duration_s for seconds, duration_s, _ in busy)
    if torch is not None and cores > torch.get_num_threads() + 0.5:
        threads = torch.get_num_threads()
        return (f"{cores:.1f} cores were busy although torch has {threads} thread(s): end other threads, or {advice}",)
    return ()
