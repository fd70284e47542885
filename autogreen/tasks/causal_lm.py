"""A decoder that continues Python: any Hugging Face one, or a small one trained here from scratch."""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogreen.errors import ConfigError
from autogreen.tasks import Inputs, Scores, Split, Task, rows, sizing
from autogreen.tasks.pretrained import fetch, identity, library
from autogreen.tasks.sources import Encode, Tokens, content_hash, tokenizer, tokens
from autogreen.tasks.training import train

SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
LIMITS = {"context": (2, 2**20), "sequences": (1, 2**20), "passes": (0, 1000), "epoch_tokens": (1, 2**40)}
LIMITS |= {"batch_size": (1, 2**20), "vocab_size": (257, 2**18), "seed": (0, 2**32)}


@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """Continue Python sources: those of the standard library and of installed packages, read as text (`sources`:
    stdlib, package names, folders with a slash), split by file. Score: mean log-probability (nats) of a sequence's
    tokens but the first, given those before it, so that a loss of 0.02 is 2 % of perplexity; sequences of one file are
    one cluster. Files are told apart by their whole content only: packages hold near copies of their own files, some
    of them in another split, so that the perplexity is one of familiar code.

    model: folder or hub name of a checkpoint. By default a Llama with grouped-query attention, untied embeddings and
    the size that the text can feed (see `sizing`: one parameter, embeddings not counted, for every 20 tokens that
    training reads, of at most four passes), trained once and kept. `config` sets any of its dimensions
    (hidden_size, num_hidden_layers, ...) by hand. Embeddings that a checkpoint ties are untied on loading: the copy
    costs memory, the same numbers are computed.
    weights: `random` trains and loads none: for what only energy and latency are asked of, such as 7 B parameters.
    Items are then called "token (random weights)"; the quality is computed and means nothing.
    dtype: of the weights that are served. phase: what a call is, and an item is a token in both:

        prefill  the log-probabilities of all tokens of [batch, context], vocabulary included, as a server computes
                 that scores or ranks texts
        decode   one more token for each sequence, whose keys and values of `context` positions are kept; the score
                 feeds the program one token after the other, through the very kernels that are measured

    context: tokens a sequence. sequences: so many at most of each held-out split, of as many files as possible.
    passes, batch_size, learning_rate: of training from scratch; a step is batch_size sequences. epoch_tokens: what one
    epoch of fine-tuning reads, the next one goes on from there. seed: weights and order.
    """

    item: str = field(default="token", init=False)
    outputs: Literal["logits", "values"] = field(default="logits", init=False)

    model: str | None = None
    weights: Literal["trained", "random"] = "trained"
    config: Mapping[str, int] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    phase: Literal["prefill", "decode"] = "decode"
    context: int = 512
    sequences: int = 64
    sources: tuple[str, ...] = ("stdlib", "torch", "transformers")
    vocab_size: int = 8192
    passes: int = 4
    epoch_tokens: int = 2**22
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, not {getattr(self, name)!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be above 0, not {self.learning_rate!r}")
        if not self.sources:
            raise ConfigError("sources must name stdlib, a package or a folder")
        for key, value in self.config.items():
            if key not in SETTINGS or value < 1:
                raise ConfigError(f"config.{key} must be one of {', '.join(SETTINGS)}, and 1 or more; it is {value!r}")
        if self.model is not None and self.config:
            raise ConfigError(f"config is for the model that is made here; {self.model} has its own")
        if "vocab_size" in self.config and self.weights == "trained":
            raise ConfigError("config.vocab_size is for random weights; set vocab_size, which the tokenizer has too")
        if self.weights == "random":
            object.__setattr__(self, "item", "token (random weights)")

    # -- the model ---------------------------------------------------------------------------------------------------

    def build(self, cache: Path) -> nn.Module:
        library()  # or say what is missing
        _folders[self.sources] = cache / "sources"
        if self.model is not None and self.weights == "trained":
            lm = fetch("AutoModelForCausalLM", self.model, **self._how())
            _untie(lm)
        elif self.weights == "random":
            lm = self._random()
        else:
            lm = self._trained(self._dimensions(), cache)
        return self._served(lm)

    def smaller(self, fraction: float, cache: Path) -> nn.Module | None:
        """None for a checkpoint and for random weights: there is no training that it could have had too."""
        if self.model is not None or self.weights == "random":
            return None
        library()
        _folders[self.sources] = cache / "sources"
        return self._served(self._trained(sizing.narrower(self._dimensions(), fraction), cache))

    def _served(self, lm: Any) -> nn.Module:
        from autogreen.tasks.decoding import Decoding, Scoring, window

        longest = getattr(lm.config, "max_position_embeddings", None)
        if longest is not None and self.context > longest:
            raise ConfigError(f"context is {self.context}, and {self.model} has {longest} positions; shorten it.")
        sight = window(lm.config)
        if sight is not None and sight < self.context:
            raise ConfigError(
                f"context is {self.context}, and layers of {self.model} see {sight} positions back: here all layers "
                "see everything, so its scores would be wrong. Shorten context to the window."
            )
        highest = max(int(self._tokens().ids[split].max()) for split in get_args(Split))
        if highest >= lm.config.vocab_size:
            raise ConfigError(
                f"the tokenizer gives {highest + 1} tokens, and the model knows {lm.config.vocab_size}; they do not "
                "belong together."
            )
        served = Scoring(lm) if self.phase == "prefill" else Decoding(lm, self._held_out("calibration")[0])
        return served.eval()

    def _how(self) -> dict[str, Any]:
        from autogreen.tasks.decoding import ATTENTION

        return {"dtype": getattr(torch, self.dtype), "attn_implementation": ATTENTION}

    def _dimensions(self) -> sizing.Dimensions:
        return {**sizing.fitting(len(self._tokens().ids["train"]), self.passes), **self.config}

    def _llama(self, dimensions: Mapping[str, int]) -> Any:
        """A Llama's config.

        Raises:
            ConfigError: heads that do not share the keys and values evenly.
        """
        heads, groups = dimensions["num_attention_heads"], dimensions["num_key_value_heads"]
        if heads % groups:
            raise ConfigError(f"config: {heads} heads cannot share {groups} key/value heads evenly; set both.")
        settings = {"vocab_size": self.vocab_size, "max_position_embeddings": self.context, **dimensions}
        return library().LlamaConfig(**settings, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0)

    def _random(self) -> Any:
        auto = library()
        config = self._llama(self._dimensions()) if self.model is None else fetch("AutoConfig", self.model)
        config.tie_word_embeddings = False
        torch.manual_seed(self.seed)
        with torch.device(_device()):  # billions of random numbers
            return auto.AutoModelForCausalLM.from_config(config, **self._how())

    def _trained(self, dimensions: sizing.Dimensions, cache: Path) -> Any:
        """The model of these dimensions, trained now unless it is kept from before: a plain Hugging Face folder."""
        from autogreen.tasks.decoding import ATTENTION, Scoring

        folder = self._folder(dimensions, cache)
        if not folder.is_dir():
            torch.manual_seed(self.seed)
            lm = library().AutoModelForCausalLM.from_config(self._llama(dimensions), attn_implementation=ATTENTION)
            passes = self.passes * len(self._chunks()) / self._epoch_chunks()
            train(
                Scoring(lm),
                self,
                self.loss,
                epochs=math.ceil(passes),
                learning_rate=self.learning_rate,
                seed=self.seed,
                device=_device(),
                precision="bf16" if _device() == "cuda" else "float32",
            )
            partial = folder.with_name(f".{folder.name}.{os.getpid()}")
            lm.cpu().save_pretrained(partial)
            try:
                partial.rename(folder)  # a crash leaves no half-written weights
            except OSError:  # another process was faster
                shutil.rmtree(partial)
        return fetch("AutoModelForCausalLM", str(folder), **self._how())

    def _folder(self, dimensions: sizing.Dimensions, cache: Path) -> Path:
        told = dimensions, self.context, self.passes, self.batch_size, self.learning_rate, self.epoch_tokens, self.seed
        return cache / f"causal_lm-{hashlib.sha256(f'{told} {self._text()}'.encode()).hexdigest()[:16]}"

    # -- the text ----------------------------------------------------------------------------------------------------

    def batches(self, split: Split, epoch: int = 0) -> list[Tensor]:
        """Each int64 [n, context]."""
        if split != "train":
            return list(torch.split(self._held_out(split)[0], self.batch_size))
        chunks, count = self._chunks(), self._epoch_chunks()
        first, each = epoch * count, len(chunks)
        orders = [
            _shuffled(each, self.seed, number) for number in range(first // each, (first + count - 1) // each + 1)
        ]
        order = torch.cat(orders)[first % each :][:count]
        size = min(self.batch_size, count)
        return [chunks[part].long() for part in torch.split(order, size) if len(part) == size]

    def _tokens(self) -> Tokens:
        at = _folders.get(self.sources)

        def encode() -> Encode:
            made = tokenizer(self.sources, self.vocab_size, at)
            return lambda texts: [found.ids for found in made.encode_batch(texts, add_special_tokens=False)]

        if self.model is None or self.weights == "random":
            return tokens(self.sources, self._text(), encode, 0, at)
        own = fetch("AutoTokenizer", self.model)
        return tokens(self.sources, self._text(), lambda: _plainly(own), own.eos_token_id or 0, at)

    def _text(self) -> str:
        """What identifies text and tokenizer."""
        random = self.model is None or self.weights == "random"
        told = f"{self.vocab_size} byte pairs" if random else identity(str(self.model))
        return f"{content_hash(self.sources)}, {told}"

    def _chunks(self) -> Tensor:
        return self._tokens().train(self.context)

    def _epoch_chunks(self) -> int:
        return min(len(self._chunks()), max(1, self.epoch_tokens // self.context))

    def _held_out(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._tokens().held_out(split, self.context, self.sequences)

    # -- calling and judging -----------------------------------------------------------------------------------------

    def inputs(self, batch: Any) -> Inputs:
        """Of a decode step: the last token, all before it being kept."""
        if self.phase == "prefill":
            return (batch,), {}
        return (batch[:, -1:], torch.tensor(self.context - 1, device=batch.device)), {}

    def items(self, inputs: Inputs) -> int:
        """Tokens: in prefill all that are read, in decode one for each sequence."""
        return rows(inputs) * (self.context if self.phase == "prefill" else 1)

    def forward(self, model: Any, batch: Any) -> Tensor:
        """Logits [n, context, vocabulary] of whole sequences, in either phase: what training needs."""
        logits: Tensor = model.lm(input_ids=batch, use_cache=False).logits
        return logits

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())

    def score(self, model: Any, split: Split) -> Scores:
        chunks, files = self._held_out(split)
        recipe = getattr(model, "recipe", None)  # of a program, whose caches hold so many sequences and no more
        size = self.batch_size if recipe is None else recipe.batch
        with torch.no_grad():
            values = torch.cat([self._log_probability(model, part) for part in torch.split(chunks, size)])
        return Scores(values=values.numpy(), clusters=files.numpy())

    def _log_probability(self, model: Any, ids: Tensor) -> Tensor:
        """Mean over the tokens but the first: float64 [n]."""
        if self.phase == "prefill":
            scored: Tensor = model(ids).double().mean(1)
            return scored
        total = torch.zeros(len(ids), dtype=torch.float64)
        for place in range(self.context - 1):
            logits = model(ids[:, place : place + 1], torch.tensor(place))
            total -= F.cross_entropy(logits.float(), ids[:, place + 1], reduction="none").double()
        return total / (self.context - 1)

    def fingerprint(self) -> Mapping[str, str]:
        told = {"trained": "trained", "random": f"random weights of seed {self.seed}: the quality means nothing"}
        return {
            "task": repr(self),
            "task code": _code("causal_lm", "sources", "sizing", "decoding"),
            "text": self._text(),
            "model": "a Llama as large as the text allows" if self.model is None else identity(self.model),
            "weights": told[self.weights],
        }


_folders: dict[tuple[str, ...], Path] = {}  # where tokens are kept, by sources; known once a model was built


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _untie(lm: Any) -> None:
    """Give the head a copy of its own where it shares the embedding's."""
    inside, outside = lm.get_input_embeddings(), lm.get_output_embeddings()
    if outside is not None and outside.weight is inside.weight:
        outside.weight = nn.Parameter(inside.weight.detach().clone())
        lm.config.tie_word_embeddings = False


def _plainly(own: Any) -> Encode:
    """A checkpoint's tokenizer, without the tokens that it would put around a text and a warning of its length."""
    return lambda texts: list(own(texts, add_special_tokens=False, verbose=False)["input_ids"])


@cache
def _shuffled(count: int, seed: int, number: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))


def _code(*modules: str) -> str:
    """Hash of the source of these modules of this folder."""
    texts = [(Path(__file__).parent / f"{name}.py").read_text() for name in modules]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
