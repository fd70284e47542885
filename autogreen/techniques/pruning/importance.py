"""How much a model would miss what is removed: one score an index, from weights or from the calibration split.

    magnitude    sqrt(sum of w^2), over the weights of the index        Li et al., ICLR 2017; Fang et al., CVPR 2023
    gradient     (sum of g * w)^2, over its parameters                  Molchanov et al., CVPR 2019, equation 8
    activation   mean of |x|, where other layers read it                after Hu et al., Network Trimming, 2016

    of blocks
    activation   1 - cos(input, output), over positions                 Men et al., ShortGPT, 2024, equation 1

    of single weights
    magnitude    |w|                                                    Han et al., NeurIPS 2015
    gradient     |g * w|                                                Molchanov et al., with a set of one
    activation   |w| * ||x||, x: what the weight multiplies             Sun et al., Wanda, ICLR 2024

g is the gradient of the task's loss, the mean over the calibration batches; x are all values of the calibration split,
padding included. Sums are in float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autogreen.errors import RefusedError
from autogreen.tasks import to_device
from autogreen.techniques import Context
from autogreen.techniques.pruning.surgery import Read, Removable
from autogreen.techniques.trace import tensors

Hook = Callable[[Any, Any, Any], None]  # inputs, keyword inputs, output


class Evidence:
    """What weights and calibration split say of a model as it is now; each pass is made once, when first needed."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        self._model = model.eval()
        self._context = context
        self._gradients: dict[str, Tensor] | None = None

    def removables(self, given: Sequence[Removable], importance: str) -> list[Tensor]:
        """[width] of each.

        Raises:
            RefusedError: a score, or the calibration split, holds NaN; the split is empty.
        """
        if importance == "activation":
            read = self._mean_inputs({place.layer: place for removable in given for place in removable.reads})
            found = [
                sum((_summed(read[place.layer], place.places) for place in removable.reads), torch.zeros(()))
                / sum(place.places.shape[1] for place in removable.reads)
                for removable in given
            ]
        elif importance == "gradient":
            found = [self._total(removable, self._products()).square() for removable in given]
        else:
            squares = {
                name: tensor.detach().float().square()
                for name, tensor in self._model.named_parameters()
                if not name.endswith("bias")
            }
            found = [self._total(removable, squares).sqrt() for removable in given]
        return [_checked(removable.name, score) for removable, score in zip(given, found, strict=True)]

    def blocks(self, names: Sequence[str], importance: str) -> Tensor:
        """[blocks]: one score each."""
        if importance == "activation":
            return _checked(names[0], self._influences(names))
        parts = self._products() if importance == "gradient" else dict(self._model.named_parameters())
        found = []
        for name in names:
            own = [
                parts[f"{name}.{leaf}"].detach().float()
                for leaf, _ in self._model.get_submodule(name).named_parameters()
                if importance == "gradient" or not leaf.endswith("bias")
            ]
            totals = [part.sum() if importance == "gradient" else part.square().sum() for part in own]
            total = torch.stack(totals).sum()
            found.append(total.square() if importance == "gradient" else total.sqrt())
        return _checked(names[0], torch.stack(found))

    def weights(self, names: Sequence[str], importance: str) -> dict[str, Tensor]:
        """By layer, a score in the shape of its weight."""
        layers = {name: self._model.get_submodule(name).get_parameter("weight").detach().float() for name in names}
        if importance == "gradient":
            found = {name: self._products()[f"{name}.weight"].abs() for name in names}
        elif importance == "activation":
            norms = self._input_norms(names)
            found = {name: weight.abs() * norms[name] for name, weight in layers.items()}
        else:
            found = {name: weight.abs() for name, weight in layers.items()}
        return {name: _checked(name, score) for name, score in found.items()}

    # -- sums over parameters ------------------------------------------------------------------------------------

    def _total(self, removable: Removable, parts: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(removable.width)
        for part in removable.slices:
            if part.tensor in parts:  # of parameters: no running statistics, and no biases in a magnitude
                tensor = parts[part.tensor]
                flat = tensor.movedim(part.axis, 0).reshape(tensor.shape[part.axis], -1).sum(1)
                total = total + _summed(flat, part.places).cpu()
        return total

    def _products(self) -> dict[str, Tensor]:
        gradients = self._gradients = self._gradients or self._mean_gradients()
        named = dict(self._model.named_parameters())
        return {name: gradient * named[name].detach().float() for name, gradient in gradients.items()}

    # -- passes over the calibration split -----------------------------------------------------------------------

    def _batches(self) -> Iterator[Any]:
        seen = 0
        for given in self._context.task.batches("calibration"):
            self._context.check()
            seen += 1
            batch = to_device(given, self._context.device)
            if any(leaf.is_floating_point() and leaf.isnan().any() for leaf in tensors(batch)):
                raise RefusedError(
                    f"pruning: calibration batch {seen} holds NaN, no importance can be read from it. Mend the "
                    "calibration split, or prune by importance: magnitude."
                )
            yield batch
        if not seen:
            raise RefusedError(
                "pruning: the calibration split gave no batch; give it some, or prune by importance: magnitude."
            )

    def _mean_gradients(self) -> dict[str, Tensor]:
        floating = {name: part for name, part in self._model.named_parameters() if part.is_floating_point()}
        frozen = [part for part in floating.values() if not part.requires_grad]
        totals = {name: torch.zeros_like(part, dtype=torch.float32) for name, part in floating.items()}
        count, task = 0, self._context.task
        try:
            for part in frozen:
                part.requires_grad_(True)
            for batch in self._batches():
                count += 1
                with torch.enable_grad():
                    loss = task.loss(task.forward(self._model, batch), batch)
                    gradients = torch.autograd.grad(loss, list(floating.values()), allow_unused=True)
                for total, gradient in zip(totals.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.float()
        finally:
            for part in frozen:
                part.requires_grad_(False)
        return {name: total / count for name, total in totals.items()}

    def _observe(self, hooks: Mapping[str, Hook]) -> None:
        def attached(hook: Hook) -> Any:
            return lambda module, args, kwargs, output: hook(args, kwargs, output)

        handles = [
            self._model.get_submodule(name).register_forward_hook(attached(hook), with_kwargs=True)
            for name, hook in hooks.items()
        ]
        try:
            with torch.no_grad():
                for batch in self._batches():
                    self._context.task.forward(self._model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _mean_inputs(self, reads: Mapping[str, Read]) -> dict[str, Tensor]:
        """Of each layer, the mean |x| of every input channel or feature."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = dict.fromkeys(reads, 0)

        def adding(name: str, axis: int) -> Hook:
            def add(args: Any, kwargs: Any, output: Any) -> None:
                values = _by_feature(args[0] if args else kwargs["input"], axis).abs()
                sums[name] = sums.get(name, torch.zeros(())) + values.sum(1).cpu()
                counts[name] += values.shape[1]

            return add

        self._observe({name: adding(name, read.axis) for name, read in reads.items()})
        return {name: total / counts[name] for name, total in sums.items()}

    def _input_norms(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Of each layer, the L2 norm of every input channel or feature, in a shape that its weight multiplies."""
        sums: dict[str, Tensor] = {}

        def adding(name: str, axis: int) -> Hook:
            def add(args: Any, kwargs: Any, output: Any) -> None:
                values = _by_feature(args[0] if args else kwargs["input"], axis)
                sums[name] = sums.get(name, torch.zeros((), device=values.device)) + values.square().sum(1)

            return add

        layers = {name: self._model.get_submodule(name) for name in names}
        self._observe({name: adding(name, -1 if isinstance(layers[name], nn.Linear) else 1) for name in names})
        shaped = {}
        for name, layer in layers.items():
            norms = sums[name].sqrt()
            if isinstance(layer, nn.Conv2d):  # each group of outputs reads its own inputs
                norms = norms.reshape(layer.groups, 1, -1).expand(-1, len(layer.weight) // layer.groups, -1)
                norms = norms.reshape(len(layer.weight), -1, 1, 1)
            shaped[name] = norms
        return shaped

    def _influences(self, names: Sequence[str]) -> Tensor:
        sums = dict.fromkeys(names, 0.0)
        counts = dict.fromkeys(names, 0)

        def adding(name: str) -> Hook:
            def add(args: Any, kwargs: Any, output: Any) -> None:
                before, after = (leaf.float() for leaf in (_first(args, kwargs), tensors(output)[0]))
                axis = 1 if before.ndim == 4 else -1  # of an image, its channels
                similar = nn.functional.cosine_similarity(before, after, dim=axis)
                sums[name] += float(similar.sum())
                counts[name] += similar.numel()

            return add

        self._observe({name: adding(name) for name in names})
        return torch.tensor([1 - sums[name] / counts[name] for name in names])


def normalized(score: Tensor) -> Tensor:
    """Scores of one unit in shares of their mean, so that layers of different scale can be ranked together."""
    mean = score.mean()
    return score / mean if mean > 0 else score


def _first(args: Any, kwargs: Any) -> Tensor:
    first: Tensor = tensors((args, kwargs))[0]
    return first


def _by_feature(values: Tensor, axis: int) -> Tensor:
    """[features, positions] in float32."""
    return values.float().movedim(axis, 0).flatten(1) if values.ndim > 1 else values.float()[:, None]


def _summed(values: Tensor, places: Tensor) -> Tensor:
    """[width]: the sum over the places of each index."""
    found: Tensor = values.index_select(0, places.flatten().to(values.device)).reshape(places.shape).sum(1)
    return found


def _checked(name: str, score: Tensor) -> Tensor:
    if not torch.isfinite(score).all():
        raise RefusedError(
            f"pruning: scores of {name!r} are NaN or infinite: its weights, gradients or activations are. Mend the "
            "model or the calibration split."
        )
    return score
