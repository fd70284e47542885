"""Which cases are asked: a few shapes that stand for many, the user's own, or those of a model."""

import re
from collections.abc import Iterable, Sequence
from itertools import product

from autogreen.anatomy import Anatomy
from autogreen.errors import ConfigError
from autogreen.kernels import SAME_AS_PLAIN, Case, Shape
from autogreen.registry import nearest
from autogreen.techniques.quantization.schemes import SCHEMES

# Attention and feed-forward of a BERT-base on a processor, of a decoder of some 7 B on a GPU; and a convolution.
USUAL: dict[str, tuple[tuple[Shape, tuple[int, ...]], ...]] = {
    "cpu": (
        (Shape(kind="linear", inputs=768, outputs=768), (1, 32, 256)),
        (Shape(kind="linear", inputs=768, outputs=3072), (1, 32, 256)),
        (Shape(kind="conv", inputs=64, outputs=64, taps=9), (1024, 8192)),
    ),
    "cuda": (
        (Shape(kind="linear", inputs=4096, outputs=4096), (1, 32, 512, 4096)),
        (Shape(kind="linear", inputs=4096, outputs=16384), (1, 32, 512, 4096)),
    ),
}
LARGEST = 12  # layer shapes and rows of a model that are measured
_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*)x([1-9]\d*))?")


def schemes_asked(names: Sequence[str], device: str) -> tuple[str, ...]:
    """The named schemes, or all; without the one that is the plain layer itself, and without `none`.

    Raises:
        ConfigError: no scheme of that name, or one that there is nothing to compare with.
    """
    plain = {"none", SAME_AS_PLAIN[device.partition(":")[0]]}
    for name in names:
        if name not in SCHEMES:
            raise ConfigError(f"unknown scheme {name!r}.{nearest(name, SCHEMES)} Known: {', '.join(SCHEMES)}.")
        if name in plain:
            raise ConfigError(f"scheme {name!r} is the plain layer itself on {device!r}; name one to hold against it.")
    return tuple(dict.fromkeys(names)) or tuple(name for name in SCHEMES if name not in plain)


def shape_of(text: str) -> Shape:
    """A layer from ``1024x4096`` (linear: inputs, outputs) or ``64x128x3x3`` (convolution).

    Raises:
        ConfigError: it is neither.
    """
    found = _SHAPE.fullmatch(text.strip().lower())
    if found is None or found[3] != found[4] or (found[3] and int(found[3]) % 2 == 0):
        raise ConfigError(
            f"shape {text!r} is no pair of positive whole numbers: INPUTSxOUTPUTS (1024x4096), or for a convolution "
            "with its kernel, square and odd: 64x128x3x3."
        )
    inputs, outputs = int(found[1]), int(found[2])
    if found[3] is None:
        return Shape(kind="linear", inputs=inputs, outputs=outputs)
    return Shape(kind="conv", inputs=inputs, outputs=outputs, taps=int(found[3]) ** 2)


def rows_of(texts: Iterable[str]) -> tuple[int, ...]:
    """Numbers of rows from texts like ``1,32``.

    Raises:
        ConfigError: not positive whole numbers.
    """
    found = [part.strip() for text in texts for part in text.split(",")]
    for part in found:
        if not re.fullmatch(r"[1-9]\d*", part):
            raise ConfigError(f"rows {part!r} is no positive whole number; write for example --rows 1,32.")
    return tuple(dict.fromkeys(map(int, found)))


def cases_of(shapes: Sequence[Shape], rows: Sequence[int], schemes: Sequence[str], device: str) -> tuple[Case, ...]:
    """Every scheme at every shape and number of rows; where one is empty, the usual ones of the kind of device."""
    usual = USUAL[device.partition(":")[0]]
    known = dict(usual)
    by_kind = {shape.kind: found for shape, found in reversed(usual)}
    asked = [
        (shape, rows or known.get(shape) or by_kind.get(shape.kind) or usual[0][1])
        for shape in (shapes or [shape for shape, _ in usual])
    ]
    return tuple(
        Case(shape=shape, rows=count, scheme=scheme)
        for shape, counts in asked
        for count, scheme in product(counts, schemes)
    )


def cases_in(
    anatomy: Anatomy, batches: Sequence[int], rows: Sequence[int], schemes: Sequence[str], most: int = LARGEST
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The distinct layers of a model at its batches, the most work first; and what is left out, in words.

    Args:
        batches: examples a call. rows: in their place, if any.
    """
    work: dict[tuple[Shape, int], int] = {}
    odd = []
    for unit in anatomy.units.get("quantization", ()):
        if (shape := Shape.of(unit)) is None:
            odd.append(unit.name)
            continue
        for count in rows or [unit.rows * batch for batch in batches]:
            products = unit.inputs * unit.width * unit.taps * count * unit.calls * len(unit.members)
            work[shape, count] = work.get((shape, count), 0) + products
    ranked = sorted(work, key=lambda found: (-work[found], found))
    notes = []
    if odd:
        notes.append(f"{len(odd)} layers are grouped or have uneven kernels and are not asked: {', '.join(odd)}")
    if len(ranked) > most:
        left = sum(work[found] for found in ranked[most:]) / sum(work.values())
        notes.append(
            f"the {most} largest of {len(ranked)} shapes and rows are asked; the others do {left:.1%} of the work"
        )
    cases = [Case(shape=s, rows=r, scheme=scheme) for s, r in ranked[:most] for scheme in schemes]
    return tuple(cases), tuple(notes)
