"""What a profile of one rank tells: its matrix kernels, and the share of a call that it spends on the others."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.profiler import profile, record_function

from autogreen.engines import ENGINES, Recipe
from autogreen.ranks.pipe import STAGE

if TYPE_CHECKING:
    from autogreen.engines import Program
    from autogreen.engines.profile import Trace
    from autogreen.tasks import Inputs

CALLS = 5
CALL = "autogreen::call"
COLLECTIVES = "_c10d_functional::"  # both the sum and the wait for it


@dataclass(frozen=True)
class _Launched:
    """What an engine's trace wants of a program."""

    recipe: Recipe
    launch: Callable[..., Any]


def traced(program: "Program", call: Callable[..., Any], inputs: "Inputs") -> "Trace":
    """Profile a warm call; all ranks do so at once.

    Raises:
        RefusedError: the engine cannot show which kernels ran.
    """
    launch = program.launch if program.recipe.cuda_graph else call
    shown: Trace = ENGINES[program.recipe.engine].trace(_Launched(program.recipe, launch), inputs)
    return replace(shown, communication=_communication(program.recipe.device, launch, inputs))


def _communication(device: str, call: Callable[..., Any], inputs: "Inputs") -> float:
    """Median over some calls. In a pipeline all but the stage's own work; else the collectives. On a GPU by the time
    of its stream, as in `engines.timing`, for the same reason."""
    on_gpu = device.startswith("cuda")
    with profile(use_device="cuda" if on_gpu else None, use_kineto=False) as recorded, torch.no_grad():
        for _ in range(CALLS):
            with record_function(CALL):
                call(*inputs)
    assert recorded.kineto_results is not None, "it has been stopped"
    events: list[Any] = recorded.kineto_results.events()

    def lasted(event: Any) -> float:
        return event.cuda_elapsed_us() * 1e3 if on_gpu else float(event.duration_ns())

    shares = []
    for whole in (event for event in events if event.name() == CALL):
        inside = [event for event in events if whole.start_ns() <= event.start_ns() < whole.end_ns()]
        own = [event for event in inside if event.name() == STAGE]
        spoken = sum(lasted(event) for event in inside if event.name().startswith(COLLECTIVES))
        if own:
            spoken = lasted(whole) - sum(map(lasted, own))
        shares.append(min(1.0, max(0.0, spoken / lasted(whole))))
    return statistics.median(shares)
