"""Labelled rows from local files (csv, tsv, json, jsonl, parquet) or from the hub, and how one set becomes splits."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from autogreen.errors import ConfigError
from autogreen.registry import nearest
from autogreen.tasks import Split

Row = Mapping[str, Any]

SHARES: Mapping[Split, float] = {"calibration": 0.05, "validation": 0.1, "test": 0.1}  # of train, where one is missing
NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def read(dataset: str, subset: str | None) -> dict[str, list[Row]]:
    """Rows by split, as far as the dataset has them; of a single file all are `train`.

    dataset: a file, a folder of files named by split (train.csv, validation.jsonl, ...), or a name on the hub.
    subset: of a hub dataset.

    Raises:
        ConfigError: no such file, one that cannot be read, or no train split.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return {"train": _rows(path)}
    if path.is_dir():
        found: dict[str, list[Row]] = {}
        for file in sorted(path.iterdir()):
            name = NAMES.get(file.stem, file.stem)
            if name in get_args(Split) and file.suffix in READERS:
                if name in found:
                    raise ConfigError(f"{path} has two files for the {name} split; leave one.")
                found[name] = _rows(file)
    elif path.suffix in READERS:
        raise ConfigError(f"{path} does not exist.")
    else:
        found = _from_hub(dataset, subset)
    if "train" not in found:
        raise ConfigError(f"{dataset} has no train split; it has: {', '.join(found) or 'none'}.")
    return found


def column(rows: Sequence[Row], name: str, where: str) -> list[Any]:
    """One column.

    Raises:
        ConfigError: a row has none of that name.
    """
    for number, row in enumerate(rows):
        if row.get(name) is None:
            known = ", ".join(sorted(map(str, row)))
            raise ConfigError(
                f"{where}: row {number + 1} has no {name!r}.{nearest(name, map(str, row))} It has: {known}."
            )
    return [row[name] for row in rows]


def carved(given: Mapping[str, list[Row]], same: Callable[[Row], Any], seed: int) -> dict[Split, list[Row]]:
    """All four splits; what is missing is taken out of train, by the hash of `same(row)`: rows that are the same to it
    stay together, whatever their order in the file.

    Raises:
        ConfigError: train has too few different rows.
    """
    parts: dict[Split, list[Row]] = {split: given[split] for split in get_args(Split) if split in given}
    groups: dict[bytes, list[Row]] = {}
    for row in given["train"]:
        key = hashlib.sha256(f"{seed} {json.dumps(same(row), default=str)}".encode()).digest()
        groups.setdefault(key, []).append(row)
    ranked = [groups[key] for key in sorted(groups)]
    missing = [split for split in SHARES if split not in parts]
    if len(ranked) <= len(missing):
        raise ConfigError(
            f"{len(ranked)} different rows cannot give train and {', '.join(missing)}; add rows or files."
        )
    whole, first = len(ranked), 0
    for split in missing:
        count = max(1, int(SHARES[split] * whole))
        parts[split] = [row for group in ranked[first : first + count] for row in group]
        first += count
    if missing:
        parts["train"] = [row for group in ranked[first:] for row in group]
    return parts


def _rows(path: Path) -> list[Row]:
    if path.suffix not in READERS:
        raise ConfigError(f"{path}: files are read as {', '.join(READERS)}.")
    try:
        rows = READERS[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError(f"{path} holds no rows (a list of mappings from column to value).")
    return rows


def _csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, dialect="excel-tab" if path.suffix == ".tsv" else "excel"))


def _json(path: Path) -> list[Row]:
    rows = json.loads(path.read_text("utf-8"))
    if not isinstance(rows, list):
        raise ValueError("it is no list")
    return rows


def _jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path} needs pyarrow ({error}): pip install pyarrow, or write csv or jsonl.") from error
    rows: list[Row] = parquet.read_table(path).to_pylist()
    return rows


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _from_hub(name: str, subset: str | None) -> dict[str, list[Row]]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{name} is no file or folder here, and datasets of the hub need a library that is not installed "
            f"({error}): pip install datasets, or name a csv, json, jsonl or parquet file."
        ) from error
    try:
        loaded = datasets.load_dataset(name, subset)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{name} is no file or folder here, and no dataset of this name came: {first} Give a local path, or a hub "
            "name and access to the hub (HF_TOKEN)."
        ) from error
    renamed = {NAMES.get(split, split): rows for split, rows in loaded.items()}
    return {split: list(rows) for split, rows in renamed.items() if split in get_args(Split)}
