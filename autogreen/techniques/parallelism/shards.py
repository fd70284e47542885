"""Tensor parallelism: what of a model can be split over ranks, and a rank's share of it.

                 rank 0             rank 1
    x  ------->  W1[:h/2]   |  W1[h/2:]     rows of what makes the features (or q, k, v of the heads)
                    |              |
                 W2[:, :h/2] | W2[:, h/2:]  columns of what reads them
                    '----- all-reduce -----'
                           y + bias         the bias is rank 0's, so that it is added once

What can be pruned can be split: of features and heads that can go without changing the others, each rank removes what
is not its own, and what the ranks compute adds up to the whole. So pruning's own search finds the splits, and its
surgery makes the shards. Only what linear layers alone read can be summed; where splits share a layer the one that
holds more weights is taken.

Source: Shoeybi et al., Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism, 2019.
"""

from collections.abc import Collection, Iterator, Sequence

from torch import Tensor, nn

from autogreen.errors import RefusedError
from autogreen.tasks import Inputs
from autogreen.techniques import Unit
from autogreen.techniques.pruning import decoder
from autogreen.techniques.pruning.attention import attentions
from autogreen.techniques.pruning.graph import groups
from autogreen.techniques.pruning.surgery import Removable, remove, survives
from autogreen.techniques.trace import block_of, layers

SUMMED = "_autogreen_summed"  # attribute of a layer whose output is a share


def splits(model: nn.Module, example: Inputs) -> tuple[Removable, ...]:
    """Disjoint sets of heads and features that can be split, in the order in which the model has them."""
    sizes = {name: leaf.numel() for name, leaf in model.state_dict().items()}
    found = sorted(_candidates(model, example), key=lambda split: -sum(sizes[part.tensor] for part in split.slices))
    taken: set[str] = set()
    chosen = []
    for split in found:
        touched = {part.tensor for part in split.slices}
        if taken.isdisjoint(touched) and all(_is_linear(model, read.layer) for read in split.reads):
            taken |= touched
            chosen.append(split)
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return tuple(sorted(chosen, key=lambda split: order.get(split.name, 0)))


def units(model: nn.Module, example: Inputs) -> Iterator[Unit]:
    """The same as a plan: width is what a degree must divide."""
    for split in splits(model, example):
        yield Unit(
            name=split.name,
            members=tuple(dict.fromkeys(part.tensor.rpartition(".")[0] for part in split.slices)),
            kind="attention" if _is_attention(model, split) else "linear",
            width=split.width,
            calls=1,
            block=block_of(split.name),
            structure="head" if _is_attention(model, split) else "neuron",
        )


def shard(model: nn.Module, splits: Sequence[Removable], rank: int, degree: int) -> frozenset[str]:
    """Leave a model, in place, with what is this rank's; return the layers whose outputs are shares of a sum.

    Raises:
        RefusedError: a width that the degree does not divide.
    """
    for split in splits:
        if split.width % degree:
            raise RefusedError(
                f"parallelism: tensor {degree} does not divide the {split.width} of {split.name!r}, its width after "
                "pruning. Take a degree that does, or another ratio."
            )
    others = [
        (split, [index for index in range(split.width) if index * degree // split.width != rank]) for split in splits
    ]
    remove(model, others)
    decoder.describe(model)
    shares = frozenset(read.layer for split in splits for read in split.reads)
    for name in shares if rank else ():
        model.get_submodule(name).bias = None  # type: ignore[assignment]
    return shares


def summed(model: nn.Module, shares: Collection[str]) -> nn.Module:
    """Let layers return the sum over all ranks of the default process group instead of their own share. In place; once
    for each layer, however often it is asked for: lowering may have put new layers in the place of some. A graph's are
    in it already."""
    for name, module in model.named_modules():
        if name in shares and not hasattr(module, SUMMED):
            setattr(module, SUMMED, True)
            module.register_forward_hook(_sum)
    return model


def _sum(layer: nn.Module, inputs: object, share: Tensor) -> Tensor:
    import torch.distributed as dist
    from torch.distributed._functional_collectives import all_reduce  # what DTensor sums with; it can be exported

    assert dist.group.WORLD is not None, "shards run in a process group"
    total: Tensor = all_reduce(share, "sum", dist.group.WORLD)
    return total


def _candidates(model: nn.Module, example: Inputs) -> Iterator[Removable]:
    model.eval()
    inside = list(decoder.decoders(model))
    for one in inside:
        yield from decoder.neurons(model, one)
        yield from decoder.heads(model, one)
    if inside or decoder.grouped_keys(model):
        return
    yield from (found for found in attentions(model) if survives(model, example, found))
    traced = layers(model, example)
    for _, group in groups(model, example, lambda layer: layer in traced):
        if group.structure == "neuron" and group.removable and survives(model, example, group.removable):
            yield group.removable


def _is_linear(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.Linear)


def _is_attention(model: nn.Module, split: Removable) -> bool:
    """Heads belong to a module, features to a layer."""
    return not _is_linear(model, split.name)
