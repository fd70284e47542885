"""Bring an effect to a model: score, remove channels, features, heads and blocks, zero weights; in that order.

Everything is read from the model as it is: what an earlier round has removed is not removed again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autogreen.errors import RefusedError
from autogreen.techniques import Context
from autogreen.techniques.pruning import blocks, decoder, masks, sparse
from autogreen.techniques.pruning.attention import attentions
from autogreen.techniques.pruning.graph import groups
from autogreen.techniques.pruning.importance import Evidence
from autogreen.techniques.pruning.ranking import Ranked, removals, weakest
from autogreen.techniques.pruning.surgery import Removable, remove
from autogreen.techniques.trace import call_once

WIDTHS = ("channel", "neuron", "head")


def cut(effect: Mapping[str, Any], model: nn.Module, context: Context) -> nn.Module:
    """Apply an effect (see `Pruning.effect`) in place."""
    call_once(model, context.example)
    pools = effect.get("global", [])
    evidence = Evidence(model, context)
    narrowing = _narrowing(effect, pools, model, context, evidence)
    shortening = _shortening(effect, pools, model, context, evidence)
    remove(model, narrowing)
    for path, wraps in shortening:
        blocks.skip(model, path, wraps)
    decoder.describe(model)

    call_once(model, context.example)
    evidence = Evidence(model, context)  # masks are for the weights that stayed
    masks.mask_weights(model, _present(model, effect.get("weight", {})), evidence)
    for pool in pools:
        if pool["structure"] == "weight":
            names = sorted(_present(model, pool["units"]))
            masks.mask_together(model, names, pool["ratio"], evidence, pool["importance"])
    two_of_four = _present(model, effect.get("n:m", {}))
    masks.mask_two_of_four(model, two_of_four, evidence)
    for name in two_of_four if context.device.startswith("cuda") else ():  # before it is trained for nothing
        sparse.check_size(name, model.get_submodule(name))
    return model


def _present(model: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """All but what stood in blocks that have been removed."""
    return {name: setting for name, setting in named.items() if not blocks.gone(model, name)}


# -- widths ------------------------------------------------------------------------------------------------------------


def _narrowing(
    effect: Mapping[str, Any], pools: Sequence[Any], model: nn.Module, context: Context, evidence: Evidence
) -> list[tuple[Removable, list[int]]]:
    alone = {(kind, name): setting for kind in WIDTHS for name, setting in effect.get(kind, {}).items()}
    together = [pool for pool in pools if pool["structure"] in WIDTHS]
    wanted = {(pool["structure"], name) for pool in together for name in pool["units"]} | set(alone)
    found = removables(model, context, {key for key in wanted if not blocks.gone(model, key[1])})
    cuts: list[tuple[Removable, list[int]]] = []

    def drop(parts: Sequence[Removable], scores: Sequence[torch.Tensor], count: int) -> None:
        if count > 0:
            cuts.extend((part, weakest(score, count)) for part, score in zip(parts, scores, strict=True))

    for importance in sorted({setting["importance"] for setting in alone.values()}):
        chosen = [key for key in alone if key in found and alone[key]["importance"] == importance]
        chosen = [key for key in chosen if found[key][0].width > alone[key]["width"]]
        scores = iter(evidence.removables([part for key in chosen for part in found[key]], importance))
        for key in chosen:
            own = [next(scores) for _ in found[key]]
            drop(found[key], own, found[key][0].width - alone[key]["width"])
    for pool in together:
        keys = [key for name in pool["units"] if (key := (pool["structure"], name)) in found]
        scores = iter(evidence.removables([part for key in keys for part in found[key]], pool["importance"]))
        owned = [[next(scores) for _ in found[key]] for key in keys]
        ranked = [
            Ranked(scores=tuple(own), of=pool["units"][key[1]], step=pool["round_to"])
            for key, own in zip(keys, owned, strict=True)
        ]
        for key, own, count in zip(keys, owned, removals(ranked, pool["ratio"]), strict=True):
            drop(found[key], own, count)
    return cuts


def removables(
    model: nn.Module, context: Context, wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Removable, ...]]:
    """What shrinks, by structure and name of the unit.

    Raises:
        RefusedError: a unit is not in this model.
    """
    found: dict[tuple[str, str], tuple[Removable, ...]] = {}
    if not wanted:
        return found
    inside = list(decoder.decoders(model))
    for one in inside:
        found["neuron", one.neurons_name] = decoder.neurons(model, one)
        found["head", one.heads_name] = decoder.heads(model, one)
    found |= {("head", removable.name): (removable,) for removable in attentions(model) if not inside}
    names = {name for kind, name in wanted if kind != "head"}
    if names and not inside:
        for name, group in groups(model, context.example, lambda layer: layer in names):
            if group.removable is not None:
                found[group.structure, name] = (group.removable,)
    missing = sorted(name for kind, name in wanted if (kind, name) not in found)
    if missing:
        raise RefusedError(f"pruning: {', '.join(missing)} cannot be found in this model; is the policy another's?")
    return {key: found[key] for key in wanted}


# -- depth -------------------------------------------------------------------------------------------------------------


def _shortening(
    effect: Mapping[str, Any], pools: Sequence[Any], model: nn.Module, context: Context, evidence: Evidence
) -> list[tuple[str, int]]:
    alone = effect.get("depth", {})
    together = [pool for pool in pools if pool["structure"] == "depth"]
    if not alone and not together:
        return []
    found = {stack.name: stack for stack in blocks.stacks(model, context.example)}
    if missing := sorted(set(alone).difference(found)):
        raise RefusedError(
            f"pruning: {', '.join(missing)} is no stack of blocks in this model; is the policy another's?"
        )
    chosen: list[tuple[str, int]] = []

    def drop(name: str, scores: torch.Tensor, count: int) -> None:
        stack = found[name]
        chosen.extend((stack.blocks[place], stack.wraps[stack.blocks[place]]) for place in weakest(scores, count))

    for name, setting in alone.items():
        if (count := len(found[name].blocks) - setting["width"]) > 0:
            drop(name, evidence.blocks(found[name].blocks, setting["importance"]), count)
    for pool in together:
        names = [name for name in pool["units"] if name in found]
        scores = [evidence.blocks(found[name].blocks, pool["importance"]) for name in names]
        ranked = [
            Ranked(scores=(score,), of=pool["units"][name], step=1) for name, score in zip(names, scores, strict=True)
        ]
        for name, score, count in zip(names, scores, removals(ranked, pool["ratio"]), strict=True):
            drop(name, score, count)
    return chosen
