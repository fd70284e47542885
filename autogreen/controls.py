"""What candidates are compared with: the same weights in every runtime, and controls that keep a saving honest."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.engines import ENGINES
from autogreen.evaluation import Evaluation, Request
from autogreen.policy import Effect
from autogreen.space import SearchSpace


def untouched(
    space: SearchSpace,
    anatomy: Anatomy,
    runtime: Mapping[str, Any],
    threads: int | None = None,
    batch: int | None = None,
    batch_delay_s: float | None = None,
) -> Effect:
    """The uncompressed model; threads and batch by default the least that the space knows, and no waiting for it."""
    threads = threads or min(space.options("parallelism", "threads") or (1,))
    batch = batch or min((size for size in space.options("parallelism", "batch") if size), default=None)
    parallelism: dict[str, Any] = {"threads": threads, "batch": batch, "batch_delay_s": batch_delay_s}
    return SearchSpace.from_json({"parallelism": parallelism, "runtime": runtime}).policy().effect(anatomy)


def runtimes(space: SearchSpace, anatomy: Anatomy, device: str) -> Iterator[Effect]:
    """The uncompressed model in PyTorch's own engines and in every other one that the space lets a policy have and that
    runs here; on a GPU with and without a CUDA graph; with every compiler mode, thread count, batch and batch
    delay of the space, batch by batch."""
    engines = dict.fromkeys(("eager", "inductor", *space.options("runtime", "engine")))
    knobs = (
        space.options("parallelism", "batch") or (None,),
        space.options("parallelism", "batch_delay_s") or (None,),
        [engine for engine in engines if ENGINES[engine].missing(device) is None],
        space.options("runtime", "mode") or ("default",),
        (False, True) if device.startswith("cuda") else (False,),
        space.options("parallelism", "threads") or (1,),
    )
    seen = set()
    for batch, batch_delay_s, engine, mode, cuda_graph, threads in product(*knobs):
        runtime = {"engine": engine, "mode": mode, "cuda_graph": cuda_graph}
        effect = untouched(space, anatomy, runtime, threads, batch, batch_delay_s)
        if effect.id not in seen:  # a mode says nothing to an engine that does not compile
            seen.add(effect.id)
            yield effect


def runtime_of(effect: Effect) -> str:
    """Engine, threads and batch in words."""
    parts = effect.parts
    return ", ".join(f"{key} {value}" for key, value in {**parts["runtime"], **parts.get("parallelism", {})}.items())


def controls_of(
    space: SearchSpace, anatomy: Anatomy, baseline: Evaluation, device: str, room: int | None = None
) -> Iterator[tuple[str, Request]]:
    """Name and request of each control. room: see `techniques.Target`.

    The same fine-tuning without compression tells what training alone gives. Half the width from scratch, plain and in
    the space's lowest precision, tells whether compressing a large network beats training a small one.
    """
    parts = baseline.effect.parts
    if distillation := space.sections.get("distillation"):
        settings = SearchSpace({"distillation": distillation}).at(0.5)
        tuned = settings.effect(anatomy).parts.get("distillation", {"epochs": 0})
        if tuned["epochs"]:
            plain = {key: value for key, value in tuned.items() if key not in ("temperature", "hidden", "student")}
            effect = Effect.of({**parts, "distillation": {**plain, "alpha": 0.0}})  # it cannot teach itself
            yield "fine-tuned, uncompressed", Request(effect=effect, reference=baseline.key)
    yield "half width from scratch", Request(effect=Effect.of(parts), start="scratch", reference=baseline.key)
    lowering = {
        section: space.sections[section] for section in ("precision", "quantization") if section in space.sections
    }
    if quantization := lowering.get("quantization"):
        lowering["quantization"] = tuple({**rule, "qat": False} for rule in quantization)  # nothing trains here
    if lowering:
        settled = SearchSpace(lowering).at(1.0).effect(anatomy).parts
        if lowered := {section: settled[section] for section in lowering if section in settled}:
            effect = Effect.of({**parts, **lowered})
            batch = baseline.recipe.batch if baseline.recipe else None
            if effect.refusal(anatomy, device, batch, room) is None:
                request = Request(effect=effect, start="scratch", reference=baseline.key)
                yield "half width from scratch, quantized", request
