"""CUDA graphs: a call recorded once and replayed as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from autogreen.tasks import Inputs

WARMUP = 3  # calls before the recording: lazy libraries and autotuning must not end up in it


class Graph:
    """Replays what `call` did on inputs of the same shapes; new inputs are copied to where the first ones lay.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, call: Callable[..., Any], inputs: Inputs) -> None:
        self._held = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves(inputs)]
        args, kwargs = torch.utils._pytree.tree_unflatten(self._held, torch.utils._pytree.tree_structure(inputs))
        device = next(leaf.device for leaf in self._held if isinstance(leaf, torch.Tensor))
        with torch.cuda.device(device):  # streams and recordings are the current one's
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARMUP):
                    call(args, kwargs)
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = call(args, kwargs)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for held, given in zip(self._held, tree_leaves((args, kwargs)), strict=True):
            if isinstance(held, torch.Tensor):
                held.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs
