"""Quantization: folding keeps the function, int8 is int8 (kernels, weights, file), and what is not real is refused."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import (
    Concatenated,
    Depthwise,
    InPlace,
    Keywords,
    Mlp,
    Plain,
    Position,
    PreActivation,
    ReadTwice,
    Residual,
    Returned,
    SharedConv,
    SharedRelu,
    TwoNorms,
    images,
    rows,
    settled,
)
from torch import Tensor, nn

from autogreen.anatomy import survey
from autogreen.engines import ENGINES, Kernel, Program, Recipe, exported, profile
from autogreen.errors import RefusedError
from autogreen.techniques import Context, Unit
from autogreen.techniques import lowering as low
from autogreen.techniques.quantization import Quantization, check_kernels, missing_kernel
from autogreen.techniques.trace import tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:Unwrapped parameters detected"),
]
INT8 = missing_kernel("w8a8", device="cpu", engine="inductor")
BF16 = missing_kernel("bf16", device="cpu", engine="inductor")
needs_int8 = pytest.mark.skipif(INT8 is not None, reason=str(INT8))
needs_bf16 = pytest.mark.skipif(BF16 is not None, reason=str(BF16))
BATCH = 4


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Data:
    """As much of a task as calibration looks at."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def batches(self, split: str, epoch: int = 0) -> list[Any]:
        assert split == "calibration"
        return self._batches

    def inputs(self, batch: Any) -> Any:
        return ((), batch) if isinstance(batch, dict) else ((batch,), {})


def context(example: Any, batches: list[Any], **changes: Any) -> Context:
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "check": lambda: None, "cache": {}, "teacher": None}
    return Context(task=Data(batches), example=example, **{**settings, **changes})  # type: ignore[arg-type]


def quantized(model: nn.Module, schemes: dict[str, str], data: Any = images) -> nn.Module:
    import copy

    around = context(((data(BATCH),), {}), [data(16, seed) for seed in range(4)])
    return Quantization.apply(schemes, copy.deepcopy(model), around)


# --- folding ----------------------------------------------------------------------------------------------------------

FOLDED = {  # batch norms that vanish into a convolution, and those that stay as scale and shift
    Plain: (2, 0),
    Residual: (3, 0),
    Depthwise: (3, 0),
    Concatenated: (3, 0),
    Position: (1, 0),
    SharedConv: (0, 1),
    TwoNorms: (0, 2),
    SharedRelu: (2, 0),
    ReadTwice: (0, 1),
    InPlace: (0, 1),
    Returned: (0, 1),
    PreActivation: (0, 1),
}


@pytest.mark.parametrize("make", FOLDED, ids=lambda make: make.__name__)
def test_folding_keeps_the_function(make: Any) -> None:
    torch.manual_seed(0)
    model = settled(make())
    with torch.no_grad():
        before = tensors(model(images(8, seed=5)))
        low.fold_batch_norm(model, ((images(2),), {}))
        after = tensors(model(images(8, seed=5)))
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(nn.Identity), kinds.count(low.ScaleShift)) == FOLDED[make]
    assert nn.BatchNorm2d not in kinds
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_batch_norm_without_running_statistics_or_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    bare = settled(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 3)))
    for net in (model, bare):
        with torch.no_grad():
            before = net(images())
            low.fold_batch_norm(net, ((images(),), {}))
            torch.testing.assert_close(net(images()), before, rtol=1e-5, atol=1e-5)
    assert isinstance(model[1], nn.BatchNorm2d)  # it looks at the batch: nothing fixed to fold


def test_bf16_wraps_a_layer_and_keeps_the_types_around_it() -> None:
    model = settled(Plain())
    with torch.no_grad():
        before = model(images())
        low.to_bf16(model, ["features.3", "head"])
        after = model(images())
    assert after.dtype == torch.float32
    assert model.get_submodule("head.layer").weight.dtype == torch.bfloat16
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)
    assert not torch.equal(after, before)


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [Plain, Residual, Depthwise, Concatenated, SharedConv, TwoNorms, SharedRelu, ReadTwice, PreActivation]
)
def test_int8_models_stay_near_float32(make: Any) -> None:
    torch.manual_seed(0)
    model = settled(make())
    names = {unit.name: "w8a8" for unit in Quantization.units(model, ((images(),), {}))}
    converted = quantized(model, names)
    with torch.no_grad():
        ours, theirs = converted(images(BATCH, seed=2)), model(images(BATCH, seed=2))
    error = float((ours - theirs).norm() / theirs.norm())
    assert 0 < error < 0.1


