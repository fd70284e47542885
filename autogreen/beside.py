"""Two loaded programs, measured in turns: the one road for verification and comparison."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autogreen.engines import Program, Recipe
from autogreen.hardware import synchronizer
from autogreen.measure import lease, measure_beside, rest_w
from autogreen.measurement import Beside, Protocol
from autogreen.meters import Meter, choose
from autogreen.recording import SIDES, Tape
from autogreen.workload import Workload

if TYPE_CHECKING:
    from autogreen.tasks import Inputs


def measure_programs(
    program: Program,
    inputs: "Inputs",
    other: Program,
    theirs: "Inputs",
    *,
    items: int,
    reference_items: int,
    meters: tuple[Meter, Meter],
    protocol: Protocol,
    workload: Workload,
) -> tuple[Beside, tuple[str, ...]]:
    """Measure `program` beside `other`, each on the first batch of its inputs, on the device of the first.

    Args:
        items, reference_items: of one call of each, as they were counted when it was first measured.
        meters: of the devices of each, see `meters_of`.
        workload: in which both are used; of a server each batches as its recipe says.

    Returns:
        the measurement; and whose each window was, in the order they were taken (see `recording`).

    Raises:
        MeterError: as `measure_beside`.
    """
    from autogreen.tasks import cut, to_device

    device, order = program.recipe.device, list[str]()
    synchronize = synchronizer(device)
    ours = to_device(cut(inputs, program.recipe.batch)[0], device)
    others = to_device(cut(theirs, other.recipe.batch)[0], device)
    with lease():
        first, second = meters
        idle_w = rest_w(first, protocol, synchronize)
        beside = measure_beside(
            program.calling(ours),
            other.calling(others),
            items=items,
            reference_items=reference_items,
            load=workload.load(program.recipe.batch, program.recipe.batch_delay_s),
            reference_load=workload.load(other.recipe.batch, other.recipe.batch_delay_s),
            meter=Tape(first, SIDES[0], order),
            reference_meter=Tape(second, SIDES[1], order),
            protocol=protocol,
            synchronize=synchronize,
            idle_w=idle_w,
            reference_idle_w=idle_w if second is first else rest_w(second, protocol, synchronize),
        )
    return beside, tuple(order)


def meters_of(recipe: Recipe, reference: Recipe, settings: Mapping[str, Any]) -> tuple[Meter, Meter]:
    """A meter of all devices that each occupies; one for both where those are the same. settings: `name` and others.

    Raises:
        MeterError: no counter here, or it fails.
    """
    asked = dict(settings)
    name = asked.pop("name", "auto")
    first = choose(",".join(recipe.devices), name, **asked)
    if reference.devices == recipe.devices:
        return first, first
    return first, choose(",".join(reference.devices), name, **asked)
