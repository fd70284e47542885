"""What candidates are compared with: the same weights in every runtime, and controls that keep a saving honest."""

from collections.abc import Iterator
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.engines import ENGINES
from autogreen.evaluation import Evaluation, Request
from autogreen.policy import Effect
from autogreen.space import SearchSpace


def untouched(
    space: SearchSpace, anatomy: Anatomy, engine: str, threads: int | None = None, batch: int | None = None
) -> Effect:
    """The uncompressed model; threads and batch by default the least that the space knows."""
    threads = threads or min(space.options("parallelism", "threads") or (1,))
    batch = batch or min((size for size in space.options("parallelism", "batch") if size), default=None)
    parallelism: dict[str, Any] = {"threads": threads, "batch": batch}
    text = {"parallelism": parallelism, "runtime": {"engine": engine}}
    return SearchSpace.from_json(text).policy().effect(anatomy)


def runtimes(space: SearchSpace, anatomy: Anatomy) -> Iterator[Effect]:
    """The uncompressed model in every engine, with every thread count and batch that the space lets a policy have."""
    for engine in ENGINES:
        for threads in space.options("parallelism", "threads") or (1,):
            for batch in space.options("parallelism", "batch") or (None,):
                yield untouched(space, anatomy, engine, threads, batch)


def runtime_of(effect: Effect) -> str:
    """Engine, threads and batch in words."""
    parts = effect.parts
    return ", ".join(f"{key} {value}" for key, value in {**parts["runtime"], **parts.get("parallelism", {})}.items())


def controls_of(
    space: SearchSpace, anatomy: Anatomy, baseline: Evaluation, device: str
) -> Iterator[tuple[str, Request]]:
    """Name and request of each control.

    The same fine-tuning without compression tells what training alone gives. Half the width from scratch, plain and in
    the space's lowest precision, tells whether compressing a large network beats training a small one.
    """
    parts = baseline.effect.parts
    if distillation := space.sections.get("distillation"):
        settings = SearchSpace({"distillation": distillation}).at(0.5)
        if tuned := settings.effect(anatomy).parts.get("distillation"):
            plain = {key: value for key, value in tuned.items() if key != "temperature"}
            effect = Effect.of({**parts, "distillation": {**plain, "alpha": 0.0}})  # it cannot teach itself
            yield "fine-tuned, uncompressed", Request(effect=effect, reference=baseline.key)
    yield "half width from scratch", Request(effect=Effect.of(parts), start="scratch", reference=baseline.key)
    if quantization := space.sections.get("quantization"):
        settings = SearchSpace({"quantization": quantization}).at(1.0)
        if lowered := settings.effect(anatomy).parts.get("quantization"):
            effect = Effect.of({**parts, "quantization": lowered})
            if effect.refusal(anatomy, device) is None:
                request = Request(effect=effect, start="scratch", reference=baseline.key)
                yield "half width from scratch, quantized", request
