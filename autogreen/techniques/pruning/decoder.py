"""Hugging Face decoders: cut to the same widths in every layer, so that a plain config describes the result.

    neuron   rows of gate and up, columns of down                   -> config.intermediate_size
    head     a key/value head with the query heads that share it    -> config.num_key_value_heads, num_attention_heads
    depth    whole layers                                           -> config.num_hidden_layers, after `compact`

Which neurons and heads go is each layer's own affair; how many is not: transformers and vLLM know one width.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from autogreen.techniques import Unit
from autogreen.techniques.pruning.attention import linear_rows
from autogreen.techniques.pruning.blocks import Skip
from autogreen.techniques.pruning.surgery import Count, Read, Removable, Slice, places

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """name: of the module that owns `layers`. config: the one that all of them share. layers: those still there."""

    name: str
    module: nn.Module
    config: Any
    layers: tuple[str, ...]

    @property
    def stack(self) -> str:
        return f"{self.name}.layers".lstrip(".")

    @property
    def neurons_name(self) -> str:
        """Of the unit; no layer's own name, because every layer may go."""
        return f"{self.stack}.mlp"

    @property
    def heads_name(self) -> str:
        return f"{self.stack}.self_attn"

    @property
    def head_dim(self) -> int:
        return int(self.module.get_submodule(f"layers.{self.layers[0].rpartition('.')[2]}.self_attn").head_dim)  # type: ignore[arg-type]


