"""The process of one rank: answers its crew's commands until that is gone.

A command is a method of `Rank` with its arguments; the answer is a value, or the error that says why there is none.
"""

import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from torch import nn

    from autogreen.engines import Program, Recipe
    from autogreen.engines.profile import Trace
    from autogreen.errors import AutogreenError
    from autogreen.tasks import Inputs, Task

MEETING_S = 120.0  # to find each other; a command has a limit of its own
PIPELINE = "pipeline.json"  # of a pipeline, beside its stages: what goes in, is handed on, and comes out


def main(rank: int, devices: Sequence[str], connections: Sequence[Connection], meeting: str) -> None:
    """Serve one crew. meeting: a file, not there yet, over which the ranks find each other."""
    from torch.multiprocessing.spawn import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # a rank that waits in a collective hears nothing milder
    connection = connections[rank]
    for other in (one for one in connections if one is not connection):
        other.close()  # else nobody's death would close it
    served = Rank(rank, devices, meeting)
    while True:
        try:
            command, arguments = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            return
        answer: tuple[Any, AutogreenError | None]
        try:
            answer = (getattr(served, command)(**arguments), None)
        except Exception as error:  # noqa: BLE001 - user code may raise anything; what it means is told apart there
            from autogreen.executors import translated

            traceback.print_exc()
            answer = (None, translated(error))
        connection.send_bytes(cloudpickle.dumps(answer))


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A trained model and what shall be made of it. model: its weights on the meta device; weights: their file.
    splits: see `parallelism.shards`. example: a batch."""

    model: "nn.Module"
    weights: Path
    parts: Mapping[str, Any]
    splits: Sequence[Any]
    task: "Task"
    example: "Inputs"
    engine: str


class Rank:
    """One rank of `len(devices)`."""

    def __init__(self, rank: int, devices: Sequence[str], meeting: str) -> None:
        import torch
        from torch import distributed

        self.rank, self.count, self.device = rank, len(devices), devices[rank]
        if self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)
        if self.count > 1:
            distributed.init_process_group(
                "nccl" if self.device.startswith("cuda") else "gloo",
                init_method=f"file://{meeting}",
                rank=rank,
                world_size=self.count,
                timeout=timedelta(seconds=MEETING_S),
                device_id=torch.device(self.device) if self.device.startswith("cuda") else None,
            )
        self._call: Callable[..., Any]
        self._program: Program
        self._held: Inputs

    # -- tensor parallelism: each rank makes its own artifact --------------------------------------------------------

    def build(self, blueprint: Blueprint, folder: Path, threads: int) -> None:
        """Make this rank's shard and save it in `folder`/shard-N. All ranks build at once: what is calibrated runs
        through the whole model.

        Raises:
            RefusedError: a technique or the engine cannot carry the shard.
        """
        import torch
        from safetensors.torch import load_file

        from autogreen.compress import lower
        from autogreen.engines import ENGINES
        from autogreen.tasks import to_device
        from autogreen.techniques import Context
        from autogreen.techniques.parallelism.shards import shard, summed

        torch.set_num_threads(threads)
        model = blueprint.model
        model.load_state_dict(load_file(blueprint.weights), assign=True)
        shares = shard(model, blueprint.splits, self.rank, self.count)
        model = summed(model.to(self.device).eval(), shares)
        example = to_device(blueprint.example, self.device)
        context = Context(
            task=blueprint.task,
            example=example,
            seed=0,
            device=self.device,
            teacher=model,
            check=lambda: None,
            cache={},
            engine=blueprint.engine,
        )
        with torch.no_grad():
            # what it keeps from call to call, as a decoder its keys, has to be a shard's from here on
            model(*example[0], **example[1])
            lowered = summed(lower(blueprint.parts, model, context), shares)
        ENGINES[blueprint.engine].save(lowered, example, folder / f"shard-{self.rank}")  # see `Recipe.parts`

    # -- running -----------------------------------------------------------------------------------------------------

    def load(self, folder: Path, recipe: "Recipe") -> None:
        """Load what this rank runs: a shard, a stage or the whole.

        Raises:
            BundleError: as `Program`.
        """
        from autogreen.engines import Program

        size = (recipe.micro_batch or recipe.batch // recipe.pipeline) if recipe.pipeline > 1 else recipe.batch
        alone = replace(recipe, device=self.device, batch=size, data=1, tensor=1, pipeline=1, micro_batch=None)
        self._program = Program(folder / recipe.parts[self.rank], alone)
        self._call = self._program.run
        if recipe.pipeline > 1:
            from autogreen.ranks.pipe import Pipe

            self._call = Pipe(self._program, folder / PIPELINE, self.rank, self.count, recipe.batch // size)

    def hold(self, inputs: "Inputs") -> None:
        """Keep a batch on the device, for `run`, and treat it once: what compiles does so now."""
        from autogreen.tasks import to_device

        self._held = to_device(inputs, self.device)
        self.run(1)

    def run(self, calls: int) -> None:
        """Treat the batch that is held so often; return when the device has done it."""
        from autogreen.hardware import synchronizer

        for _ in range(calls):
            self._call(*self._held)
        synchronizer(self.device)()

    def call(self, inputs: "Inputs | None") -> Any:
        """Treat one batch; return the model's outputs on the CPU, where this rank has them. None: `hold`'s batch."""
        from autogreen.tasks import to_device

        args, kwargs = self._held if inputs is None else to_device(inputs, self.device)
        return to_device(self._call(args, kwargs), "cpu")

    def rest(self) -> None:
        """Free what is loaded."""
        import gc

        import torch

        for name in ("_call", "_program", "_held"):
            vars(self).pop(name, None)
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def trace(self) -> "Trace":
        """Which matrix kernels one call of the held batch runs here, and how long ranks speak with each other."""
        from autogreen.ranks.talk import traced

        return traced(self._program, self._call, self._held)
