"""The lazy table behind every family of plug-ins: a plain mapping name -> "module:Class"."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from autogreen.errors import ConfigError, UnknownNameError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to `name`, or ``""``."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def resolve(reference: str) -> Any:
    """Import ``"package.module:attribute"`` and return the attribute.

    Raises:
        ConfigError: the reference has no colon, the module cannot be imported or raises, or has no such attribute.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{reference!r} is not of the form 'package.module:Name'.")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {module_name!r} (for {reference!r}): {error}. "
            "Install what is missing, or run from the folder that holds the module."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"importing {module_name!r} (for {reference!r}) raised {type(error).__name__}: {error}. Mend the module."
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(f"module {module_name!r} has no {attribute!r}.{nearest(attribute, vars(module))}") from None


class Table(Mapping[str, Any]):
    """One family's members. Looking a name up imports its module, listing names imports nothing."""

    def __init__(self, family: str, members: Mapping[str, str]) -> None:
        self.family = family
        self._members = dict(members)

    def __getitem__(self, name: str) -> Any:
        if name not in self._members:
            raise UnknownNameError(
                f"unknown {self.family} {name!r}.{nearest(str(name), self._members)} Known: {', '.join(self._members)}."
            )
        return resolve(self._members[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members
