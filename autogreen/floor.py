"""The floor: the least that work can cost on this device, by the device's own best unit costs.

    large matrix products   ->  joules per FLOP, by data type   \\
    a large copy            ->  joules per byte moved            >  lower bound of a call  <=  what is measured
    FLOPs, weights, inputs and outputs of the call, counted     /

A measurement below the floor is broken: work was still queued when the window closed, the counter stood still, or
something else ran. Everything errs on the low side, so that the bound holds:

- constant operands, whose arithmetic switches the fewest transistors (real values cost up to 40 % more on a GPU);
- one thread, half of them or all, whichever is cheapest; TF32 where the GPU has it, since convolutions take it unasked;
- the low ends of the 95 % intervals; a data type that was not measured bounds nothing;
- a quarter of the products of a convolution wider than 1 x 1, which fast algorithms save (Lavin and Gray, "Fast
  Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3)), and half of attention, which a mask may save;
- bytes beyond what the caches can hold from one call to the next; three moved for each one copied on a CPU (ordinary
  stores read the line first), two on a GPU;
- the larger of compute and memory, never the sum: each was measured with the static power in it, and they overlap.

A lower power limit or clock makes products cheaper: measure the unit costs again after changing one.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen import hardware
from autogreen.engines import cores
from autogreen.errors import ConfigError, MeterError
from autogreen.files import whole
from autogreen.measure import lease, measure
from autogreen.measurement import Interval, Measurement, Protocol
from autogreen.meters import Meter, Tier
from autogreen.techniques.quantization.schemes import missing_instructions

if TYPE_CHECKING:
    from autogreen.tasks import Inputs

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "int8": 1}  # bytes of one number
PROTOCOL = Protocol(warmup_s=0.2, window_s=0.1, min_windows=6, max_windows=12, target_relative=0.05)
SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices: large enough for full speed, small enough for a window
COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # at least; and four times the caches
MOVED = {"cpu": 3, "cuda": 2}  # bytes per byte copied, at most
SAVED = 4  # by fast convolution, at most
CAUSAL = 2  # attention is counted in full, and a causal mask saves half of it


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """What one operation costs a device at best.

    Attributes:
        machine, driver, torch: what the figures belong to.
        tier, boundary: the meter's own words; only measurements of the same two are held against them.
        flop_pj: picojoules per FLOP (a multiplication or an addition) by data type, with the 95 % interval.
        byte_pj: picojoules per byte moved.
        cache_bytes: what the device's caches hold together; None where it is not known: then bytes bound nothing.
        left_out: data types without a real kernel here, and why.
        measured: date and time, UTC.
    """

    machine: str
    driver: str
    torch: str
    tier: Tier
    boundary: str
    flop_pj: Mapping[str, Interval]
    byte_pj: Interval
    cache_bytes: int | None
    left_out: Mapping[str, str]
    measured: str

    def lower_bound_j(self, flops_by_dtype: Mapping[str, float], bytes_touched: float) -> float:
        """Joules that so many FLOPs and different bytes cost at least, done again and again. FLOPs of a data type that
        was not measured bound nothing: they may be cheaper than any that was."""
        compute_pj = sum(
            flops * self.flop_pj[dtype].low for dtype, flops in flops_by_dtype.items() if dtype in self.flop_pj
        )
        cached = math.inf if self.cache_bytes is None else self.cache_bytes
        return 1e-12 * max(compute_pj, max(0.0, bytes_touched - cached) * self.byte_pj.low)

    def fits(self, tier: Tier, boundary: str) -> bool:
        """Whether a measurement of this tier and boundary comes from the same meter."""
        return (self.tier, self.boundary) == (tier, boundary)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into equal costs."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "UnitCosts":
        """The inverse of `to_json`.

        Raises:
            ConfigError: the data is not a set of unit costs.
        """
        try:
            flop_pj = {dtype: Interval(**cost) for dtype, cost in data["flop_pj"].items()}
            if not flop_pj:
                raise ConfigError("not stored unit costs: no data type was measured.")
            return cls(**{**data, "flop_pj": flop_pj, "byte_pj": Interval(**data["byte_pj"])})
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"not stored unit costs: {type(error).__name__}: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one call. flops: multiplications and additions of its matrix products and convolutions, at least, by the data
    type they are to run in. weights: numbers that these read from the model. io_bytes: inputs and outputs.
    weight_bytes: of the narrowest number among the weights, where they are kept in less than they are multiplied in."""

    flops: Mapping[str, float]
    weights: int
    io_bytes: int
    weight_bytes: float | None = None


