"""Whole attention heads, where q, k, v and the output projection are linear layers.

    separate   query, key, value (BERT, MiniLM) and their like; the output projection beside them or in the parent
    fused      one qkv layer, [q heads | k heads | v heads] (vision transformers)

Source: Michel, Levy, Neubig, Are Sixteen Heads Really Better than One?, NeurIPS 2019.
"""

from collections.abc import Iterator

from torch import Tensor, cat, nn

from autogreen.techniques.pruning.surgery import Count, Read, Removable, Slice, places

SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
FUSED = ("qkv", "qkv_proj", "in_proj")
OUTPUT = ("o_proj", "out_proj", "proj", "out_lin", "dense", "o", "out")
BESIDE = ("output.dense", "output")  # from the parent's point of view
HEADS = ("num_attention_heads", "num_heads", "n_heads", "heads")
FEATURES = ("all_head_size", "attn_dim", "inner_dim")


def attentions(model: nn.Module) -> Iterator[Removable]:
    """Every module that looks like an attention; whether its heads can go is then tried."""
    for name, module in model.named_modules():
        counting = next((key for key in HEADS if type(getattr(module, key, None)) is int), None)
        output = _output(model, name, module)
        if counting is None or output is None:
            continue
        heads = int(getattr(module, counting))
        separate = next((names for names in SEPARATE if all(_linear(module, key) for key in names)), None)
        fused = next((key for key in FUSED if _linear(module, key)), None)
        if separate is not None:
            features = {key: module.get_parameter(f"{key}.weight").shape[0] for key in separate}
            rows = features[separate[0]]
            if set(features.values()) != {rows}:  # grouped keys and values are a decoder's affair
                continue
            inside = {key: places(heads, rows // heads) for key in separate}
        elif fused is not None:
            rows = module.get_parameter(f"{fused}.weight").shape[0] // 3
            each = rows // heads
            inside = {fused: cat([places(heads, each, start=part * rows) for part in range(3)], dim=1)}
        else:
            continue
        if rows % heads or model.get_submodule(output).get_parameter("weight").shape[1] != rows:
            continue
        columns = places(heads, rows // heads)
        counts = [Count(module=name, attribute=counting)]
        counts += [
            Count(module=name, attribute=key, each=rows // heads)
            for key in FEATURES
            if getattr(module, key, None) == rows
        ]
        yield Removable(
            name=name,
            width=heads,
            slices=(
                *(part for key, where in inside.items() for part in linear_rows(model, f"{name}.{key}", where)),
                Slice(tensor=f"{output}.weight", axis=1, places=columns),
            ),
            reads=(Read(layer=output, axis=-1, places=columns),),
            counts=tuple(counts),
        )


def linear_rows(model: nn.Module, name: str, where: Tensor) -> Iterator[Slice]:
    """The output features of a linear layer: rows of its weight, entries of its bias."""
    yield Slice(tensor=f"{name}.weight", axis=0, places=where)
    if getattr(model.get_submodule(name), "bias", None) is not None:
        yield Slice(tensor=f"{name}.bias", axis=0, places=where)


def _output(model: nn.Module, name: str, module: nn.Module) -> str | None:
    inside = next((f"{name}.{key}" for key in OUTPUT if _linear(module, key)), None)
    if inside is not None or not name:
        return inside
    parent = name.rpartition(".")[0]
    above = model.get_submodule(parent)
    beside = next((key for key in BESIDE if _linear(above, key)), None)
    return f"{parent}.{beside}".lstrip(".") if beside else None


def _linear(module: nn.Module, path: str) -> bool:
    found: object = module
    for key in path.split("."):
        found = getattr(found, key, None)
    return isinstance(found, nn.Linear)
