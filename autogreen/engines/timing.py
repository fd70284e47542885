"""What share of a call's time each of its matrix products takes."""

from collections.abc import Sequence
from typing import Any

from torch.autograd.profiler import profile, record_function

from autogreen.engines import Product, Program
from autogreen.tasks import Inputs

CALLS = 3  # the one of middle length is looked at
CALL = "autogreen::call"


def shares(program: Program, inputs: Inputs, products: Sequence[Product]) -> tuple[float, ...] | None:
    """Of the time of one call of a warm program, launched kernel by kernel: each product's part, from 0 to 1, in order.

    Only shares are told: a profiled call takes longer than a measured one. On a GPU it is the stream's time between
    events around each operator. CUPTI would tell the kernels' own, but once it has been loaded it slows every later
    launch of the process, so also those that are measured.

    Args:
        products: of one call, as `profile.trace` saw them.

    Returns:
        None where the calls ran other products than that: nothing can be said of them.
    """
    on_gpu = program.recipe.device.startswith("cuda")
    with profile(use_device="cuda" if on_gpu else None, use_kineto=False) as recorded:
        for _ in range(CALLS):
            with record_function(CALL):
                program.launch(*inputs)
    assert recorded.kineto_results is not None, "it has been stopped"
    events: list[Any] = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())

    def lasted(event: Any) -> float:
        return event.cuda_elapsed_us() * 1e3 if on_gpu else float(event.duration_ns())

    call = sorted((event for event in events if event.name() == CALL), key=lasted)[CALLS // 2]
    names = {product.name for product in products}
    ran = [event for event in events if event.name() in names and call.start_ns() <= event.start_ns() < call.end_ns()]
    if [event.name() for event in ran] != [product.name for product in products] or lasted(call) <= 0:
        return None
    return tuple(lasted(event) / lasted(call) for event in ran)
