"""Give a fresh model the shapes that kept weights have: a pruned network is built again without scoring or training.

Which entries go does not matter, because all that stay are overwritten; how many is read off the weights, since a
ranking over several layers, or a bounded loss, decides it only while a policy is applied.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from autogreen.errors import RefusedError
from autogreen.techniques import Context
from autogreen.techniques.pruning import blocks, decoder
from autogreen.techniques.pruning.cut import WIDTHS, removables
from autogreen.techniques.pruning.surgery import Removable, remove
from autogreen.techniques.trace import call_once


def fit(effect: Mapping[str, Any], model: nn.Module, weights: Mapping[str, Tensor], context: Context) -> nn.Module:
    """Cut what an effect (see `Pruning.effect`) names to the shapes of `weights`, in place. weights: by name, those of
    the same model after the effect.

    Raises:
        RefusedError: the weights are of another model.
    """
    call_once(model, context.example)
    pools = effect.get("global", [])
    wanted = {(kind, name) for kind in WIDTHS for name in effect.get(kind, {})}
    wanted |= {(pool["structure"], name) for pool in pools if pool["structure"] in WIDTHS for name in pool["units"]}
    parts = [part for found in removables(model, context, wanted).values() for part in found]
    remove(model, [(part, range(_lost(part, model, weights))) for part in parts])
    if "depth" in effect or any(pool["structure"] == "depth" for pool in pools):
        for stack in blocks.stacks(model, context.example):
            for path in stack.blocks:
                if not any(name.startswith(f"{path}.") for name in weights):
                    blocks.skip(model, path, stack.wraps[path])
    decoder.describe(model)
    return model


def _lost(part: Removable, model: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """How many indices the weights lack, told by a tensor that holds nothing else along that axis."""
    for piece in part.slices:
        if piece.tensor not in weights:  # its block is gone as a whole
            return 0
        owner, _, leaf = piece.tensor.rpartition(".")
        if piece.places.numel() == getattr(model.get_submodule(owner), leaf).shape[piece.axis]:
            return part.width - weights[piece.tensor].shape[piece.axis] // piece.places.shape[1]
    raise RefusedError(
        f"pruning: how wide {part.name} was left cannot be told from its weights; train the policy anew."
    )
