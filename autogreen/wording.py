"""Words for people: SI prefixes, intervals, and what a policy does in one short line."""

import math
from collections.abc import Mapping
from typing import Any

from autogreen.engines import DEGREES
from autogreen.measurement import Interval, Measurement

PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def quantity(value: float, unit: str) -> str:
    """Three significant digits with an SI prefix: ``quantity(0.00231, "J")`` is ``2.31 mJ``."""
    power = _power(value)
    return f"{_digits(value / 10.0**power)} {PREFIXES[power]}{unit}"


def spread(interval: Interval, unit: str) -> str:
    """Mean and ends under one prefix: ``2.31 mJ (2.20–2.42)``."""
    power = _power(interval.mean)
    mean, low, high = (_digits(value / 10.0**power) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} {PREFIXES[power]}{unit} ({low}–{high})"


def latency(measurement: Measurement) -> str:
    """Of a call, ``12.1 ms``, or of a server's requests, ``p50 8.20 ms, p95 21.4 ms``."""
    served = measurement.served
    if served is None:
        return quantity(measurement.latency_s.mean, "s")
    told = f"p50 {quantity(served.p50_s.mean, 's')}, p95 {quantity(served.p95_s.mean, 's')}"
    return told if served.stable else f"{told} and growing"


def times(value: float) -> str:
    """One decimal below 10, none above: ``4.2×``, ``130×``."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×"


def percent(share: float) -> str:
    """``percent(0.163)`` is ``16 %``."""
    return f"{100 * share:.0f} %"


def about(count: float) -> str:
    """Three significant digits, written out: ``about(1609602)`` is ``1,610,000``."""
    return f"{round(count, min(0, 2 - math.floor(math.log10(count)))):,.0f}" if count >= 1 else "1"


def plain_spread(interval: Interval, places: int = 4) -> str:
    """A dimensionless mean and its ends: ``0.0031 (−0.0004 to 0.0066)``."""
    mean, low, high = (
        f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")
        for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} ({low} to {high})"


def words(effect: Mapping[str, Any]) -> str:
    """What a policy's effect does: ``−38 % channels ×5, distilled 3 epochs, w8a8_static ×9, 1 thread, inductor``.

    The share of channels is of the groups that were pruned; × counts groups and layers. A section that is not known
    here (a plug-in's) is named.
    """
    said = [text for section, part in sorted(effect.items(), key=_order) if (text := _section(section, part))]
    compressed = any(effect.get(section) for section in effect if section not in ("parallelism", "runtime"))
    return ", ".join(said if compressed else ["uncompressed", *said])


ORDER = ("pruning", "distillation", "quantization", "precision", "parallelism", "runtime")


def _order(item: tuple[str, Any]) -> int:
    return ORDER.index(item[0]) if item[0] in ORDER else len(ORDER) - 2


def _section(section: str, part: Any) -> str:
    if not part:
        return ""
    if section == "pruning":
        return ", ".join(_removed(structure, said) for structure, said in sorted(part.items()))
    if section == "distillation":
        said = [f"student of {part['student']:g} the width"] if "student" in part else []
        said += [f"distilled {_count(part['epochs'], 'epoch')}"] if part["epochs"] else []
        said += [f"in {_count(part['rounds'], 'round')}"] if "rounds" in part else []
        said += [f"as far as the loss stays within {part['stop_loss']:g}"] if "stop_loss" in part else []
        return " ".join(said)
    if section == "quantization":
        schemes = sorted(part.values())
        return ", ".join(f"{scheme} ×{schemes.count(scheme)}" for scheme in dict.fromkeys(schemes))
    if section == "precision":
        return f"{part['dtype']} between"
    if section == "parallelism":
        said = [f"{name} ×{part[name]}" for name in DEGREES if name in part]
        said += [_count(part["threads"], "thread")]
        said += [f"batch {part['batch']}"] if "batch" in part else []
        said += [f"micro-batch {part['micro_batch']}"] if "micro_batch" in part else []
        said += [f"filled for {quantity(part['batch_delay_s'], 's')} at most"] if "batch_delay_s" in part else []
        return ", ".join(said)
    if section == "runtime":
        mode = f" {part['mode']}" if "mode" in part else ""
        return f"{part['engine']}{mode}{', CUDA graph' if part.get('cuda_graph') else ''}"
    return section


NOUNS = {"channel": "channels", "neuron": "neurons", "head": "heads", "depth": "blocks", "weight": "weights"}


def _removed(structure: str, said: Any) -> str:
    """What pruning removes of one structure, or of units that are ranked together."""
    if structure == "global":
        pools = (f"−{100 * pool['ratio']:.0f} % {NOUNS[pool['structure']]} of {len(pool['units'])}" for pool in said)
        return ", ".join(pools)
    if structure == "n:m":
        return f"2:4 ×{len(said)}"
    if structure == "weight":
        share = sum(unit["sparsity"] for unit in said.values()) / len(said)
    else:
        share = 1 - sum(unit["width"] for unit in said.values()) / sum(unit["of"] for unit in said.values())
    return f"−{100 * share:.0f} % {NOUNS[structure]} ×{len(said)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _power(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    power = 3 * math.floor(math.log10(abs(value)) / 3)
    return min(12, max(-12, power))


def _digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-12))
    return f"{value:.{min(places, 3)}f}"
