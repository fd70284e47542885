"""Pruning: what shrinks, who goes, and how much of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autogreen.errors import ConfigError, RefusedError
from autogreen.registry import nearest
from autogreen.techniques import Context, Target, Technique, Unit, assign

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autogreen.tasks import Inputs

STEPS: Mapping[str, int] = {"channel": 8, "neuron": 8, "head": 1, "depth": 1, "weight": 1, "n:m": 1}  # round_to
IMPORTANCES = ("magnitude", "gradient", "activation")
RANKINGS = ("layer", "global")


@dataclass(frozen=True, kw_only=True)
class Pruning(Technique):
    """Remove a share of what a model has. structure:

        channel   output channels of convolutions that depend on each other: what a residual connection adds together
                  shrinks together
        neuron    hidden features, where only linear layers depend on each other
        head      attention heads; where keys are grouped, a key head with the query heads that share it
        depth     whole blocks of a stack whose outputs have the shape of their inputs
        weight    single weights: they become zero and stay so, the layer keeps its shape
        n:m       two of every four weights in a row (2:4): real kernels on NVIDIA GPUs, zeros elsewhere

    target: glob on module names. importance: who goes first, `magnitude`, `gradient` or `activation`; formulas and
    papers stand in `pruning.importance`. ranking: `layer` takes the ratio of every unit by itself; `global` ranks all
    units whose rules say the same together, by scores in shares of each unit's mean, and takes the ratio of their sum.
    ratio: share to remove, in [0, 1); of n:m 0 (off) or 0.5 (on). At least one multiple of `round_to`, one head, one
    block stays; a ratio that asks for every block is refused.
    round_to: a width that is not left alone becomes a multiple of this, because kernels waste the remainder of a
    vector; 8 channels or neurons, 1 head by default. A unit narrower than the default is left alone, a rule that
    names a larger one for it is refused.

    Groups that pass a layer norm, an embedding or a grouped (not depthwise) convolution are no units: what stays would
    change. In Hugging Face decoders neurons, heads and depth are each one unit, uniform over the layers.

    Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023; Michel et al., NeurIPS 2019 (heads); Men
    et al., ShortGPT, 2024 (depth); Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (2:4).
    """

    ordered: ClassVar[bool] = True

    target: str
    structure: str = "channel"
    importance: str = "magnitude"
    ranking: str = "layer"
    ratio: float = 0.0
    round_to: int | None = None

    def __post_init__(self) -> None:
        for field, known in (("structure", STEPS), ("importance", IMPORTANCES), ("ranking", RANKINGS)):
            if (value := getattr(self, field)) not in known:
                allowed = ", ".join(map(repr, known))
                raise ConfigError(f"{field} must be one of {allowed}, not {value!r}.{nearest(value, known)}")
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"ratio must be in [0, 1), not {self.ratio!r}; 0.5 removes half of what there is")
        if self.structure == "n:m" and self.ratio not in (0, 0.5):
            raise ConfigError(f"ratio of n:m is 0 (off) or 0.5 (two of four), not {self.ratio!r}")
        if self.structure == "n:m" and self.ranking != "layer":
            raise ConfigError("ranking of n:m is 'layer': every four weights lose two")
        if self.round_to is not None and self.structure in ("depth", "weight", "n:m"):
            raise ConfigError(f"round_to counts channels, neurons or heads; structure {self.structure!r} has none")
        if self.round_to is not None and self.round_to < 1:
            raise ConfigError(f"round_to must be at least 1, not {self.round_to!r}")

    @property
    def step(self) -> int:
        """What a width becomes a multiple of."""
        return self.round_to or STEPS[self.structure]

    def width(self, unit: Unit) -> int:
        """How many stay of this unit: the allowed width, or the full one, that is nearest to what was asked."""
        wanted = unit.width * (1 - self.ratio)
        allowed = [width for width in range(self.step, unit.width, self.step) if _divides(unit, width)]
        nearest_width = min(
            allowed, key=lambda width: (abs(width - wanted), width // self.step % 2), default=unit.width
        )
        return unit.width if unit.width - wanted <= abs(nearest_width - wanted) else nearest_width

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        from autogreen.techniques.pruning.survey import units

        return tuple(units(model, example))

    @classmethod
    def effect(cls, settings: Sequence["Pruning"], units: Sequence[Unit]) -> dict[str, Any]:
        """By structure and unit what stays. Where units are ranked together only scores will tell who keeps what, so
        those are listed under `global` with the ratio, by unit what each has."""
        alone: dict[str, dict[str, Any]] = {}
        pools: dict[tuple[Any, ...], list[Unit]] = {}
        for unit, rule in assign(settings, units, "pruning"):
            if rule.ratio == 0:
                continue
            if rule.round_to is not None and rule.round_to > unit.width:
                raise RefusedError(
                    f"pruning: round_to {rule.round_to} is more than the {unit.width} that {unit.name!r} has. Give "
                    "it a rule of its own, or a smaller round_to."
                )
            if rule.ranking == "global":
                key = (rule.structure, rule.importance, rule.ratio, rule.step)
                pools.setdefault(key, []).append(unit)
            elif said := rule._alone(unit):
                alone.setdefault(rule.structure, {})[unit.name] = said
        together = []
        for (structure, importance, ratio, step), pooled in sorted(pools.items()):
            rule = cls(target="*", structure=structure, importance=importance, ratio=ratio)
            if len(pooled) == 1 and (said := rule._with(step)._alone(pooled[0])):
                alone.setdefault(structure, {})[pooled[0].name] = said
            elif len(pooled) > 1 and rule._with(step)._moves(pooled):
                pool = {"structure": structure, "importance": importance, "ratio": ratio, "round_to": step}
                together.append({**pool, "units": {unit.name: unit.width for unit in pooled}})
        return {**alone, **({"global": together} if together else {})}

    def _with(self, step: int) -> "Pruning":
        return self if step == self.step else type(self)(**{**vars(self), "round_to": step})

    def _alone(self, unit: Unit) -> dict[str, Any] | None:
        """What the rule does to one unit by itself, or None where it does nothing."""
        if self.structure == "n:m":
            return {"importance": self.importance}
        if self.structure == "weight":
            return {"sparsity": self.ratio, "importance": self.importance}
        if self.structure == "depth":
            width = round(unit.width * (1 - self.ratio))
            if width == 0:
                raise RefusedError(
                    f"pruning: ratio {self.ratio} would remove all {unit.width} blocks of {unit.name!r}. At most "
                    f"{1 - 1 / unit.width:.2f} leaves one."
                )
        else:
            width = self.width(unit)
        return {"width": width, "of": unit.width, "importance": self.importance} if width < unit.width else None

    def _moves(self, units: Sequence[Unit]) -> bool:
        """Tell whether the ratio of the sum is worth one step of some unit."""
        if self.structure == "weight":
            return True
        wanted = self.ratio * sum(unit.width for unit in units)
        first = [unit.width % self.step or self.step for unit in units if unit.width > self.step]
        return any(size / 2 <= wanted for size in first)

    @classmethod
    def part(cls, effect: dict[str, Any], share: float) -> dict[str, Any]:
        """The effect with only a share, in (0, 1], of the removal: a round on the way to it.

        Widths on the way are multiples of 8 where the last one is, of blocks and heads whole ones; two of four weights
        go in the last round.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], not {share!r}")
        if share == 1:
            return effect
        found: dict[str, Any] = {}
        for structure, settings in effect.items():
            if structure == "global":
                found[structure] = [{**pool, "ratio": share * pool["ratio"]} for pool in settings]
            elif structure == "weight":
                found[structure] = {
                    name: {**setting, "sparsity": share * setting["sparsity"]} for name, setting in settings.items()
                }
            elif structure != "n:m":
                on_the_way = {name: _on_the_way(structure, setting, share) for name, setting in settings.items()}
                found[structure] = {name: now for name, now in on_the_way.items() if now["width"] < now["of"]}
        return {structure: settings for structure, settings in found.items() if settings}

    @classmethod
    def settle(cls, effect: dict[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
        """What is split over ranks keeps widths that their number divides: rounded up, because what was asked away may
        all go, and more may not.

        Raises:
        RefusedError: a layer shall be 2:4 and have a quantization scheme; one kernel computes it, not two. Or a bounded
            loss may undo the only round that makes it 2:4, and the policy would not be what it says.
        """
        if "n:m" in effect and (parts.get("distillation") or {}).get("stop_loss") is not None:
            raise RefusedError(
                f"pruning: n:m for {', '.join(sorted(effect['n:m']))} beside stop_loss: two of four weights go in the "
                "last round or not at all, and a bounded loss may end the rounds before. Leave stop_loss out, or take "
                "structure: weight."
            )
        if both := sorted(set(effect.get("n:m", {})) & set(parts.get("quantization") or {})):
            raise RefusedError(
                f"pruning: n:m for {', '.join(both)}, which quantization gives a scheme: no kernel does both. "
                "Give those layers scheme: none, or ratio 0."
            )
        return _rounded(effect, degree) if (degree := (parts.get("parallelism") or {}).get("tensor", 1)) > 1 else effect

    @classmethod
    def refusal(cls, effect: dict[str, Any], units: Sequence[Unit], target: Target) -> str | None:
        if not target.device.startswith("cuda") or "n:m" not in effect:
            return None
        from autogreen.techniques.pruning.sparse import misfit

        layers = {unit.name: unit for unit in units if unit.structure == "n:m"}
        return next(
            (
                f"n:m for {name}: {reason}"
                for name in effect["n:m"]
                if name in layers and (reason := misfit(layers[name], target.device))
            ),
            None,
        )

    @classmethod
    def apply(cls, effect: dict[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
        from autogreen.techniques.pruning.cut import cut

        return cut(effect, model, context) if effect else model

    @classmethod
    def fit(
        cls, effect: dict[str, Any], model: "nn.Module", weights: "Mapping[str, Tensor]", context: Context
    ) -> "nn.Module":
        """The model in the shapes that weights have which were trained under this effect (see `pruning.fit`)."""
        from autogreen.techniques.pruning.fit import fit

        return fit(effect, model, weights, context) if effect else model

    @classmethod
    def lower(cls, effect: dict[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
        if "n:m" not in effect or not context.device.startswith("cuda"):
            return model
        from autogreen.techniques.pruning.sparse import to_sparse

        return to_sparse(model, effect["n:m"])


def _rounded(effect: dict[str, Any], degree: int) -> dict[str, Any]:
    """Widths of features and heads as multiples of a degree."""
    found = dict(effect)
    for structure in ("neuron", "head"):
        if structure in effect:
            kept = {
                name: {**setting, "width": min(setting["of"], math.ceil(setting["width"] / degree) * degree)}
                for name, setting in effect[structure].items()
            }
            found[structure] = {name: setting for name, setting in kept.items() if setting["width"] < setting["of"]}
    if "global" in effect:
        found["global"] = [
            {**pool, "round_to": math.lcm(pool["round_to"], degree)}
            if pool["structure"] in ("neuron", "head")
            else pool
            for pool in effect["global"]
        ]
    return {name: part for name, part in found.items() if part}


def _divides(unit: Unit, width: int) -> bool:
    """Tell whether a unit may have this width: of a decoder's heads, some configs allow divisors of the hidden size."""
    return unit.kind != "attention" or not unit.inputs or unit.inputs % (width * unit.groups) == 0


def _on_the_way(structure: str, setting: Mapping[str, Any], share: float) -> dict[str, Any]:
    step = math.gcd(setting["width"], STEPS[structure])
    left = setting["of"] - share * (setting["of"] - setting["width"])
    width = min(setting["of"], max(setting["width"], math.floor(left / step + 0.5) * step))
    return {**setting, "width": width}
