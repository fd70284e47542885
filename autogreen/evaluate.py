"""In a worker: effect -> model -> artifact -> scores, kernels, joules.

    start model -> prune -> distil -> quantize -> save -> load -> kernels -> scores -> [gate] -> measure
                                                   '--- from here on only the artifact is used ---'

The gate stops what is hopeless before joules are spent on measuring it.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from autogreen import floor, hardware, quality
from autogreen.anatomy import survey
from autogreen.billing import Watch
from autogreen.compress import compress, lower
from autogreen.engines import ENGINES, Program, Recipe, cores, profile
from autogreen.errors import AutogreenError, EvaluationError, MeterError, RefusedError
from autogreen.evaluation import Evaluation, Published, Request
from autogreen.measure import lease, measure, measure_beside, rest_w
from autogreen.measurement import Measurement, Protocol
from autogreen.meters import Meter, choose
from autogreen.probe import Probe
from autogreen.tasks import Inputs, Scores, Split, Task, cut, plain, rows, to_device
from autogreen.tasks.trees import pack
from autogreen.techniques import TECHNIQUES, Context
from autogreen.techniques.quantization.schemes import check_kernels, narrowest_bytes, precisions
from autogreen.techniques.trace import call_once
from autogreen.techniques.trace import layers as traced
from autogreen.workload import Workload

GOLDEN = 64  # examples kept for bundles, at least


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything a worker needs. device: where policies run and are measured. training_device: where they are trained,
    the same by default. folder: the study's; cache: shared by studies; meter: `name` and its settings."""

    task: Task
    workload: Workload
    protocol: Protocol
    device: str
    folder: Path
    cache: Path
    meter: Mapping[str, Any] = field(default_factory=dict)
    training_device: str | None = None


