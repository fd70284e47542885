"""A user's own Hugging Face classifier and labelled texts."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogreen.errors import ConfigError, EvaluationError
from autogreen.registry import nearest
from autogreen.tasks import Scores, Split, Task, digest
from autogreen.tasks.pretrained import fetch, identity
from autogreen.tasks.tables import Row, carved, column, read

HEADS = {  # by the end of the architecture's name that the checkpoint's config states
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}
UNLABELLED = -100  # a token that no loss and no metric counts
Encoded = dict[str, Tensor]


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return _mean((logits.argmax(-1) == labels).double(), labels)


def _log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    found = logits.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return _mean(found, labels)


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return -(logits[:, 0].double() - labels).square()


def _absolute_error(logits: Tensor, labels: Tensor) -> Tensor:
    return -(logits[:, 0].double() - labels).abs()


def _mean(values: Tensor, labels: Tensor) -> Tensor:
    """[n] stays; of [n, tokens] the mean over those that have a label."""
    if labels.ndim == 1:
        return values
    counted = labels != UNLABELLED
    return (values * counted).sum(1) / counted.sum(1)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": _accuracy,
    "log_likelihood": _log_likelihood,
    "squared_error": _squared_error,
    "absolute_error": _absolute_error,
}
OF_NUMBERS = ("squared_error", "absolute_error")


class Classifier(nn.Module):
    """The Hugging Face model as `lm`; returns logits [n, labels], or [n, max_length, labels], alone."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.lm(**inputs).logits
        return logits


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Task):
    """Classify or value texts, or label their words, with a checkpoint that was fine-tuned for it.

    model: folder or hub name; its config's architecture says whether sequences or tokens are classified.
    dataset: a file (csv, tsv, json, jsonl, parquet), a folder of such files named by split (train, validation, test,
    calibration), or a name on the hub (needs the `datasets` library; `subset` names its configuration). Splits that it
    lacks are carved out of train, by the hash of the text: 5 % calibration, 10 % validation, 10 % test.
    text, text_pair, label: columns. Labels are numbers, or the names in the model's config (id2label); of words: lists
    as long as the list of words in `text`, and a word's first token carries its label.
    metric, one number per example, higher is better: accuracy, or log_likelihood (nats) of the right label; of words
    both are means over the words of a text. For a model with one output (regression) squared_error or absolute_error,
    both negated.
    max_length: tokens; every text is padded or cut to it, so that all programs have one shape. seed: order, and which
    rows are carved.

    Source: Wolf et al., Transformers: State-of-the-Art Natural Language Processing, EMNLP 2020.
    """

    item: str = field(default="text", init=False)
    outputs: Literal["logits", "values"] = field(default="logits", init=False)

    model: str
    dataset: str
    metric: str = "accuracy"
    subset: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    max_length: int = 128
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(
                f"unknown metric {self.metric!r}.{nearest(self.metric, METRICS)} Known: {', '.join(METRICS)}"
            )
        for name, low, high in (("max_length", 3, 2**20), ("batch_size", 1, 2**20), ("seed", 0, 2**32)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, not {getattr(self, name)!r}")
        if self.metric in OF_NUMBERS:
            object.__setattr__(self, "outputs", "values")

    def build(self, cache: Path) -> nn.Module:
        _data(self)  # what is wrong with it is said before anything is measured
        return Classifier(fetch(HEADS[_head(_config(self))], self.model)).eval()

    def batches(self, split: Split, epoch: int = 0) -> list[Encoded]:
        """Dicts of what the tokenizer gives, int64 [n, max_length] each, and `labels`."""
        data = _data(self)[split]
        order = torch.arange(len(data["labels"]))
        if split == "train":
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return [{name: part[places] for name, part in data.items()} for places in torch.split(order, self.batch_size)]

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        labels = batch["labels"]
        if self.outputs == "values":
            return F.mse_loss(outputs[:, 0].float(), labels)
        return F.cross_entropy(outputs.flatten(0, -2).float(), labels.flatten(), ignore_index=UNLABELLED)

    def score(self, model: Any, split: Split) -> Scores:
        with torch.no_grad():
            values = [METRICS[self.metric](self.forward(model, part), part["labels"]) for part in self.batches(split)]
        if not values:
            raise EvaluationError(f"the {split} split of {self.dataset} is empty.")
        return Scores(values=torch.cat(values).double().numpy())

    def fingerprint(self) -> Mapping[str, str]:
        code = inspect.getsource(inspect.getmodule(type(self)))  # type: ignore[arg-type]
        return {
            "task": repr(self),
            "task code": hashlib.sha256(code.encode()).hexdigest()[:16],
            "model": identity(self.model),
            "data": digest(_data(self))[:16],
        }


def _config(task: HuggingFace) -> Any:
    return fetch("AutoConfig", task.model)


def _head(config: Any) -> str:
    named = (config.architectures or ["unnamed"])[0]
    for head in HEADS:
        if named.endswith(head):
            return head
    raise ConfigError(
        f"the checkpoint is a {named}; this task takes those that end in {' or '.join(HEADS)}: fine-tune such a head "
        "first, or write a task of your own."
    )


@cache
def _data(task: HuggingFace) -> dict[Split, Encoded]:
    """All splits, tokenized.

    Raises:
        ConfigError: columns, labels or lengths that do not fit the model.
    """
    config, tokenizer = _config(task), fetch("AutoTokenizer", task.model)
    head = _head(config)
    numbers, several = task.metric in OF_NUMBERS, config.problem_type == "multi_label_classification"
    if (config.num_labels == 1 and head == "ForSequenceClassification") != numbers or several:
        raise ConfigError(
            f"metric {task.metric!r} does not fit {task.model}, which has {config.num_labels} output(s) "
            f"(problem_type: {config.problem_type})."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and task.max_length > longest:
        raise ConfigError(f"max_length is {task.max_length}, and {task.model} has {longest} positions; shorten it.")
    if tokenizer.pad_token is None:
        raise ConfigError(f"the tokenizer of {task.model} has no padding token; set one and save it again.")
    given = read(task.dataset, task.subset)
    columns = [name for name in (task.text, task.text_pair) if name is not None]
    for split, rows in given.items():
        for name in (*columns, task.label):
            column(rows, name, f"the {split} split of {task.dataset}")
    parts = carved(given, lambda row: [row[name] for name in columns], task.seed)
    encode = _of_words if head == "ForTokenClassification" else _of_texts
    return {split: encode(parts[split], task, config, tokenizer) for split in get_args(Split)}


def _of_texts(rows: Sequence[Row], task: HuggingFace, config: Any, tokenizer: Any) -> Encoded:
    pairs = None if task.text_pair is None else [str(row[task.text_pair]) for row in rows]
    encoded = _padded(tokenizer, [str(row[task.text]) for row in rows], pairs, task.max_length)
    found = [row[task.label] for row in rows]
    if task.metric in OF_NUMBERS:
        return {**encoded, "labels": torch.tensor([_number(value) for value in found])}
    return {**encoded, "labels": torch.tensor([_class(value, config) for value in found])}


def _of_words(rows: Sequence[Row], task: HuggingFace, config: Any, tokenizer: Any) -> Encoded:
    labels = torch.full((len(rows), task.max_length), UNLABELLED)
    for row in rows:
        words, named = row[task.text], row[task.label]
        if not (isinstance(words, list) and isinstance(named, list) and len(words) == len(named) > 0):
            raise ConfigError(
                f"{task.text!r} and {task.label!r} must be lists of words and of as many labels (json, jsonl, "
                f"parquet), not {str(words)[:40]!r} and {str(named)[:40]!r}."
            )
    encoded = tokenizer(
        [row[task.text] for row in rows],
        is_split_into_words=True,
        padding="max_length",
        truncation=True,
        max_length=task.max_length,
        return_tensors="pt",
    )
    for number, row in enumerate(rows):
        before = None
        for place, word in enumerate(encoded.word_ids(number)):
            if word is not None and word != before:
                labels[number, place] = _class(row[task.label][word], config)
            before = word
        if (labels[number] == UNLABELLED).all():
            raise ConfigError(
                f"the tokenizer of {task.model} makes no token of any word of {str(row[task.text])[:60]}: nothing "
                "there can be labelled. Leave such rows out."
            )
    return {**{name: encoded[name] for name in encoded}, "labels": labels}


def _padded(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int) -> Encoded:
    found = tokenizer(texts, pairs, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
    return {name: found[name] for name in found}


def _class(label: Any, config: Any) -> int:
    """Number of a label that is given by number or by name.

    Raises:
        ConfigError: the model's config knows no such label.
    """
    known = {str(name): int(number) for number, name in config.id2label.items()}
    if isinstance(label, str) and label in known:
        return known[label]
    text = str(int(label) if isinstance(label, bool | float) and label == int(label) else label)
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number not in known.values():
        raise ConfigError(
            f"the model's config knows no label {label!r}; it knows {', '.join(known)} (0 to {len(known) - 1}). Map "
            "the column's labels to these, or set id2label in the checkpoint's config.json."
        )
    return number


def _number(label: Any) -> float:
    try:
        return float(label)
    except (TypeError, ValueError):
        raise ConfigError(f"the label {label!r} is no number, which regression needs.") from None
