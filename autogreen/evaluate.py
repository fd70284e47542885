"""In a worker: effect -> model -> artifact -> scores, kernels, joules.

    start model -> prune -> distil -> quantize -> save -> load -> kernels -> scores -> [gate] -> measure
                            '--- [looks]           '--- from here on only the artifact is used ---'

The gate stops what is hopeless before joules are spent on measuring it; looks (`fidelity`), before they are spent on
training it.
"""

import copy
import json
import os
import platform
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autogreen import floor, hardware, quality
from autogreen.anatomy import survey
from autogreen.billing import Watch
from autogreen.compress import compress, lower, restore
from autogreen.engines import ENGINES, Program, Recipe, artifact_bytes, room, timing
from autogreen.evaluation import Evaluation, Published, Request
from autogreen.fidelity import Look, StopTraining, epochs
from autogreen.kernels import Case, Kernels, keep, session
from autogreen.kernels.bench import bench
from autogreen.layerwork import by_layer
from autogreen.measure import lease, measure, measure_beside, rest_w
from autogreen.measurement import Interval, Measurement, Protocol
from autogreen.meters import Meter, choose
from autogreen.probe import Probe
from autogreen.queueing import Load
from autogreen.ranks import build, open_program
from autogreen.tasks import Inputs, Scores, to_device
from autogreen.techniques import TECHNIQUES, unseen
from autogreen.techniques.precision import rest
from autogreen.techniques.quantization.schemes import check_kernels, narrowest_bytes, precisions
from autogreen.techniques.trace import call_once
from autogreen.techniques.trace import layers as traced
from autogreen.workbench import Workbench


