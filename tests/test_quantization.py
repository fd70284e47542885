"""Quantization: int8 is int8 (kernels, weights, file), and what is not real is refused."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention
from nets import (
    Concatenated,
    Depthwise,
    Keywords,
    Mlp,
    Plain,
    PreActivation,
    ReadTwice,
    Residual,
    SharedConv,
    SharedRelu,
    TwoNorms,
    images,
    rows,
    settled,
)
from quantizing import BATCH, QUIET, build, context, needs_int8, quantized
from torch import Tensor, nn
from toys import QUICK, Corners

from autogreen.engines import Program, Recipe, exported, profile
from autogreen.errors import RefusedError
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Evaluation, Request
from autogreen.measurement import Protocol
from autogreen.policy import Effect
from autogreen.techniques import Target
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.folding import fold_batch_norm
from autogreen.techniques.quantization.graph import to_int8
from autogreen.techniques.quantization.layers import int8_weight
from autogreen.techniques.quantization.numerics import value_range
from autogreen.techniques.quantization.schemes import Treatment, check_kernels
from autogreen.techniques.trace import layers
from autogreen.workbench import Setup
from autogreen.workload import Workload

pytestmark = QUIET
STATIC = Treatment(scheme="w8a8_static")
IMAGES: Any = ((images(BATCH),), {})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def everywhere(model: nn.Module, scheme: str, example: Any = IMAGES) -> dict[str, str]:
    return {layer: scheme for unit in Quantization.units(model, example) for layer in unit.members}


def off(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def find(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.graph.nodes if node.op == "call_function" and name in str(node.target)]


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Plain, Residual, Depthwise, Concatenated, SharedRelu, ReadTwice, PreActivation])
def test_int8_models_stay_near_float32(make: Any) -> None:
    torch.manual_seed(0)
    model = settled(make())
    effect = everywhere(model, "w8a8_static")
    converted = quantized(model, effect)
    assert len(find(converted, "dequantize_per_channel")) >= len(effect)
    with torch.no_grad():
        error = off(converted(images(BATCH, seed=2)), model(images(BATCH, seed=2)))
    assert 0 < error < 0.1


def test_int8_weights_are_those_of_torch() -> None:
    """Per output channel, symmetric: the integers are round(w / scale), as torch's own reference has them."""
    torch.manual_seed(0)
    model = settled(Plain())
    converted = quantized(model, {"features.0": "w8a8_static", "features.3": "w8a8_static+minmax", "head": "w8a8"})
    fold_batch_norm(model, ((images(),), {}))
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


