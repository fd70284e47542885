"""Checkpoints by local path or hub name, through the optional `transformers` library."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from autogreen.errors import ConfigError


def library() -> Any:
    """The `transformers` library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"transformers is not installed ({error}): pip install 'autogreen[llm]'.") from error
    return transformers


def fetch(auto: str, name: str, **settings: Any) -> Any:
    """What an auto class of the library (AutoConfig, AutoTokenizer, AutoModelFor...) makes of a folder or a hub name.

    Raises:
        ConfigError: the folder holds no checkpoint; or there is no such folder, and the hub does not answer with one.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ConfigError(
                f"{name} holds no config.json, so it is no checkpoint; name a folder that save_pretrained wrote."
            )
        settings["local_files_only"] = True
    auto_class = getattr(library(), auto)
    try:
        return auto_class.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        where = "cannot be read" if Path(name).is_dir() else "is no local folder, and no model of this name came"
        hint = "" if Path(name).is_dir() else " Give a local path, or a hub name and access to the hub (HF_TOKEN)."
        raise ConfigError(f"{name} {where}: {first}{hint}") from error


@cache
def identity(name: str) -> str:
    """What tells checkpoints apart: of a folder the hash of all that its files hold, of a hub name the commit."""
    if not Path(name).is_dir():
        config = fetch("AutoConfig", name)
        return str(getattr(config, "_commit_hash", None) or name)
    sha = hashlib.sha256()
    for path in sorted(path for path in Path(name).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            sha.update(f"{path.relative_to(name)} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return sha.hexdigest()[:16]
