"""What a torch.export archive (`.pt2`) may hold, looked at without loading it: a crafted one runs code when loaded.

    tensors as raw bytes      the only form of weights and constants that is let through; every other one is a pickle
    a graph as JSON           its operators are looked up by name below `torch`: `torch.os.system` would be one too
    symbolic sizes as text    evaluated as Python by sympy
    native code               an AOTInductor library

An allowlist, since PyTorch's reader ignores case and knows old layouts: what is not known here is refused.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autogreen.errors import BundleError

ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
PAYLOADS = re.compile(r"(weight|tensor)_\d+")
OPERATORS = re.compile(
    r"torch\.ops\.(?!load_library|import_module)[a-z]\w*(\._?[a-zA-Z]\w*){1,2}"  # a registered operator (and overload)
    r"|torch\.ops\.aten\.__(and|or|xor)__\.(Tensor|Scalar)"  # `&`, `|` and `^` of masks
    r"|torch\.ops\._c10d_functional\.(all_reduce|wait_tensor)\.default"  # the shards of a split layer, summed
    r"|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|neg|pos|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
EXPRESSIONS = re.compile(r"[\w +\-*/(),<>=!&|~]*")
CALLS = re.compile(r"\b[a-z_]\w*\s*\(")  # Python's own functions are lower case, sympy's are not


def refuse_code(path: Path) -> None:
    """Look into the archive.

    Raises:
        BundleError: it is damaged, or holds anything but raw tensors and a graph of registered operators.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_two_readings(path, archive, entries)
            for entry in entries:
                _, _, name = entry.filename.partition("/")
                if not ENTRIES.fullmatch(name):
                    raise BundleError(f"{path} holds {entry.filename!r}, which no export of autogreen writes.")
                if name.startswith("data/sample_inputs/") and entry.file_size:
                    raise BundleError(f"{path} holds pickled sample inputs, which run code when loaded.")
                if name.endswith("_config.json"):
                    _refuse_pickles(path, json.loads(archive.read(entry)))
                if name == "models/model.json":
                    _refuse_foreign_operators(path, json.loads(archive.read(entry)))
    except (zipfile.BadZipFile, NotImplementedError, RecursionError, KeyError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}.") from error


def _refuse_two_readings(path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Two zip readers must see the same entries: one root, no name twice, nothing before, after or compressed."""
    names = {entry.filename.lower() for entry in entries}
    roots = {entry.filename.partition("/")[0] for entry in entries}
    first = min((entry.header_offset for entry in entries), default=0)
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if len(names) != len(entries) or len(roots) != 1 or archive.comment or first or not stored:
        raise BundleError(f"{path} is not laid out as torch.export writes an archive; two readers could see two files.")


def _refuse_pickles(path: Path, config: Any) -> None:
    for name, payload in (config["config"] or {}).items():
        if payload.get("use_pickle") or not PAYLOADS.fullmatch(payload["path_name"]):
            raise BundleError(f"{path} holds {name!r} as a pickle, which runs code when loaded.")


def _refuse_foreign_operators(path: Path, program: Any) -> None:
    if program.get("guards_code"):
        raise BundleError(f"{path} holds guards, which are Python source that runs when loaded.")
    for part in mappings(program):
        for key in ("target", "as_operator"):
            if isinstance(target := part.get(key), str) and not OPERATORS.fullmatch(target):
                raise BundleError(f"{path} calls {target!r}, which is no registered operator.")
        if isinstance(text := part.get("expr_str"), str) and (not EXPRESSIONS.fullmatch(text) or CALLS.search(text)):
            raise BundleError(f"{path} holds the expression {text!r}, which is more than arithmetic on sizes.")


def mappings(data: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in plain data, however deep it lies."""
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if isinstance(part, dict):
            waiting += part.values()
            yield part
