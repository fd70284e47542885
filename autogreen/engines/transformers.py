"""A checkpoint of the transformers library, run as it comes from `from_pretrained`, operator by operator.

    model.hf/     what `AutoModel.from_pretrained` takes: config, safetensors, tokenizer where the model came with one
    model.json    what the task calls around it (`WRAPPERS`)

A plain config must describe the model: one width for all layers. Layers in fewer bits are torchao's, and their
configuration stands in the checkpoint's own `quantization_config`.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from autogreen.engines import Recipe, profile
from autogreen.engines.checkpoint import TOKENIZER, refuse_foreign
from autogreen.errors import BundleError, RefusedError
from autogreen.registry import Table
from autogreen.tasks import Inputs, plain
from autogreen.techniques.quantization.planned import Planned

FOLDER, AROUND = "model.hf", "model.json"
MAX_AROUND_BYTES = 1000
WRAPPERS = Table(
    "wrapper",
    {
        "Classifier": "autogreen.tasks.huggingface:Classifier",
        "Encoder": "autogreen.tasks.retrieval:Encoder",
        "Scoring": "autogreen.tasks.decoding:Scoring",
    },
)


class Transformers:
    """Source: https://huggingface.co/docs/transformers/main_classes/model and .../quantization/torchao."""

    executes: ClassVar[str] = "a model class of the transformers library on weights in safetensors"
    native: ClassVar[bool] = False
    trace = staticmethod(profile.operators)

    @staticmethod
    def missing(device: str) -> str | None:
        if find_spec("transformers") is None:
            return "transformers is not installed: pip install 'autogreen[llm]'"
        return None

    @staticmethod
    def save(model: nn.Module, example: Inputs, folder: Path) -> None:
        _refuse_missing()
        trained = model.model if isinstance(model, Planned) else model
        planned = model.configs if isinstance(model, Planned) else {}
        wrapper, inner = _inside(trained)
        memo: dict[int, Any] = {}
        copied = copy.deepcopy(inner, memo)
        # by layer and not by name: names change where layers are gone
        configs = {memo[id(trained.get_submodule(name))]: config for name, config in planned.items()}
        _describe(copied)
        _refuse_undescribed(inner, copied)
        names = {layer: name for name, layer in copied.named_modules()}
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / FOLDER
        try:
            _write(copied, {names[layer]: one for layer, one in configs.items()}, target)
        except Exception as error:  # the library may raise anything
            raise RefusedError(
                f"{type(inner).__name__} cannot be written as a checkpoint ({type(error).__name__}: "
                f"{(str(error).strip().splitlines() or [''])[0]}). Use the inductor or aot engine."
            ) from error
        source = Path(getattr(inner.config, "_name_or_path", "") or "nowhere")
        for name in TOKENIZER:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        (folder / AROUND).write_text(json.dumps({"wrapper": wrapper}) + "\n")

    @staticmethod
    def inspect(folder: Path) -> None:
        _around(folder)
        refuse_foreign(folder / FOLDER)

    @staticmethod
    def load(folder: Path, recipe: Recipe) -> Callable[..., Any]:
        _refuse_missing()
        Transformers.inspect(folder)
        wrapper = _around(folder)
        loaded = _loaded(folder / FOLDER).to(recipe.device)
        model = WRAPPERS[wrapper](loaded).to(recipe.device).eval() if wrapper else loaded

        def run(*args: Any, **kwargs: Any) -> Any:
            return tree_map(_widened, plain(model(*args, **kwargs)))

        return run


def _refuse_missing() -> None:
    if reason := Transformers.missing("cpu"):
        raise RefusedError(f"engine 'transformers': {reason}.")


