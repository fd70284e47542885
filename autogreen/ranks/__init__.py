"""Ranks: how a policy runs that occupies more than one process.

    this process                         one process a rank
    Placed (a Program by its face)
      Crew, one a replica  --commands-->  rank: shard or stage, built there or loaded
           ^                                |  '-- process group of the replica: gloo on a CPU, NCCL on GPUs
           '---------- answers -------------'

Replicas (data parallelism) need not speak with each other, so each has a process group of its own. A rank that dies,
hangs or runs out of memory takes its crew with it, and the call that waits for it says which and why.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen.engines import Program, Recipe

if TYPE_CHECKING:
    from torch import nn

    from autogreen.ranks.crew import Crews
    from autogreen.techniques import Context


def open_program(folder: Path, recipe: Recipe, crews: "Crews | None" = None) -> Program:
    """Load an artifact under its recipe, in this process or on as many ranks as the recipe has. crews: those that can
    be had; by default new ones.

    Raises:
        BundleError: as `Program`.
        EvaluationError: a rank died or did not answer.
    """
    if recipe.ranks == 1:
        return Program(folder, recipe)
    from autogreen.ranks.placed import Placed

    return Placed(folder, recipe, crews)


def build(
    parts: "Mapping[str, Any]",
    trained: "nn.Module",
    context: "Context",
    recipe: Recipe,
    folder: Path,
    crews: "Crews",
) -> Program:
    """Lower a trained model into the parts that ranks run, save them in `folder`, where its weights are, and load them.

    Raises:
        RefusedError: the model cannot be split so, or a technique or the engine cannot carry a part.
        EvaluationError: a rank died or did not answer.
    """
    from autogreen.ranks import placed

    placed.save(parts, trained, context, recipe, folder, crews)
    return open_program(folder, recipe, crews)
