"""The exported program as an ONNX file, run by onnxruntime.

    model.onnx    a graph of standard operators and of one of onnxruntime's own (`integer.PRODUCT`), weights inside

It runs on processors; onnxruntime's graph optimizations are part of loading, as a user has them.
"""

import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autogreen.engines import Precision, Product, Program, Recipe, exported
from autogreen.engines.profile import Trace
from autogreen.errors import BundleError, RefusedError
from autogreen.tasks import Inputs, trees

FILE = "model.onnx"
OPSET = 21  # the first whose quantizers carry what torch exports; onnxruntime 1.19 reads it
OUTPUTS = "autogreen.outputs"  # metadata: the shape of the outputs as torch had them
MAX_OUTPUTS_CHARACTERS = 1_000_000
INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QGemm", "QLinearMatMul")
PRODUCTS = ("MatMul", "Gemm", *INTEGER_PRODUCTS)
INTEGER_CONVOLUTIONS = ("QLinearConv", "ConvInteger")
CONVOLUTIONS = ("Conv", *INTEGER_CONVOLUTIONS)
ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid")
PRECISIONS: Mapping[str, Precision] = {"float16": "float16", "bfloat16": "bfloat16"}


class OnnxRuntime:
    """Source: https://onnxruntime.ai/docs/performance/tune-performance/threading.html (threads, spinning) and
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (kernels for integers)."""

    executes: ClassVar[str] = "a graph of ONNX operators, by onnxruntime"
    native: ClassVar[bool] = False

    @staticmethod
    def missing(device: str) -> str | None:
        lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if lacking:
            return f"{', '.join(lacking)} is not installed: pip install 'autogreen[onnx]'"
        if device != "cpu":
            return f"it runs on processors here, not on {device!r}; the inductor engine runs there"
        return None

    @staticmethod
    def save(model: nn.Module, example: Inputs, folder: Path) -> None:
        _refuse_missing()
        import onnx

        from autogreen.engines import integer

        program = exported.export(model, example)
        _refuse_state(model, program)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch's exporter about itself
                told = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=OPSET,
                    verbose=False,
                    custom_translation_table=integer.translations(),
                )
                assert told is not None, "it exports a program"
                found = told.model_proto
        except Exception as error:  # the exporter may raise anything
            reason = next((line for line in reversed(str(error).strip().splitlines()) if "Error" in line), str(error))
            raise RefusedError(
                f"{type(model).__name__} cannot be carried by ONNX ({reason.strip()[:300]}). Use the inductor or aot "
                "engine."
            ) from error
        integer.to_kernels(found)
        _tidy(found)
        with torch.no_grad():
            shape, _ = trees.pack(program.module()(*example[0], **example[1]), "output")
        found.metadata_props.add(key=OUTPUTS, value=json.dumps(shape))
        try:
            content = found.SerializeToString()
            onnx.checker.check_model(content)
        except (ValueError, onnx.checker.ValidationError) as error:  # protobuf ends at 2 GB
            raise RefusedError(
                f"{type(model).__name__} cannot be carried by one ONNX file ({str(error).splitlines()[0]})."
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(content)
        try:
            OnnxRuntime.inspect(folder)
        except BundleError as error:
            raise RefusedError(f"{type(model).__name__} cannot be carried by an ONNX file: {error}") from error

    @staticmethod
    def inspect(folder: Path) -> None:
        from autogreen.engines.onnx_guard import refuse_foreign

        refuse_foreign(folder / FILE)

    @staticmethod
    def load(folder: Path, recipe: Recipe) -> Callable[..., Any]:
        _refuse_missing()
        OnnxRuntime.inspect(folder)
        session = _session(folder / FILE, recipe)
        names = [given.name for given in session.get_inputs()]
        shape, outputs = _shape(session, folder)

        def run(*args: Any, **kwargs: Any) -> Any:
            found = session.run(None, _feeds(names, (args, kwargs)))
            return trees.unpack(shape, dict(zip(outputs, map(torch.from_numpy, found), strict=True)))

        return run

    @staticmethod
    def trace(program: Program, inputs: Inputs) -> Trace:
        """By onnxruntime's own profile of a second session on the same file; it tells no memory."""
        import onnx

        path = program.folder / FILE
        with tempfile.TemporaryDirectory() as folder:
            session = _session(path, program.recipe, profile=str(Path(folder) / "profile"))
            session.run(None, _feeds([given.name for given in session.get_inputs()], inputs))
            events = json.loads(Path(session.end_profiling()).read_text())
        return Trace(products=tuple(_products(events, _weights(onnx.load(path).graph))), peak_bytes=None)


def _refuse_missing() -> None:
    if reason := OnnxRuntime.missing("cpu"):
        raise RefusedError(f"engine 'onnxruntime': {reason}.")


def _refuse_state(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """A graph of ONNX forgets from call to call; torch's exporter leaves what is written in a call out, silently."""
    signature = program.run_decompositions({}).graph_signature  # functional: only then it names what is written
    if written := [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]:
        raise RefusedError(
            f"{type(model).__name__} cannot be carried by ONNX: a call writes to {', '.join(written[:3])}, and an ONNX "
            "graph keeps nothing from call to call. Use the inductor or aot engine."
        )


def _session(path: Path, recipe: Recipe, profile: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = recipe.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads look like work
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base
        raise BundleError(f"{path} cannot be opened by onnxruntime {onnxruntime.__version__}: {error}.") from error


def _feeds(names: list[str], inputs: Inputs) -> dict[str, Any]:
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def _shape(session: Any, folder: Path) -> tuple[Any, list[str]]:
    """The outputs as torch had them, and the names of their tensors in the order in which a session gives them."""
    text = session.get_modelmeta().custom_metadata_map.get(OUTPUTS, "")
    try:
        if len(text) > MAX_OUTPUTS_CHARACTERS:
            raise ValueError("it is too long")
        shape = json.loads(text)
        names = re.findall(r'"tensor": "(output[.\d]*)"', json.dumps(shape))
        trees.unpack(shape, dict.fromkeys(names, torch.empty(0)))
        if len(names) != len(session.get_outputs()) or len({*names}) != len(names):
            raise ValueError(f"it names {len(names)} tensors, the graph gives {len(session.get_outputs())}")
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{folder / FILE} does not tell the shape of its outputs: {error}.") from error
    return shape, names


def _tidy(model: Any) -> None:
    """No names of places on this machine; names of nodes that a profile can be read by."""
    for place, node in enumerate(model.graph.node):
        node.name = f"n{place:06}_"
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]  # onnxruntime finds types by itself, and some were those of what was replaced
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _weights(graph: Any) -> dict[str, tuple[int, ...]]:
    """Sides of a convolution's weight, by the names that a profile may show it under: its node's, its result's, or that
    of the rectifier that was fused into it."""
    sides = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        if node.op_type in CONVOLUTIONS:
            maker = makers.get(node.input[1])  # what dequantizes it
            found[node.name] = sides.get(node.input[1] if maker is None else maker.input[0], ())
            found[node.output[0]] = found[node.name]
        elif node.input and node.op_type in ACTIVATIONS and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _products(events: list[dict[str, Any]], weights: Mapping[str, tuple[int, ...]]) -> Iterator[Product]:
    """Matrix kernels in a profile. A convolution is found in the file by its name, which optimizers keep within
    theirs: packed weights are no longer told."""
    for event in events:
        told = event.get("args", {})
        kernel = str(told.get("op_name", "")).removeprefix("Fused")
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if kernel not in (*PRODUCTS, *CONVOLUTIONS):
            continue
        given, made = (next(iter(told[side][0].values())) for side in ("input_type_shape", "output_type_shape"))
        if kernel in PRODUCTS:
            macs = math.prod(made) * given[-1]
        else:
            name = event["name"].removesuffix("_kernel_time")
            numbers = re.findall(r"n\d{6}_", name)
            names = (*numbers, name.removesuffix("_nchwc"), name)
            weight = next((weights[one] for one in names if one in weights), ())
            channels = made[1] if name.endswith("_nchwc") else (weight or [1])[0]  # those may be filled up to a block
            macs = math.prod(made) // channels * math.prod(weight) if weight else 0
        integer = kernel in (*INTEGER_PRODUCTS, *INTEGER_CONVOLUTIONS)
        kind = next(iter(told["input_type_shape"][0]))
        yield Product(name=kernel, precision="int8" if integer else PRECISIONS.get(kind, "float32"), macs=macs)
