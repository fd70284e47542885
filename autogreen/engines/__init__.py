"""Engines: how a policy is run while it is measured, and how it ships.

What is measured is always `load(save(model))`: the artifact on disk under its recorded recipe. Sweep, verification and
serving share that one road, so that measuring one thing and shipping another cannot happen.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from autogreen.errors import ConfigError
from autogreen.registry import Table, nearest

if TYPE_CHECKING:
    from torch import nn

    from autogreen.engines.profile import Trace
    from autogreen.tasks import Inputs

ENGINES = Table(
    "engine",
    {
        "eager": "autogreen.engines.eager:Eager",
        "inductor": "autogreen.engines.inductor:Inductor",
        "aot": "autogreen.engines.aot:Aot",
        "onnxruntime": "autogreen.engines.onnxruntime:OnnxRuntime",
        "transformers": "autogreen.engines.transformers:Transformers",
    },
)


Mode = Literal["default", "max-autotune"]


def cores() -> int:
    """Processors that this process may run on: fewer than the machine has where it is pinned (taskset, a scheduler)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room(device: str) -> int:
    """Processors for the ranks of a policy: GPUs from `device` on that this process sees, or its cores."""
    if not device.startswith("cuda"):
        return cores()
    import torch

    return torch.cuda.device_count() - int(device.partition(":")[2] or 0)


def environment(device: str) -> dict[str, str]:
    """Variables of every process that measures or verifies on a device; what the user has set himself goes before."""
    # Compilers run as our own children: billed, and gone with their process group. On a GPU more than one would mean a
    # pool of processes that outlives them (Triton's); on a CPU they are waited for by threads.
    compilers = 1 if device.startswith("cuda") else cores()
    return {
        "TORCHINDUCTOR_COMPILE_THREADS": str(compilers),
        # OpenMP threads that wait by spinning train 3 times slower beside one foreign job, and look like energy
        "GOMP_SPINCOUNT": "1000",
        # glibc gives large buffers back after a call and gets them again, page by page, in the next: a seventh of what
        # a network of 64 images takes, or nothing, depending on what its process did before
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "-1",
        **os.environ,
    }


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A policy's `runtime` section.

    engine: by name. mode: of torch.compile; `max-autotune` times several kernels for each product and takes the
    fastest. cuda_graph: the call is recorded once and replayed as a whole, which saves the launches.
    """

    ordered: ClassVar[bool] = False

    engine: str = "eager"
    mode: Mode = "default"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            known = ", ".join(ENGINES)
            raise ConfigError(f"unknown engine {self.engine!r}.{nearest(self.engine, ENGINES)} Known: {known}")

    def effect(self) -> dict[str, Any]:
        """JSON, without what does nothing."""
        effect: dict[str, Any] = {"engine": self.engine}
        if self.mode != "default" and self.engine == "inductor":
            effect["mode"] = self.mode
        return {**effect, "cuda_graph": True} if self.cuda_graph else effect

    @staticmethod
    def refusal(effect: Mapping[str, Any], device: str, stages: int = 1) -> str | None:
        """Why it does not run so on the device, or None. stages: of a pipeline."""
        if missing := ENGINES[effect["engine"]].missing(device):
            return f"engine {effect['engine']!r}: {missing}"
        if effect.get("cuda_graph") and not device.startswith("cuda"):
            return f"cuda_graph: {device!r} is no NVIDIA GPU, and only those replay graphs"
        if effect.get("cuda_graph") and effect["engine"] == "transformers":
            return "cuda_graph: torchao's layers in a checkpoint wait for the GPU, which no graph records"
        if effect.get("cuda_graph") and stages > 1:
            return "cuda_graph: a stage of a pipeline would overwrite a micro-batch that is still being sent"
        return None


DEGREES = ("data", "tensor", "pipeline")  # of a `Recipe`


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides, besides the artifact, how it runs. batch: examples a call of a replica, fixed in the artifact.
    threads: intra-op threads on a CPU, of each rank. device: "cpu" or "cuda:N". mode, cuda_graph: see `Runtime`.
    data, tensor, pipeline, micro_batch: see `Parallelism`; a process of its own, a rank, for each of
    data x tensor x pipeline, on as many GPUs from `device` on. batch_delay_s: for which a server lets the oldest
    request wait for the batch to fill.
    """

    engine: str
    batch: int
    threads: int
    device: str
    mode: Mode = "default"
    cuda_graph: bool = False
    batch_delay_s: float = 0.0
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batch: int | None = None

    @property
    def ranks(self) -> int:
        """Processes that run it."""
        return self.data * self.tensor * self.pipeline

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders in the artifact's that hold what an engine wrote: itself, or one for each shard or stage."""
        kind, count = ("shard", self.tensor) if self.tensor > 1 else ("stage", self.pipeline)
        return tuple(f"{kind}-{number}" for number in range(count)) if count > 1 else ("",)

    @property
    def devices(self) -> tuple[str, ...]:
        """What it occupies, as `meters.choose` takes it when joined by commas: a GPU a rank, or the one CPU."""
        if not self.device.startswith("cuda"):
            return (self.device,)
        first = int(self.device.partition(":")[2] or 0)
        return tuple(f"cuda:{first + rank}" for rank in range(self.ranks))