class Evaluator:
    """Lives as long as its worker: the baseline, the loaded reference and the teacher's outputs are paid for once."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._cache: dict[str, Any] = {}
        self._loaded: tuple[str, Program] | None = None
        self._baseline: nn.Module | None = None
        self._chosen: Meter | None = None
        self._costs: floor.UnitCosts | None = None
        self._idle_w: float | None = None

    def prepare(self, sections: Collection[str] = tuple(TECHNIQUES)) -> dict[str, Any]:
        """Build the baseline; return its anatomy (what techniques of these sections can treat) and data type, the
        machine, the meter and what was spent."""
        meter = self._meter()
        with Watch(meter) as watch:
            with watch.phase("training"):
                self._all_cores()
                model = self._start("baseline")
            spent = _spent(watch)
        self._keep_golden()
        anatomy = survey(model, self._example(1), tuple(name for name in TECHNIQUES if name in sections))
        return {
            "anatomy": anatomy.to_json(),
            "hardware": hardware.describe(self.setup.device),
            "meter": {"tier": meter.tier, "boundary": meter.boundary},
            "item": self.setup.task.item,
            "dtype": floor.plain_dtype(model.parameters()),
            **spent,
        }

    def unit_costs(self) -> dict[str, Any]:
        """Measure what work costs this device at least, unless that is kept from before; return what was spent.

        Raises:
            MeterError: the meter cannot be read, or other programs are running.
        """
        with Watch(self._meter()) as watch:
            if self._kept_costs() is None:
                with watch.measuring() as meter:
                    self._costs = floor.measure_costs(self.setup.device, meter)
                floor.keep(self._costs, self.setup.cache)
            return _spent(watch)

    def probe(self, section: str, effects: Sequence[Any]) -> dict[str, Any]:
        """How far the baseline's outputs move under each effect of a section alone (see `autogreen.probe`)."""
        with Watch(self._meter()) as watch:
            with watch.phase("probing"):
                self._all_cores()
                context = self._context(self._example(1), 0, watch.check)
                probe = self._cached("probe", lambda: Probe(self._start("baseline"), context))
                found = [asdict(answer) for answer in probe.each(section, effects)]
            return {"probed": found, **_spent(watch)}

    def evaluate(self, request: Request) -> Evaluation:
        """Apply, gate, save, load, check, score and measure one policy.

        Raises:
            AutogreenError: the policy failed or cannot really be applied; the study goes on.
        """
        with Watch(self._meter(), request.limit_s, request.limit_j) as watch:
            return self._evaluate(request, watch)

    def _evaluate(self, request: Request, watch: Watch) -> Evaluation:
        parts, study = request.effect.parts, self.setup.folder
        recipe = self._recipe(parts)
        example = self._example(recipe.batch)
        reference = None if request.reference is None else quality.load(study, request.reference, "validation")
        with watch.phase("training"):
            self._all_cores()
            student = parts.get("distillation", {}).get("student", 1.0)
            trained = self._trained(parts, copy.deepcopy(self._start(request.start, student)), example, request, watch)
            call_once(trained, example)
            lowered, layers = parts.get("quantization", {}), traced(trained, example)
            sparse = parts.get("pruning", {}).get("n:m", ()) if self.setup.device.startswith("cuda") else ()
            planned = {**precisions(lowered, self.setup.device), **dict.fromkeys(sparse, "sparse")}  # bounds nothing
            work = floor.count(trained, example, planned, 1.0 if sparse else narrowest_bytes(lowered))

        folder = study / "artifacts" / request.key
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            with watch.phase("compiling"):
                torch.set_num_threads(recipe.threads)
                program = self._build(parts, trained, example, recipe, partial, watch.check)
            with watch.phase("scoring"):
                ran = profile.trace(program, example)
                by_layer = check_kernels(lowered, layers, ran.products, self.setup.device)
                scores = self._score(program, "validation")
                size = sum(path.stat().st_size for path in partial.glob("model.*"))
                found = Evaluation(
                    key=request.key,
                    effect=request.effect,
                    start=request.start,
                    seed=request.seed,
                    status="gated",
                    quality=quality.mean(scores),
                    loss=None if reference is None else quality.loss(reference, scores),
                    size_bytes=size,
                    memory_bytes=size + ran.peak_bytes,
                    recipe=recipe,
                    kernels=ran.kernels,
                    layers=by_layer,
                    work=work,
                )
            if found.loss is None or request.max_loss is None or found.loss.low <= request.max_loss:
                with watch.measuring() as meter:
                    measured = self._measure(program, example, request.reference, meter, self.setup.protocol)
                above = self._times_above_floor(found, measured["measurement"])
                found = replace(found, status="measured", **measured, times_above_floor=above)
                quality.keep(study, request.key, "validation", scores)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return replace(found, **_spent(watch))

    def publish(self, evaluation: Evaluation, reference: str, protocol: Protocol) -> Published:
        """Judge the artifact of an evaluation on the test split and measure it afresh beside the reference."""
        key, recipe = evaluation.key, evaluation.recipe
        assert recipe is not None, "what is published was measured"
        with Watch(self._meter()) as watch:
            with watch.phase("compiling"):
                program = self._program(key, recipe)
                example = self._example(recipe.batch)
                program.run(*example)
            with watch.phase("scoring"):
                theirs = self._test_scores(reference)
                ours = self._test_scores(key, program)
            with watch.measuring() as meter:
                measured = self._measure(program, example, reference, meter, protocol)
            return Published(
                key=key,
                test=quality.mean(ours),
                test_loss=quality.loss(theirs, ours),
                **measured,
                times_above_floor=self._times_above_floor(evaluation, measured["measurement"]),
                **_spent(watch),
            )

    # -- steps ---------------------------------------------------------------------------------------------------

    def _trained(
        self, parts: Mapping[str, Any], start: nn.Module, example: Inputs, request: Request, watch: Watch
    ) -> nn.Module:
        """Prune and train where training is done, which may be another device than the one that is measured."""
        device, elsewhere = self.setup.device, self.setup.training_device
        if elsewhere in (None, device):
            return compress(parts, start.to(device), self._context(example, request.seed, watch.check))
        context = replace(
            self._context(to_device(example, elsewhere), request.seed, watch.check),
            device=elsewhere,
            teacher=self._cached("teacher elsewhere", lambda: copy.deepcopy(self._start("baseline")).to(elsewhere)),
        )
        with watch.beside(self._cached("meter elsewhere", lambda: choose(elsewhere))):
            return compress(parts, start.to(elsewhere), context).to(device)

    def _build(
        self,
        parts: Mapping[str, Any],
        trained: nn.Module,
        example: Inputs,
        recipe: Recipe,
        folder: Path,
        check: Callable[[], None],
    ) -> Program:
        """Lower, save, load; the first call compiles."""
        folder.mkdir(parents=True)
        save_file(
            {name: leaf.contiguous() for name, leaf in trained.state_dict().items()}, folder / "weights.safetensors"
        )
        ENGINES[recipe.engine].save(lower(parts, trained, self._context(example, 0, check)), example, folder)
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
        check()
        program = Program(folder, recipe)
        program.run(*example)
        return program

    def _measure(
        self, program: Program, example: Inputs, reference: str | None, meter: Meter, protocol: Protocol
    ) -> dict[str, Any]:
        items = self.setup.task.items
        synchronize = hardware.synchronizer(self.setup.device)

        def call() -> None:
            program.run(*example)

        with lease():
            if self._idle_w is None:
                self._idle_w = rest_w(meter, self.setup.protocol, synchronize)
            if reference is None:
                alone = measure(
                    call,
                    items=items(example),
                    meter=meter,
                    protocol=protocol,
                    synchronize=synchronize,
                    idle_w=self._idle_w,
                )
                return {"measurement": alone, "ratio": None}
            other = self._reference(reference)
            theirs = self._example(other.recipe.batch)
            beside = measure_beside(
                call,
                lambda: other.run(*theirs),
                items=items(example),
                reference_items=items(theirs),
                meter=meter,
                protocol=protocol,
                synchronize=synchronize,
                idle_w=self._idle_w,
            )
        return {"measurement": beside.candidate, "ratio": beside.ratio}

    def _times_above_floor(self, found: Evaluation, measured: Measurement) -> float | None:
        """None where nothing bounds it: unit costs that could not be measured, a kernel that nobody recognised.

        Raises:
            MeterError: the measurement lies below the floor.
        """
        costs = self._kept_costs()
        if costs is None or found.work is None:
            return None
        return floor.times_above_floor(measured, found.work, costs, {kernel.precision for kernel in found.kernels})

    def _score(self, model: Callable[..., Any], split: Split) -> Scores:
        """Let the task judge, handing it the model's own output type."""
        kind = self._output_type()
        judged = model if kind is None else (lambda *args, **kwargs: kind(**plain(model(*args, **kwargs))))
        try:
            return self.setup.task.score(judged, split)
        except (AutogreenError, OSError):  # a disk that cannot be written to is the study's affair
            raise
        except Exception as error:
            raise EvaluationError(
                f"the task's score raised {type(error).__name__}: {error}. It was called on the {split} split."
            ) from error

    # -- what lives as long as the worker ------------------------------------------------------------------------

    def _start(self, start: str, student: float = 1.0) -> nn.Module:
        """What is compressed: the baseline, a student of that fraction of its width, or the control's half."""
        if start == "scratch" or student < 1:
            return self._smaller(0.5 if start == "scratch" else student)
        if self._baseline is None:
            self._baseline = self.setup.task.build(self.setup.cache).to(self.setup.device).eval()
        return self._baseline

    def _smaller(self, fraction: float) -> nn.Module:
        known: dict[float, nn.Module | None] = self._cache.setdefault("smaller", {})
        if fraction not in known:
            known[fraction] = self.setup.task.smaller(fraction, self.setup.cache)
        if (smaller := known[fraction]) is None:
            raise RefusedError("this task cannot tell what a smaller network is (Task.smaller returns None).")
        return smaller

    def _context(self, example: Inputs, seed: int, check: Callable[[], None]) -> Context:
        return Context(
            task=self.setup.task,
            example=example,
            seed=seed,
            device=self.setup.device,
            teacher=self._start("baseline"),
            check=check,
            cache=self._cache,
        )

    def _cached(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    def _output_type(self) -> Any:
        if "output_type" not in self._cache:
            model, (args, kwargs) = self._start("baseline"), self._example(1)
            with torch.no_grad():
                outputs = model(*args, **kwargs)
            self._cache["output_type"] = None if plain(outputs) is outputs else type(outputs)
        return self._cache["output_type"]

    def _example(self, batch: int) -> Inputs:
        """The first `batch` validation examples: real values, because power depends on them."""
        if batch not in (known := self._cache.setdefault("examples", {})):
            self._start("baseline")  # where a task keeps its weights, it may keep its data
            held: list[Inputs] = []
            for found in self.setup.task.batches("validation"):
                held.append(self.setup.task.inputs(found))
                if sum(map(rows, held)) >= batch:
                    break
            if not held:
                raise EvaluationError("the validation split gave no batch.")
            known[batch] = to_device(cut(_joined(held), batch)[0], self.setup.device)
        example: Inputs = known[batch]
        return example

    def _recipe(self, parts: Mapping[str, Any]) -> Recipe:
        parallelism = parts.get("parallelism", {})
        batch = self.setup.workload.fixed_batch or parallelism.get("batch")
        if batch is None:
            raise RefusedError("the workload leaves the batch free, so the policy needs parallelism.batch.")
        return Recipe(
            engine=parts["runtime"]["engine"],
            batch=batch,
            threads=parallelism.get("threads", 1),
            device=self.setup.device,
            mode=parts["runtime"].get("mode", "default"),
            cuda_graph=parts["runtime"].get("cuda_graph", False),
        )

    def _keep_golden(self) -> None:
        """Keep real inputs with the study, so that an export needs neither the task nor its data."""
        batch = self.setup.workload.fixed_batch or 1
        shape, tensors = pack(to_device(self._example(max(batch, GOLDEN)), "cpu"), "inputs")
        save_file(tensors, self.setup.folder / "golden.safetensors")
        (self.setup.folder / "golden.json").write_text(json.dumps(shape))

    def _program(self, key: str, recipe: Recipe) -> Program:
        return Program(self.setup.folder / "artifacts" / key, recipe)

    def _reference(self, key: str) -> Program:
        if self._loaded is None or self._loaded[0] != key:
            recipe = Recipe(**json.loads((self.setup.folder / "artifacts" / key / "recipe.json").read_text()))
            program = self._program(key, recipe)
            program.run(*self._example(recipe.batch))
            self._loaded = (key, program)
        return self._loaded[1]

    def _test_scores(self, key: str, program: Program | None = None) -> Scores:
        if not (self.setup.folder / "scores" / f"{key}-test.npz").exists():
            quality.keep(self.setup.folder, key, "test", self._score(program or self._reference(key), "test"))
        return quality.load(self.setup.folder, key, "test")

    def _meter(self) -> Meter:
        """The one meter of bill and measurements; it may own a process and a calibration of seconds."""
        if self._chosen is None:
            settings = dict(self.setup.meter)
            self._chosen = choose(self.setup.device, settings.pop("name", "auto"), **settings)
        return self._chosen

    def _kept_costs(self) -> floor.UnitCosts | None:
        """This device's unit costs by this meter, where they are known."""
        if self._costs is None:
            with suppress(MeterError):  # what is damaged is measured anew, by `unit_costs`
                self._costs = floor.kept(hardware.describe(self.setup.device), self._meter(), self.setup.cache)
        return self._costs

    def _all_cores(self) -> None:
        torch.set_num_threads(cores())


def _spent(watch: Watch) -> dict[str, Any]:
    return {"spent_j": watch.spent_j(), "seconds": watch.seconds, "joules": watch.joules}


def _joined(parts: list[Inputs]) -> Inputs:
    from torch.utils._pytree import tree_map

    if len(parts) == 1:
        return parts[0]

    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], torch.Tensor) and leaves[0].ndim > 0 else leaves[0]

    joined: Inputs = tree_map(join, *parts)
    return joined
