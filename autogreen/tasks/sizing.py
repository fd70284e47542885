"""How large a decoder a text can feed, and what such a decoder looks like: plain numbers of a Llama's config.

    non-embedding parameters  N = tokens x passes / 20
    heads = hidden / 64,  KV heads ~ heads / 4,  FFN = 8/3 hidden,  layers ~ heads

A larger one is not trained to the end, and what is too large for its data is easily compressed: it would flatter.

Source: Hoffmann et al., Training Compute-Optimal Large Language Models, NeurIPS 2022 (20 tokens a parameter);
Muennighoff et al., Scaling Data-Constrained Language Models, NeurIPS 2023 (up to 4 passes are worth as much as new
text); Kaplan et al., Scaling Laws for Neural Language Models, 2020 (the shape matters little; embeddings not counted);
Touvron et al., Llama 2, 2023 (block); Ainslie et al., GQA, EMNLP 2023.
"""

import math

TOKENS_PER_PARAMETER = 20
WORTHY_PASSES = 4
HEAD_DIM = 64  # kernels like multiples of it
HEADS = (1, *range(2, 129, 2))

Dimensions = dict[str, int]  # as in a transformers config


def fitting(tokens: int, passes: int) -> Dimensions:
    """The dimensions for a text of so many tokens, read so many times: of all widths the one whose depth comes nearest
    to the number of its heads."""
    parameters = tokens * min(passes, WORTHY_PASSES) / TOKENS_PER_PARAMETER

    def layers(heads: int) -> int:
        return max(2, round(parameters / block_parameters(of_width(heads, 1))))

    heads = min(HEADS, key=lambda heads: abs(math.log(layers(heads) / heads)))
    return of_width(heads, layers(heads))


def of_width(heads: int, layers: int) -> Dimensions:
    """A Llama of so many heads and layers."""
    hidden = heads * HEAD_DIM
    return {
        "hidden_size": hidden,
        "intermediate_size": max(1, round(hidden * 8 / 3 / HEAD_DIM)) * HEAD_DIM,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _groups(heads),
        "head_dim": HEAD_DIM,
    }


def narrower(dimensions: Dimensions, fraction: float) -> Dimensions:
    """The same depth and so much of the width, in whole heads."""
    heads = max(1, round(dimensions["num_attention_heads"] * fraction))
    groups = dimensions["num_key_value_heads"]
    return {
        **dimensions,
        "hidden_size": max(1, round(dimensions["hidden_size"] * fraction / heads)) * heads,
        "intermediate_size": max(1, round(dimensions["intermediate_size"] * fraction)),
        "num_attention_heads": heads,
        "num_key_value_heads": max(number for number in range(1, min(groups, heads) + 1) if heads % number == 0),
    }


def block_parameters(dimensions: Dimensions) -> int:
    """Weights of one block's seven matrices."""
    hidden, width = dimensions["hidden_size"], dimensions["head_dim"]
    attention = 2 * hidden * width * (dimensions["num_attention_heads"] + dimensions["num_key_value_heads"])
    return attention + 3 * hidden * dimensions["intermediate_size"]


def _groups(heads: int) -> int:
    """A divisor near a quarter, 2 at least where there are so many heads that one alone would be none to prune."""
    divisors = [number for number in range(1, heads + 1) if heads % number == 0 and heads >= 2 * number]
    return min(divisors or [1], key=lambda number: (heads >= 4 and number < 2, abs(math.log(4 * number / heads))))
