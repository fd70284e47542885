"""What a worker keeps as long as it lives: models, examples, the loaded reference, scores, the meter."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autogreen import floor, hardware, quality
from autogreen.compress import load_weights
from autogreen.engines import DEGREES, Program, Recipe, cores
from autogreen.errors import AutogreenError, EvaluationError, MeterError, RefusedError
from autogreen.measurement import Protocol
from autogreen.meters import Meter, choose
from autogreen.ranks import open_program
from autogreen.ranks.crew import Crews
from autogreen.tasks import Inputs, Scores, Split, Task, cut, plain, rows, to_device
from autogreen.tasks.trees import pack
from autogreen.techniques import Context, unseen
from autogreen.workload import Workload

GOLDEN = 64  # examples kept for bundles, at least


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything a worker needs. device: where policies run and are measured. training_device: where they are trained,
    the same by default. ranks: of the largest policy, 1 or more. weights: file of the baseline's, where another study's
    are taken over. folder: the study's; cache: shared by studies; meter: `name` and its settings."""

    task: Task
    workload: Workload
    protocol: Protocol
    device: str
    folder: Path
    cache: Path
    meter: Mapping[str, Any] = field(default_factory=dict)
    training_device: str | None = None
    ranks: int = 1
    weights: Path | None = None


class Workbench:
    """The baseline, the loaded reference and the teacher's outputs are paid for once."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._cache: dict[str, Any] = {}
        self._loaded: tuple[str, Program] | None = None
        self._baseline: nn.Module | None = None
        self._meters: dict[str, Meter] = {}
        self._crews = Crews()
        self._costs: floor.UnitCosts | None = None
        self._idle_w: dict[tuple[str, ...], float | None] = {}

    def close(self) -> None:
        """End the processes that it owns."""
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None
        self._crews.close()

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

    def _start(self, start: str, student: float = 1.0) -> nn.Module:
        """What is compressed: the baseline, a student of that fraction of its width, or the control's half."""
        if start == "scratch" or student < 1:
            return self._smaller(0.5 if start == "scratch" else student)
        if self._baseline is None:
            built = self.setup.task.build(self.setup.cache)
            if self.setup.weights is not None:
                load_weights(built, load_file(self.setup.weights))
            self._baseline = built.to(self.setup.device).eval()
        return self._baseline

    def _smaller(self, fraction: float) -> nn.Module:
        known: dict[float, nn.Module | None] = self._cache.setdefault("smaller", {})
        if fraction not in known:
            known[fraction] = self.setup.task.smaller(fraction, self.setup.cache)
        if (smaller := known[fraction]) is None:
            raise RefusedError("this task cannot tell what a smaller network is (Task.smaller returns None).")
        return smaller

    def _here(self, model: nn.Module) -> Callable[..., Any]:
        """A model that may live on another device, as it is called on this one."""
        device = str(next(model.parameters()).device)

        def call(*args: Any, **kwargs: Any) -> Any:
            there, named = to_device((args, kwargs), device)
            return to_device(model(*there, **named), self.setup.device)

        return call

    def _context(
        self,
        example: Inputs,
        seed: int,
        check: Callable[[], None],
        look: Callable[[nn.Module, int], None] = unseen,
    ) -> Context:
        return Context(
            task=self.setup.task,
            example=example,
            seed=seed,
            device=self.setup.device,
            teacher=self._start("baseline"),
            check=check,
            cache=self._cache,
            look=look,
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
            **{name: parallelism[name] for name in (*DEGREES, "micro_batch") if name in parallelism},
            batch_delay_s=parallelism.get("batch_delay_s", 0.0),
        )

    def _keep_golden(self) -> None:
        """Keep real inputs with the study, so that an export needs neither the task nor its data."""
        batch = self.setup.workload.fixed_batch or 1
        shape, tensors = pack(to_device(self._example(max(batch, GOLDEN)), "cpu"), "inputs")
        save_file(tensors, self.setup.folder / "golden.safetensors")
        (self.setup.folder / "golden.json").write_text(json.dumps(shape))

    def _program(self, key: str, recipe: Recipe) -> Program:
        return open_program(self.setup.folder / "artifacts" / key, recipe, self._crews)

    def _reference(self, key: str) -> Program:
        if self._loaded is None or self._loaded[0] != key:
            if self._loaded is not None:
                self._loaded[1].close()
            recipe = Recipe(**json.loads((self.setup.folder / "artifacts" / key / "recipe.json").read_text()))
            program = self._program(key, recipe)
            program.run(*self._example(recipe.batch))
            self._loaded = (key, program)
        return self._loaded[1]

    def _test_scores(self, key: str, program: Program | None = None) -> Scores:
        if not (self.setup.folder / "scores" / f"{key}-test.npz").exists():
            quality.keep(self.setup.folder, key, "test", self._score(program or self._reference(key), "test"))
        return quality.load(self.setup.folder, key, "test")

    def _meter(self, devices: Sequence[str] = ()) -> Meter:
        """The one meter of bill and measurements, or the one of several devices; it may own a process and a calibration
        of seconds."""
        of = ",".join(devices) or self.setup.device
        if of not in self._meters:
            settings = dict(self.setup.meter)
            self._meters[of] = choose(of, settings.pop("name", "auto"), **settings)
        return self._meters[of]

    def _kept_costs(self) -> floor.UnitCosts | None:
        """This device's unit costs by this meter, where they are known."""
        if self._costs is None:
            with suppress(MeterError):  # what is damaged is measured anew, by `unit_costs`
                self._costs = floor.kept(hardware.describe(self.setup.device), self._meter(), self.setup.cache)
        return self._costs

    def _all_cores(self) -> None:
        torch.set_num_threads(cores())


def _joined(parts: list[Inputs]) -> Inputs:
    from torch.utils._pytree import tree_map

    if len(parts) == 1:
        return parts[0]

    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], torch.Tensor) and leaves[0].ndim > 0 else leaves[0]

    joined: Inputs = tree_map(join, *parts)
    return joined
