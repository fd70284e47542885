"""The two ways a decoder is called: with a whole text, whose tokens it scores, or with one more token a sequence.

Both keep the Hugging Face model visible as `lm`, and both can be exported by `torch.export`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autogreen.errors import RefusedError

ATTENTION = "autogreen"
FOREIGN = ("softcap", "s_aux", "position_bias")  # what some models want of their attention, and these kernels have not


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers' own, except for what it does to exported programs: a causal mask
    is never written out (the kernels know it), and a single query reads grouped keys and values where they lie, where
    it would repeat them for every head.

    query: [n, heads, q, head_dim]; key, value: [n, groups, k, head_dim]; returns [n, q, heads, head_dim].

    Source: Ainslie et al., GQA, EMNLP 2023.

    Raises:
        RefusedError: the model wants more of its attention than this computes.
    """
    if wanted := [name for name in FOREIGN if settings.get(name) is not None]:
        raise RefusedError(
            f"{type(module).__name__} wants {', '.join(wanted)} of its attention, which scaled dot-product attention "
            "does not compute: its scores would be wrong. Take another model, or write a task of your own."
        )
    if query.shape[2] > 1 or attention_mask is None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
        return attended
    count, heads, _, width = query.shape
    grouped = query.reshape(count, key.shape[1], heads // key.shape[1], width)
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(count, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, attention)  # no mask function of that name: then none is built


def window(config: Any) -> int | None:
    """How far back the nearest-sighted layer of a model looks, in tokens, by its config; None: as far as it likes."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    sizes = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    return min((size for kind, size in sizes.items() if size and (kinds is None or kind in kinds)), default=None)


class Scoring(nn.Module):
    """int64 [n, context] -> float32 [n, context - 1]: the log-probability (nats) of every token but the first, given
    those before it. What a server does that ranks texts; also the cost of reading a prompt, vocabulary included."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.lm(input_ids=input_ids, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        return -losses.view(len(input_ids), -1)


class Decoding(nn.Module):
    """One step: int64 [n, 1] and its position, int64 [] -> logits [n, vocabulary] of the token that follows.

    Keys and values of all `context` positions are buffers, which a step changes in place, exported or not. Positions
    after the step's own are masked, so that a sequence that starts again at position 0 sees nothing of the one before.

    The buffers fit one batch size. A call with another one, or after a change of the model's shape, makes them anew
    (never while a program is traced) and fills them with those of `prompt`, real text: the values ranges and the
    joules of a single step are then those of a step deep in a text. They are no part of the state dict.
    """

    def __init__(self, lm: nn.Module, prompt: Tensor) -> None:
        """prompt: int64 [any, context]; repeated for as many sequences as a call has."""
        super().__init__()
        self.lm = lm
        self.register_buffer("places", torch.arange(prompt.shape[1]), persistent=False)
        self._prompt = prompt
        self._shape: tuple[int, ...] = ()
        self._kept: tuple[int, ...] = ()  # numbers of the layers that keep something

    @torch.no_grad()  # a graph of gradients would grow through the buffers from step to step
    def forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        if self._shape != self._wanted(len(input_ids)):
            self.fit(len(input_ids))
        places = [number if number in self._kept else self._kept[0] for number in range(self._kept[-1] + 1)]
        layers = [_Layer(self.get_buffer(f"keys_{at}"), self.get_buffer(f"values_{at}"), position) for at in places]
        outputs = self.lm(
            input_ids=input_ids,
            attention_mask=(self.get_buffer("places") <= position).view(1, 1, 1, -1),
            position_ids=position.view(1, 1),
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    @torch.no_grad()
    def fit(self, batch: int) -> None:
        """Make the buffers for a batch size, and fill them.

        Raises:
            RefusedError: a program is being traced; or a layer keeps something else than all keys and values.
        """
        if torch.compiler.is_exporting():
            raise RefusedError(f"the caches do not fit a batch of {batch}; call the model once before exporting it.")
        device = self.get_buffer("places").device
        rows = self._prompt[torch.arange(batch) % len(self._prompt)].to(device)
        kept = self.lm.base_model(input_ids=rows, use_cache=True).past_key_values  # type: ignore[operator]
        for name in [name for name in self._buffers if name != "places"]:
            delattr(self, name)
        found = []
        for number, layer in enumerate(kept.layers):
            if isinstance(layer, CacheLayerMixin) and not layer.is_initialized:
                continue  # the place of a block that was removed
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None or keys.shape[2] != rows.shape[1]:
                raise RefusedError(
                    f"layer {number} of {type(self.lm).__name__} does not keep the keys and values of "
                    f"{rows.shape[1]} positions ({type(layer).__name__}): decoding takes models with full attention, "
                    "or a context shorter than their window. Shorten context, or use phase: prefill."
                )
            self.register_buffer(f"keys_{number}", keys.contiguous(), persistent=False)
            self.register_buffer(f"values_{number}", values.contiguous(), persistent=False)
            found.append(number)
        self._kept, self._shape = tuple(found), self._wanted(batch)

    def _wanted(self, batch: int) -> tuple[int, ...]:
        """Batch, layers that attend, heads of keys and their width, as the model is now."""
        config: Any = self.lm.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        attending = sum(hasattr(part, "layer_idx") and any(True for _ in part.children()) for part in self.lm.modules())
        return batch, attending, getattr(config, "num_key_value_heads", None) or heads, width


class _Layer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """The buffers of one layer, as transformers' attention wants them."""

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        self.keys, self.values, self.position = keys, values, position
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("the buffers are there")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        place = self.position.view(1)
        self.keys.index_copy_(2, place, key_states)
        self.values.index_copy_(2, place, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Tensor:
        return self.position

    def get_max_length(self) -> int:
        return self.keys.shape[2]