def _inside(model: nn.Module) -> tuple[str, Any]:
    """What a task calls around a model of the library, and that model.

    Raises:
        RefusedError: there is none, or what stands around it is not known.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return "", model
    found = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    wrapper = next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in WRAPPERS), None)
    if len(found) == 1 and wrapper is not None and isinstance(model, WRAPPERS[wrapper]):
        return wrapper, found[0]
    raise RefusedError(
        f"{type(model).__name__} is no model of the transformers library, nor one of {', '.join(WRAPPERS)} around such "
        "a model: no checkpoint describes it. Use the inductor or aot engine."
    )


def _describe(model: Any) -> None:
    """Close the gaps of removed layers, and bring the config in line with what all layers share, in place."""
    from autogreen.techniques.pruning.blocks import Skip
    from autogreen.techniques.pruning.decoder import compact

    compact(model)
    for owner in [*model.modules()]:
        for name, stack in [*owner.named_children()]:
            if isinstance(stack, nn.ModuleList) and any(isinstance(block, Skip) for block in stack):
                setattr(owner, name, nn.ModuleList(block for block in stack if not isinstance(block, Skip)))
                if getattr(model.config, "num_hidden_layers", None) == len(stack):
                    model.config.num_hidden_layers = len(getattr(owner, name))
    hidden = {
        layer.out_features
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(".intermediate.dense")  # of BERT and its relatives
    }
    if len(hidden) == 1:
        model.config.intermediate_size = hidden.pop()


def _refuse_undescribed(original: Any, model: Any) -> None:
    """Raises:
    RefusedError: the class that a plain loader makes of the config has other tensors.
    """
    kind = next((one for one in type(original).__mro__ if one.__module__.startswith("transformers.")), None)
    if kind is None or kind.__name__ != type(original).__name__:
        raise RefusedError(
            f"{type(original).__name__} is code of its own: plain from_pretrained knows only classes of the library."
        )
    try:
        with torch.device("meta"):
            fresh: Any = kind(copy.deepcopy(model.config))
    except Exception as error:  # configs check themselves, each in its own way
        raise RefusedError(
            f"a plain config cannot describe {kind.__name__} as it was pruned: {(str(error).splitlines() or [''])[0]}."
        ) from error
    wanted = {name: tuple(leaf.shape) for name, leaf in fresh.state_dict().items()}
    found = {name: tuple(leaf.shape) for name, leaf in model.state_dict().items()}
    for name, shape in found.items():
        if wanted.get(name) != shape:
            there = " x ".join(map(str, wanted.get(name, ()))) or "nothing"
            raise RefusedError(
                f"a plain config cannot describe {name}: it is {' x '.join(map(str, shape))}, a {kind.__name__} of "
                f"this config has {there} there. Prune all layers to one width (neuron, depth), or use another engine."
            )
    if missing := [name for name in wanted if name not in found and not name.startswith("pooler.")]:
        raise RefusedError(f"a {kind.__name__} of this config also has {missing[0]}, which the model has not.")


def _write(model: Any, configs: Mapping[str, Any], target: Path) -> None:
    from transformers import TorchAoConfig

    model.config.architectures = None
    if not configs:
        model.save_pretrained(target)
        return
    from torchao.quantization import FqnToConfig

    kind: Any = next(one for one in type(model).__mro__ if one.__module__.startswith("transformers."))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        weights = {
            f"{name}.weight": config for name, config in configs.items()
        }  # a layer's name would take its bias too
        asked = TorchAoConfig(FqnToConfig(weights), modules_to_not_convert=[])
        settings = {"quantization_config": asked, "dtype": next(model.parameters()).dtype, "local_files_only": True}
        kind.from_pretrained(scratch, **settings).save_pretrained(target)


def _loaded(folder: Path) -> Any:
    import transformers

    config = json.loads((folder / "config.json").read_text())
    named = (config.get("architectures") or [""])[0]
    kind = getattr(transformers, str(named), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise BundleError(f"{folder / 'config.json'} names the class {named!r}, which transformers does not have.")
    loaded: Any = kind
    model = loaded.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
    )
    return model.eval()


def _widened(leaf: Any) -> Any:
    """16-bit results as float32, which tasks judge and files keep."""
    narrow = isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
    return leaf.float() if narrow else leaf


def _around(folder: Path) -> str:
    """Name of the wrapper, or nothing."""
    path = folder / AROUND
    try:
        if path.stat().st_size > MAX_AROUND_BYTES:
            raise ValueError("it is too long")
        told = json.loads(path.read_text())
        wrapper = told["wrapper"]
        if wrapper != "" and wrapper not in WRAPPERS:
            raise ValueError(f"{wrapper!r} is none of {', '.join(WRAPPERS)}")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}.") from error
    return str(wrapper)
