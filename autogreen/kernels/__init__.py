"""What a layer costs in each scheme on this very device, over the plain layer: values, kept from study to study.

Case   one layer shape, so many rows of its matrix product, one scheme          a question
Cell   its energy over the plain layer's, with interval and kernels, or why not    an answer
Kernels    the answers of one machine, PyTorch, driver and meter

`cases` which are asked    `bench` one shape measured    `session` all of them    `table`, `page` shown
"""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autogreen import hardware
from autogreen.errors import ConfigError
from autogreen.files import whole
from autogreen.measurement import Interval
from autogreen.meters import Tier
from autogreen.techniques import Unit

ENGINE = "inductor"  # the best runtime of a layer alone; on a GPU with a CUDA graph
PLAIN = {"cpu": "float32", "cuda": "bfloat16"}  # data type of the plain layer
SAME_AS_PLAIN = {"cpu": "none", "cuda": "bf16"}  # the scheme that makes it, of a float32 model
NEAR = 2.0  # a cell speaks for layers whose inputs, outputs and rows are each within this factor


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """A layer. inputs, outputs: channels or features. taps: of a convolution, 9 for 3 x 3 (square, odd)."""

    kind: Literal["linear", "conv"]
    inputs: int
    outputs: int
    taps: int = 1

    @classmethod
    def of(cls, unit: Unit) -> "Shape | None":
        """Of what quantization can treat; None where cells say nothing of it: grouped, or an uneven kernel."""
        side = math.isqrt(unit.taps)
        if unit.groups != 1 or side**2 != unit.taps or side % 2 == 0:
            return None
        if unit.kind == "linear" or unit.kind == "conv":
            return cls(kind=unit.kind, inputs=unit.inputs, outputs=unit.width, taps=unit.taps)
        return None

    def __str__(self) -> str:
        side = math.isqrt(self.taps)
        return f"{self.inputs} x {self.outputs}" + (f" x {side} x {side}" if self.kind == "conv" else "")


