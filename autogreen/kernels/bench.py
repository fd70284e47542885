"""One layer shape in several schemes beside the plain layer, on the very road by which policies ship.

layers  ->  lower  ->  save  ->  load  ->  kernels that ran  ->  measure_beside(scheme, plain)
copies,                                    fewer than promised:
each with an input of its own              refused
"""

import copy
import gc
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from autogreen import __version__, floor, hardware
from autogreen.compress import lower
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import AutogreenError, EvaluationError, MeterError, RefusedError
from autogreen.kernels import ENGINE, PLAIN, Case, Cell, Shape
from autogreen.measure import lease, measure_beside, rest_w
from autogreen.measurement import Protocol
from autogreen.meters import Meter
from autogreen.tasks import Inputs
from autogreen.tasks.given import Given
from autogreen.techniques import TECHNIQUES, Context, Target, Unit
from autogreen.techniques.quantization.schemes import SCHEMES, check_kernels, road_of
from autogreen.techniques.trace import layers as traced

MOST_COPIES = 32  # more take long to compile
MOST_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # of plain weights, inputs and outputs
LARGEST_SIDE = 32  # of the images that convolutions are given
LATER_PREHEAT_S = 3.0  # once the device is warm


class Layers(nn.Module):
    """Several layers, each fed by a tensor of its own: compilers share what is done twice to one tensor, and caches
    hold what is read twice. inputs: one tensor a layer; returns as many."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(given) for layer, given in zip(self.layers, inputs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: the layers in floating point, inputs, and how it runs. units: what quantization can treat."""

    model: Layers
    example: Inputs
    recipe: Recipe
    units: tuple[Unit, ...]

    @property
    def copies(self) -> int:
        return len(self.model.layers)


def bench(
    shape: Shape, rows: int, schemes: tuple[str, ...], *, device: str, meter: Meter, protocol: Protocol, warm: bool
) -> Iterator[Cell]:
    """Measure each scheme; a cell as soon as it is there.

    Args:
        warm: other cells were measured just before: it is not heated up for long again.

    Raises:
        MeterError: the energy cannot be read, or the machine is too busy.
        EvaluationError: the next scheme failed in a compiler or a kernel; ask for the others in a fresh process.
    """
    with tempfile.TemporaryDirectory(prefix="autogreen-kernels-") as folder:
        subject = make(shape, rows, device)
        plain: tuple[Program, tuple[str, ...]] | None = None
        program: Program | None = None
        for scheme in schemes:
            case = Case(shape=shape, rows=rows, scheme=scheme)
            try:
                effect = refuse_misfits(subject, scheme)
                plain = plain or build(subject, {}, Path(folder) / "plain")
                program, kernels = build(subject, effect, Path(folder) / "scheme")
                given = replace(protocol, preheat_s=min(protocol.preheat_s, LATER_PREHEAT_S)) if warm else protocol
                cell = measured(case, subject, program, plain[0], meter=meter, protocol=given)
                yield stamped(replace(cell, kernels=kernels, plain_kernels=plain[1]))
                warm = True
            except MeterError:
                raise
            except AutogreenError as error:
                yield stamped(Cell(case=case, refused=str(error)))
            except Exception as error:  # what a kernel leaves behind when it fails may fail others: a device's context
                told = str(error).strip().splitlines()[:1] or [""]
                raise EvaluationError(f"{type(error).__name__}: {told[0]}") from error
            finally:
                program = None
                shutil.rmtree(Path(folder) / "scheme", ignore_errors=True)
                free(device)


def stamped(cell: Cell) -> Cell:
    """With date and version."""
    return replace(cell, measured=datetime.now(UTC).isoformat(timespec="seconds"), autogreen=__version__)