def decoders(model: nn.Module) -> Iterator[Decoder]:
    """Every decoder in a module tree, known by its config and by the layers that Llama and its relatives have."""
    for name, module in model.named_modules():
        config, layers = getattr(module, "config", None), getattr(module, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not all(hasattr(config, field) for field in FIELDS):
            continue
        prefix = f"{name}.layers".lstrip(".")
        alive = {f"{prefix}.{key}": layer for key, layer in layers.named_children() if not isinstance(layer, Skip)}
        if alive and all(_is_layer(layer) for layer in alive.values()):
            yield Decoder(name=name, module=module, config=config, layers=tuple(alive))


def grouped_keys(model: nn.Module) -> bool:
    """Tell whether query heads share key heads anywhere, by what the configs in a module tree say."""
    for module in model.modules():
        config = getattr(module, "config", None)
        keys = getattr(config, "num_key_value_heads", None)
        if keys is not None and keys != getattr(config, "num_attention_heads", keys):
            return True
    return False


def _is_layer(layer: nn.Module) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    projections = [getattr(attention, key, None) for key in ATTENTION]
    projections += [getattr(mlp, key, None) for key in ("up_proj", "down_proj")]
    return all(isinstance(projection, nn.Linear) for projection in projections) and hasattr(attention, "head_dim")


def units(model: nn.Module, decoder: Decoder) -> Iterator[Unit]:
    """What of a decoder can shrink: its neurons, its heads and its layers.

    Of the heads, `inputs` is the size that their number must divide where the config insists on that, otherwise 0, and
    `groups` the query heads that share one key head.
    """
    first = decoder.layers[0]
    into = [key for key in ("gate_proj", "up_proj") if hasattr(model.get_submodule(f"{first}.mlp"), key)]
    yield Unit(
        name=decoder.neurons_name,
        members=(decoder.neurons_name, *(f"{layer}.mlp.{key}" for layer in decoder.layers for key in into)),
        kind="linear",
        width=neurons(model, decoder)[0].width,
        calls=1,
        block=decoder.stack,
        structure="neuron",
    )
    config = decoder.config
    yield Unit(
        name=decoder.heads_name,
        members=(decoder.heads_name, *(f"{layer}.self_attn" for layer in decoder.layers)),
        kind="attention",
        width=heads(model, decoder)[0].width,
        inputs=config.hidden_size if _insists(config) else 0,
        groups=_rows(model, first, "q_proj") // _rows(model, first, "k_proj"),
        calls=1,
        block=decoder.stack,
        structure="head",
    )
    if len(decoder.layers) > 1:
        yield Unit(
            name=decoder.stack,
            members=(decoder.stack,),
            kind="block",
            width=len(decoder.layers),
            calls=1,
            block=decoder.stack,
            structure="depth",
        )


def _rows(model: nn.Module, layer: str, projection: str) -> int:
    return model.get_submodule(layer).get_parameter(f"self_attn.{projection}.weight").shape[0]


def _insists(config: Any) -> bool:
    """Tell whether a config refuses numbers of heads that do not divide the hidden size."""
    asked = copy.deepcopy(config)
    try:
        asked.num_attention_heads = next(n for n in range(2, 1000) if asked.hidden_size % n)
        getattr(asked, "validate_architecture", lambda: None)()
    except ValueError:
        return True
    return False


def neurons(model: nn.Module, decoder: Decoder) -> tuple[Removable, ...]:
    """The hidden features of each layer's feed-forward network."""
    return tuple(_neurons(model, f"{layer}.mlp") for layer in decoder.layers)


def _neurons(model: nn.Module, name: str) -> Removable:
    mlp = model.get_submodule(name)
    width = mlp.get_parameter("up_proj.weight").shape[0]
    into = [key for key in ("gate_proj", "up_proj") if hasattr(mlp, key)]
    every = places(width)
    return Removable(
        name=f"{name}.{into[0]}",
        width=width,
        slices=(
            *(part for key in into for part in linear_rows(model, f"{name}.{key}", every)),
            Slice(tensor=f"{name}.down_proj.weight", axis=1, places=every),
        ),
        reads=(Read(layer=f"{name}.down_proj", axis=-1, places=every),),
        counts=(Count(module=name, attribute="intermediate_size"),) if hasattr(mlp, "intermediate_size") else (),
    )


def heads(model: nn.Module, decoder: Decoder) -> tuple[Removable, ...]:
    """The key/value heads of each layer, each with its query heads."""
    return tuple(_heads(model, f"{layer}.self_attn", decoder.head_dim) for layer in decoder.layers)


def _heads(model: nn.Module, name: str, head_dim: int) -> Removable:
    attention = model.get_submodule(name)
    groups = attention.get_parameter("k_proj.weight").shape[0] // head_dim
    queries = attention.get_parameter("q_proj.weight").shape[0] // groups  # features of those that share one key head
    asking, asked = places(groups, queries), places(groups, head_dim)
    counts = {"num_heads": queries // head_dim, "num_attention_heads": queries // head_dim, "num_key_value_heads": 1}
    return Removable(
        name=name,
        width=groups,
        slices=(
            *linear_rows(model, f"{name}.q_proj", asking),
            *linear_rows(model, f"{name}.k_proj", asked),
            *linear_rows(model, f"{name}.v_proj", asked),
            Slice(tensor=f"{name}.o_proj.weight", axis=1, places=asking),
        ),
        reads=(Read(layer=f"{name}.o_proj", axis=-1, places=asking),),
        counts=tuple(
            Count(module=name, attribute=key, each=each) for key, each in counts.items() if hasattr(attention, key)
        ),
    )


def describe(model: nn.Module) -> None:
    """Bring the config of every decoder in line with the widths of its layers, in place."""
    for decoder in decoders(model):
        first = decoder.layers[0]
        decoder.config.head_dim = decoder.head_dim  # no longer hidden_size / num_attention_heads
        decoder.config.num_attention_heads = _rows(model, first, "q_proj") // decoder.head_dim
        decoder.config.num_key_value_heads = _rows(model, first, "k_proj") // decoder.head_dim
        decoder.config.intermediate_size = neurons(model, decoder)[0].width
        for place, layer in enumerate(decoder.layers):  # a cache has a place for each layer that runs
            attention = model.get_submodule(f"{layer}.self_attn")
            if hasattr(attention, "layer_idx"):
                attention.layer_idx = place  # type: ignore[assignment]


def compact(model: nn.Module) -> nn.Module:
    """Drop what removed layers left behind and number the others afresh: then `type(decoder)(decoder.config)` loads the
    weights. In place; names of layers change, so nothing that goes by name may follow.
    """
    for decoder in decoders(model):
        everything = list(decoder.module.get_submodule("layers").children())
        alive = [place for place, layer in enumerate(everything) if not isinstance(layer, Skip)]
        decoder.module.layers = nn.ModuleList(everything[place] for place in alive)
        decoder.config.num_hidden_layers = len(alive)
        kinds = getattr(decoder.config, "layer_types", None)
        if isinstance(kinds, list) and len(kinds) == len(everything):
            decoder.config.layer_types = [kinds[place] for place in alive]
    describe(model)  # numbers the layers afresh, too
    return model