# --- holding a measurement against the floor --------------------------------------------------------------------------


def times_above_floor(
    measurement: Measurement, work: Work, costs: UnitCosts, precisions: Collection[str]
) -> float | None:
    """How many times its least possible energy a call took; None where nothing bounds it.

    Args:
        work: of one call of what was measured; counted on the float model, it holds for lower precisions too.
        precisions: of the matrix kernels that ran (`Kernel.precision`), none left out. When one of them was not
            planned, nobody knows which work it did: all of it is taken to be in the cheapest.

    Raises:
        MeterError: the measurement lies below the floor with its whole interval, or comes from another meter.
    """
    if not costs.fits(measurement.tier, measurement.boundary):
        raise MeterError(
            f"the unit costs are of another meter ({costs.tier}: {costs.boundary}) than the measurement "
            f"({measurement.tier}: {measurement.boundary}); tiers are never held against each other. Measure the unit "
            "costs with this one: autogreen doctor --floor."
        )
    if not precisions:  # no kernel was recognised: what ran is not known
        return None
    planned, total = {dtype for dtype, flops in work.flops.items() if flops}, math.fsum(work.flops.values())
    ways = [work.flops] if planned and planned >= set(precisions) else [{d: total} for d in planned.union(precisions)]
    narrowest = min(WIDTHS.get(dtype, 8) for dtype in planned.union(precisions))
    touched = work.weights * min(narrowest, work.weight_bytes or narrowest) + work.io_bytes
    bound_j = min(costs.lower_bound_j(way, touched) for way in ways)
    if bound_j <= 0:
        return None
    energy, items = measurement.energy_per_item_j, measurement.items_per_batch
    if energy.high * items < bound_j:
        raise MeterError(
            f"measured {energy.mean * items:.3g} J a call, but its {total:.3g} FLOPs ({', '.join(sorted(precisions))}) "
            f"and {touched:.3g} bytes cost at least {bound_j:.3g} J here, at the best unit costs of {costs.machine} "
            f"({costs.measured}): the window missed a part of the work (still queued when it closed, or a counter that "
            "stood still). Measure again; after a change of clocks or of the power limit renew the unit costs first: "
            "autogreen doctor --floor."
        )
    return energy.mean * items / bound_j


def count(
    model: Callable[..., Any],
    example: "Inputs",
    lowered: Mapping[str, str] | None = None,
    weight_bytes: float | None = None,
    rest: str | None = None,
) -> Work:
    """Run the model once on the example and count. Not for compiled programs, into which nobody sees.

    Args:
        model: in floating point, before any layer is lowered.
        lowered: data type that a layer is to run in, by its dotted name.
        rest: what all else is to run in; by default the model's own.
        weight_bytes: of the narrowest number among the lowered weights.
    """
    import torch
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    args, kwargs = example
    reads = _reads()
    aten = torch.ops.aten
    convolutions = dict.fromkeys((aten.convolution, aten._convolution, aten.cudnn_convolution), _convolution_flops)
    with torch.no_grad(), reads, FlopCounterMode(display=False, custom_mapping=convolutions) as counter:
        outputs = model(*args, **kwargs)
    held = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    counts = counter.get_flop_counts()
    plain = rest or plain_dtype(held)
    flops = {plain: _flops(counts.get("Global", {}))}
    for layer, dtype in (lowered or {}).items():  # the counter names a layer by its root's class and its own path
        part = _flops(counts.get(f"{type(model).__name__}.{layer}", {}))
        flops[plain] -= part
        flops[dtype] = flops.get(dtype, 0.0) + part
    weights = {leaf.untyped_storage().data_ptr(): leaf.numel() for leaf in held}
    leaves = [leaf for leaf in tree_leaves((args, kwargs, outputs)) if isinstance(leaf, torch.Tensor)]
    return Work(
        flops={dtype: amount for dtype, amount in flops.items() if amount},
        weights=sum(numel for storage, numel in weights.items() if storage in reads.storages),
        io_bytes=sum(leaf.numel() * leaf.element_size() for leaf in leaves),
        weight_bytes=weight_bytes,
    )