@dataclass(frozen=True, kw_only=True, order=True)
class Case:
    """rows: of the matrix product; of a convolution output positions, of all images together."""

    shape: Shape
    rows: int
    scheme: str

    def __str__(self) -> str:
        return f"{self.scheme} at {self.rows} x {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was found for a case.

    Attributes:
        ratio: energy over the plain layer's, with the 95 % interval; None where there is none, for the reason in
            `refused`.
        row_j, plain_row_j: joules per row, in the scheme and plain.
        kernels, plain_kernels: matrix kernels that ran: ``aten::_int_mm (int8)``.
        copies: layers that the measured program holds, each with an input of its own, so that weights do not stay in
            the cache.
        warnings: what may be wrong with the figures.
        measured: date and time, UTC. autogreen: the version that measured.
    """

    case: Case
    ratio: Interval | None = None
    row_j: Interval | None = None
    plain_row_j: Interval | None = None
    kernels: tuple[str, ...] = ()
    plain_kernels: tuple[str, ...] = ()
    copies: int = 0
    warnings: tuple[str, ...] = ()
    refused: str = ""
    measured: str = ""
    autogreen: str = ""

    @property
    def verdict(self) -> Literal["saves", "costs", "same", "refused"]:
        """Beyond the interval."""
        if self.ratio is None:
            return "refused"
        return "saves" if self.ratio.high < 1 else "costs" if self.ratio.low > 1 else "same"

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into an equal cell."""
        lists = {key: list(getattr(self, key)) for key in ("kernels", "plain_kernels", "warnings")}
        return asdict(self) | lists

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Cell":
        """The inverse of `to_json`.

        Raises:
            ConfigError: the data is not a cell.
        """
        try:
            case = data["case"]
            intervals = {
                key: None if data[key] is None else Interval(**data[key]) for key in ("ratio", "row_j", "plain_row_j")
            }
            texts = {key: tuple(data[key]) for key in ("kernels", "plain_kernels", "warnings")}
            return cls(**{**data, **intervals, **texts, "case": Case(**{**case, "shape": Shape(**case["shape"])})})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a stored kernel measurement: {type(error).__name__}: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What is known of one device.

    machine, driver, torch, tier, boundary: what the figures belong to. plain: data type of the plain layer, in the
    device's best runtime. cells: one a case, in order.
    """

    machine: str
    driver: str
    torch: str
    tier: Tier
    boundary: str
    plain: str
    cells: tuple[Cell, ...] = ()

    @classmethod
    def none_yet(cls, described: Mapping[str, Any], tier: Tier, boundary: str) -> "Kernels":
        """Of a machine (`hardware.describe`) and a meter, before anything was measured."""
        kind = str(described["device"]).partition(":")[0]
        found = hardware.identity(described)
        return cls(
            machine=found["machine"],
            driver=found["driver"],
            torch=found["torch"],
            tier=tier,
            boundary=boundary,
            plain=PLAIN[kind],
        )

    def of(self, case: Case) -> Cell | None:
        """The cell of a case, if it was asked before."""
        return next((cell for cell in self.cells if cell.case == case), None)

    def having(self, cell: Cell) -> "Kernels":
        """The same with a cell, in the place of an older one."""
        others = [other for other in self.cells if other.case != cell.case]
        return replace(self, cells=tuple(sorted((*others, cell), key=lambda found: found.case)))

    def only(self, cases: Collection[Case]) -> "Kernels":
        """The cells of these cases."""
        return replace(self, cells=tuple(cell for cell in self.cells if cell.case in cases))

    def nearest(self, case: Case) -> Cell | None:
        """The measured cell that speaks for a case: same scheme and kind of layer; inputs, outputs and rows each within
        a factor of two."""
        near = [(apart, cell) for cell in self.cells if cell.ratio and (apart := _apart(cell.case, case)) is not None]
        return min(near, key=lambda found: (found[0], found[1].case), default=(0.0, None))[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into an equal object."""
        return {**vars(self), "cells": [cell.to_json() for cell in self.cells]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Kernels":
        """The inverse of `to_json`.

        Raises:
            ConfigError: the data is not a set of kernel measurements.
        """
        try:
            return cls(**{**data, "cells": tuple(Cell.from_json(cell) for cell in data["cells"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not stored kernel measurements: {type(error).__name__}: {error}.") from error


def _apart(one: Case, other: Case) -> float | None:
    """How far apart two cases of one kind lie, in octaves; None where one says nothing of the other."""
    if (one.scheme, one.shape.kind, one.shape.taps) != (other.scheme, other.shape.kind, other.shape.taps):
        return None
    pairs = (
        (one.shape.inputs, other.shape.inputs),
        (one.shape.outputs, other.shape.outputs),
        (one.rows, other.rows),
    )
    if any(max(pair) > NEAR * min(pair) for pair in pairs):
        return None
    return math.fsum(abs(math.log2(a / b)) for a, b in pairs)


# --- keeping them -----------------------------------------------------------------------------------------------------


def keep(kernels: Kernels, cache: Path) -> Path:
    """Put their cells into `cache`/kernels, one file a machine, driver, PyTorch and meter, beside those that are there
    by now (another process may measure, too); return the file.

    Raises:
        ConfigError: the file is damaged, or cannot be written.
    """
    path = hardware.kept_file(cache / "kernels", vars(kernels))
    with _alone(path.parent):
        both = _read(path) or replace(kernels, cells=())
        for cell in kernels.cells:
            both = both.having(cell)
        write(both, path)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time reads, adds and writes there."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}. Name another folder.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write(kernels: Kernels, path: Path) -> None:
    """Write one JSON object; a reader never sees half of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with whole(path) as partial:
            partial.write_text(json.dumps(kernels.to_json(), indent=2, allow_nan=False))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file or folder.") from error


def kept(described: Mapping[str, Any], tier: Tier, boundary: str, cache: Path) -> Kernels | None:
    """What is known of this machine (`hardware.describe`), driver and PyTorch by this meter; None: nothing.

    Raises:
        ConfigError: the file is damaged.
    """
    of = {**hardware.identity(described), "tier": tier, "boundary": boundary}
    return _read(hardware.kept_file(cache / "kernels", of))


def _read(path: Path) -> Kernels | None:
    if not path.exists():
        return None
    try:
        return Kernels.from_json(json.loads(path.read_text()))
    except (ConfigError, ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Delete it; autogreen kernels measures again.") from error


def groups(cases: Collection[Case]) -> Iterator[tuple[Shape, int, tuple[str, ...]]]:
    """Cases that share the plain layer: shape, rows, and the schemes asked, in order of appearance."""
    found: dict[tuple[Shape, int], list[str]] = {}
    for case in cases:
        found.setdefault((case.shape, case.rows), []).append(case.scheme)
    for (shape, rows), schemes in found.items():
        yield shape, rows, tuple(schemes)
