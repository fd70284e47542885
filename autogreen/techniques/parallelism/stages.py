"""Pipeline parallelism: a lowered model's graph, cut into stages that take about the same time.

    graph:  a -> b -> c -> d -> e -> f
                      |              what is made before a cut and used behind it is handed on
            stage 0   '   stage 1    each a graph of its own; values pass from one to the next, tensors only

Each operation is timed where it stands, at the size of a micro-batch; of all places to cut, those are taken that make
the slowest stage fastest, what it must receive included.

Source: Huang et al., GPipe, NeurIPS 2019; the partition is the linear one of Bokhari, Partitioning Problems in
Parallel, Pipelined, and Distributed Computing, IEEE ToC 1988.
"""

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autogreen.errors import RefusedError
from autogreen.tasks import Inputs

RUNS = 5  # of each operation, the fastest of which counts


@dataclass(frozen=True, kw_only=True)
class Stage:
    """module: takes tensors and returns a tuple of them; the first takes the leaves of the model's inputs, the last
    returns those of its outputs. given, returned: such tensors, at the size of a micro-batch."""

    module: nn.Module
    given: tuple[Any, ...]
    returned: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """inputs, outputs: trees of the model's ((args, kwargs) and what it returns), as PyTorch writes them to JSON."""

    stages: tuple[Stage, ...]
    inputs: str
    outputs: str


def cut(graph: fx.GraphModule, example: Inputs, count: int) -> Pipeline:
    """Cut an exported model, as `ExportedProgram.module()` gives it, into stages.

    Args:
        example: inputs at the size of a micro-batch, at which it was exported.

    Raises:
        RefusedError: there are no places for so many stages, or it returns what is no tensor.
    """
    fixed = _fixed(graph)
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and node not in fixed]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    values, costs = _timed(graph, example)
    if not all(isinstance(values.get(leaf), Tensor) for leaf in _leaves(output)):
        raise RefusedError("parallelism: pipeline: the model returns something that is no tensor.")
    handed = _handed([node for node in graph.graph.nodes if node.op == "placeholder"], nodes, values)
    bounds = _balanced(
        [costs[node] for node in nodes],
        {place: _copy_s([values[node] for node in given]) for place, given in handed.items()},
        count,
    )
    if bounds is None:
        raise RefusedError(f"parallelism: pipeline {count}: this model's graph has {len(handed) + 1} stages at most.")
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    ends = tuple(_leaves(output))
    stages = tuple(
        _stage(graph, fixed, nodes[start:end], handed.get(start, inputs), handed.get(end, ends), values)
        for start, end in pairwise(bounds)
    )
    shapes: Any = graph  # of what an exported program was made from
    inputs_tree, outputs_tree = (pytree.treespec_dumps(tree) for tree in (shapes._in_spec, shapes._out_spec))
    return Pipeline(stages=stages, inputs=inputs_tree, outputs=outputs_tree)


def _fixed(graph: fx.GraphModule) -> list[fx.Node]:
    """Weights, and what is made of weights alone (int8 that is dequantized): whoever uses it has it himself, and a
    compiler folds it."""
    found: dict[fx.Node, None] = {}
    for node in graph.graph.nodes:
        from_fixed = (
            node.op == "call_function" and node.all_input_nodes and all(map(found.__contains__, node.all_input_nodes))
        )
        if node.op == "get_attr" or from_fixed:
            found[node] = None
    return list(found)


def _needed(fixed: Sequence[fx.Node], used: Collection[fx.Node]) -> list[fx.Node]:
    """What of it is used, directly or by what is, in order."""
    wanted = set(used)
    for node in reversed(fixed):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return [node for node in fixed if node in wanted]


def _leaves(output: fx.Node) -> list[Any]:
    return pytree.tree_leaves(output.args[0])


def _timed(graph: fx.GraphModule, example: Inputs) -> tuple[dict[fx.Node, Any], dict[fx.Node, float]]:
    """The value of each node, and the seconds that its operation takes."""
    device = next((leaf.device for leaf in graph.state_dict().values()), torch.device("cpu"))
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    values: dict[fx.Node, Any] = {}
    costs: dict[fx.Node, float] = {}

    class Timer(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            wait()
            began = time.perf_counter()
            value = super().run_node(node)
            wait()
            costs[node] = min(time.perf_counter() - began, costs.get(node, float("inf")))
            values[node] = value
            return value

    with torch.no_grad():
        for _ in range(RUNS):
            Timer(graph).run(*pytree.tree_leaves(example))
    return values, costs


def _handed(
    inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any]
) -> dict[int, tuple[fx.Node, ...]]:
    """For each place between two operations what is known before it and used behind it, where all that is tensors, and
    none of it dequantized: a layer runs in int8 only where a compiler sees its input's."""
    place = {node: number for number, node in enumerate(nodes)}
    first = {**dict.fromkeys(inputs, -1), **place}
    last = {node: max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in first}
    found = {}
    for number in range(1, len(nodes)):
        alive = tuple(node for node in first if first[node] < number <= last[node])
        if all(isinstance(values[node], Tensor) and "dequantize" not in str(node.target) for node in alive):
            found[number] = alive
    return found


def _copy_s(tensors: Sequence[Tensor]) -> float:
    """Seconds that handing them on takes, as far as copying tells."""
    began = time.perf_counter()
    for tensor in tensors:
        tensor.clone()
    return time.perf_counter() - began


def _balanced(costs: Sequence[float], receiving: Mapping[int, float], count: int) -> list[int] | None:
    """Where each of `count` stages begins, and the end: such that the slowest is as fast as can be. None: there are too
    few places. receiving: seconds, by place."""
    sums = list(accumulate(costs, initial=0.0))

    @cache
    def best(start: int, stages: int) -> tuple[float, tuple[int, ...]]:
        begun = receiving.get(start, 0.0) - sums[start]
        if stages == 1:
            return begun + sums[-1], (len(costs),)
        found: tuple[float, tuple[int, ...]] = (math.inf, ())
        for place in receiving:
            if place > start and begun + sums[place] < found[0]:
                rest, bounds = best(place, stages - 1)
                found = min(found, (max(begun + sums[place], rest), (place, *bounds)))
        return found

    slowest, bounds = best(0, count)
    return None if math.isinf(slowest) else [0, *bounds]


def _stage(
    graph: fx.GraphModule,
    fixed: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    given: Sequence[fx.Node],
    wanted: Sequence[fx.Node],
    values: Mapping[fx.Node, Any],
) -> Stage:
    """The graph of some nodes, and of what is fixed that they use, from what is given to it to what is wanted of it."""
    part = fx.Graph()
    known = {node: part.placeholder(f"given_{place}") for place, node in enumerate(given)}
    used = {source for node in nodes for source in node.all_input_nodes} | set(wanted)
    for node in _needed(fixed, used):
        known[node] = part.node_copy(node, known.__getitem__)
    for node in nodes:
        known[node] = part.node_copy(node, known.__getitem__)
    part.output(tuple(_packed(part, known[node], values[node]) for node in wanted))
    return Stage(
        module=copy.deepcopy(fx.GraphModule(graph, part)),
        given=tuple(values[node].contiguous() for node in given),
        returned=tuple(values[node].contiguous() for node in wanted),
    )


def _packed(part: fx.Graph, node: fx.Node, value: Tensor) -> fx.Node:
    """A value as it can be sent: its elements one after the other."""
    if value.is_contiguous():
        return node
    return part.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
