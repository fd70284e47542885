"""What a checkpoint folder may hold, looked at before transformers opens it.

safetensors and JSON    nothing else: pickles (`*.bin`, `*.pt`) run code when they are loaded
no code of its own      `auto_map` names Python files or a repository to import
no kernels from a hub   an attention implementation with a repository's name is downloaded and run
torchao's own types     of a quantization config
"""

import json
import re
from pathlib import Path
from typing import Any

from autogreen.engines.archive import mappings
from autogreen.errors import BundleError

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
OTHERS = ("config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER)
MAX_CONFIG_BYTES = 10_000_000
CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
ATTENTION = (None, "eager", "sdpa")
TYPES = re.compile(
    r"FqnToConfig|Int8DynamicActivationInt8WeightConfig|Float8DynamicActivationFloat8WeightConfig|Float8MMConfig"
)


def refuse_foreign(folder: Path) -> None:
    """Look into the folder.

    Raises:
        BundleError: it is missing or damaged, or holds what could run code.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is missing.")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in OTHERS and not WEIGHTS.fullmatch(name):
            raise BundleError(f"{path} is neither safetensors nor a known JSON file: a checkpoint holds nothing else.")
    if not (folder / "config.json").is_file():
        raise BundleError(f"{folder / 'config.json'} is missing.")
    for path in folder.glob("*config.json"):
        _refuse_code(path, _read(path))


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too long")
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {str(error) or 'it is nested too deeply'}.") from error
    return found


def _refuse_code(path: Path, config: Any) -> None:
    for part in mappings(config):
        if named := [key for key in CODE if part.get(key)]:
            raise BundleError(f"{path} states {named[0]!r}, which runs code that is no part of transformers.")
        for key, value in part.items():
            if key.endswith("attn_implementation") and value not in ATTENTION:
                raise BundleError(f"{path} wants the attention {value!r}; allowed: eager, sdpa.")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        kinds = set(re.findall(r'"_type": "(\w+Config)"', json.dumps(quantization)))
        if method != "torchao" or any(not TYPES.fullmatch(kind) for kind in kinds):
            raise BundleError(
                f"{path} wants to be quantized by {method!r} ({', '.join(sorted(kinds))}): not written here."
            )
