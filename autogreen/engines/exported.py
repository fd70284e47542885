"""The artifact that eager and inductor share: a torch.export program without pickles, dead weights or build paths.

`torch.export.save` adds the sample inputs, where a program has them, as a pickle, and loading falls back to full
unpickling: a crafted file runs code. What is written here holds none, and `refuse_code` is asked before anything is
loaded.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autogreen.engines.archive import refuse_code
from autogreen.errors import BundleError, RefusedError
from autogreen.tasks import Inputs, plain

FILE = "model.pt2"
EXECUTES = "a graph of PyTorch's registered operators"


def export(model: nn.Module, example: Inputs) -> torch.export.ExportedProgram:
    """Trace the model at the example's shapes; a dataclass that it returns becomes a dict.

    Raises:
        RefusedError: the model's Python cannot be traced.
    """
    args, kwargs = example
    traced = copy.deepcopy(model).eval()
    _return_plain(traced)
    try:
        with torch.no_grad():
            return torch.export.export(traced, args, kwargs, strict=False)
    except Exception as error:
        raise RefusedError(
            f"{type(model).__name__} cannot be exported by torch.export ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}). Control flow that depends on values is the usual "
            "reason."
        ) from error


def save(model: nn.Module, example: Inputs, folder: Path) -> None:
    """Write `folder`/model.pt2.

    Raises:
        RefusedError: the model cannot be traced, or holds what only a pickle or foreign code could carry.
    """
    program = export(model, example)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine it was built on
    program._example_inputs = None  # it would be pickled
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / FILE)
    try:
        refuse_code(folder / FILE)
    except BundleError as error:
        raise RefusedError(
            f"{type(model).__name__} cannot be carried by a file that is safe to load: {error}"
        ) from error


def load(folder: Path, device: str) -> nn.Module:
    """Load the program as a module of plain operators on a device.

    Raises:
        BundleError: the archive is missing or damaged, or would run code when loaded.
    """
    module: nn.Module = program(folder).module()
    return module.to(device)


def program(folder: Path) -> torch.export.ExportedProgram:
    """Load the program as it was exported.

    Raises:
        BundleError: the archive is missing or damaged, or would run code when loaded.
    """
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers the operators that int8 programs call

    inspect(folder)
    return torch.export.load(folder / FILE)


def inspect(folder: Path) -> None:
    """Look through the archive without loading it.

    Raises:
        BundleError: it is missing or damaged, or would run code when loaded.
    """
    if not (folder / FILE).is_file():
        raise BundleError(f"{folder / FILE} is missing.")
    refuse_code(folder / FILE)


def _return_plain(model: nn.Module) -> None:
    """Give the instance a subclass whose forward returns trees that export knows; names of submodules stay."""
    original = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return plain(original.forward(self, *args, **kwargs))

    if not isinstance(model, torch.fx.GraphModule):
        model.__class__ = type(original.__name__, (original,), {"forward": forward})
