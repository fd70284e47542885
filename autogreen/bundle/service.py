"""A bundle called by whoever serves it: arrays by name in, arrays out, any number of examples.

    model(x)                          one array without a name
    model(x, y, mask=m, past=(k, v))  {"arg0": ..., "arg1": ..., "mask": ..., "past.0": ..., "past.1": ...}

Outputs have names by the same rule. Whatever is no tensor among the golden inputs is handed over as it was there.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen.bundle import golden
from autogreen.bundle.manifest import Manifest
from autogreen.bundle.read import examples, load, read
from autogreen.engines import environment
from autogreen.errors import BundleError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Arrays = Any  # one array, or arrays by name


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A tensor as a caller sees it.

    name: None where it is the only one. tensor: its name among the golden ones. dtype: numpy's name; what numpy does
    not know (bfloat16, float8) is float32, which holds each of its values. shape: -1 is any number of examples.
    """

    name: str | None
    tensor: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def batched(self) -> bool:
        """Whether it has a row for each example."""
        return self.shape[:1] == (-1,)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a caller hands over and gets back. tree: of the model's arguments; held: the golden ones, by place."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    tree: Any
    held: Mapping[str, "Tensor"]

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "Interface":
        """Of a checked bundle; its program is not loaded.

        Raises:
            BundleError: tensors that cannot be told apart by name, or none.
        """
        from autogreen.tasks.trees import pack

        inputs, outputs = examples(folder, manifest)
        (tree, held), (shape, found), rows = pack(inputs, "input"), pack(outputs, "output"), manifest.golden.examples
        return cls(
            inputs=_slots(_arguments(tree), held, rows),
            outputs=_slots(_leaves(shape), found, rows),
            tree=tree,
            held=held,
        )

    def examples(self, rows: int) -> Arrays:
        """The first golden inputs, as a caller would hand them over."""
        whole = {slot.name: array(self.held[slot.tensor]) for slot in self.inputs}
        cut = {slot.name: whole[slot.name][:rows] if slot.batched else whole[slot.name] for slot in self.inputs}
        return cut.get(None, cut)

    def tensors(self, given: Arrays) -> dict[str, "Tensor"]:
        """What was handed over, by place.

        Raises:
            ConfigError: other names, types or shapes than the inputs have, or no example at all.
        """
        import numpy as np
        import torch

        arrays = given if isinstance(given, Mapping) else {None: given}
        wanted = {slot.name: slot for slot in self.inputs}
        if arrays.keys() != wanted.keys():
            raise ConfigError(f"the model takes {_names(wanted)}; it was given {_names(arrays)}.")
        found, rows = {}, set()
        for name, slot in wanted.items():
            value = np.array(arrays[name])  # a copy: torch takes no array that it may not write to
            fits = value.ndim == len(slot.shape) and all(
                size in (-1, had) for size, had in zip(slot.shape, value.shape, strict=True)
            )
            if str(value.dtype) != slot.dtype or not fits:
                raise ConfigError(
                    f"{name or 'the input'} must be {slot.dtype} of shape {list(slot.shape)} (-1: any number of "
                    f"examples), not {value.dtype} of shape {list(value.shape)}."
                )
            rows |= {len(value)} if slot.batched else set()
            found[slot.tensor] = torch.from_numpy(value).to(self.held[slot.tensor].dtype)
        if len(rows) > 1 or 0 in rows:
            raise ConfigError(f"the inputs must have one number of examples, at least 1; given were {sorted(rows)}.")
        return found


class Service:
    """A checked, loaded bundle whose golden outputs came out right here.

    All calls run in one thread, one after the other: that is how the program was measured, and thread counts, compiler
    settings and recorded graphs belong to the thread that made them.
    """

    def __init__(self, folder: Path, *, native_code: bool = False) -> None:
        """native_code: run machine code that came with the bundle, where its format holds some.

        Raises:
            BundleError: the bundle is not what its manifest says, or gives other outputs than recorded.
        """
        self.manifest = read(folder)
        os.environ.update(environment(self.manifest.recipe.device))  # for a torch that is not loaded yet
        self.interface = Interface.of(folder, self.manifest)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="autogreen")
        self._worker.submit(self._open, folder, native_code).result()

    def __call__(self, given: Arrays) -> Arrays:
        """Run the program.

        Raises:
            ConfigError: as `Interface.tensors`.
        """
        return self._worker.submit(self._run, given).result()

    def _open(self, folder: Path, native_code: bool) -> None:
        self._program = load(folder, native_code=native_code)
        (args, kwargs), expected = examples(folder, self.manifest)
        apart, allowed = golden.difference(expected, self._program(*args, **kwargs)), self.manifest.golden.tolerance
        if not apart <= allowed:
            raise BundleError(
                f"{folder} gives other outputs here than recorded: they differ by {apart:.3g} of their largest value, "
                f"{allowed:g} is allowed. Do not serve it here; export it again, on this machine."
            )

    def _run(self, given: Arrays) -> Arrays:
        from autogreen.tasks.trees import pack, unpack

        args, kwargs = unpack(self.interface.tree, self.interface.tensors(given))
        tree, found = pack(self._program(*args, **kwargs), "output")
        arrays = {name: array(found[tensor]) for name, tensor in _leaves(tree)}
        return arrays.get("", arrays)


def array(tensor: "Tensor") -> "np.ndarray[Any, Any]":
    """As numpy has it; numbers that it does not know, as float32."""
    import torch

    try:
        return tensor.numpy()
    except TypeError:
        return tensor.to(torch.float32).numpy()


def _slots(named: Iterable[tuple[str, str]], tensors: Mapping[str, "Tensor"], rows: int) -> tuple[Slot, ...]:
    """The tensors that `named` (name, place among `tensors`) lists; of so many examples each.

    Raises:
        BundleError: two of them have one name, or there is none.
    """
    found = list(named)
    if not found or len({name for name, _ in found}) != len(found):
        raise BundleError("its inputs or outputs cannot be told apart by name; call the model from Python instead.")
    alone = [name for name, _ in found] in ([""], ["arg0"])

    def slot(name: str, tensor: "Tensor", place: str) -> Slot:
        shape = tuple(-1 if axis == 0 and size == rows else size for axis, size in enumerate(tensor.shape))
        return Slot(name=None if alone else name, tensor=place, dtype=str(array(tensor).dtype), shape=shape)

    return tuple(slot(name, tensors[place], place) for name, place in found)


def _arguments(tree: Any) -> Iterator[tuple[str, str]]:
    """(name, tensor) of every tensor among positional and keyword arguments."""
    args, kwargs = tree["tuple"]
    for place, part in enumerate(args["tuple"]):
        yield from _leaves(part, f"arg{place}")
    yield from _leaves(kwargs)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    ((kind, inside),) = tree.items()
    if kind == "tensor":
        yield path, inside
    elif kind != "value":
        for key, part in inside.items() if kind == "dict" else enumerate(inside):
            yield from _leaves(part, f"{path}.{key}" if path else str(key))


def _names(names: Iterable[str | None]) -> str:
    return ", ".join(name for name in names if name is not None) or "one array without a name"