@pytest.mark.parametrize(("vnni", "highest"), [(True, 255), (False, 127)])
def test_activations_keep_to_7_bits_without_vnni(vnni: bool, highest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    converted = quantized(settled(Plain()), {"features.3": "w8a8_static", "head": "w8a8"})
    nodes = find(converted, ".quantize_per_tensor")
    assert len(nodes) == 2 and {node.args[4] for node in nodes} == {highest} and {node.args[3] for node in nodes} == {0}
    (dynamic,) = find(converted, "choose_qparams")
    assert dynamic.args[1:3] == (0, highest)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_observers_reach_the_graph(observer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of an input is that of the observer's range over the calibration split."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    model = Mlp().eval()
    data = [torch.randn(500, 12, generator=torch.Generator().manual_seed(seed)) ** 3 for seed in range(2)]
    word = str(Treatment(scheme="w8a8_static", observer=observer))  # type: ignore[arg-type]
    converted = Quantization.lower({"layers.0": word}, model, context(((rows(500),), {}), data))
    (node,) = find(converted, ".quantize_per_tensor")
    low, high = value_range(torch.cat(data).flatten(), observer=observer, bits=8, symmetric=False)
    assert node.args[1] == pytest.approx(float(high - low) / 255, rel=0.05)
    assert node.args[2] == pytest.approx(float(-low / (high - low)) * 255, abs=6)
    widest = float(torch.cat(data).max() - torch.cat(data).min()) / 255
    assert (node.args[1] < 0.8 * widest) == (observer == "percentile")  # eight bits keep rare values


def test_layers_that_are_not_named_stay_float32() -> None:
    model = settled(Residual())
    converted = quantized(model, {"inner.0": "w8a8_static"})
    assert len(find(converted, "dequantize_per_channel")) == 1
    kept = [tensor.shape for _, tensor in converted.named_parameters() if tensor.ndim == 4]
    kept += [tensor.shape for _, tensor in converted.named_buffers() if tensor.ndim == 4 and tensor.is_floating_point()]
    assert sorted(kept) == sorted([model.stem[0].weight.shape, model.outer[0].weight.shape])  # type: ignore[index, union-attr]


def test_no_effect_is_no_change() -> None:
    model = settled(Plain())
    assert Quantization.lower({}, model, context(((images(),), {}), [])) is model
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_padding_in_words_is_quantized_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.Flatten(), nn.Linear(512, 5)).eval()
    assert len(find(quantized(model, {"0": "w8a8_static"}), "dequantize_per_channel")) == 1


@pytest.mark.parametrize("make", [SharedConv, TwoNorms, SharedRelu])
def test_layers_beside_a_shared_module_are_quantized_alone(make: Any) -> None:
    model = settled(make())
    converted = quantized(model, {"head": "w8a8_static"})
    assert len(find(converted, "dequantize_per_channel")) == 1
    with torch.no_grad():
        assert 0 < off(converted(images(BATCH, 3)), model(images(BATCH, 3))) < 0.05


def test_dicts_in_and_out() -> None:
    example = {"values": rows(BATCH), "mask": torch.ones(BATCH, 12)}
    around = context(((), example), [example])
    converted = Quantization.lower({"body.layers.0": "w8a8_static"}, Keywords().eval(), around)
    with torch.no_grad():
        assert converted(**example)["logits"].shape == (BATCH, 5)
    assert len(find(converted, "dequantize_per_channel")) == 1


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_data_that_is_not_finite(value: float) -> None:
    bad = images()
    bad[0, 0, 0, 0] = value
    with pytest.raises(RefusedError, match="calibration split holds NaN or infinity"):
        to_int8(settled(Plain()), {"head": STATIC}, context(((images(BATCH),), {}), [images(), bad]))


def test_a_layer_that_makes_nan_in_calibration_is_named() -> None:
    model = settled(Plain())
    model.features[2] = nn.Threshold(1e9, float("inf"))  # type: ignore[index, operator]
    with pytest.raises(RefusedError, match=r"the input of features\.3 holds NaN or infinity in calibration"):
        quantized(model, {"features.3": "w8a8_static"})


def test_no_calibration_data() -> None:
    around = context(((images(BATCH),), {}), [])
    with pytest.raises(RefusedError, match="calibration split gave no batch"):
        to_int8(settled(Plain()), {"head": STATIC}, around)
    dynamic = to_int8(settled(Plain()), {"head": Treatment(scheme="w8a8")}, around)  # needs none
    assert len(find(dynamic, "choose_qparams")) == 1


def test_calibration_cuts_its_batches_and_asks_for_the_time() -> None:
    asked: list[int] = []
    around = context(((images(BATCH),), {}), [images(6), images(1)], check=lambda: asked.append(1))
    to_int8(settled(Plain()), {"head": STATIC}, around)
    assert len(asked) == 2


def test_a_model_that_cannot_be_exported_is_refused_by_name() -> None:
    class Moody(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x

    with pytest.raises(RefusedError, match=r"Moody cannot be exported by torch\.export"):
        quantized(Moody().eval(), {"head": "w8a8_static"}, rows)


def test_a_layer_that_the_graph_does_not_hold_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match=r"int8 for features\.2 of Plain: no such layer is left"):
        to_int8(settled(Plain()), {"head": STATIC, "features.2": STATIC}, context(IMAGES, [images()]))


def test_what_cannot_be_quantized_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao.quantization.pt2e import quantize_pt2e

    def fail(*args: Any) -> None:
        raise ValueError("conv partition has more than one output node")

    monkeypatch.setattr(quantize_pt2e, "prepare_pt2e", fail)
    with pytest.raises(RefusedError, match=r"int8 for head of Plain: the graph around them .*ValueError: conv"):
        quantized(settled(Plain()), {"head": "w8a8_static"})


# --- what runs --------------------------------------------------------------------------------------------------------

MIXED = {"stem.0": "w8a8_static", "inner.0": "w8a8_static+percentile", "head": "w8a8"}  # outer.0 stays float32


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, Program, Path]:
    torch.manual_seed(0)
    model, folder = settled(Residual()), tmp_path_factory.mktemp("mixed")
    converted = quantized(model, MIXED)
    return model, converted, build(converted, IMAGES, folder, "inductor"), folder


