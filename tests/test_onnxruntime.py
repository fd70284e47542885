"""ONNX files: integer kernels that really run under onnxruntime; what is refused, on both ways."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Depthwise, Residual, images, rows, settled
from quantizing import BATCH, QUIET, build, context, needs_int8
from torch import Tensor, nn

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.engines.onnx_guard import refuse_foreign
from autogreen.errors import BundleError, RefusedError
from autogreen.techniques import Target, Unit
from autogreen.techniques.precision import Precision
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.schemes import check_kernels
from autogreen.techniques.trace import layers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = QUIET
EXAMPLE = ((images(BATCH),), {})


class Tokens(nn.Module):
    """Linear layers over sequences [n, 5, 12], with a bias, without one, and one that is read by two."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 32)
        self.bare = nn.Linear(32, 24, bias=False)
        self.down = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bare(self.up(x).relu())
        return self.down(inner.tanh()) + inner.mean(-1, keepdim=True)


def tokens(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 5, 12, generator=torch.Generator().manual_seed(seed))


def every(model: nn.Module, scheme: str) -> dict[str, str]:
    return {name: scheme for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def lowered(model: nn.Module, effect: Mapping[str, str], data: Any, engine: str = "onnxruntime") -> nn.Module:
    around = context(((data(BATCH),), {}), [data(16, seed) for seed in range(4)], engine=engine)
    return Quantization.lower(effect, copy.deepcopy(model), around)


@needs_int8
@pytest.mark.parametrize(
    ("make", "data", "scheme", "kernels"),
    [
        (Residual, images, "w8a8_static", {"QLinearConv": 3, "MatMulIntegerToFloat": 1}),
        (Depthwise, images, "w8a8_static", {"QLinearConv": 3, "MatMulIntegerToFloat": 1}),
        (Tokens, tokens, "w8a8_static", {"MatMulIntegerToFloat": 3}),
        (Tokens, tokens, "w8a8", {"DynamicQuantizeMatMul": 3}),
    ],
)
def test_int8_layers_run_in_integer_kernels(
    make: Any, data: Any, scheme: str, kernels: dict[str, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = settled(make())
    effect, example = every(model, scheme), ((data(BATCH),), {})
    try:
        program = build(lowered(model, effect, data), example, tmp_path, "onnxruntime")
    except RefusedError as error:
        if "this processor keeps to" in str(error):
            pytest.skip(str(error))
        raise
    found = program.trace(example)
    told = check_kernels(effect, layers(model, example), found.products, "cpu", "onnxruntime")
    assert {kernel.name: kernel.calls for kernel in found.kernels} == kernels and set(told) == set(effect)
    assert found.macs == {"int8": sum(one.calls * one.macs for one in layers(model, example).values())}
    with torch.no_grad():
        wanted = model(data(7))
    assert float((program(data(7)) - wanted).abs().max() / wanted.abs().max()) < 0.05


@needs_int8
def test_layers_without_a_scheme_stay_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    effect = {"inner.0": "w8a8_static", "head": "w8a8_static"}
    program = build(lowered(model, effect, images), EXAMPLE, tmp_path, "onnxruntime")
    found = program.trace(EXAMPLE)
    assert check_kernels(effect, layers(model, EXAMPLE), found.products, "cpu", "onnxruntime") == {
        "inner.0": "QLinearConv (int8)",
        "head": "MatMulIntegerToFloat (int8)",
        "stem.0": "Conv (float32)",
        "outer.0": "Conv (float32)",
    }


@needs_int8
def test_a_convolution_whose_result_is_not_rounded_is_refused(tmp_path: Path) -> None:
    graph = lowered(settled(Residual()), every(Residual(), "w8a8_static"), images, engine="inductor")
    with pytest.raises(RefusedError, match=r"int8 convolution \S+ gives float32 results.*engine: onnxruntime"):
        ENGINES["onnxruntime"].save(graph, EXAMPLE, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("scheme", ["bf16", "fp16", "w8a16"])
def test_schemes_without_a_kernel_are_refused_by_name(scheme: str) -> None:
    reason = Quantization.refusal({"a": scheme}, (), Target(device="cpu", engine="onnxruntime"))
    assert reason is not None and f"scheme {scheme!r} for a: " in reason
    assert "'onnxruntime' engine on a processor: it has no kernel for it" in reason or "has no float16" in reason
    if scheme == "bf16":
        assert Precision.refusal({"dtype": "bf16"}, (), Target(device="cpu", engine="onnxruntime")) is not None


def test_ranges_of_the_call_reach_linear_layers_only() -> None:
    unit = Unit(name="c", members=("c",), kind="conv", width=8, calls=1, block="c", inputs=8)
    reason = Quantization.refusal({"c": "w8a8"}, (unit,), Target(device="cpu", engine="onnxruntime"))
    assert reason is not None and "computes linear layers only" in reason


def test_it_runs_on_processors_only() -> None:
    assert "not on 'cuda:0'" in ENGINES["onnxruntime"].missing("cuda:0")


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    ENGINES["onnxruntime"].save(settled(Residual()), EXAMPLE, tmp_path)
    return tmp_path / "model.onnx"


def load(path: Path) -> Program:
    return Program(path.parent, Recipe(engine="onnxruntime", batch=BATCH, threads=1, device="cpu"))


def test_the_file_stands_alone_and_says_nothing_of_this_machine(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(saved)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 21)]
    content = saved.read_bytes()
    for word in (str(Path(__file__).parent), "nets.py", str(Path.cwd()), torch.__path__[0], "pkg.torch"):
        assert word.encode() not in content
    onnx.checker.check_model(model, full_check=True)


def crafted(saved: Path, change: Any) -> Path:
    model = onnx.load(saved)
    change(model)
    saved.write_bytes(model.SerializeToString())
    return saved


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def outside_in_a_node(model: Any) -> None:
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["t"], value=tensor))


def outside_in_a_branch(model: Any) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [])
    inner.initializer.add(name="t", data_location=onnx.TensorProto.EXTERNAL)
    condition = onnx.helper.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=inner)
    model.graph.node.insert(0, condition)