Precision = Literal["int8", "float8", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A matrix kernel seen in a profile of one call. precision: the data type that it multiplies in."""

    name: str
    precision: Precision
    calls: int


@dataclass(frozen=True, kw_only=True)
class Product:
    """One run of a matrix kernel. macs: multiply-accumulates, by the shapes that it was called with."""

    name: str
    precision: Precision
    macs: int


class Engine(Protocol):
    """Contract of the family; members are stateless.

    executes: what loading an artifact runs, in words. native: that is machine code, which cannot be looked through.
    """

    executes: ClassVar[str]
    native: ClassVar[bool]

    @staticmethod
    def missing(device: str) -> str | None:
        """Why it does not run on this device of this machine, or None."""
        ...

    @staticmethod
    def save(model: "nn.Module", example: "Inputs", folder: Path) -> None:
        """Write the artifact, `model.*` in the folder. `example` fixes the batch size.

        Raises:
            RefusedError: this engine cannot carry the model; which part, and why.
        """
        ...

    @staticmethod
    def inspect(folder: Path) -> None:
        """Look through an artifact without loading it.

        Raises:
            BundleError: it is missing or damaged, or holds what this engine never writes.
        """
        ...

    @staticmethod
    def load(folder: Path, recipe: Recipe) -> Callable[..., Any]:
        """Inspect it, and return a callable with the model's signature, for batches of exactly the recipe's size.

        Raises:
            BundleError: as `inspect`, or it was made for another recipe.
        """
        ...

    @staticmethod
    def trace(program: "Program", inputs: "Inputs") -> "Trace":
        """Which matrix kernels one call of a warm program really runs.

        Raises:
            RefusedError: that cannot be shown.
        """
        ...


def artifact_bytes(folder: Path, parts: tuple[str, ...] = ("",)) -> int:
    """Size of what an engine wrote, files and folders named `model.*`, in parts of a folder (see `Recipe.parts`)."""
    paths = [path for part in parts for path in (folder / part).glob("model.*")]
    found = [file for path in paths for file in (path, *path.rglob("*"))]
    return sum(file.stat().st_size for file in found if file.is_file())


class Program:
    """A loaded artifact under its recipe; takes any number of examples.

    Examples run in batches of the recipe's size, the last one filled up, as a server with a fixed batch does. Tensors
    go in and come out on the CPU. folder: where the artifact lies.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self._set_threads()  # before loading: compilers write the number of threads into their code
        self._graph: Any = None
        self._run = ENGINES[recipe.engine].load(folder, recipe)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from torch.utils._pytree import tree_map

        from autogreen.tasks import cut, rows

        count, size = rows((args, kwargs)), self.recipe.batch
        outputs = list(self.batches(cut((args, kwargs), size)))

        def join(*leaves: Any) -> Any:
            batched = isinstance(leaves[0], torch.Tensor) and leaves[0].ndim > 0 and len(leaves[0]) == size
            return torch.cat(leaves)[:count] if batched else leaves[0]

        return tree_map(join, *outputs)

    def batches(self, parts: "Iterable[Inputs]") -> Iterator[Any]:
        """Outputs of each full batch, on the CPU, in order."""
        from autogreen.tasks import to_device

        for part in parts:
            yield to_device(self.run(*to_device(part, self.recipe.device)), "cpu")

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one full batch; nothing is added to what the engine does. This is what is measured.

        With a CUDA graph the outputs lie where the next call will write its own."""
        if not self.recipe.cuda_graph:
            return self.launch(args, kwargs)
        if self._graph is None:
            from autogreen.engines.graph import Graph

            self._graph = Graph(self.launch, (args, kwargs))
        return self._graph(args, kwargs)

    def launch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same, kernel by kernel: what a profiler can look into."""
        import torch

        self._set_threads()
        with torch.no_grad():  # also what lets inductor freeze weights
            return self._run(*args, **kwargs)

    def calling(self, inputs: "Inputs") -> Callable[[], object]:
        """What is measured: a call that treats this batch, which lies on the device, once more (on each replica)."""
        return lambda: self.run(*inputs)

    def trace(self, inputs: "Inputs") -> "Trace":
        """What one call of the warm program runs, launched kernel by kernel, told by its engine.

        Raises:
            RefusedError: the engine cannot show which kernels ran.
        """
        found: Trace = ENGINES[self.recipe.engine].trace(self, inputs)
        return found

    def close(self) -> None:
        """Free what it holds outside of this process."""

    def _set_threads(self) -> None:
        import torch

        if torch.get_num_threads() != self.recipe.threads:
            torch.set_num_threads(self.recipe.threads)
