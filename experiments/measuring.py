"""How well joules are measured on this GPU: the figures stand in experiments/README.md.

    python experiments/measuring.py windows FILE     30 windows of 1 s and of 0.3 s of one process        3 min
    python experiments/measuring.py restart FILE     6 windows of 1 s: run it 5 times                     3 min
    python experiments/measuring.py cost FILE        throughput with a window open over that without      1 min
    python experiments/measuring.py beside FILE      a program beside itself, and beside 2 % more of it   6 min
    python experiments/measuring.py zeus FILE        the same interval by this package and by Zeus        4 min
    python experiments/measuring.py report FILE      tables of what was written

Every part appends lines of JSON to FILE; after it, names of workloads may follow. "float32" multiplies without tensor
cores, below the power limit; "memory" copies 1 GiB; "capped" multiplies in bfloat16 at the power limit; "launches" adds
64 numbers at a time. Zeus: pip install zeus.
"""

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from autogreen import hardware
from autogreen.intervals import interval
from autogreen.measure import measure, measure_beside
from autogreen.measurement import Protocol, Window
from autogreen.meters import choose

Call = Callable[[], object]
Tell = Callable[..., None]
PRECISE = Protocol(warmup_s=1.0, window_s=0.3, min_windows=20, max_windows=80, target_relative=0.01)


