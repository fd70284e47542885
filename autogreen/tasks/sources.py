"""Python sources that are on the machine anyway, as text for a language model: read as text, never executed.

files ── by hash of their names ──> train | calibration | validation | test       (no file in two of them)
  '────────── tokenizer ──────────> token ids of each split, kept as one file beside the tokenizer
"""

import hashlib
import importlib.util
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autogreen.errors import ConfigError
from autogreen.tasks import Split

SHARES: Mapping[Split, float] = {"calibration": 0.01, "validation": 0.04, "test": 0.05}  # of the files; the rest trains
MAX_FILE_BYTES = 1_000_000  # longer ones are tables that a generator wrote
TOKENIZER_BYTES = 32_000_000  # of training text from which the tokenizer is learnt
END = "<|endoftext|>"

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class File:
    """name: of package and file, the same on every machine."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Tokens:
    """ids: int32 [tokens] of each split, file after file. ends: int64 [files], where each file ends."""

    ids: Mapping[str, Tensor]
    ends: Mapping[str, Tensor]

    def train(self, context: int) -> Tensor:
        """The train split as int32 [n, context]: one stream, cut anywhere.

        Raises:
            ConfigError: it is shorter than that.
        """
        ids = self.ids["train"]
        if len(ids) < context:
            raise ConfigError(f"the train split has {len(ids)} tokens, and context is {context}; name more sources.")
        return ids[: len(ids) // context * context].view(-1, context)

    def held_out(self, split: Split, context: int, limit: int) -> tuple[Tensor, Tensor]:
        """At most `limit` chunks of one file each: int64 [n, context], and their files, int64 [n]. First the beginning
        of every file that is long enough, then what follows in every one, until there are enough.

        Raises:
            ConfigError: no file of the split is that long.
        """
        ids, ends = self.ids[split], self.ends[split].tolist()
        begins = [0, *ends[:-1]]
        longest = max(end - begin for begin, end in zip(begins, ends, strict=True))
        if longest < context:
            raise ConfigError(
                f"the longest of the {len(ends)} files of the {split} split has {longest} tokens, and context is "
                f"{context}; shorten it, or name more sources."
            )
        spans = [
            (turn, file, begin + turn * context)
            for file, (begin, end) in enumerate(zip(begins, ends, strict=True))
            for turn in range((end - begin) // context)
        ]
        chosen = sorted(spans)[:limit]
        chunks = torch.stack([ids[start : start + context] for _, _, start in chosen]).long()
        return chunks, torch.tensor([file for _, file, _ in chosen])


@cache
def listed(sources: tuple[str, ...]) -> tuple[File, ...]:
    """Every Python file of the sources once, by content, in the order of the hashes of their names.

    sources: `stdlib`, a package by the name it is imported by (found, not imported), or a folder, written with a slash.

    Raises:
        ConfigError: a source that is not here, or too few files to split.
    """
    found: dict[str, File] = {}
    for source in sources:
        before = len(found)
        for name, path in sorted(_python_files(source)):
            content = path.read_bytes()
            if 0 < len(content) <= MAX_FILE_BYTES and _is_text(content):
                sha = hashlib.sha256(content).hexdigest()
                found.setdefault(sha, File(name, path, sha))
        if len(found) == before:
            raise ConfigError(f"sources: {source!r} holds no Python file that is not in the sources before it.")
    if len(found) < len(get_args(Split)):
        raise ConfigError(f"sources: {len(found)} files cannot be split in {len(get_args(Split))}; name more.")
    return tuple(sorted(found.values(), key=lambda file: hashlib.sha256(file.name.encode()).digest()))


@cache
def content_hash(sources: tuple[str, ...]) -> str:
    """Of all names and contents, and of how they are read here."""
    told = Path(__file__).read_text() + "".join(f"{file.name} {file.sha256}\n" for file in listed(sources))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def split_files(sources: tuple[str, ...]) -> dict[Split, tuple[File, ...]]:
    """The files of each split, one at least."""
    files, parts, first = listed(sources), {}, 0
    for split, share in SHARES.items():
        count = max(1, int(share * len(files)))
        parts[split] = files[first : first + count]
        first += count
    parts["train"] = files[first:]
    return parts


_held: dict[str, Tokens] = {}  # what this process has read or made, by key


def tokens(sources: tuple[str, ...], tokenizer: str, encode: Callable[[], Encode], end: int, at: Path | None) -> Tokens:
    """The token ids of every split; each file of the train split is followed by `end`.

    Args:
        tokenizer: what tells tokenizers apart. encode: makes it, if it is needed. at: folder that keeps the ids.
    """
    key = hashlib.sha256(f"{content_hash(sources)} {tokenizer} {end}".encode()).hexdigest()[:16]
    path = None if at is None else at / f"tokens-{key}.safetensors"
    if key not in _held:
        if path is not None and path.exists():
            flat = load_file(path)
        else:
            flat, encoded = {}, encode()
            for split, files in split_files(sources).items():
                after = [end] * (split == "train")
                parts = [torch.tensor(ids + after, dtype=torch.int32) for ids in _encoded(files, encoded)]
                flat[f"{split}.ids"] = torch.cat(parts)
                flat[f"{split}.ends"] = torch.tensor([len(ids) for ids in parts]).cumsum(0)
        names: list[str] = list(get_args(Split))
        _held[key] = Tokens(*({name: flat[f"{name}.{kind}"] for name in names} for kind in ("ids", "ends")))
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        kinds = {"ids": _held[key].ids, "ends": _held[key].ends}
        flat = {f"{name}.{kind}": part for kind, found in kinds.items() for name, part in found.items()}
        save_file(flat, partial)
        partial.replace(path)  # a crash leaves no half-written file
    return _held[key]


_tokenizers: dict[tuple[str, int], Any] = {}


def tokenizer(sources: tuple[str, ...], vocab_size: int, at: Path | None) -> Any:
    """Byte-level byte-pair encoding learnt from the train split; the token of id 0 ends a text.

    Source: Sennrich, Haddow, Birch, Neural Machine Translation of Rare Words with Subword Units, ACL 2016; Radford et
    al., Language Models are Unsupervised Multitask Learners, 2019 (bytes).

    Raises:
        ConfigError: the text does not yield so many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    key = content_hash(sources), vocab_size
    path = None if at is None else at / f"tokenizer-{key[0]}-{vocab_size}.json"
    if key not in _tokenizers:
        if path is not None and path.exists():
            _tokenizers[key] = Tokenizer.from_file(str(path))
        else:
            made = Tokenizer(models.BPE())
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[END],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            made.train_from_iterator(_first_bytes(split_files(sources)["train"]), trainer)
            if made.get_vocab_size() < vocab_size:
                raise ConfigError(
                    f"vocab_size is {vocab_size}, and the text yields {made.get_vocab_size()} tokens; lower it, or "
                    "name more sources."
                )
            _tokenizers[key] = made
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _tokenizers[key].save(str(partial))
        partial.replace(path)
    return _tokenizers[key]


