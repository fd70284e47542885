"""What an ONNX file may hold, looked at before onnxruntime opens it.

    external data         a path, which may leave the folder
    other domains         operators from a library of somebody's choice
    functions             operators of the file's own making
    training, sparse      what no export writes

An allowlist of domains: the standard operators compute, and do nothing else. Subgraphs are looked through as well.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autogreen.engines.integer import DOMAIN, PRODUCT
from autogreen.errors import BundleError, RefusedError

MAX_BYTES = 2**31 - 1  # of a protobuf message; its reader also ends at 100 levels
MAX_NODES = 1_000_000
STANDARD = ("", "ai.onnx")


def refuse_foreign(path: Path) -> None:
    """Look into the file.

    Raises:
        BundleError: it is missing, damaged or too large, or holds anything but standard operators and its own data.
        RefusedError: the onnx package is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise RefusedError(f"{path} cannot be looked through ({error}): pip install 'autogreen[onnx]'.") from error
    if not path.is_file():
        raise BundleError(f"{path} is missing.")
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path} is larger than an ONNX file can be.")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BundleError(f"{path} is damaged: {error}.") from error
    if not model.graph.node and not model.graph.output:
        raise BundleError(f"{path} is damaged: it holds no graph.")
    if len(model.functions) or len(model.training_info):
        raise BundleError(f"{path} holds functions or training of its own, which no export of autogreen writes.")
    if foreign := {one.domain for one in model.opset_import} - {*STANDARD, DOMAIN}:
        raise BundleError(f"{path} wants the operator domains {sorted(foreign)}; only standard ones are run.")
    _refuse_in(path, [model.graph])


def _refuse_in(path: Path, graphs: Iterable[Any]) -> None:
    from onnx import TensorProto

    waiting, seen = [*graphs], 0
    while waiting:
        graph = waiting.pop()
        seen += len(graph.node)
        if seen > MAX_NODES or len(graph.sparse_initializer):
            raise BundleError(f"{path} holds more nodes than any network, or sparse weights; no export writes them.")
        tensors = [*graph.initializer]
        for node in graph.node:
            if node.domain not in STANDARD and (node.domain, node.op_type) != (DOMAIN, PRODUCT):
                raise BundleError(f"{path} calls {node.domain}.{node.op_type}, which is no standard operator.")
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += [*attribute.graphs]
                if attribute.ref_attr_name or len(attribute.sparse_tensors) or attribute.HasField("sparse_tensor"):
                    raise BundleError(
                        f"{path} holds an attribute of {node.op_type} that no export of autogreen writes."
                    )
        for tensor in tensors:
            if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
                raise BundleError(f"{path} keeps {tensor.name!r} in another file; weights must lie inside.")