def free(device: str) -> None:
    """Give back what the last program held."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


# --- the layers -------------------------------------------------------------------------------------------------------


def make(shape: Shape, rows: int, device: str) -> Subject:
    """Seeded layers and inputs: normal values, as they come out of a layer norm; weights of variance 1 / inputs."""
    dtype = getattr(torch, PLAIN[device.partition(":")[0]])
    count = copies_of(shape, rows, device, dtype.itemsize)
    random = torch.Generator().manual_seed(0)
    side = _side(rows)
    size = (rows, shape.inputs) if shape.kind == "linear" else (rows // side**2, shape.inputs, side, side)
    model = Layers([_layer(shape, random) for _ in range(count)]).to(device, dtype).eval()
    inputs = tuple(torch.randn(size, generator=random).to(device, dtype) for _ in range(count))
    recipe = Recipe(engine=ENGINE, batch=size[0], threads=1, device=device, cuda_graph=device.startswith("cuda"))
    units = TECHNIQUES["quantization"].units(model, (inputs, {}))
    return Subject(model=model, example=(inputs, {}), recipe=recipe, units=units)


def copies_of(shape: Shape, rows: int, device: str, plain_bytes: int) -> int:
    """As many layers as pass twice the bytes of the device's caches by, with the fewest bits that a scheme has here,
    before a weight is read again; fewer where that is too much to compile or to hold."""
    kind = device.partition(":")[0]
    bits = min(scheme.weight_bits for name, scheme in SCHEMES.items() if road_of(name, device) is not None)
    weights, moved = _weights(shape), rows * (shape.inputs + shape.outputs) * plain_bytes
    wanted = math.ceil(2 * (floor.cache_bytes(device) or 0) / (weights * bits / 8 + moved))
    return max(1, min(wanted, MOST_COPIES, MOST_BYTES[kind] // (weights * plain_bytes + moved)))


def _weights(shape: Shape) -> int:
    return shape.inputs * shape.outputs * shape.taps


def _side(rows: int) -> int:
    """Of the largest images that the rows can be: squares, of one image or several."""
    return max(side for side in range(1, LARGEST_SIDE + 1) if rows % side**2 == 0)


def _layer(shape: Shape, random: torch.Generator) -> nn.Module:
    side = math.isqrt(shape.taps)
    layer: nn.Linear | nn.Conv2d
    if shape.kind == "linear":
        layer = nn.Linear(shape.inputs, shape.outputs)
    else:
        layer = nn.Conv2d(shape.inputs, shape.outputs, side, padding=side // 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, (shape.inputs * shape.taps) ** -0.5, generator=random)
    return layer


# --- the road to a program --------------------------------------------------------------------------------------------


def refuse_misfits(subject: Subject, scheme: str) -> Mapping[str, str]:
    """The scheme for every layer, as the effect of a policy.

    Raises:
        RefusedError: no kernel computes it here, for this layer, at so many rows.
    """
    quantization = TECHNIQUES["quantization"]
    effect: dict[str, str] = quantization.effect((quantization(target="*", scheme=scheme),), subject.units)
    recipe = subject.recipe
    target = Target(device=recipe.device, engine=recipe.engine, batch=recipe.batch)
    if reason := quantization.refusal(effect, subject.units, target):
        raise RefusedError(reason.rpartition(": ")[2])
    return effect


def build(subject: Subject, effect: Mapping[str, str], folder: Path) -> tuple[Program, tuple[str, ...]]:
    """Lower, save, load and run once, which compiles; the program, and the matrix kernels of one call by a profile.

    Args:
        effect: scheme by layer; `{}`: the plain layers.

    Raises:
        RefusedError: fewer of the scheme's kernels ran than there are layers: it is simulated.
    """
    torch.set_num_threads(subject.recipe.threads)
    parts = {"quantization": effect} if effect else {}
    # lowering may change the model that it is given
    lowered = lower(parts, copy.deepcopy(subject.model), _context(subject))
    ENGINES[subject.recipe.engine].save(lowered, subject.example, folder)
    program = Program(folder, subject.recipe)
    shutil.rmtree(folder)  # what is loaded is in memory
    program.run(*subject.example)
    ran = program.trace(subject.example)
    check_kernels(effect, traced(subject.model, subject.example), ran.products, subject.recipe.device)
    return program, tuple(f"{kernel.name} ({kernel.precision})" for kernel in ran.kernels)


def _context(subject: Subject) -> Context:
    """Calibrated by the very inputs."""
    batches = [subject.example[0]]
    task = Given(
        model=subject.model,
        train=batches,
        validation=batches,
        test=batches,
        calibration=batches,
        loss_fn=lambda outputs, batch: outputs[0].sum(),
        score_fn=lambda outputs, batch: outputs[0].flatten(1).sum(1),
        inputs_fn=lambda batch: tuple(batch),
        item="row",
        outputs="values",
    )
    return Context(
        task=task,
        example=subject.example,
        seed=0,
        device=subject.recipe.device,
        teacher=subject.model,
        check=lambda: None,
        cache={},
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(
    case: Case, subject: Subject, program: Program, plain: Program, *, meter: Meter, protocol: Protocol
) -> Cell:
    """The scheme beside the plain layers, in turns."""
    synchronize = hardware.synchronizer(subject.recipe.device)
    items = case.rows * subject.copies
    with lease():
        beside = measure_beside(
            lambda: program.run(*subject.example),
            lambda: plain.run(*subject.example),
            items=items,
            meter=meter,
            protocol=protocol,
            synchronize=synchronize,
            idle_w=rest_w(meter, protocol, synchronize),
        )
    told = (*beside.warnings, *beside.candidate.warnings, *beside.reference.warnings)
    return Cell(
        case=case,
        ratio=beside.ratio,
        row_j=beside.candidate.energy_per_item_j,
        plain_row_j=beside.reference.energy_per_item_j,
        copies=subject.copies,
        warnings=(*dict.fromkeys(told), *_cached(case, subject)),
    )


def _cached(case: Case, subject: Subject) -> tuple[str, ...]:
    """A warning where the scheme's weights do not leave the caches."""
    cache = floor.cache_bytes(subject.recipe.device)
    if cache is None:
        return ("how large the caches are is not told here: weights may stay in them, as they do not in large models.",)
    moved = sum(leaf.numel() * leaf.element_size() for leaf in subject.example[0])
    passed = moved + subject.copies * _weights(case.shape) * SCHEMES[case.scheme].weight_bits / 8
    if passed >= cache:
        return ()
    return (
        f"the {subject.copies} layers and their inputs take {passed / 1e6:.0f} MB in {case.scheme} and stay in the "
        f"caches ({cache / 1e6:.0f} MB): in a model larger than those the scheme may cost more than here.",
    )
