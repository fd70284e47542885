"""Two loaded programs, measured in turns: the one road for verification and comparison."""

from typing import TYPE_CHECKING

from autogreen.engines import Program
from autogreen.hardware import synchronizer
from autogreen.measure import lease, measure_beside, rest_w
from autogreen.measurement import Beside, Protocol
from autogreen.meters import Meter
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
    meter: Meter,
    protocol: Protocol,
    workload: Workload,
) -> tuple[Beside, tuple[str, ...]]:
    """Measure `program` beside `other`, each on the first batch of its inputs, on the device of the first.

    Args:
        items, reference_items: of one call of each, as they were counted when it was first measured.
        workload: in which both are used; of a server each batches as its recipe says.

    Returns:
        the measurement; and whose each window was, in the order they were taken (see `recording`).

    Raises:
        MeterError: as `measure_beside`.
    """
    from autogreen.tasks import cut, to_device

    device, tape = program.recipe.device, Tape(meter)
    synchronize = synchronizer(device)
    ours = to_device(cut(inputs, program.recipe.batch)[0], device)
    others = to_device(cut(theirs, other.recipe.batch)[0], device)
    with lease():
        idle_w = rest_w(meter, protocol, synchronize)
        beside = measure_beside(
            tape.of(SIDES[0], lambda: program.run(*ours)),
            tape.of(SIDES[1], lambda: other.run(*others)),
            items=items,
            reference_items=reference_items,
            load=workload.load(program.recipe.batch, program.recipe.batch_delay_s),
            reference_load=workload.load(other.recipe.batch, other.recipe.batch_delay_s),
            meter=tape,
            protocol=protocol,
            synchronize=synchronize,
            idle_w=idle_w,
        )
    return beside, tuple(tape.order)