def find(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.graph.nodes if node.op == "call_function" and name in str(node.target)]


def test_int8_weights_are_those_of_torch() -> None:
    """Per output channel, symmetric: the integers are round(w / scale), as torch's own reference has them."""
    torch.manual_seed(0)
    model = settled(Plain())
    converted = quantized(model, {"features.0": "w8a8", "features.3": "w8a8", "head": "w8a8"})
    low.fold_batch_norm(model, ((images(),), {}))
    found = find(converted, "dequantize_per_channel")
    assert len(found) == 3

    def value(node: Any) -> Tensor:
        held: Any = converted
        for part in node.target.split("."):
            held = getattr(held, part)
        return held  # type: ignore[no-any-return]

    for node, name in zip(found, ["features.0", "features.3", "head"], strict=True):
        integers, scale, zero = (value(argument) for argument in node.args[:3])
        weight = model.get_parameter(f"{name}.weight").detach()
        assert integers.dtype == torch.int8 and not zero.any() and scale.shape == (len(weight),)
        peak = weight.flatten(1).abs().amax(1)
        torch.testing.assert_close(scale.float(), peak / 127.5, rtol=1e-4, atol=1e-7)
        reference = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8).int_repr()
        assert (integers.int() - reference.int()).abs().max() <= 1  # ties may round either way
        assert (integers != reference).float().mean() < 0.01


@pytest.mark.parametrize("vnni, highest", [(True, 255), (False, 127)])
def test_activations_keep_to_7_bits_without_vnni(vnni: bool, highest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low, "_has_vnni", lambda: vnni)
    converted = quantized(settled(Plain()), {"features.3": "w8a8"})
    nodes = find(converted, "quantize_per_tensor")
    assert nodes and {node.args[4] for node in nodes} == {highest} and {node.args[3] for node in nodes} == {0}


def test_layers_that_are_not_named_stay_float32() -> None:
    model = settled(Residual())
    converted = quantized(model, {"inner.0": "w8a8"})
    assert len(find(converted, "dequantize_per_channel")) == 1
    kept = [tensor.shape for _, tensor in converted.named_parameters() if tensor.ndim == 4]
    kept += [tensor.shape for _, tensor in converted.named_buffers() if tensor.ndim == 4 and tensor.is_floating_point()]
    assert sorted(kept) == sorted([model.stem[0].weight.shape, model.outer[0].weight.shape])  # type: ignore[index, union-attr]


def test_no_effect_is_no_change() -> None:
    model = settled(Plain())
    assert Quantization.apply({}, model, context(((images(),), {}), [])) is model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_data_that_is_not_finite(value: float) -> None:
    bad = images()
    bad[0, 0, 0, 0] = value
    with pytest.raises(RefusedError, match="calibration split holds NaN or infinity"):
        low.to_int8(settled(Plain()), ["head"], context(((images(BATCH),), {}), [images(), bad]))


def test_no_calibration_data() -> None:
    with pytest.raises(RefusedError, match="calibration split gave no batch"):
        low.to_int8(settled(Plain()), ["head"], context(((images(BATCH),), {}), []))


def test_calibration_cuts_its_batches_and_asks_for_the_time() -> None:
    asked: list[int] = []
    around = context(((images(BATCH),), {}), [images(6), images(1)], check=lambda: asked.append(1))
    low.to_int8(settled(Plain()), ["head"], around)
    assert len(asked) == 2


