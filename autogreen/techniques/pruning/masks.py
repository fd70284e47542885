"""Single weights: set to zero and kept there, in layers of unchanged shape.

    weight   the least weights of a layer, or of several together
    n:m      the two least of every four weights in a row, the pattern that NVIDIA's sparse matrix units know (2:4)

Source: Han et al., Learning both Weights and Connections, NeurIPS 2015; Mishra et al., Accelerating Sparse Deep Neural
Networks, 2021 (2:4); Sun et al., A Simple and Effective Pruning Approach (Wanda), ICLR 2024.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autogreen.errors import RefusedError
from autogreen.techniques.pruning.importance import Evidence, normalized
from autogreen.techniques.pruning.ranking import least

HANDLE = "mask_handle"  # on the parameter: of the hook that keeps its zeros


def mask_weights(model: nn.Module, layers: Mapping[str, Mapping[str, Any]], evidence: Evidence) -> None:
    """Zero a share of each layer's weights, in place. layers: by name, `sparsity` and `importance`.

    By Wanda's score (`activation`) every output loses the same share of its inputs, as in the paper.
    """
    for importance in sorted({setting["importance"] for setting in layers.values()}):
        chosen = [name for name, setting in layers.items() if setting["importance"] == importance]
        for name, given in evidence.weights(chosen, importance).items():
            score, sparsity = _zeros_first(model, name, given), layers[name]["sparsity"]
            if importance == "activation":
                rows = score.flatten(1)
                zero = _least_of_rows(rows, round(sparsity * rows.shape[1])).reshape(score.shape)
            else:
                (zero,) = least([score], round(sparsity * score.numel()))
            keep_zero(model, name, zero)


def mask_together(model: nn.Module, names: list[str], ratio: float, evidence: Evidence, importance: str) -> None:
    """Zero the least weights of all these layers, in place; each layer keeps at least one."""
    scores = evidence.weights(names, importance)
    ranked = []
    for name in names:
        score = _zeros_first(model, name, normalized(scores[name]))
        best = torch.zeros_like(score, dtype=torch.bool).flatten()
        best[score.flatten().argmax()] = True
        ranked.append(score.masked_fill(best.reshape(score.shape), float("inf")))
    total = sum(score.numel() for score in ranked)
    zeros = least(ranked, min(round(ratio * total), total - len(names)))
    for name, zero in zip(names, zeros, strict=True):
        keep_zero(model, name, zero)


def mask_two_of_four(model: nn.Module, layers: Mapping[str, Mapping[str, Any]], evidence: Evidence) -> None:
    """Zero two of every four weights along each row, in place. layers: by name, `importance`.

    Raises:
        RefusedError: a layer has been narrowed to inputs that 4 does not divide.
    """
    for importance in sorted({setting["importance"] for setting in layers.values()}):
        chosen = [name for name, setting in layers.items() if setting["importance"] == importance]
        for name, given in evidence.weights(chosen, importance).items():
            score = _zeros_first(model, name, given)
            if score.shape[1] % 4:
                raise RefusedError(
                    f"pruning: {name!r} was narrowed to {score.shape[1]} inputs, which 4 does not divide: no 2:4 "
                    "there. Give what feeds it round_to: 8."
                )
            keep_zero(model, name, _least_of_rows(score.reshape(-1, 4), 2).reshape(score.shape))


def is_two_of_four(weight: Tensor) -> bool:
    """Tell whether every four weights of a row have at most two that are not zero."""
    return weight.ndim == 2 and weight.shape[1] % 4 == 0 and bool((weight.reshape(-1, 4) != 0).sum(1).le(2).all())


def keep_zero(model: nn.Module, name: str, zero: Tensor) -> None:
    """Set a layer's weights to zero where `zero` is true, and let no gradient reach them: under AdamW, decoupled decay
    included, a zero without a gradient stays exactly zero.

    What an earlier round or another mask has zeroed stays zero. The hook sits on the parameter: the state dict is that
    of the plain layer, and casts of the module keep it.
    """
    parameter = model.get_submodule(name).get_parameter("weight")
    if (handle := getattr(parameter, HANDLE, None)) is not None:
        zero = zero | (parameter.detach() == 0)
        handle.remove()
    with torch.no_grad():
        parameter.masked_fill_(zero.to(parameter.device), 0)

    def mask(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(zero.to(gradient.device), 0)

    frozen = not parameter.requires_grad
    parameter.requires_grad_(True)  # training may thaw it; a hook on a frozen one is refused
    handle = parameter.register_hook(mask)  # type: ignore[no-untyped-call]
    setattr(parameter, HANDLE, handle)
    parameter.requires_grad_(not frozen)


def _zeros_first(model: nn.Module, name: str, score: Tensor) -> Tensor:
    """The score, in which zeros come before everything else: a weight that nothing reads may score zero too."""
    weight = model.get_submodule(name).get_parameter("weight").detach()
    return score.masked_fill(weight == 0, -1.0)


def _least_of_rows(rows: Tensor, count: int) -> Tensor:
    """True at the `count` least of each row."""
    order = torch.argsort(rows, dim=1, stable=True)[:, :count]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)
