"""A program on several ranks, by the face of a program on one."""

import copy
import json
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autogreen.compress import lower
from autogreen.engines import ENGINES, Program, Recipe, exported
from autogreen.engines.profile import Trace
from autogreen.errors import RefusedError
from autogreen.ranks.crew import Crew, Crews, together, wait_for_any
from autogreen.ranks.rank import PIPELINE, Blueprint
from autogreen.tasks import cut, to_device
from autogreen.techniques.parallelism import shards, stages

if TYPE_CHECKING:
    from autogreen.tasks import Inputs
    from autogreen.techniques import Context


class Placed(Program):
    """An artifact on `recipe.ranks` processes; takes any number of examples, as a program does."""

    def __init__(self, folder: Path, recipe: Recipe, crews: Crews | None = None) -> None:
        self.folder, self.recipe = folder, recipe
        refuse_mixed(recipe.devices)
        self._pool = crews or Crews()
        self._keep = crews is not None
        self._crews: list[Crew] = []
        weakref.finalize(self, _close, self._crews)
        size = recipe.tensor * recipe.pipeline
        for first in range(0, recipe.ranks, size):
            self._crews.append(self._pool.hire(seats(recipe)[first : first + size]))
        self._answering = size - 1 if recipe.pipeline > 1 else 0  # the rank that has the outputs
        try:
            together(self._crews, "load", folder=folder, recipe=recipe)
        except BaseException:
            self.close()
            raise

    def batches(self, parts: "Iterable[Inputs]") -> Iterator[Any]:
        """Outputs of each batch, on the CPU, in order; replicas take turns."""
        waiting = list(parts)
        for start in range(0, len(waiting), len(self._crews)):
            now = list(zip(self._crews, waiting[start : start + len(self._crews)], strict=False))
            for crew, inputs in now:
                crew.begin("call", inputs=inputs)
            for crew, _ in now:
                yield crew.finish()[self._answering]

    def launch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One batch, on the first replica; outputs come back to the CPU."""
        return self._crews[0].ask("call", inputs=to_device((args, kwargs), "cpu"))[self._answering]

    run = launch

    def calling(self, inputs: "Inputs") -> "Held":
        return Held(self, self._crews, inputs)

    def trace(self, inputs: "Inputs") -> Trace:
        """Of one replica's ranks together; the share between them is their mean."""
        self._crews[0].ask("hold", inputs=to_device(inputs, "cpu"))
        told: list[Trace] = self._crews[0].ask("trace")
        peaks = [one.peak_bytes for one in told]
        return Trace(
            products=tuple(product for one in told for product in one.products),
            peak_bytes=None if None in peaks else sum(peak or 0 for peak in peaks),
            communication=sum(one.communication or 0.0 for one in told) / len(told),
        )

    def close(self) -> None:
        """Let the ranks go: devices are free then, or hold idle processes of the pool that they came from."""
        while self._crews:
            crew = self._crews.pop()
            if self._keep:
                self._pool.rest(crew)
            else:
                crew.close()


class Remote:
    """A replica in front of which requests queue: it is told to begin, and asked whether it is done."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def start(self, count: int) -> None:
        """Begin a batch; one that is not full is filled up, and takes what a full one takes."""
        self._crew.begin("run", calls=1)

    def done(self) -> bool:
        """Whether it is answered."""
        if not self._crew.ready():
            return False
        self._crew.finish()
        return True


class Held:
    """A batch that lies on every replica's devices. A call treats it on all of them; so do many, told once."""

    def __init__(self, program: Placed, crews: Sequence[Crew], inputs: "Inputs") -> None:
        self._program = program  # whose ranks end when nobody has it any more
        self._crews = crews
        self.replicas = [Remote(crew) for crew in crews]
        # a tensor of the first GPU would arrive there, in whatever process it arrives: a context and memory for nothing
        together(crews, "hold", inputs=to_device(inputs, "cpu"))

    def __call__(self) -> None:
        self.repeat(1)

    def repeat(self, calls: int) -> None:
        """Treat it so often on each replica; return when the slowest is done."""
        together(self._crews, "run", calls=calls)

    def wait(self, seconds: float) -> None:
        """Sleep for so long, or until a replica that is at work has answered."""
        if not wait_for_any([crew for crew in self._crews if crew.busy], seconds):
            time.sleep(seconds)