@needs_int8
def test_a_mixed_policy_runs_as_it_says(mixed: Any) -> None:
    """Calibrated convolutions, a linear layer with ranges from the call, and a float layer, in one compiled program."""
    model, _, program, _ = mixed
    found, told = program.trace(IMAGES), layers(model, IMAGES)
    assert check_kernels(MIXED, told, found.products, "cpu") == {
        "stem.0": "onednn::qconv_pointwise (int8)",
        "inner.0": "onednn::qconv_pointwise (int8)",
        "head": "onednn::qlinear_pointwise (int8)",
        "outer.0": "mkldnn::_convolution_pointwise_ (float32)",
    }
    assert sum(kernel.calls for kernel in found.kernels) == 4
    outer = told["outer.0"].macs
    assert found.macs == {"int8": sum(layer.macs for layer in told.values()) - outer, "float32": outer}
    with pytest.raises(RefusedError, match=r"4 layer calls should run in int8 .* shows 3, with 53%"):
        check_kernels({**MIXED, "outer.0": "w8a8_static"}, told, found.products, "cpu")


@needs_int8
def test_the_compiled_program_computes_what_the_graph_says(mixed: Any) -> None:
    model, converted, program, _ = mixed
    inputs = images(10, seed=9)
    with torch.no_grad():
        theirs = torch.cat([converted(part) for part in (*inputs[:8].split(BATCH), inputs[6:])])
        theirs = torch.cat([theirs[:8], theirs[-2:]])
        float32 = model(inputs)
    ours = program(inputs)
    assert off(ours[:8], theirs[:8]) < 0.03  # an integer may fall the other way
    assert off(ours, float32) < 0.1


