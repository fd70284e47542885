"""Structured pruning through torch-pruning's dependency graph."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autogreen.errors import ConfigError, RefusedError
from autogreen.techniques import Context, Technique, Unit, assign

if TYPE_CHECKING:
    from torch import nn

    from autogreen.tasks import Inputs


@dataclass(frozen=True, kw_only=True)
class Pruning(Technique):
    """Remove whole output channels (features of a linear layer) of a dependency group: what a residual connection
    adds together shrinks together.

    target: glob on module names. ratio: share of the group's channels to remove, in [0, 1).
    round_to: a width that is not left alone becomes a multiple of this, because kernels waste the remainder of a
    vector; at least one such multiple stays. importance: `magnitude`, the L2 norm of all weights of a channel.

    Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023; Li et al., Pruning Filters for Efficient
    ConvNets, ICLR 2017 (magnitude).
    """

    ordered: ClassVar[bool] = True

    target: str
    structure: Literal["channel"] = "channel"
    importance: Literal["magnitude"] = "magnitude"
    ratio: float = 0.0
    round_to: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"ratio must be in [0, 1), not {self.ratio!r}; 0.5 removes half of the channels")
        if self.round_to < 1:
            raise ConfigError(f"round_to must be at least 1, not {self.round_to!r}")

    def width(self, unit: Unit) -> int:
        """Channels that stay of this unit: the allowed width, or the full one, that is nearest to what was asked."""
        wanted = unit.width * (1 - self.ratio)
        rounded = min(unit.width, max(1, round(wanted / self.round_to)) * self.round_to)
        return unit.width if unit.width - wanted <= abs(rounded - wanted) else rounded

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        from torch import nn

        from autogreen.techniques.trace import block_of, layers, signature

        traced = layers(model, example)
        graph = _graph(model, example)
        names = {module: name for name, module in model.named_modules()}
        before = signature(model, example)
        units: list[Unit] = []
        seen: set[str] = set()
        for name, module in model.named_modules():
            if name not in traced or name in seen or not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if module not in graph.module2node:  # it runs, but no output depends on it
                continue
            members = _members(graph, module, names)
            seen.update(members)
            if _shapes_survive(model, name, example, before):
                units.append(
                    Unit(
                        name=name,
                        members=tuple(member for member in names.values() if member in members),
                        kind="conv" if isinstance(module, nn.Conv2d) else "linear",
                        width=traced[name].width,
                        calls=traced[name].calls,
                        block=block_of(name),
                        structure="channel",
                    )
                )
        return tuple(units)

    @classmethod
    def effect(cls, settings: Sequence["Pruning"], units: Sequence[Unit]) -> dict[str, Any]:
        widths = {}
        for unit, rule in assign(settings, units, "pruning"):
            if (width := rule.width(unit)) < unit.width:
                widths[unit.name] = {"width": width, "of": unit.width, "importance": rule.importance}
        return widths

    @classmethod
    def apply(cls, effect: dict[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
        import torch_pruning as tp

        for name, setting in effect.items():
            graph = _graph(model, context.example)  # anew: removing one group renumbers what flattening feeds
            module = model.get_submodule(name)
            prune = graph.get_pruner_of_module(module).prune_out_channels
            group = graph.get_pruning_group(module, prune, idxs=list(range(setting["of"])))
            # every argument fresh: the library's mutable defaults leak from one pruner into the next
            importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean")(group)
            weakest = importance.argsort()[: setting["of"] - setting["width"]].tolist()
            graph.get_pruning_group(module, prune, idxs=sorted(weakest)).prune()
        return model


def _graph(model: "nn.Module", example: "Inputs") -> Any:
    """Trace the dependency graph; torch-pruning needs gradients and a model in inference mode to do so."""
    import torch
    import torch_pruning as tp

    from autogreen.techniques.trace import tensors

    model.eval()
    args, kwargs = example
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                model,
                example_inputs=args,
                forward_fn=(lambda traced, inputs: traced(*inputs, **kwargs)),
                output_transform=tensors,
                verbose=False,
            )
    except Exception as error:
        raise RefusedError(
            f"pruning: the dependencies of {type(model).__name__} cannot be traced ({type(error).__name__}: {error}). "
            "Leave the pruning section out."
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _members(graph: Any, module: "nn.Module", names: dict["nn.Module", str]) -> set[str]:
    """Names of the layers whose *output* shrinks together with this one's."""
    from torch import nn

    prune = graph.get_pruner_of_module(module).prune_out_channels
    group = graph.get_pruning_group(module, prune, idxs=[0])
    return {
        names[item.dep.target.module]
        for item in group
        if isinstance(item.dep.target.module, nn.Conv2d | nn.Linear)
        and item.dep.handler == graph.get_pruner_of_module(item.dep.target.module).prune_out_channels
    }


def _shapes_survive(model: "nn.Module", name: str, example: "Inputs", before: Any) -> bool:
    """Try it: a group is prunable when the model still runs without one channel and answers in the same shapes.

    The last layer fails (its channels are the classes), and so does a projection whose features are split into heads.
    """
    from autogreen.techniques.trace import signature

    trial = copy.deepcopy(model)
    graph = _graph(trial, example)
    module = trial.get_submodule(name)
    try:
        graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, idxs=[0]).prune()
        return bool(signature(trial, example) == before)
    except Exception:  # noqa: BLE001 - whatever breaks, the answer is no
        return False