def _flops(by_operation: Mapping[Any, int]) -> float:
    return math.fsum(
        flops / (CAUSAL if "attention" in str(operation) else 1) for operation, flops in by_operation.items()
    )


def plain_dtype(held: Iterable[Any]) -> str:
    """The data type of most floating-point numbers of a model; float32 where it holds none."""
    numbers: dict[str, int] = {}
    for leaf in held:
        if leaf.is_floating_point():
            dtype = str(leaf.dtype).removeprefix("torch.")
            numbers[dtype] = numbers.get(dtype, 0) + leaf.numel()
    return max(numbers, key=lambda dtype: numbers[dtype], default="float32")


def _convolution_flops(
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    *rest: Any,
    **out: Any,
) -> int:
    """Multiplications and additions of a convolution, by shapes; a quarter where fast algorithms may save the rest."""
    placed = inputs if transposed else out["out_shape"]
    flops: int = 2 * math.prod(weight) * placed[0] * math.prod(placed[2:])
    return flops // SAVED if any(side > 1 for side in weight[2:]) else flops


def _reads() -> Any:
    """A dispatch mode that notes the storages that counted operations read: an embedding's unused rows are not."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.storages: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in flop_registry:
                leaves = tree_leaves((args, kwargs))
                self.storages |= {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}
            return func(*args, **(kwargs or {}))

    return Reads()


# --- measuring the unit costs -----------------------------------------------------------------------------------------


def unit_cost_pj(
    call: Callable[[], object],
    amount: float,
    *,
    meter: Meter,
    protocol: Protocol = PROTOCOL,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Interval:
    """Picojoules per unit of a call that does `amount` of them (FLOPs, bytes), with the 95 % interval; its low end is
    at most the cheapest window.

    Raises:
        MeterError: other programs ran beside it, and would make the device look dearer than it is at best.
    """
    found = measure(call, items=1, meter=meter, protocol=protocol, synchronize=synchronize, clock=clock)
    used = [window for window in found.windows if window.used]
    if beside := next((window.reason for window in used if window.reason), None):
        raise MeterError(
            f"unit costs cannot be measured beside other programs ({beside}): the floor would come out too high and "
            "sound measurements would be refused. Stop them, or come back when the machine is quiet."
        )
    pj, energy = 1e12 / amount, found.energy_per_item_j
    low_j = min(energy.low, *(window.energy_per_call_j for window in used))
    return Interval(mean=energy.mean * pj, low=low_j * pj, high=energy.high * pj)


def measure_costs(
    device: str, meter: Meter, *, protocol: Protocol = PROTOCOL, side: int | None = None, copied: int | None = None
) -> UnitCosts:
    """Measure every unit cost of a device; 10 to 20 s on a CPU.

    Args:
        side: of the square matrices; copied: bytes copied at a time; both None: as large as the device needs.

    Raises:
        MeterError: the meter cannot be read, or other programs are running.
    """
    import torch

    kind, cache = device.partition(":")[0], cache_bytes(device)
    side = side or SIDES[kind]
    copied = copied or max(COPY_BYTES[kind], min(4 * (cache or 0), 4 * COPY_BYTES[kind]))
    flop_pj, left_out = {}, {}
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with lease():
            for dtype in WIDTHS:
                if reason := missing_instructions(dtype, device):
                    left_out[dtype] = reason
                    continue
                try:
                    call = _product(dtype, device, side)
                    call()
                except (RuntimeError, NotImplementedError) as error:
                    left_out[dtype] = f"its product does not run here: {str(error).splitlines()[0]}"
                    continue
                flop_pj[dtype] = _cheapest(call, 2 * side**3, device, meter, protocol)
            byte_pj = _cheapest(_copy(device, copied), MOVED[kind] * copied, device, meter, protocol)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = tf32
    if not flop_pj:
        raise MeterError(f"no matrix product runs on {device!r}: {left_out}. Install a PyTorch that fits the device.")
    return UnitCosts(
        **hardware.identity(hardware.describe(device)),
        tier=meter.tier,
        boundary=meter.boundary,
        flop_pj=flop_pj,
        byte_pj=byte_pj,
        cache_bytes=cache,
        left_out=left_out,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cheapest(call: Callable[[], object], amount: float, device: str, meter: Meter, protocol: Protocol) -> Interval:
    """With one thread, half of all and all of them (where two share a core, half is one a core), the cheapest one."""
    import torch

    if device.startswith("cuda"):
        synchronize = hardware.synchronizer(device)
        return unit_cost_pj(call, amount, meter=meter, protocol=protocol, synchronize=synchronize)
    costs, most = [], cores()
    for threads in sorted({1, max(1, most // 2), most}):
        torch.set_num_threads(threads)
        costs.append(unit_cost_pj(call, amount, meter=meter, protocol=protocol))
    return min(costs, key=lambda cost: cost.mean)


def _product(dtype: str, device: str, side: int) -> Callable[[], object]:
    import torch

    # full() writes every page; zeros() may leave them to one shared page of the operating system
    if dtype == "float8":
        zeros = torch.full((side, side), 0, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(zeros, zeros.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    left, right = (torch.full((side, side), 0, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    if dtype == "int8" and device.startswith("cuda"):
        columns = right.t()  # the layout that the tensor cores read: row by row an H200 takes 4.5 times the energy
        return lambda: torch._int_mm(left, columns)
    if dtype == "int8":  # as an exported program calls it; _int_mm is a plain loop on many processors
        packed = torch.ops.onednn.qlinear_prepack(right, [side, side])
        scales, zeros, bytes_in = torch.ones(side), torch.zeros(side, dtype=torch.int64), left.to(torch.uint8)
        tail: tuple[Any, ...] = (packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], "")
        return lambda: torch.ops.onednn.qlinear_pointwise(bytes_in, 1.0, 0, *tail)
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _copy(device: str, copied: int) -> Callable[[], object]:
    import torch

    source, target = (torch.full((copied,), 0, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def cache_bytes(device: str, caches: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """What the data caches of all levels hold together; of a GPU the L2. None: not told."""
    if device.startswith("cuda"):
        import torch

        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or None
    found: dict[tuple[str, ...], int] = {}
    try:
        for index in caches.glob("cpu[0-9]*/cache/index[0-9]*"):
            kind, level, shared = ((index / name).read_text().strip() for name in ("type", "level", "shared_cpu_list"))
            size = (index / "size").read_text().strip()  # "32K", "512K", "32768K"
            if kind != "Instruction":
                found[level, kind, shared] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    except (OSError, ValueError):
        return None
    return sum(found.values()) or None


# --- keeping them -----------------------------------------------------------------------------------------------------


def keep(costs: UnitCosts, cache: Path) -> Path:
    """Write the costs into `cache`/floor, one file a machine, driver, PyTorch and meter; return the file."""
    path = hardware.kept_file(cache / "floor", vars(costs))
    with whole(path) as partial:
        partial.write_text(json.dumps(costs.to_json(), indent=2, allow_nan=False))
    return path


def kept(described: Mapping[str, Any], meter: Meter, cache: Path) -> UnitCosts | None:
    """The costs of this machine (`hardware.describe`), driver and PyTorch by this meter; None where they were never
    measured.

    Raises:
        MeterError: the file is damaged, or the meter cannot tell its boundary.
    """
    of = {**hardware.identity(described), "tier": meter.tier, "boundary": meter.boundary}
    path = hardware.kept_file(cache / "floor", of)
    if not path.exists():
        return None
    try:
        return UnitCosts.from_json(json.loads(path.read_text()))
    except (ConfigError, ValueError, OSError) as error:
        raise MeterError(
            f"{path} cannot be read ({error}). Delete it, or measure again: autogreen doctor --floor."
        ) from error