def save(
    parts: Mapping[str, Any], trained: nn.Module, context: "Context", recipe: Recipe, folder: Path, crews: Crews
) -> None:
    """Write the parts that ranks run; see `ranks.build`."""
    refuse_mixed(recipe.devices)
    if recipe.tensor > 1:
        _sharded(parts, trained, context, recipe, folder, crews)
    else:
        _staged(parts, trained, context, recipe, folder)


def _sharded(
    parts: Mapping[str, Any], trained: nn.Module, context: "Context", recipe: Recipe, folder: Path, crews: Crews
) -> None:
    splits = shards.splits(trained, cut(context.example, 1)[0])  # what survives one example survives a batch
    if not splits:
        raise RefusedError("parallelism: tensor: nothing of this model can be split.")
    blueprint = Blueprint(
        model=_without_weights(trained),
        weights=folder / "weights.safetensors",
        parts=parts,
        splits=splits,
        task=context.task,
        example=to_device(context.example, "cpu"),
        engine=recipe.engine,
    )
    crew = crews.hire(seats(recipe)[: recipe.tensor])
    try:
        crew.ask("build", blueprint=blueprint, folder=folder, threads=recipe.threads)
    finally:  # a part that was refused leaves its ranks as good as before
        crews.rest(crew)


def _staged(parts: Mapping[str, Any], trained: nn.Module, context: "Context", recipe: Recipe, folder: Path) -> None:
    size = recipe.micro_batch or recipe.batch // recipe.pipeline
    example = cut(context.example, size)[0]
    lowered = lower(parts, trained, replace(context, example=example))
    graph = exported.export(lowered, example).module()
    pipeline = stages.cut(graph, example, recipe.pipeline)
    for number, stage in enumerate(pipeline.stages):
        ENGINES[recipe.engine].save(stage.module, (stage.given, {}), folder / f"stage-{number}")
    boundaries = [pipeline.stages[0].given, *(stage.returned for stage in pipeline.stages)]
    (folder / PIPELINE).write_text(
        json.dumps(
            {
                "inputs": pipeline.inputs,
                "outputs": pipeline.outputs,
                "boundaries": [[_described(value) for value in values] for values in boundaries],
            }
        )
    )


def _described(value: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def seats(recipe: Recipe) -> list[str]:
    """The device of each rank, replica by replica."""
    return [recipe.devices[min(rank, len(recipe.devices) - 1)] for rank in range(recipe.ranks)]


def refuse_mixed(devices: Sequence[str]) -> None:
    """Ranks on GPUs of different models would wait for the slowest, and joules of two models do not add up to one.

    Raises:
        RefusedError: the models are named.
    """
    if not devices[0].startswith("cuda"):
        return
    names = {device: torch.cuda.get_device_name(device) for device in devices}
    if len(set(names.values())) > 1:
        told = ", ".join(f"{device} is a {name}" for device, name in names.items())
        raise RefusedError(
            f"parallelism: {told}: one policy runs on GPUs of one model. Choose them, by CUDA_VISIBLE_DEVICES for one."
        )


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters and persistent buffers are on the meta device: their values are in a file."""
    known = {id(leaf): leaf for leaf in (*model.parameters(), *model.buffers())}
    kept = {id(leaf) for leaf in model.state_dict(keep_vars=True).values()}
    memo: dict[int, Any] = {}
    for key, leaf in known.items():
        empty = leaf.detach().to("meta") if key in kept else leaf.detach().cpu()
        memo[key] = nn.Parameter(empty, leaf.requires_grad) if isinstance(leaf, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _close(crews: Sequence[Crew]) -> None:
    for crew in crews:
        crew.close()