def _python_files(source: str) -> Iterator[tuple[str, Path]]:
    if "/" in source:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"sources: {source!r} is no folder.")
        roots = [(folder.name, folder)]
    elif source == "stdlib":
        roots = [(source, Path(sysconfig.get_path("stdlib")))]
    else:
        spec = importlib.util.find_spec(source) if source.isidentifier() else None  # a dotted name would be imported
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"sources: no package {source!r} is installed here. Name stdlib, a package without dots, or a folder "
                "with a slash (./mine)."
            )
        if not spec.submodule_search_locations:
            yield Path(spec.origin).name, Path(spec.origin)
        roots = [(source, Path(place)) for place in spec.submodule_search_locations or ()]
    for name, root in roots:
        for path in root.rglob("*.py"):
            inside = path.relative_to(root)
            if path.is_file() and not {"site-packages", "dist-packages"} & set(inside.parts):
                yield f"{name}/{inside.as_posix()}", path


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _first_bytes(files: tuple[File, ...]) -> Iterator[str]:
    left = TOKENIZER_BYTES
    for file in files:
        text = file.path.read_text("utf-8")
        yield text
        left -= len(text)
        if left <= 0:
            return


def _encoded(files: tuple[File, ...], encode: Encode) -> Iterator[list[int]]:
    for first in range(0, len(files), 256):
        yield from encode([file.path.read_text("utf-8") for file in files[first : first + 256]])
