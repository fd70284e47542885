"""Read a bundle: everything is checked before anything is opened."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from autogreen.bundle.manifest import NAME, Manifest, check_recipe, parse
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import AutogreenError, BundleError, ConfigError
from autogreen.ranks import open_program
from autogreen.schema import MAX_BYTES, build, parse_json

REQUIRED = ("policy.yaml", "weights.safetensors", "golden.safetensors", "MODEL_CARD.md")
REFERENCE = "reference"


def read(folder: Path) -> Manifest:
    """Check a bundle: manifest, names, sizes, hashes, no file more or less, artifacts as their engines write them.

    Raises:
        BundleError: what is wrong, and with which file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: it is no folder. Name the folder that `autogreen export` wrote.")
    try:
        found = _files(folder)
        if NAME not in found:
            raise BundleError(f"{folder} is not a bundle: it has no {NAME}. Name the folder that export wrote.")
        with (folder / NAME).open("rb") as file:
            manifest = parse(file.read(MAX_BYTES + 1), str(folder / NAME))
        _check_names(folder, manifest, found)
        for name, stated in manifest.files.items():
            if found[name] != stated.size_bytes:
                raise BundleError(f"{folder / name} has {found[name]} bytes; the manifest says {stated.size_bytes}.")
        for name, stated in manifest.files.items():
            if sha256(folder / name) != stated.sha256:
                raise BundleError(f"{folder / name} was changed after the export: its hash is not the manifest's.")
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror}.") from error
    _inspect(folder, manifest.recipe)
    if _has_reference(manifest):
        _inspect(folder / REFERENCE, _reference_recipe(folder))
    return manifest


def load(folder: Path, *, native_code: bool = False) -> Program:
    """Check a bundle and load its program: what was measured, for any number of examples, tensors on the CPU.

    Args:
        native_code: run machine code that came with the bundle, where its format holds some.

    Raises:
        BundleError: the bundle is not what the manifest says, cannot be loaded here, or holds machine code.
    """
    manifest = read(folder)
    return opened(Path(folder), manifest.recipe, manifest.versions.torch, native_code=native_code)


def load_reference(folder: Path, manifest: Manifest, *, native_code: bool) -> Program:
    """Load what a checked bundle was measured beside."""
    place = Path(folder) / REFERENCE
    return opened(place, _reference_recipe(folder), manifest.versions.torch, native_code=native_code)


def opened(folder: Path, recipe: Recipe, made_with: str, *, native_code: bool) -> Program:
    """Load an artifact; whatever goes wrong is told with the version of torch that it was made with."""
    import torch

    if ENGINES[recipe.engine].native and not native_code:
        raise BundleError(
            f"{folder} is not loaded: its format {recipe.engine!r} runs {ENGINES[recipe.engine].executes}. Hashes tell "
            "that nobody changed it since the export, not who exported it. Where you trust its source: "
            "--trust-native-code, or native_code=True."
        )
    if recipe.device.startswith("cuda") and not torch.cuda.is_available():
        raise BundleError(f"{folder} runs on {recipe.device!r}, and torch finds no such device here.")
    if recipe.device.startswith("cuda") and (here := torch.cuda.device_count()) < recipe.ranks:
        raise BundleError(f"{folder} runs on {recipe.ranks} GPUs, and torch finds {here} here.")
    try:
        return open_program(folder, recipe)
    except AutogreenError:
        raise
    except Exception as error:
        raise BundleError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}). It was exported with torch {made_with}; "
            f"this is {torch.__version__}."
        ) from error


def _inspect(folder: Path, recipe: Recipe) -> None:
    for part in recipe.parts:
        ENGINES[recipe.engine].inspect(folder / part)


def examples(folder: Path, manifest: Manifest) -> tuple[Any, Any]:
    """Golden inputs ((args, kwargs)) and outputs of a checked bundle."""
    from safetensors.torch import load_file

    from autogreen.tasks.trees import unpack

    path = Path(folder) / "golden.safetensors"
    try:
        tensors = load_file(path)
    except Exception as error:
        raise BundleError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error
    inputs = unpack(manifest.golden.inputs, tensors)
    if not (isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple)):
        raise BundleError(f"{path} holds no inputs: positional and keyword arguments are wanted.")
    return inputs, unpack(manifest.golden.outputs, tensors)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_reference(manifest: Manifest) -> bool:
    return manifest.energy is not None and manifest.energy.ratio is not None


def _reference_recipe(folder: Path) -> Recipe:
    path = Path(folder) / REFERENCE / "recipe.json"
    try:
        with path.open("rb") as file:
            recipe = build(Recipe, parse_json(file.read(MAX_BYTES + 1), str(path)), str(path))
    except (OSError, ConfigError) as error:
        raise BundleError(f"{path} is not a recipe: {str(error).removesuffix('.')}.") from error
    check_recipe(recipe, str(path))
    return recipe


def _files(folder: Path) -> dict[str, int]:
    """Sizes of all files by path inside the folder; links and devices are refused."""
    found: dict[str, int] = {}

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=False):
        for name in (*folders, *names):
            path = Path(place) / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[path.relative_to(folder).as_posix()] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise BundleError(f"{path} is a link or no plain file; a bundle holds plain files only.")
    return found


def _check_names(folder: Path, manifest: Manifest, found: dict[str, int]) -> None:
    wanted = {*REQUIRED, *((f"{REFERENCE}/recipe.json",) if _has_reference(manifest) else ())}
    if unstated := sorted(wanted - manifest.files.keys()):
        raise BundleError(f"{folder / NAME} names no {', '.join(unstated)}; every bundle has it.")
    if missing := sorted(manifest.files.keys() - found.keys()):
        raise BundleError(f"{folder} lacks {', '.join(missing)}. Copy the bundle again, or export it again.")
    if extra := sorted(found.keys() - manifest.files.keys() - {NAME}):
        raise BundleError(f"{folder} holds what the manifest does not name: {', '.join(extra)}. Remove it.")