def workloads() -> dict[str, tuple[Call, int]]:
    """Name -> (one call, calls in about 10 ms)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    wide, narrow = torch.randn(4096, 4096, device="cuda"), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    long, out_wide, out_narrow = torch.randn(2**28, device="cuda"), torch.empty_like(wide), torch.empty_like(narrow)
    out_long, short = torch.empty_like(long), torch.ones(64, device="cuda")

    def launches() -> None:
        value = short
        for _ in range(20):
            value = value + 1

    return {
        "float32": (lambda: torch.mm(wide, wide, out=out_wide), 4),
        "memory": (lambda: out_long.copy_(long), 20),
        "capped": (lambda: torch.mm(narrow, narrow, out=out_narrow), 7),
        "launches": (launches, 50),
    }


def _chosen(names: Sequence[str], *default: str) -> list[tuple[str, tuple[Call, int]]]:
    known = workloads()
    return [(name, known[name]) for name in names or default]


def run(call: Call, seconds: float, stride: int) -> tuple[int, float]:
    """Call for about so long; (calls, seconds), synchronised at both ends."""
    torch.cuda.synchronize()
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(stride):
            call()
        calls += stride
        torch.cuda.synchronize()
    return calls, time.perf_counter() - began


def windows(
    tell: Tell, names: Sequence[str], sizes: tuple[float, ...] = (1.0, 0.3), repeats: int = 30, warmup_s: float = 3.0
) -> None:
    """Windows as `measure` takes them, once the power is steady."""
    meter = choose("cuda", "nvml")
    for name, (call, _) in _chosen(names, "float32", "memory", "capped"):
        for seconds in sizes:
            protocol = Protocol(
                warmup_s=warmup_s, window_s=seconds, min_windows=repeats, max_windows=repeats, target_relative=1.0
            )
            began = time.perf_counter()
            found = measure(call, items=1, meter=meter, protocol=protocol, synchronize=torch.cuda.synchronize)
            tell(
                workload=name,
                asked_s=seconds,
                seconds=time.perf_counter() - began,
                warnings=found.warnings,
                windows=[_plain(taken) for taken in found.windows],
            )


def _plain(taken: Window) -> dict[str, Any]:
    reading = taken.reading
    return {
        "used": taken.used,
        "reason": taken.reason,
        "call_j": reading and taken.energy_per_call_j,
        "window_s": taken.duration_s,
        **({} if reading is None else {key: value for key, value in asdict(reading).items() if key != "steps"}),
    }


def restart(tell: Tell, names: Sequence[str]) -> None:
    windows(tell, names, (1.0,), 6, 8.0)  # a board that has just been idle takes so long to get warm


def cost(tell: Tell, names: Sequence[str], blocks: int = 200, seconds: float = 0.15) -> None:
    """Blocks with a window open and without, in turns, after the same rest."""
    meter = choose("cuda", "nvml")
    for name, (call, stride) in _chosen(names, "launches", "capped"):
        run(call, 2.0, stride)
        for number in range(blocks):
            speeds = {}
            for watched in (False, True) if number % 2 else (True, False):
                # the same few milliseconds of rest before either
                if watched:
                    meter.start()
                else:
                    time.sleep(0.005)
                run(call, 0.05, stride)
                calls, took_s = run(call, seconds, stride)
                speeds[watched] = calls / took_s
                if watched:
                    meter.stop()
                time.sleep(0.02)
            tell(workload=name, number=number, ratio=speeds[True] / speeds[False])


def beside(tell: Tell, names: Sequence[str], pairs: tuple[tuple[int, int], ...] = ((0, 400), (1, 110))) -> None:
    """Windows of A and B in turns, as `measure_beside` takes them: B does what A does; then 2 % more of it."""
    name, (call, _) = _chosen(names, "capped")[0]

    def times(count: int) -> Call:
        def many() -> None:
            for _ in range(count):
                call()

        return many

    meter = choose("cuda", "nvml")
    for more, count in pairs:
        protocol = Protocol(
            warmup_s=3.0, window_s=0.3, min_windows=count, max_windows=count, target_relative=1.0, preheat_s=0.0
        )
        found = measure_beside(
            times(50 + more), times(50), items=1, meter=meter, protocol=protocol, synchronize=torch.cuda.synchronize
        )
        tell(
            workload=name,
            more=more / 50,
            candidate=[taken.energy_per_call_j for taken in found.candidate.windows if taken.used],
            reference=[taken.energy_per_call_j for taken in found.reference.windows if taken.used],
            discarded=[taken.reason for taken in found.candidate.windows if not taken.used],
        )
    began = time.perf_counter()
    found = measure_beside(
        times(51), times(50), items=1, meter=meter, protocol=PRECISE, synchronize=torch.cuda.synchronize
    )
    tell(workload=name, one_s=time.perf_counter() - began, ratio=[found.ratio.mean, found.ratio.low, found.ratio.high])


def zeus(tell: Tell, names: Sequence[str], longest_s: float = 45.0) -> None:
    """To a 95 % interval of ±1 %.

    Zeus: `zeus.profile.measure`, 5 s of work after 5 s of rest, as in its own example; at least 3 trials, then more
    until Student's interval is narrow enough. Once more without the rest, which is quicker than it advises.
    """
    from zeus.monitor.energy import ZeusMonitor  # type: ignore[import-not-found]
    from zeus.profile import measure as trial  # type: ignore[import-not-found]

    monitor, meter = ZeusMonitor(gpu_indices=[0]), choose("cuda", "nvml")
    for name, (call, stride) in _chosen(names, "capped", "float32"):
        run(call, 3.0, stride)
        began = time.perf_counter()
        ours = measure(call, items=1, meter=meter, protocol=PRECISE, synchronize=torch.cuda.synchronize)
        energy = ours.energy_per_item_j
        tell(
            workload=name,
            by="autogreen",
            seconds=time.perf_counter() - began,
            call_j=energy.mean,
            half=(energy.high - energy.low) / 2 / energy.mean,
            windows=len(ours.windows),
            warnings=ours.warnings,
        )
        for rest_s in (5.0, 0.0):
            began, half = time.perf_counter(), math.inf
            values: list[float] = []
            while len(values) < 3 or (half > 0.01 and time.perf_counter() - began < longest_s):
                values.append(trial(call, monitor, measurement_duration=5.0, cooldown_duration=rest_s).energy_per_iter)
                if len(values) > 1:
                    spread = statistics.stdev(values) / math.sqrt(len(values))
                    half = float(stdtrit(len(values) - 1, 0.975)) * spread / statistics.fmean(values)
            tell(
                workload=name,
                by=f"zeus, {rest_s:g} s of rest",
                seconds=time.perf_counter() - began,
                call_j=statistics.fmean(values),
                half=half,
                windows=len(values),
            )
        long = Protocol(warmup_s=1.0, window_s=10.0, min_windows=2, max_windows=2, target_relative=1.0, preheat_s=0.0)
        found = measure(call, items=1, meter=meter, protocol=long, synchronize=torch.cuda.synchronize)
        tell(workload=name, by="autogreen, 10 s windows", call_j=found.energy_per_item_j.mean)
        theirs = [trial(call, monitor, measurement_duration=10.0, cooldown_duration=0.0) for _ in range(2)]
        tell(workload=name, by="zeus, 10 s windows", call_j=statistics.fmean(one.energy_per_iter for one in theirs))


def report(lines: list[dict[str, Any]]) -> None:
    """Print what the parts found."""
    show = sys.stdout.write
    series: dict[tuple[str, float, str], list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for line in lines:
        if "windows" in line and line["part"] in ("windows", "restart"):
            values = [taken["call_j"] for taken in line["windows"] if taken["used"]]
            series.setdefault((line["part"], line["asked_s"], line["workload"]), []).extend(values)
        elif line["part"] == "cost" and "ratio" in line:
            ratios.setdefault(line["workload"], []).append(line["ratio"])
        elif line["part"] == "zeus" and "by" in line:
            show(" ".join(f"{key}={value}" for key, value in line.items() if key not in ("part", "at")) + "\n")
        elif line["part"] == "beside" and "workload" in line:
            _judge(line, show)
    for (part, seconds, name), taken_j in series.items():
        values_j = np.array(taken_j)
        show(
            f"{part}, {seconds:g} s, {name}: {len(values_j)} windows, cv {values_j.std(ddof=1) / values_j.mean():.2%}, "
            f"worst off by {abs(values_j / values_j.mean() - 1).max():.2%}, {values_j.mean():.5g} J a call\n"
        )
    for name, found in ratios.items():
        span = interval(np.log(found).tolist())
        show(
            f"cost, {name}: {math.expm1(span.mean):+.2%} of the throughput ({math.expm1(span.low):+.2%} to "
            f"{math.expm1(span.high):+.2%}), median {statistics.median(found) - 1:+.2%}\n"
        )


def _judge(line: dict[str, Any], show: Callable[[str], object]) -> None:
    if "one_s" in line:
        show(f"one comparison: {line['one_s']:.1f} s, ratio {line['ratio']}\n")
        return
    pairs = np.log(np.array(line["candidate"]) / np.array(line["reference"]))
    tries, found, hits, used = 100, 0, 0, []
    chance = random.Random(0)
    truth = math.log1p(line["more"])
    for _ in range(tries):
        start = chance.randrange(0, len(pairs) - 80)
        for count in (20, 40, 80):
            told = interval(pairs[start : start + count].tolist())
            if math.expm1(told.high - told.mean) <= 0.01:
                break
        found += told.low > 0 or told.high < 0
        hits += told.low <= truth <= told.high
        used.append(count)
    show(
        f"beside, {line['more']:.0%} more: called different in {found} of {tries} tries, interval holds the truth in "
        f"{hits}; {statistics.fmean(used):.0f} pairs; all: {math.expm1(pairs.mean()):+.3%}; "
        f"discarded: {line['discarded']}\n"
    )
    for side in ("candidate", "reference"):
        values = np.array(line[side])
        blocks = values[: len(values) // 20 * 20].reshape(-1, 20)
        spans = [interval(block.tolist()) for block in blocks]
        held = sum(span.low <= values.mean() <= span.high for span in spans)
        halves = statistics.fmean((span.high - span.low) / 2 / span.mean for span in spans)
        lag = np.corrcoef(values[1:], values[:-1])[0, 1]
        show(
            f"  {side}: {len(spans)} measurements of 20 windows, {held} hold the mean of all, half width {halves:.2%}; "
            f"cv of a window {values.std(ddof=1) / values.mean():.2%}, lag-1 correlation {lag:.2f}\n"
        )


def main(part: str, path: Path, names: Sequence[str]) -> None:
    if part == "report":
        report([json.loads(line) for line in path.read_text().splitlines()])
        return
    with path.open("a") as file:

        def tell(**found: Any) -> None:
            file.write(json.dumps({"part": part, "at": time.time(), **found}) + "\n")
            file.flush()

        tell(hardware=hardware.describe("cuda"))
        {"windows": windows, "restart": restart, "cost": cost, "beside": beside, "zeus": zeus}[part](tell, names)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
