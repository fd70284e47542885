"""The exported program as a shared library, compiled when it is saved: nothing is compiled or traced where it runs.

    model.pt2     the AOTInductor package: machine code of this kind of device, weights inside
    model.json    what the profiler cannot tell of it: the sizes of its matrix products; threads written into the code

A package calls PyTorch's kernels past the dispatcher, where the profiler sees operators. So it is compiled with marks
around these calls, which cost nothing measurable while nobody profiles: a profile then shows which of them ran, and how
often. How much each multiplies is read off the compiler's own list of calls.
"""

import json
import math
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import torch
import torch._inductor.config
from torch import nn

from autogreen.engines import Precision, Product, Program, Recipe, exported, profile
from autogreen.errors import BundleError, RefusedError
from autogreen.tasks import Inputs

FILE, CALLS = "model.pt2", "model.json"
MAX_CALLS_BYTES = 10_000_000
ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
    r"|data/aotinductor/model/[\w\-]+(\.[\w\-]+)*\.(so|cubin|json)"
)
SHIM = r"aoti_torch_[a-z]+_(mkldnn_|onednn_)?_*{name}(_(out|tensor|binary|default|v\d+))*_*"
CONVOLUTIONS = (*profile.CONVOLUTION, "aten::convolution")
PRECISIONS: Mapping[torch.dtype, Precision] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Aot:
    """Source: AOTInductor (docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html)."""

    executes: ClassVar[str] = "machine code: a shared library, which can do whatever this user may"
    native: ClassVar[bool] = True

    @staticmethod
    def missing(device: str) -> str | None:
        if device != "cpu":  # one made with torch 2.11 did not load again on an H100
            return f"its packages are not shown to load on {device!r}; the inductor engine runs there"
        return None

    @staticmethod
    def save(model: nn.Module, example: Inputs, folder: Path) -> None:
        """The number of threads that torch has now is written into the code."""
        program = exported.export(model, example)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine it was built on
        calls: list[Product] = []

        def listen(nodes: Any) -> Any:
            calls.extend(_products(nodes))
            return nodes

        settings = {"freezing": True, "cpp.enable_kernel_profile": True, "_post_fusion_custom_pass": listen}
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "full.pt2"
            try:
                with torch.no_grad(), torch._inductor.config.patch(settings):
                    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
            except Exception as error:  # the compiler may raise anything
                raise RefusedError(
                    f"{type(model).__name__} cannot be compiled by AOTInductor ({type(error).__name__}: "
                    f"{(str(error).strip().splitlines() or [''])[0]}). Use the inductor engine."
                ) from error
            _strip(package, folder / FILE)
        told = {"threads": torch.get_num_threads(), "products": [asdict(call) for call in calls]}
        (folder / CALLS).write_text(json.dumps(told, indent=1) + "\n")

    @staticmethod
    def inspect(folder: Path) -> None:
        """What the code does cannot be seen; only that there is nothing else."""
        _told(folder)
        try:
            with zipfile.ZipFile(folder / FILE) as archive:
                for name in archive.namelist():
                    if not ENTRIES.fullmatch(name.partition("/")[2]):
                        raise BundleError(f"{folder / FILE} holds {name!r}, which no export of autogreen writes.")
        except FileNotFoundError:
            raise BundleError(f"{folder / FILE} is missing.") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise BundleError(f"{folder / FILE} is damaged: {error}.") from error

    @staticmethod
    def load(folder: Path, recipe: Recipe) -> Callable[..., Any]:
        Aot.inspect(folder)
        threads, _ = _told(folder)
        if threads != recipe.threads and recipe.device == "cpu":
            raise BundleError(
                f"{folder / FILE} was compiled for {threads} thread(s), and its recipe says {recipe.threads}: the "
                "number is written into its code. Export it again."
            )
        index = int(recipe.device.partition(":")[2] or 0) if recipe.device.startswith("cuda") else -1
        package = str(folder / FILE)
        loaded: Callable[..., Any] = torch._inductor.aoti_load_package(
            package, run_single_threaded=True, device_index=index
        )
        return loaded

    @staticmethod
    def trace(program: Program, inputs: Inputs) -> profile.Trace:
        """The compiler's list of products, if a profile shows each of them as often."""
        events = profile.recorded(program, inputs)
        seen = Counter(event.name() for event in events)
        _, products = _told(program.folder)
        for name, calls in Counter(product.name for product in products).items():
            if (ran := _ran(name, seen)) != calls:
                raise RefusedError(
                    f"the compiler wrote {calls} calls of {name}, a profile of the package shows {ran}: what it really "
                    "runs cannot be told. Use the inductor engine."
                )
        return profile.Trace(products=products, peak_bytes=profile.peak_bytes(events))