class Evaluator(Workbench):
    """Answers a coordinator's calls."""

    def describe(self) -> dict[str, Any]:
        """Which machine this is (see `hardware.describe`)."""
        return hardware.describe(self.setup.device)

    def prepare(self, sections: Collection[str] = tuple(TECHNIQUES)) -> dict[str, Any]:
        """Build the baseline; return its anatomy (what techniques of these sections can treat) and data type, the
        machine and its room for ranks, the meter and what was spent."""
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
            "room": room(self.setup.device),
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

    def kernel(self, case: Case) -> dict[str, Any]:
        """Measure what a scheme saves in one layer shape, and keep it for this device; return what was spent.

        Raises:
            MeterError: the meter cannot be read, or other programs are running.
            EvaluationError: a compiler or the kernel failed.
        """
        where = self.setup.device
        with Watch(self._meter()) as watch:
            with watch.measuring("probing") as meter:
                known = Kernels.none_yet(hardware.describe(where), meter.tier, meter.boundary)
                asked = case.shape, case.rows, (case.scheme,)
                for cell in bench(*asked, device=where, meter=meter, protocol=session.PROTOCOL, warm=True):
                    keep(known.having(cell), self.setup.cache)
            return _spent(watch)

    def evaluate(self, request: Request) -> Evaluation:
        """Apply, gate, save, load, check, score and measure one policy.

        Raises:
            AutogreenError: the policy failed or cannot really be applied; the study goes on.
        """
        with Watch(self._meter(), request.limit_s, request.limit_j) as watch:
            return replace(self._evaluate(request, watch), host=platform.node())

    def _evaluate(self, request: Request, watch: Watch) -> Evaluation:
        parts, study = request.effect.parts, self.setup.folder
        recipe = self._recipe(parts)
        example = self._example(recipe.batch)
        reference = None if request.reference is None else quality.load(study, request.reference, "validation")
        look = self._look(request, reference, recipe, watch)
        try:
            with watch.phase("training"):
                self._all_cores()
                start = copy.deepcopy(self._start(request.start, parts.get("distillation", {}).get("student", 1.0)))
                trained = self._trained(parts, start, example, request, watch, look)
                call_once(trained, example)
                lowered, layers = parts.get("quantization", {}), traced(trained, example)
                sparse = parts.get("pruning", {}).get("n:m", ()) if self.setup.device.startswith("cuda") else ()
                # what is sparse bounds nothing
                planned = {**precisions(lowered, self.setup.device, recipe.engine), **dict.fromkeys(sparse, "sparse")}
                narrowest = 1.0 if sparse else narrowest_bytes(lowered)
                work = floor.count(trained, example, planned, narrowest, rest(parts))
        except StopTraining as stop:
            return replace(_stopped(request, recipe, stop), **_spent(watch))

        folder = study / "artifacts" / request.key
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            stack.enter_context(self._others(recipe, watch))
            with watch.phase("compiling"):
                torch.set_num_threads(recipe.threads)
                program = self._build(parts, trained, example, recipe, partial, watch.check)
                stack.callback(program.close)
            with watch.phase("scoring"):
                ran = program.trace(example)
                kernels = check_kernels(lowered, layers, ran.products, self.setup.device, recipe.engine)
                shares = timing.shares(program, example, ran.products) if recipe.ranks == 1 else None
                scores = self._score(program, "validation")
                size = artifact_bytes(partial, recipe.parts)
                found = Evaluation(
                    key=request.key,
                    effect=request.effect,
                    start=request.start,
                    seed=request.seed,
                    status="gated",
                    quality=quality.mean(scores),
                    loss=None if reference is None else quality.loss(reference, scores),
                    size_bytes=size,
                    memory_bytes=None if ran.peak_bytes is None else size + ran.peak_bytes,
                    recipe=recipe,
                    kernels=ran.kernels,
                    layers=kernels,
                    layer_work=by_layer(layers, kernels, ran.products, shares),
                    work=work,
                    communication=ran.communication,
                    rungs=tuple(look.rungs) if look else (),
                )
            if found.loss is None or request.max_loss is None or found.loss.low <= request.max_loss:
                with watch.measuring() as meter:
                    measured = self._measure(program, request.reference, meter, self.setup.protocol)
                above = self._times_above_floor(found, measured["measurement"])
                found = replace(found, status="measured", **measured, times_above_floor=above)
                quality.keep(study, request.key, "validation", scores)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        return replace(found, **_spent(watch))

    def publish(self, evaluation: Evaluation, reference: str, protocol: Protocol) -> Published:
        """Judge the artifact of an evaluation on the test split and measure it afresh beside the reference."""
        key, recipe = evaluation.key, evaluation.recipe
        assert recipe is not None, "what is published was measured"
        with Watch(self._meter()) as watch, self._others(recipe, watch), ExitStack() as stack:
            with watch.phase("compiling"):
                program = self._program(key, recipe)
                stack.callback(program.close)
                example = self._example(recipe.batch)
                program.calling(example)()
            with watch.phase("scoring"):
                theirs = self._test_scores(reference)
                ours = self._test_scores(key, program)
            with watch.measuring() as meter:
                measured = self._measure(program, reference, meter, protocol)
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
        self,
        parts: Mapping[str, Any],
        start: nn.Module,
        example: Inputs,
        request: Request,
        watch: Watch,
        look: Look | None,
    ) -> nn.Module:
        """Prune and train where training is done, which may be another device than the one that is measured."""
        device, elsewhere = self.setup.device, self.setup.training_device
        if request.weights is not None:
            context = self._context(example, request.seed, watch.check)
            return restore(parts, start.to(device), load_file(request.weights), context)
        if elsewhere in (None, device):
            return compress(parts, start.to(device), self._context(example, request.seed, watch.check, look or unseen))
        context = replace(
            self._context(to_device(example, elsewhere), request.seed, watch.check, look or unseen),
            device=elsewhere,
            teacher=self._cached("teacher elsewhere", lambda: copy.deepcopy(self._start("baseline")).to(elsewhere)),
        )
        with watch.beside(self._cached("meter elsewhere", lambda: choose(elsewhere))):
            return compress(parts, start.to(elsewhere), context).to(device)

    def _others(self, recipe: Recipe, watch: Watch) -> AbstractContextManager[None]:
        """Put on the bill what the other devices take that a policy occupies."""
        others = recipe.devices[1:]
        return watch.beside(self._meter(others)) if others else nullcontext()

    def _look(self, request: Request, reference: Scores | None, recipe: Recipe, watch: Watch) -> Look | None:
        """Where something is at stake, look at a model in training: score it as it is, measure what it will be."""
        stakes, parts = request.stakes, request.effect.parts
        if stakes is None or reference is None:
            return None
        example, theirs = self._example(recipe.batch), reference

        def judge(model: nn.Module) -> Interval:
            with watch.phase("scoring"), torch.no_grad():
                return quality.loss(theirs, self._score(self._here(model), "validation"))

        def weigh(model: nn.Module) -> Mapping[str, Any]:
            folder = self.setup.folder / "artifacts" / f".{request.key}.untrained.{os.getpid()}"
            with torch.random.fork_rng(devices=[]), ExitStack() as stack:
                stack.callback(self._all_cores)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                with watch.phase("compiling"):
                    torch.set_num_threads(recipe.threads)
                    shaped = copy.deepcopy(model).to(self.setup.device)
                    call_once(shaped, example)
                    program = self._build(parts, shaped, example, recipe, folder, watch.check)
                    stack.callback(program.close)
                with watch.measuring() as meter:
                    return self._measure(program, request.reference, meter, self.setup.protocol)

        return Look(stakes=stakes, reference=quality.mean(theirs), epochs=epochs(parts), judge=judge, weigh=weigh)

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
        context = replace(self._context(example, 0, check), engine=recipe.engine)
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
        if recipe.tensor * recipe.pipeline > 1:
            program = build(parts, trained, context, recipe, folder, self._crews)
        else:
            ENGINES[recipe.engine].save(lower(parts, trained, context), example, folder)
            check()
            program = open_program(folder, recipe, self._crews)
        program.calling(example)()
        return program

    def _measure(self, program: Program, reference: str | None, meter: Meter, protocol: Protocol) -> dict[str, Any]:
        synchronize = hardware.synchronizer(self.setup.device)
        with lease():
            ours = self._side(program, meter, synchronize)
            if reference is None:
                alone = measure(
                    ours.call,
                    items=ours.items,
                    load=ours.load,
                    meter=ours.meter,
                    protocol=protocol,
                    synchronize=synchronize,
                    idle_w=ours.idle_w,
                )
                return {"measurement": alone, "ratio": None}
            theirs = self._side(self._reference(reference), meter, synchronize)
            beside = measure_beside(
                ours.call,
                theirs.call,
                items=ours.items,
                reference_items=theirs.items,
                load=ours.load,
                reference_load=theirs.load,
                meter=ours.meter,
                reference_meter=theirs.meter,
                protocol=protocol,
                synchronize=synchronize,
                idle_w=ours.idle_w,
                reference_idle_w=theirs.idle_w,
            )
        return {"measurement": beside.candidate, "ratio": beside.ratio}

    def _side(self, program: Program, meter: Meter, synchronize: Callable[[], object]) -> "_Side":
        """meter: of the one device that most programs occupy."""
        recipe, items = program.recipe, self.setup.task.items
        example, load = self._example(recipe.batch), self._load(program)
        of = meter if len(recipe.devices) == 1 else self._meter(recipe.devices)
        if recipe.devices not in self._idle_w:
            self._idle_w[recipe.devices] = rest_w(of, self.setup.protocol, synchronize)
        return _Side(
            call=program.calling(example),
            items=recipe.data * items(example) if load is None else items(self._example(1)),
            load=load,
            meter=of,
            idle_w=self._idle_w[recipe.devices],
        )

    def _load(self, program: Program) -> Load | None:
        """What a server has to bear; None in other workloads."""
        return self.setup.workload.load(program.recipe.batch, program.recipe.batch_delay_s)

    def _times_above_floor(self, found: Evaluation, measured: Measurement) -> float | None:
        """None where nothing bounds it: unit costs that could not be measured, a kernel that nobody recognised.

        Raises:
            MeterError: the measurement lies below the floor.
        """
        costs = self._kept_costs()
        if costs is None or found.work is None:
            return None
        return floor.times_above_floor(measured, found.work, costs, {kernel.precision for kernel in found.kernels})


class _Side(NamedTuple):
    """What is measured: a call, its items or those of one request to a server, what that has to bear, and the meter of
    the devices that are occupied, with what they take at rest."""

    call: Callable[[], object]
    items: int
    load: Load | None
    meter: Meter
    idle_w: float | None


def _stopped(request: Request, recipe: Recipe, stop: StopTraining) -> Evaluation:
    return Evaluation(
        key=request.key,
        effect=request.effect,
        start=request.start,
        seed=request.seed,
        status="stopped",
        quality=stop.quality,
        loss=stop.loss,
        **stop.look.measured,
        recipe=recipe,
        rungs=tuple(stop.look.rungs),
        saved_j=stop.saved_j,
    )


def _spent(watch: Watch) -> dict[str, Any]:
    return {"spent_j": watch.spent_j(), "seconds": watch.seconds, "joules": watch.joules}