@needs_int8
def test_a_fresh_process_runs_the_int8_artifact(mixed: Any, tmp_path: Path) -> None:
    """As `verify` and a server do: nothing but the folder, and none of what built it has been imported."""
    _, _, program, folder = mixed
    inputs = images(BATCH, seed=9)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = f"""
import torch
import torch.nn.attention
from pathlib import Path
from autogreen.engines import Program, Recipe, profile
program = Program(Path({str(folder)!r}), Recipe(engine="inductor", batch={BATCH}, threads=1, device="cpu"))
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
torch.save(program(inputs), {str(tmp_path / "outputs.pt")!r})
print([kernel.calls for kernel in program.trace(((inputs,), {{}})).kernels if kernel.precision == "int8"])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip().endswith("[2, 1]")
    assert torch.equal(torch.load(tmp_path / "outputs.pt"), program(inputs))


@needs_int8
def test_the_same_artifact_run_eagerly_is_simulated_and_refused(mixed: Any) -> None:
    model, _, _, folder = mixed
    eager = Program(folder, Recipe(engine="eager", batch=BATCH, threads=1, device="cpu"))
    found = eager.trace(IMAGES)
    assert set(found.macs) == {"float32"}
    with pytest.raises(RefusedError, match=r"3 layer calls should run in int8 .* shows 0, with 0% .* are simulated"):
        check_kernels(MIXED, layers(model, IMAGES), found.products, "cpu")


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


def share(found: profile.Trace) -> float:
    """Of the multiply-accumulates in int8 kernels."""
    return found.macs["int8"] / sum(found.macs.values())


@needs_int8
@pytest.mark.parametrize("make", [Residual, Depthwise])
def test_a_convolutional_network_said_to_be_int8_is(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(make())
    effect = everywhere(model, "w8a8_static")
    found = build(quantized(model, effect), IMAGES, tmp_path, "inductor").trace(IMAGES)
    assert share(found) >= 0.9
    assert sum(found.macs.values()) == sum(layer.macs for layer in layers(model, IMAGES).values())
    ran = check_kernels(effect, layers(model, IMAGES), found.products, "cpu")
    assert set(ran) == set(effect) and all(kernel.endswith("(int8)") for kernel in ran.values())


@needs_int8
def test_an_encoder_said_to_be_int8_is(tmp_path: Path) -> None:
    """With attention in float32, and both kinds of ranges in one graph."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    settings = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(**settings, intermediate_size=256, max_position_embeddings=16)
    model = BertModel(config, add_pooling_layer=False).eval()

    def texts(count: int, seed: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 99, (count, 12), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    example = ((), texts(BATCH, 0))
    effect = {**everywhere(model, "w8a8_static", example), "encoder.layer.0.output.dense": "w8a8"}
    around = context(example, [texts(8, 1), texts(8, 2)])
    converted = Quantization.lower(effect, copy.deepcopy(model), around)
    assert len(find(converted, "choose_qparams")) == 1
    program = build(converted, example, tmp_path, "inductor")
    found = program.trace(example)
    assert 0.9 <= share(found) < 1
    ran = check_kernels(effect, layers(model, example), found.products, "cpu")
    assert set(ran) == set(effect) and set(ran.values()) == {"onednn::qlinear_pointwise (int8)"}
    with torch.no_grad():
        outputs, theirs = program(**texts(BATCH, 3)), model(**texts(BATCH, 3)).last_hidden_state
    assert off(outputs["last_hidden_state"], theirs) < 0.05


@needs_int8
def test_a_layer_that_is_called_twice_runs_simulated_and_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(SharedConv())
    converted = to_int8(copy.deepcopy(model), {"conv": STATIC}, context(IMAGES, [images(16)]))
    assert find(converted, "dequantize_per_channel")
    program = build(converted, IMAGES, tmp_path, "inductor")
    found = program.trace(IMAGES)
    assert set(found.macs) == {"float32"}  # the day that this fails, the refusal can go
    with pytest.raises(RefusedError, match="2 layer calls should run in int8"):
        check_kernels({"conv": "w8a8_static"}, layers(model, IMAGES), found.products, "cpu")
    units, here = Quantization.units(model, IMAGES), Target(device="cpu", engine="inductor")
    reason = Quantization.refusal({"conv": "w8a8_static"}, units, here)
    assert reason is not None and "scheme 'w8a8_static' for conv: called several times a pass" in reason
    assert Quantization.refusal({"head": "w8a8_static"}, units, here) is None


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Plain, Residual, Depthwise, SharedConv])
def test_multiply_accumulates_are_those_of_torchs_own_counter(make: Any, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = settled(make())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*IMAGES[0])
    found = build(model, IMAGES, tmp_path, "eager").trace(IMAGES)
    assert sum(found.macs.values()) == counter.get_total_flops() / 2
    assert sum(layer.calls * layer.macs for layer in layers(model, IMAGES).values()) == counter.get_total_flops() / 2


def test_strides_dilation_and_attention_are_counted(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=2, dilation=2)
            self.next = nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.next(self.conv(x)).flatten(2)[:, None]
            return nn.functional.scaled_dot_product_attention(y, y, y) @ y[0, 0].T

    model, plain = Mixed().eval(), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model(*IMAGES[0])
    found = build(model, IMAGES, tmp_path, "eager").trace(IMAGES)
    assert sum(found.macs.values()) == counter.get_total_flops() / 2


