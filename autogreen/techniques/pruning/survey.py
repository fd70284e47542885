"""What of a model can be pruned."""

from collections.abc import Iterator

from torch import nn

from autogreen.tasks import Inputs
from autogreen.techniques import Unit
from autogreen.techniques.pruning import decoder
from autogreen.techniques.pruning.attention import attentions
from autogreen.techniques.pruning.blocks import stacks
from autogreen.techniques.pruning.graph import groups
from autogreen.techniques.pruning.surgery import survives
from autogreen.techniques.trace import Layer, block_of, layers, refuse_made_weights


def units(model: nn.Module, example: Inputs) -> Iterator[Unit]:
    """Channels and neurons, heads, blocks, and the layers whose single weights can go.

    Raises:
        RefusedError: the dependencies cannot be traced, or a weight is no parameter.
    """
    refuse_made_weights(model)
    model.eval()
    traced = layers(model, example)
    inside = list(decoder.decoders(model))
    for one in inside:
        yield from decoder.units(model, one)
    if not inside and not decoder.grouped_keys(model):  # on which torch-pruning loops for ever
        yield from _groups(model, example, traced)
        yield from _heads(model, example)
        yield from _depth(model, example)
    for name, layer in traced.items():
        yield _weights("weight", name, layer)
        if isinstance(layer.module, nn.Linear) and layer.inputs % 4 == 0:
            yield _weights("n:m", name, layer)


def _groups(model: nn.Module, example: Inputs, traced: dict[str, Layer]) -> Iterator[Unit]:
    for name, group in groups(model, example, lambda layer: layer in traced):
        if group.removable is not None and survives(model, example, group.removable):
            layer = traced[name]
            yield Unit(
                name=name,
                members=group.members,
                kind="conv" if isinstance(layer.module, nn.Conv2d) else "linear",
                width=layer.width,
                inputs=layer.inputs,
                rows=layer.rows,
                calls=layer.calls,
                block=block_of(name),
                structure=group.structure,
            )


def _heads(model: nn.Module, example: Inputs) -> Iterator[Unit]:
    for found in attentions(model):
        if survives(model, example, found):
            yield Unit(
                name=found.name,
                members=(found.name,),
                kind="attention",
                width=found.width,
                calls=1,
                block=block_of(found.name),
                structure="head",
            )


def _depth(model: nn.Module, example: Inputs) -> Iterator[Unit]:
    for stack in stacks(model, example):
        yield Unit(
            name=stack.name,
            members=(stack.name,),
            kind="block",
            width=len(stack.blocks),
            calls=1,
            block=stack.name,
            structure="depth",
        )


def _weights(structure: str, name: str, layer: Layer) -> Unit:
    return Unit(
        name=name,
        members=(name,),
        kind="conv" if isinstance(layer.module, nn.Conv2d) else "linear",
        width=layer.width,
        inputs=layer.inputs,
        rows=layer.rows,
        groups=layer.module.groups if isinstance(layer.module, nn.Conv2d) else 1,
        calls=layer.calls,
        block=block_of(name),
        structure=structure,
    )
