"""The edge: bounded YAML and JSON to plain data, plain data to frozen dataclasses. Everything is validated here, once.

A document is at most 1 MB, nested at most 64 deep, and holds plain scalars, lists and mappings: no tags (they construct
objects), no anchors or aliases (a few hundred bytes of them expand to gigabytes), no duplicate keys (the last one would
win silently). JSON that came with a bundle or a study holds finite numbers, and whole ones of 64 bits.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from autogreen.errors import ConfigError
from autogreen.registry import nearest

MAX_BYTES, MAX_DEPTH = 1_000_000, 64

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:  # an alias too carries the name of its anchor
            raise yaml.YAMLError(f"anchors and aliases (line {line}) are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags ({event.tag!r}, line {line}) are not allowed; write plain values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} on line {key_node.start_mark.line + 1} is not text")
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} stands twice, on line {key_node.start_mark.line + 1} again")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for text, because it has no dot; everybody means the number.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), [*"-+0123456789"])


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one mapping from a YAML file.

    Raises:
        ConfigError: the file is missing, a folder, too large, not YAML, or not a mapping.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a YAML file in it.")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # no more, whatever the file system says of its size
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES:,} bytes; no experiment or policy is that long.")
        text = content.decode("utf-8")
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path} does not exist.{nearest(path.name, siblings)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}.") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse one YAML mapping; `where` names the source in errors."""
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader with less
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{where} is not valid YAML: {reason}") from None
    _refuse_depth(data, where)
    if data is None:
        raise ConfigError(f"{where} is empty; it must hold a mapping (key: value).")
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold a mapping (key: value), not {type(data).__name__}.")
    return data


def parse_json(text: bytes, where: str) -> Any:
    """Parse JSON that somebody else may have written; `where` names the source in errors.

    Raises:
        ConfigError: too long, not JSON, nested too deeply, a key twice, a number out of bounds, text that is none.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"{where} has more than {MAX_BYTES:,} bytes; nothing that autogreen writes there is that long."
        )
    try:
        data = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_whole
        )
        json.dumps(data, ensure_ascii=False).encode()  # half a character can be written as an escape, and nowhere else
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{where} is not valid JSON: {reason}.") from None
    _refuse_depth(data, where)
    return data


def _refuse_depth(data: Any, where: str) -> None:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for part in level
            for inner in (part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
        ]
        if not level:
            return
    raise ConfigError(f"{where} is nested too deeply: more than {MAX_DEPTH} levels.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text[:20]}... is a whole number of more than 64 bits")
    return value


def check_keys(mapping: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """Refuse unknown keys, naming the nearest known one."""
    for key in mapping:
        if key not in allowed:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(key, allowed)} Allowed: {', '.join(allowed)}.")


def build(cls: type[T], data: Any, where: str) -> T:
    """Build a frozen dataclass from plain data: strict types (no text for a number), no unknown keys.

    Raises:
        ConfigError: names the path below `where`, the value, and what is allowed.
    """
    from pydantic import ValidationError

    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {data!r}.")
    try:
        _check_fields(cls, data, where)
        # JSON mode is strict about scalars and still takes lists for tuples and mappings for dataclasses.
        built: T = _adapter(cast(Hashable, cls)).validate_json(json.dumps(data, allow_nan=True), strict=True)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"{where}: {error}") from None
        first = error.errors()[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] in ("value_error", "missing") else f", not {first['input']!r}"
        raise ConfigError(f"{path}: {message[:1].lower()}{message[1:]}{shown}.".replace("..", ".")) from None
    return built


def _check_fields(cls: Any, data: Mapping[str, Any], where: str) -> None:
    """Refuse unknown keys here and in dataclasses within; pydantic would drop them without a word."""
    check_keys(data, tuple(field.name for field in fields(cls) if field.init), where)
    hints = get_type_hints(cls)
    for key, value in data.items():
        alternatives = () if get_origin(hints[key]) in (dict, Mapping, tuple, list) else get_args(hints[key])
        for kind in (hints[key], *alternatives):
            if is_dataclass(kind) and isinstance(value, Mapping):
                _check_fields(kind, value, f"{where}.{key}")


@cache
def _adapter(cls: Hashable) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cast(type[Any], cls))
