"""Files that a reader sees whole or not at all, also when two processes write or one of them dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autogreen.errors import ConfigError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write; at the end the file stands under its own name. After an exception nothing is left.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_page(html: str, path: Path) -> None:
    """Write a page for a browser.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with whole(path) as partial:
            partial.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the page cannot be written to {path}: {error.strerror}. Name another file.") from error
