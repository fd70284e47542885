"""What every trial is compared with, measured before the first: plain use, the best runtime, and the controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.controls import controls_of, runtime_of, runtimes, untouched
from autogreen.errors import EvaluationError, RefusedError, StudyError
from autogreen.evaluation import Evaluation, Request
from autogreen.experiment import Experiment
from autogreen.jobs import Jobs
from autogreen.measurement import Interval
from autogreen.policy import Effect
from autogreen.space import SearchSpace
from autogreen.store import Store
from autogreen.workload import Workload

FAR = 2.0  # times the joules of the best at the smallest batch, from which a runtime is hardly the best at any other
NO_FLOOR_LOSS = 0.2  # loss of the reference point where no quality floor is set


def references(
    jobs: Jobs,
    store: Store,
    space: SearchSpace,
    anatomy: Anatomy,
    device: str,
    workload: Workload,
    refused: dict[str, list[str]],
) -> Iterator[str]:
    """Measure plain use and the best runtime of the same weights; tell what is next. A runtime that does not run the
    model is added to `refused`, with the reason. One that is far from the best where plain use was measured, at
    the least batch and threads, is not tried at others; those of a server all are, and the best one keeps to its limit.

    Raises:
        StudyError: none keeps to it.
    """
    found: dict[str, Any] = store.get("references", {})
    if "plain" not in found:
        yield "plain use"
        found["plain"] = jobs.evaluate(Request(effect=untouched(space, anatomy, {"engine": "eager"}))).to_json()
        store.put("references", found)
    if "baseline" in found:
        return
    plain = Evaluation.from_json(found["plain"])
    known = store.get("runtimes", {})  # of a session that was cut off
    candidates = [plain, *map(Evaluation.from_json, known.values())]
    for effect in (other for other in runtimes(space, anatomy, device) if other.id not in (plain.effect.id, *known)):
        if workload.p95_s is None and _is_far(effect, candidates):
            continue
        yield f"best runtime: {runtime_of(effect)}"
        try:
            candidates.append(jobs.evaluate(Request(effect=effect, reference=plain.key)))
        except (RefusedError, EvaluationError) as error:  # a model that no graph holds, a mode that fails on it
            refused.setdefault(f"best runtime: {error}", []).append(runtime_of(effect))
            yield f"{runtime_of(effect)} does not run the model: {error}"
            continue
        store.put("runtimes", {one.effect.id: one.to_json() for one in candidates[1:]})
        store.keep_only({plain.key, _best(candidates, workload).key})
    late = [one for one in candidates if _is_late(one, workload)]
    yield from (f"{_late(one, workload)}: it is no baseline" for one in late)
    if len(late) == len(candidates):
        raise StudyError(_none_in_time(late, workload))
    best = _best(candidates, workload)
    found["baseline"] = replace(best, loss=None, ratio=None).to_json()
    if best is not plain:  # state plain use against the baseline, like everything else: the same pairs
        found["plain"] = replace(plain, loss=_negated(best.loss), ratio=_inverted(best.ratio)).to_json()
    store.put("references", found)


def _is_far(effect: Effect, candidates: Sequence[Evaluation]) -> bool:
    """Whether its engine, mode and graph were far from the best with the batch and threads of plain use."""
    runtime, parallelism = _split(effect)
    _, first = _split(candidates[0].effect)
    there = [one for one in candidates if _split(one.effect)[1] == first]
    own = [one for one in there if _split(one.effect)[0] == runtime]
    return parallelism != first and any(_ratio(one) > FAR * min(map(_ratio, there)) for one in own)


def _split(effect: Effect) -> tuple[dict[str, Any], dict[str, Any]]:
    return effect.parts["runtime"], effect.parts.get("parallelism", {})


def _ratio(one: Evaluation) -> float:
    return one.ratio.mean if one.ratio else 1.0


def _best(candidates: Sequence[Evaluation], workload: Workload) -> Evaluation:
    """The cheapest in time."""
    return min(candidates, key=lambda one: (_is_late(one, workload), _ratio(one)))


def _is_late(one: Evaluation, workload: Workload) -> bool:
    return max(workload.excess(one.measurement).values(), default=0.0) > 0


def _late(one: Evaluation, workload: Workload) -> str:
    assert one.measurement is not None and one.measurement.served is not None, "a limit was missed"
    served = one.measurement.served
    told = f"{runtime_of(one.effect)} misses workload.p95_s ({workload.p95_s:g} s): {served.p95_s.mean:.3g} s"
    return told if served.stable else f"{told}, and the queue grows without bound"


def _none_in_time(late: Sequence[Evaluation], workload: Workload) -> str:
    """The message, which names the one that came nearest."""
    nearest = min(late, key=lambda one: workload.excess(one.measurement)["p95_s"])
    assert nearest.measurement is not None and nearest.measurement.served is not None, "a limit was missed"
    batch_s, limit_s = nearest.measurement.served.batch_s, workload.p95_s
    assert limit_s is not None, "a limit was missed"
    alone = " One batch alone takes longer, so no rate is low enough." if batch_s > limit_s else ""
    return (
        f"the uncompressed model keeps to the limit in none of {len(late)} runtimes at {workload.rate_per_s:g} "
        f"requests a second, so there is no baseline. The nearest: {_late(nearest, workload)} (a batch takes "
        f"{batch_s:.3g} s)."
        f"{alone} Raise workload.p95_s, lower workload.rate_per_s, or give the space other engines, batches and delays."
    )


def baseline(store: Store) -> Evaluation:
    """The uncompressed weights in their best runtime."""
    return Evaluation.from_json(store.get("references")["baseline"])


def worst(store: Store, experiment: Experiment) -> list[float]:
    """The hypervolume's reference point, once references are measured: (loss, energy ratio); and, where latency is an
    objective, seconds: of a server its limit, else those of the slowest runtime that was measured. What answers sooner
    then counts up to the joules of the dearest one, or of all devices that a policy may occupy."""
    plain = Evaluation.from_json(store.get("references")["plain"])
    corner = [experiment.constraints.max_loss or NO_FLOOR_LOSS, max(1.0, _ratio(plain))]
    if not experiment.by_latency:
        return corner
    own = baseline(store).measurement
    runtimes = (plain, *map(Evaluation.from_json, store.get("runtimes", {}).values()))
    measured = [one.measurement for one in runtimes if one.measurement is not None]
    assert own is not None, "it was chosen by what it takes"
    dearest_j = max(one.energy_per_item_j.mean for one in measured)
    slowest_s = experiment.workload.p95_s or max(one.judged_latency_s.mean for one in measured)
    return [corner[0], max(corner[1], dearest_j / own.energy_per_item_j.mean, experiment.ranks), slowest_s]


def controls(
    jobs: Jobs,
    store: Store,
    space: SearchSpace,
    anatomy: Anatomy,
    device: str,
    room: int,
    weights: Mapping[str, Path],
) -> Iterator[str]:
    """Measure what keeps a saving honest: the same fine-tuning without compression, a smaller net from scratch.
    room: see `techniques.Target`. weights: files of what was trained for them before, by name."""
    found, missing = store.get("controls", {}), dict(store.get("missing_controls", {}))
    for name, request in controls_of(space, anatomy, baseline(store), device, room):
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
