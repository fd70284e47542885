"""What every trial is compared with, measured before the first: plain use, the best runtime, and the controls."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.controls import controls_of, runtime_of, runtimes, untouched
from autogreen.errors import EvaluationError, RefusedError
from autogreen.evaluation import Evaluation, Request
from autogreen.jobs import Jobs
from autogreen.measurement import Interval
from autogreen.space import SearchSpace
from autogreen.store import Store

NO_FLOOR_LOSS = 0.2  # loss of the reference point where no quality floor is set


def references(
    jobs: Jobs, store: Store, space: SearchSpace, anatomy: Anatomy, device: str, refused: dict[str, list[str]]
) -> Iterator[str]:
    """Measure plain use and the best runtime of the same weights; tell what is next. A runtime that does not run the
    model is added to `refused`, with the reason."""
    found: dict[str, Any] = store.get("references", {})
    if "plain" not in found:
        yield "plain use"
        found["plain"] = jobs.evaluate(Request(effect=untouched(space, anatomy, {"engine": "eager"}))).to_json()
        store.put("references", found)
    if "baseline" in found:
        return
    plain = Evaluation.from_json(found["plain"])
    candidates = [plain]
    for effect in (other for other in runtimes(space, anatomy, device) if other.id != plain.effect.id):
        yield f"best runtime: {runtime_of(effect)}"
        try:
            candidates.append(jobs.evaluate(Request(effect=effect, reference=plain.key)))
        except (RefusedError, EvaluationError) as error:  # a model that no graph holds, a mode that fails on it
            refused.setdefault(f"best runtime: {error}", []).append(runtime_of(effect))
            yield f"{runtime_of(effect)} does not run the model: {error}"
    best = min(candidates, key=lambda one: one.ratio.mean if one.ratio else 1.0)
    found["baseline"] = replace(best, loss=None, ratio=None).to_json()
    if best is not plain:  # state plain use against the baseline, like everything else: the same pairs
        found["plain"] = replace(plain, loss=_negated(best.loss), ratio=_inverted(best.ratio)).to_json()
    store.put("references", found)


def baseline(store: Store) -> Evaluation:
    """The uncompressed weights in their best runtime."""
    return Evaluation.from_json(store.get("references")["baseline"])


def worst(store: Store, max_loss: float | None) -> list[float]:
    """The hypervolume's reference point, once references are measured: (loss, energy ratio)."""
    ratio = Evaluation.from_json(store.get("references")["plain"]).ratio
    return [max_loss or NO_FLOOR_LOSS, max(1.0, ratio.mean if ratio else 1.0)]


def controls(
    jobs: Jobs, store: Store, space: SearchSpace, anatomy: Anatomy, device: str, weights: Mapping[str, Path]
) -> Iterator[str]:
    """Measure what keeps a saving honest: the same fine-tuning without compression, a smaller net from scratch.
    weights: files of what was trained for them before, by name."""
    found, missing = store.get("controls", {}), dict(store.get("missing_controls", {}))
    for name, request in controls_of(space, anatomy, baseline(store), device):
        if name in found or name in missing:
            continue
        yield name
        try:
            found[name] = jobs.evaluate(replace(request, weights=weights.get(name))).to_json()
            store.put("controls", found)
        except (RefusedError, EvaluationError) as error:
            missing[name] = str(error)
            store.put("missing_controls", missing)
            yield f"{name} is missing: {error}"


def keys(store: Store) -> set[str]:
    """Of their artifacts."""
    return {data["key"] for kind in ("references", "controls") for data in store.get(kind, {}).values()}


def _negated(loss: Interval | None) -> Interval | None:
    return None if loss is None else Interval(mean=-loss.mean, low=-loss.high, high=-loss.low)


def _inverted(ratio: Interval | None) -> Interval | None:
    return None if ratio is None else Interval(mean=1 / ratio.mean, low=1 / ratio.high, high=1 / ratio.low)