def test_a_model_that_cannot_be_exported_is_refused_by_name() -> None:
    class Moody(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x

    with pytest.raises(RefusedError, match=r"Moody cannot be exported by torch\.export"):
        quantized(Moody().eval(), {"head": "w8a8"}, rows)


# --- what runs --------------------------------------------------------------------------------------------------------


def build(model: nn.Module, example: Any, folder: Path, engine: str) -> Program:
    ENGINES[engine].save(model, example, folder)
    program = Program(folder, Recipe(engine=engine, batch=BATCH, threads=1, device="cpu"))
    program.run(*example)
    return program


def precisions(kernels: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for kernel in kernels:
        found[kernel.precision] = found.get(kernel.precision, 0) + kernel.calls
    return found


MIXED = {"stem.0": "w8a8", "inner.0": "w8a8", "head": "w8a8"}  # outer.0 stays float32


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, Program, Path]:
    torch.manual_seed(0)
    model, folder = settled(Residual()), tmp_path_factory.mktemp("mixed")
    converted = quantized(model, MIXED)
    return model, converted, build(converted, ((images(BATCH),), {}), folder, "inductor"), folder


@needs_int8
def test_a_mixed_policy_runs_as_it_says(mixed: Any) -> None:
    model, _, program, _ = mixed
    kernels, _ = profile.trace(program, ((images(BATCH),), {}))
    assert precisions(kernels) == {"int8": 3, "float32": 1}
    assert sum(kernel.calls for kernel in kernels if "qconv" in kernel.name) == 2
    assert sum(kernel.calls for kernel in kernels if "qlinear" in kernel.name) == 1
    units = survey(model, ((images(BATCH),), {}), ("quantization",)).units["quantization"]
    check_kernels(MIXED, units, kernels)
    with pytest.raises(RefusedError, match=r"4 layer calls should run in int8, .* shows 3"):
        check_kernels({**MIXED, "outer.0": "w8a8"}, units, kernels)


@needs_int8
def test_the_compiled_program_computes_what_the_graph_says(mixed: Any) -> None:
    model, converted, program, _ = mixed
    inputs = images(10, seed=9)
    with torch.no_grad():
        theirs = torch.cat([converted(part) for part in (*inputs[:8].split(BATCH), inputs[6:])])
        theirs = torch.cat([theirs[:8], theirs[-2:]])
        float32 = model(inputs)
    ours = program(inputs)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.03  # an integer may fall the other way
    assert float((ours - float32).norm() / float32.norm()) < 0.1


@needs_int8
def test_a_fresh_process_runs_the_int8_artifact(mixed: Any, tmp_path: Path) -> None:
    """As `verify` and a server do: nothing but the folder, and none of what built it has been imported."""
    _, _, program, folder = mixed
    inputs = images(BATCH, seed=9)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = f"""
import torch
from pathlib import Path
from autogreen.engines import Program, Recipe, profile
program = Program(Path({str(folder)!r}), Recipe(engine="inductor", batch={BATCH}, threads=1, device="cpu"))
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
print(sorted(kernel.precision for kernel in profile.trace(program, ((inputs,), {{}}))[0]))
torch.save(program(inputs), {str(tmp_path / "outputs.pt")!r})
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "int8" in told
    assert torch.equal(torch.load(tmp_path / "outputs.pt"), program(inputs))


@needs_int8
def test_the_same_artifact_run_eagerly_is_simulated_and_refused(mixed: Any) -> None:
    model, _, _, folder = mixed
    eager = Program(folder, Recipe(engine="eager", batch=BATCH, threads=1, device="cpu"))
    kernels, _ = profile.trace(eager, ((images(BATCH),), {}))
    assert "int8" not in precisions(kernels)
    units = survey(model, ((images(BATCH),), {}), ("quantization",)).units["quantization"]
    with pytest.raises(RefusedError, match=r"3 layer calls should run in int8, .* shows 0: the others are simulated"):
        check_kernels(MIXED, units, kernels)


def test_the_file_holds_no_float_copy_of_an_int8_weight(mixed: Any) -> None:
    _, _, _, folder = mixed
    program = torch.export.load(folder / exported.FILE)
    held = [*program.state_dict.values(), *program.constants.values()]
    weights = sorted((tuple(tensor.shape), tensor.dtype) for tensor in held if tensor.ndim > 1)  # type: ignore[type-var]
    assert weights == sorted(
        [
            ((5, 16), torch.int8),
            ((16, 3, 3, 3), torch.int8),
            ((24, 16, 3, 3), torch.int8),
            ((16, 24, 3, 3), torch.float32),
        ],
        key=lambda entry: entry[0],
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = settled(SharedConv())
    converted = quantized(model, {"conv": "w8a8"})
    return model, build(converted, ((images(BATCH),), {}), tmp_path_factory.mktemp("shared"), "inductor")


@needs_int8
def test_a_layer_that_is_called_twice_runs_simulated_and_is_refused(shared: Any) -> None:
    model, program = shared
    kernels, _ = profile.trace(program, ((images(BATCH),), {}))
    assert precisions(kernels) == {"float32": 3}  # the day that this fails, the refusal can go
    units = survey(model, ((images(BATCH),), {}), ("quantization",)).units["quantization"]
    with pytest.raises(RefusedError, match="2 layer calls should run in int8"):
        check_kernels({"conv": "w8a8"}, units, kernels)
    reason = Quantization.refusal({"conv": "w8a8"}, units, device="cpu", engine="inductor")
    assert reason is not None and "scheme 'w8a8' for conv: called several times a pass" in reason
    assert Quantization.refusal({"head": "w8a8"}, units, device="cpu", engine="inductor") is None


@pytest.mark.parametrize("make", [SharedConv, TwoNorms, SharedRelu])
def test_layers_beside_a_shared_module_are_quantized_alone(make: Any) -> None:
    model = settled(make())
    converted = quantized(model, {"head": "w8a8"})
    assert len(find(converted, "dequantize_per_channel")) == 1
    with torch.no_grad():
        ours, theirs = converted(images(BATCH, 3)), model(images(BATCH, 3))
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_what_the_quantizer_cannot_read_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao.quantization.pt2e import quantize_pt2e

    def fail(*args: Any) -> None:
        raise ValueError("conv partition has more than one output node")

    monkeypatch.setattr(quantize_pt2e, "prepare_pt2e", fail)
    with pytest.raises(RefusedError, match=r"int8 for head of Plain: the quantizer cannot read .*ValueError: conv"):
        quantized(settled(Plain()), {"head": "w8a8"})


@needs_bf16
def test_bf16_layers_run_bf16_kernels(tmp_path: Path) -> None:
    model = settled(Plain())
    effect = {"features.0": "bf16", "head": "bf16"}
    program = build(quantized(model, effect), ((images(BATCH),), {}), tmp_path, "inductor")
    kernels, _ = profile.trace(program, ((images(BATCH),), {}))
    assert precisions(kernels) == {"bfloat16": 2, "float32": 1}


def test_dicts_in_and_out() -> None:
    example = {"values": rows(BATCH), "mask": torch.ones(BATCH, 12)}
    around = context(((), example), [example])
    converted = Quantization.apply({"body.layers.0": "w8a8"}, Keywords().eval(), around)
    with torch.no_grad():
        assert converted(**example)["logits"].shape == (BATCH, 5)
    assert len(find(converted, "dequantize_per_channel")) == 1


# --- checks -----------------------------------------------------------------------------------------------------------


def layer(name: str, calls: int = 1) -> Unit:
    return Unit(name=name, members=(name,), kind="conv", width=8, calls=calls, block=name, peers=name)


def test_kernels_are_counted_by_calls_and_precision() -> None:
    units = (layer("a", calls=2), layer("b"), layer("c"))
    effect = {"a": "w8a8", "b": "bf16"}
    int8, bf16 = (Kernel(name=kind, precision=kind, calls=2) for kind in ("int8", "bfloat16"))  # type: ignore[arg-type]
    check_kernels(effect, units, (int8, bf16))
    check_kernels({}, units, ())
    with pytest.raises(RefusedError, match=r"1 layer calls should run in bfloat16, .* shows 0"):
        check_kernels(effect, units, (int8,))
    with pytest.raises(RefusedError, match=r"2 layer calls should run in int8, .* shows 0.*Kernels seen: none"):
        check_kernels(effect, units, ())


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_refused_where_the_processor_lacks_it(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    reason = Quantization.refusal({"a": "bf16"}, (), device="cpu", engine="eager")
    if supported:
        assert reason is None
    else:
        assert reason is not None and "scheme 'bf16' for a: this processor has no bfloat16" in reason


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_int8_is_refused_where_there_is_no_kernel(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    here = missing_kernel("w8a8", device="cpu", engine="inductor")
    assert (here is None) == (capability != "DEFAULT")
    eager = Quantization.refusal({"a": "w8a8", "b": "w8a8"}, (), device="cpu", engine="eager")
    assert eager is not None and "scheme 'w8a8' for a, b: " in eager
    assert missing_kernel("w8a8", device="cuda:0", engine="inductor")
    assert missing_kernel("none", device="cpu", engine="eager") is None