def _ran(name: str, seen: Mapping[str, int]) -> int:
    """How often a profile shows an operator: by its mark, or itself where the package goes through the dispatcher."""
    shim = re.compile(SHIM.format(name=re.escape(name.partition("::")[2].lstrip("_"))))
    marked = sum(count for event, count in seen.items() if shim.fullmatch(event))
    return marked or seen.get(name, 0)


def _products(nodes: Sequence[Any]) -> list[Product]:
    """The calls of matrix kernels in what the compiler has scheduled, in order."""
    from torch._inductor import ir

    several = [node.node for node in nodes if isinstance(node.node, ir.MultiOutput)]
    made = {cast(Any, found.inputs[0]).get_name(): _size(found) for found in several}
    products = []
    for node in nodes:
        if not isinstance(node.node, ir.ExternKernel) or not (name := _name(node.node)):
            continue
        call: Any = node.node
        given = dict(zip(_tensors(call, name), call.inputs, strict=False))
        shapes = {argument: size for argument, tensor in given.items() if (size := _size(tensor)) is not None}
        first = call.inputs[0] if name not in ("aten::addmm", "aten::baddbmm") else call.inputs[1]
        precision = profile.precision(name, PRECISIONS.get(first.get_dtype(), "float32"))
        if name.startswith(CONVOLUTIONS):
            out = _size(call) or made.get(call.get_name()) or shapes.get("accum") or shapes.get("other") or [0]
            weight = next((shapes[one] for one in ("qw", "W", "weight") if one in shapes), [0, 0])
            macs = math.prod(out) * math.prod(weight[1:])
        else:
            macs = profile.macs(name, shapes, {})
        products.append(Product(name=name, precision=precision, macs=macs))
    return products


def _name(call: Any) -> str:
    """`namespace::operator` of a matrix kernel; of anything else nothing."""
    told = str(call.python_kernel_name)
    if told.startswith("extern_kernels."):
        name = f"aten::{told.partition('.')[2]}"
    else:
        parts = told.removeprefix("torch.ops.").split(".")
        name = "::".join(parts[:2]).rstrip("_")  # one that writes in place is the same kernel
    return name if name.startswith((*profile.KERNELS, "aten::convolution")) else ""


def _tensors(call: Any, name: str) -> list[str]:
    """Names of an operator's tensor arguments, in order."""
    namespace, _, short = name.partition("::")
    operator = call.op_overload or getattr(getattr(torch.ops, namespace), short).default  # the latter: aten's own
    return [argument.name for argument in operator._schema.arguments if "Tensor" in str(argument.type)]


def _size(buffer: Any) -> list[int] | None:
    try:
        return [int(side) for side in buffer.get_size()]
    except (NotImplementedError, AttributeError, TypeError):  # several outputs, none, or a size that is no number
        return None


def _strip(package: Path, target: Path) -> None:
    """Copy a package without sources; paths of this machine in its code are overwritten by as many dots."""
    places = {str(Path.home()), tempfile.gettempdir(), str(Path(torch.__path__[0]).parent), str(Path.cwd())}
    paths = re.compile(b"|".join(re.escape(place.encode()) + rb"(/[\w.+\-/]*)?" for place in places if len(place) > 1))
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w") as stripped:
        for entry in source.infolist():
            if not entry.filename.endswith(".cpp") and not entry.filename.endswith(".kernel_metadata.json"):
                content = source.read(entry.filename)
                if entry.filename.endswith(".so"):
                    content = paths.sub(lambda found: b"." * len(found.group()), content)
                stripped.writestr(entry.filename, content)


def _told(folder: Path) -> tuple[int, tuple[Product, ...]]:
    """Threads and products of model.json."""
    path = folder / CALLS
    try:
        if path.stat().st_size > MAX_CALLS_BYTES:
            raise ValueError("it is too long")
        told = json.loads(path.read_text())
        products = tuple(Product(**product) for product in told["products"])
        known = all(
            type(one.name) is str and type(one.macs) is int and one.precision in get_args(Precision) for one in products
        )
        if type(told["threads"]) is not int or not known:
            raise ValueError("a value is of the wrong type")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}.") from error
    return told["threads"], products