# --- from a policy to an evaluation -----------------------------------------------------------------------------------


def test_an_evaluation_tells_the_kernel_of_every_layer(tmp_path: Path) -> None:
    for folder in ("study/artifacts", "study/scores"):
        (tmp_path / folder).mkdir(parents=True)
    evaluator = Evaluator(
        Setup(
            task=Corners(),
            workload=Workload(kind="offline", batch=64),
            protocol=Protocol(**QUICK),
            device="cpu",
            folder=tmp_path / "study",
            cache=tmp_path / "cache",
        )
    )
    evaluator.prepare()
    parts = {
        "quantization": {"6": "w8a16+minmax+qat"},
        "distillation": {"epochs": 1, "alpha": 0.0, "learning_rate": 1e-4},
        "runtime": {"engine": "eager"},
    }
    found = evaluator.evaluate(Request(effect=Effect.of(parts)))
    assert found.layers["6"] == "aten::_weight_int8pack_mm (float32)"
    assert set(found.layers) == {"0", "3", "6"} and found.layers["0"] != "not seen alone"
    assert found.quality.mean > 0.9
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found


# --- 8-bit weights alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_eight_bit_weights_meet_bfloat16_activations_on_a_processor(engine: str, tmp_path: Path) -> None:
    """What the table of schemes says; the kernel is vectorised for nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32, bias=False)).eval()
    x = torch.randn(BATCH, 64)
    weight, scale = int8_weight(model[0].weight.detach(), "mse", torch.bfloat16)
    inner = x.bfloat16().double() @ (weight.double() * scale.double()[:, None]).T
    inner = (inner.bfloat16() + model[0].bias.detach()).detach().float()
    weight, scale = int8_weight(model[1].weight.detach(), "mse", torch.bfloat16)
    wanted = inner.bfloat16().double() @ (weight.double() * scale.double()[:, None]).T
    lowered = Quantization.lower({"0": "w8a16", "1": "w8a16"}, copy.deepcopy(model), context(((x,), {}), []))
    program = build(lowered, ((x,), {}), tmp_path, engine)
    ours = program(x)
    assert ours.dtype == torch.float32 and off(ours, wanted.float()) < 2**-8
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        program.launch((x,), {})
    events: Any = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    kinds = [event.dtypes()[0] for event in events if event.name() == "aten::_weight_int8pack_mm"]
    assert kinds == ["c10::BFloat16"] * 2


def test_a_scale_in_16_bits_is_no_error_of_the_weights() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 32)
    for kind in (torch.bfloat16, torch.float32):
        codes, scale = int8_weight(weight, "minmax", kind)
        assert scale.dtype == kind
        steps = ((codes.double() * scale.double()[:, None] - weight) / scale.double()[:, None]).abs()
        assert steps.max() < (0.51 if kind == torch.float32 else 1.01)  # 127.5 steps are clipped, of a scale 2^-8 less
        assert (steps > 0.51).sum() <= len(weight)  # and only those


class ByName(nn.Module):
    """Calls its layers by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(input=x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("effect", [{"second": "w8a16"}, {"first": "bf16", "second": "fp16"}, {"first": "w8a8_static"}])
def test_layers_that_are_called_by_keyword(effect: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = ByName().eval()
    with torch.no_grad():
        assert off(quantized(model, effect)(images(BATCH)), model(images(BATCH))) < 0.05


def test_a_model_in_float64_is_refused_by_name() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(12, 8)).double().eval()
    data = [rows(4).double()]
    with pytest.raises(RefusedError, match=r"int8 for 1 of Sequential: the graph .* cannot be quantized .*float64"):
        Quantization.lower({"1": "w8a8_static"}, model, context(((data[0],), {}), data))