def own_domain(model: Any) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("evil.ops", 1))


def own_operator(model: Any) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("Run", ["x"], ["y"], domain="evil.ops"))


def other_contributed_operator(model: Any) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("Tokenizer", ["x"], ["y"], domain="com.microsoft"))


def own_function(model: Any) -> None:
    opset = onnx.helper.make_opsetid("", 21)
    model.functions.append(onnx.helper.make_function("", "Relu", ["x"], ["y"], [], [opset]))


@pytest.mark.parametrize(
    "change",
    [
        outside,
        outside_in_a_node,
        outside_in_a_branch,
        own_domain,
        own_operator,
        other_contributed_operator,
        own_function,
    ],
    ids=lambda f: f.__name__,
)
def test_a_crafted_file_is_refused_before_onnxruntime_opens_it(
    change: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: pytest.fail("it was opened"))
    with pytest.raises(BundleError):
        load(crafted(saved, change))


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on, written byte by byte: the library refuses to."""
    found = b""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while True:
            length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + length + content

    for _ in range(depth):
        found = field(1, field(5, field(6, found)))  # graph.node[0].attribute[0].g
    return field(7, found)


@pytest.mark.parametrize("content", [b"", b"not a model", nested(5000)], ids=["empty", "text", "deep"])
def test_a_damaged_file(content: bytes, saved: Path) -> None:
    saved.write_bytes(content)
    with pytest.raises(BundleError, match="damaged"):
        refuse_foreign(saved)
    saved.unlink()
    with pytest.raises(BundleError, match="missing"):
        refuse_foreign(saved)


@pytest.mark.parametrize("shape", ["", "[" * 100_000, '{"tensor": "other"}', '{"list": [{"tensor": "output"}, 3]}'])
def test_a_file_that_does_not_tell_its_outputs(shape: str, saved: Path) -> None:
    def forget(model: Any) -> None:
        model.metadata_props[0].value = shape

    with pytest.raises(BundleError):
        load(crafted(saved, forget))


def test_a_model_that_remembers_is_refused(tmp_path: Path) -> None:
    class Remembers(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(BATCH, 12))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x)
            return self.seen * 2

    with pytest.raises(RefusedError, match="Remembers cannot be carried by ONNX: a call writes to seen"):
        ENGINES["onnxruntime"].save(Remembers(), ((rows(BATCH),), {}), tmp_path)
    ENGINES["aot"].save(Remembers(), ((rows(BATCH),), {}), tmp_path)
    program = Program(tmp_path, Recipe(engine="aot", batch=BATCH, threads=torch.get_num_threads(), device="cpu"))
    program(rows(BATCH))
    torch.testing.assert_close(program(rows(BATCH)), rows(BATCH) * 4)


def test_what_onnx_cannot_carry_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(RefusedError, match=r"Odd cannot be carried by ONNX .*bessel_j0"):
        ENGINES["onnxruntime"].save(Odd(), ((rows(BATCH),), {}), tmp_path)
    assert not [*tmp_path.iterdir()]
