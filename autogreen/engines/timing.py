"""What share of a call's time each of its matrix products takes."""

import time
from collections.abc import Sequence
from typing import Any

from torch.autograd.profiler import profile, record_function

from autogreen.engines import Product, Program
from autogreen.tasks import Inputs

FEWEST, MOST = 3, 15  # calls that are looked at
LONG_S = 0.3  # after which no more than the fewest are
CALL = "autogreen::call"


def shares(program: Program, inputs: Inputs, products: Sequence[Product]) -> tuple[float, ...] | None:
    """Of the time of one call of a warm program, launched kernel by kernel: each product's part, from 0 to 1, in order.

    Only shares are told: a profiled call takes longer than a measured one. Of each product, and of what lies between
    them, the fastest run counts: when another program takes its turn, it lengthens whatever was running. On a GPU it is
    the stream's time between events around each operator. CUPTI would tell the kernels' own, but once it has been
    loaded it slows every later launch of the process, so also those that are measured.

    Args:
        products: of one call, as `Program.trace` saw them.

    Returns:
        None where the calls ran other products than that: nothing can be said of them.
    """
    on_gpu = program.recipe.device.startswith("cuda")
    start, count = time.perf_counter(), 0
    with profile(use_device="cuda" if on_gpu else None, use_kineto=False) as recorded:
        while count < FEWEST or (count < MOST and time.perf_counter() - start < LONG_S):
            with record_function(CALL):
                program.launch(*inputs)
            count += 1
    assert recorded.kineto_results is not None, "it has been stopped"
    events: list[Any] = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())

    def lasted(event: Any) -> float:
        return event.cuda_elapsed_us() * 1e3 if on_gpu else float(event.duration_ns())

    names = {product.name for product in products}
    ran, rests = [], []
    for call in (event for event in events if event.name() == CALL):
        within = [event for event in events if call.start_ns() <= event.start_ns() < call.end_ns()]
        seen = [event for event in within if event.name() in names]
        if [event.name() for event in seen] != [product.name for product in products]:
            return None
        ran.append([lasted(event) for event in seen])
        rests.append(max(0.0, lasted(call) - sum(ran[-1])))
    fastest = [min(runs) for runs in zip(*ran, strict=True)]
    total = sum(fastest) + min(rests)
    return tuple(each / total for each in fastest) if total > 0 else None
