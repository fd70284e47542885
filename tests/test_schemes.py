"""The table of schemes: what is real where, what is refused by name, and what layers share."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import Attention, Residual, images, rows, settled
from quantizing import BATCH, QUIET, context
from torch import nn

from autogreen.anatomy import survey
from autogreen.doctor import _schemes as told_by_doctor
from autogreen.engines import ENGINES, Product
from autogreen.errors import ConfigError, RefusedError
from autogreen.policy import Policy
from autogreen.techniques import Target, Unit
from autogreen.techniques.distillation import Distillation
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.schemes import (
    SCHEMES,
    Treatment,
    check_kernels,
    misfit,
    missing_kernel,
    narrowest_bytes,
    precisions,
    road_of,
    schemes,
)

pytestmark = QUIET
CPU = Target(device="cpu", engine="inductor", batch=BATCH)


def layer(name: str, kind: Any = "linear", **changes: Any) -> Unit:
    settings: dict[str, Any] = {"width": 64, "inputs": 64, "calls": 1, "block": name, **changes}
    return Unit(name=name, members=(name,), kind=kind, **settings)


# --- words ------------------------------------------------------------------------------------------------------------


def test_an_effect_says_only_what_matters() -> None:
    """Each treatment has one word, whichever settings it came from."""
    for scheme, observer, qat in itertools.product(SCHEMES, ("minmax", "percentile", "mse"), (False, True)):
        word = str(Treatment(scheme=scheme, observer=observer, qat=qat))  # type: ignore[arg-type]
        found = Treatment.read(word)
        assert str(found) == word and found.scheme == scheme
        assert found.qat == (qat and SCHEMES[scheme].lossy)
        if SCHEMES[scheme].observed:
            assert found.observer == observer
        assert found.weight_observer == (observer if SCHEMES[scheme].observed == "weights" else "minmax")
    for same in ("bf16", "fp8", "w8a8"):
        words = {str(Treatment(scheme=same, observer=observer)) for observer in ("minmax", "percentile", "mse")}  # type: ignore[arg-type]
        assert words == {same}
    assert str(Treatment(scheme="w8a8_static", observer="minmax", qat=True)) == "w8a8_static+minmax+qat"


def test_settings_that_do_the_same_are_one_effect() -> None:
    units = (layer("a"), layer("b"))
    rules = [Quantization(target="a", scheme="bf16", qat=True), Quantization(target="b", scheme="w8a8_static")]
    assert Quantization.effect(rules, units) == {"a": "bf16", "b": "w8a8_static"}
    assert schemes({"a": "bf16", "b": "w8a8_static+minmax"}) == {"a": "bf16", "b": "w8a8_static"}
    assert Quantization.effect([Quantization(target="*", observer="minmax", qat=True)], units) == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scheme": "w8a8_statik"}, r"unknown scheme 'w8a8_statik'.*w8a8_static.*Known: none, fp16"),
        ({"scheme": "int8"}, r"unknown scheme 'int8'.*Known: none, fp16, bf16, fp8, w8a8, w8a8_static, w8a16, w4a16"),
        ({"observer": "minmaks"}, r"unknown observer 'minmaks'.*minmax.*Known: minmax, percentile, mse"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Quantization(target="*", **settings)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_scheme_states_its_bits_and_a_real_kernel() -> None:
    assert set(SCHEMES) == {"none", "fp16", "bf16", "fp8", "w8a8", "w8a8_static", "w8a16", "w4a16"}
    for name, scheme in SCHEMES.items():
        assert scheme.name == name and scheme.weights and scheme.activations
        assert (name == "none") == (not scheme.roads)
        assert f"w{scheme.weight_bits}a{scheme.activation_bits}" == name.partition("_")[0] or name[0] != "w"
        assert all(road.kernels and road.kinds for road in scheme.roads)
    assert precisions({"a": "bf16", "b": "w8a8_static+minmax", "c": "w8a16"}, "cpu") == {
        "a": "bfloat16",
        "b": "int8",
        "c": "float32",
    }
    assert narrowest_bytes({"a": "bf16", "b": "w4a16"}) == 0.5 and narrowest_bytes({}) is None


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_static"])
def test_int8_is_refused_where_there_is_no_kernel(
    scheme: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    here = missing_kernel(scheme, device="cpu", engine="inductor")
    assert (here is None) == (capability != "DEFAULT")
    effect = {"a": scheme, "b": scheme}
    eager = Quantization.refusal(effect, (), Target(device="cpu", engine="eager"))
    assert eager is not None and f"scheme {scheme!r} for a, b: " in eager
    if capability != "DEFAULT":
        assert "simulated; use inductor" in eager


@pytest.mark.parametrize(("scheme", "ask"), [("bf16", "bf16"), ("fp16", "fp16")])
@pytest.mark.parametrize("supported", [True, False])
def test_16_bits_are_refused_where_the_processor_lacks_them(
    scheme: str, ask: str, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{ask}_supported", lambda: supported)
    reason = Quantization.refusal({"a": scheme}, (), Target(device="cpu", engine="eager"))
    if supported:
        assert reason is None
    else:
        assert reason is not None and f"scheme {scheme!r} for a: this processor has no " in reason


@pytest.mark.parametrize("scheme", ["fp8", "w4a16"])
@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_what_no_processor_computes_is_refused(scheme: str, engine: str) -> None:
    reason = Quantization.refusal({"a": scheme}, (layer("a"),), Target(device="cpu", engine=engine))
    assert reason is not None and f"scheme {scheme!r} for a: no kernel computes it on a processor" in reason
    assert road_of(scheme, "cpu") is None and road_of(scheme, "cuda:1") is not None


@pytest.mark.parametrize(
    ("scheme", "unit", "device", "told"),
    [
        ("w8a8", layer("c", "conv"), "cpu", "linear layers only, and this is a convolution; w8a8_static reaches"),
        ("w8a16", layer("c", "conv"), "cpu", "_weight_int8pack_mm computes linear layers only"),
        ("w8a8_static", layer("c", "conv"), "cuda:0", "_int_mm computes linear layers only"),
        ("w8a8_static", layer("c", "conv", calls=2), "cpu", "called several times a pass"),
        ("w8a8", layer("l", calls=2), "cpu", "called several times a pass"),
        ("w8a16", layer("l", inputs=72), "cpu", "wants inputs that 16 divides, the layer has 72 and 64"),
        ("w8a16", layer("l", width=8), "cpu", "inductor cannot compile aten::_weight_int8pack_mm for fewer than 9"),
        ("w8a8", layer("l", width=60, rows=20), "cuda:0", "inputs that 8 divides and outputs that 8 does"),
        ("fp8", layer("l", inputs=24), "cuda:0", "inputs that 16 divides and outputs that 16 does, the layer has 24"),
        ("w4a16", layer("l", inputs=192), "cuda:0", "inputs that 128 divides and outputs that 8 does"),
        ("w8a8", layer("l"), "cuda:0", "wants 17 rows or more, a batch of 4 gives 4"),
    ],
)
def test_layers_that_a_kernel_cannot_take(scheme: str, unit: Unit, device: str, told: str) -> None:
    reason = misfit(scheme, unit, Target(device=device, engine="inductor", batch=BATCH))
    assert reason is not None and told in reason


@pytest.mark.parametrize(
    ("scheme", "unit", "device"),
    [
        ("none", layer("c", "conv", calls=3), "cpu"),
        ("bf16", layer("c", "conv", calls=3), "cpu"),
        ("w8a8_static", layer("c", "conv", groups=64, inputs=3, width=5), "cpu"),
        ("w8a8", layer("l", inputs=3, width=5), "cpu"),
        ("w8a16", layer("l", inputs=32, width=9, calls=2), "cpu"),
        ("w8a8", layer("l", rows=5), "cuda:0"),
        ("w4a16", layer("l", inputs=384), "cuda:0"),
    ],
)
def test_layers_that_a_kernel_can_take(scheme: str, unit: Unit, device: str) -> None:
    assert misfit(scheme, unit, Target(device=device, engine="inductor", batch=BATCH)) is None
    assert misfit(scheme, unit, Target(device=device, engine="inductor")) is None


def test_the_kernel_for_8_bit_weights_is_right_where_it_is_not_refused() -> None:
    """On bfloat16 it reads vectors of inputs, and beyond a row that they do not divide."""
    generator = torch.Generator().manual_seed(0)
    for count, inputs, width in itertools.product((1, 3, 9), (16, 48, 80), (1, 5, 32)):
        x = torch.randn(count, inputs, generator=generator)
        weight = torch.randint(-128, 128, (width, inputs), generator=generator, dtype=torch.int8)
        scale = torch.rand(width, generator=generator)
        for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
            ours = torch.ops.aten._weight_int8pack_mm(x.to(dtype), weight, scale.to(dtype)).float()
            exact = x @ (weight * scale[:, None]).T
            assert float((ours - exact).norm() / exact.norm()) < allowed


def test_the_doctor_tells_of_every_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    told = told_by_doctor("cpu")
    assert list(told) == list(SCHEMES)
    assert told["none"] == f"engine: {', '.join(ENGINES)}"
    assert told["w8a8_static"] == "engine: inductor, aot, onnxruntime"
    assert told["w8a8"] == "engine: inductor, aot, onnxruntime, transformers"
    assert (
        told["w8a16"] == "engine: eager, inductor, aot" and "no kernel" in told["w4a16"] and "no kernel" in told["fp8"]
    )


# --- training ---------------------------------------------------------------------------------------------------------


def test_learning_to_be_rounded_wants_training() -> None:
    anatomy = survey(settled(Residual()), ((images(),), {}), ("quantization", "distillation"))
    rule = Quantization(target="head", scheme="w8a8_static", qat=True)
    with pytest.raises(RefusedError, match=r"qat for head, but nothing trains in this policy.*distillation section"):
        Policy({"quantization": (rule,)}).effect(anatomy)
    with pytest.raises(RefusedError, match="qat for head"):
        Policy({"quantization": (rule,), "distillation": (Distillation(epochs=0),)}).effect(anatomy)
    trained = Policy({"quantization": (rule,), "distillation": (Distillation(epochs=1),)}).effect(anatomy)
    assert trained.parts["quantization"] == {"head": "w8a8_static+qat"}


# --- layers that servers fuse -----------------------------------------------------------------------------------------


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    ids = torch.randint(0, 99, (BATCH, 16), generator=torch.Generator().manual_seed(0))
    return BertModel(config, add_pooling_layer=False).eval(), ((), {"input_ids": ids})


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=32,
        use_cache=False,
    )
    ids = torch.randint(0, 99, (BATCH, 16), generator=torch.Generator().manual_seed(0))
    return LlamaForCausalLM(config).eval(), ((), {"input_ids": ids})


def test_queries_keys_and_values_are_one_unit() -> None:
    fused = [unit.members for unit in Quantization.units(*bert())]
    attention = "encoder.layer.0.attention"
    assert (f"{attention}.self.query", f"{attention}.self.key", f"{attention}.self.value") in fused
    assert sorted(map(len, fused)) == [1, 1, 1, 3]
    model = settled(Attention())
    assert [unit.members for unit in Quantization.units(model, ((rows(),), {}))] == [("q", "k", "v"), ("o",), ("head",)]


def test_gate_and_up_are_one_unit() -> None:
    units = Quantization.units(*llama())
    for block in ("model.layers.0", "model.layers.1"):
        inside = [unit for unit in units if unit.block == block]
        assert [tuple(name.rpartition(".")[2] for name in unit.members) for unit in inside] == [
            ("q_proj", "k_proj", "v_proj"),
            ("o_proj",),
            ("gate_proj", "up_proj"),
            ("down_proj",),
        ]
        assert {unit.rows for unit in inside} == {16}  # tokens of an example
        assert inside[0].width == 32  # of the narrowest: two of four heads are shared


@pytest.mark.parametrize("second", [{"scheme": "none"}, {"scheme": "w8a8", "qat": True}, {"scheme": "w8a8_static"}])
def test_rules_that_part_what_is_fused_are_refused(second: Any) -> None:
    units = Quantization.units(*llama())
    rules = [Quantization(target="*gate_proj", scheme="w8a8"), Quantization(target="*", **second)]
    told = r"gate_proj, model\.layers\.0\.mlp\.up_proj depend on each other .* the rules conflict"
    with pytest.raises(RefusedError, match=told):
        Quantization.effect(rules, units)
    effect = Quantization.effect([Quantization(target="*gate_proj", scheme="w8a8")], units)
    assert effect == {f"model.layers.{n}.mlp.{name}_proj": "w8a8" for n in (0, 1) for name in ("gate", "up")}


def test_layers_pruned_to_sizes_that_a_kernel_cannot_take() -> None:
    """The anatomy tells of the model as it was; what is left of it is looked at before it is lowered."""
    model = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5)).eval()
    with pytest.raises(RefusedError, match=r"'w8a16' for 2: .* wants inputs that 16 divides, the layer has 30 and 5"):
        Quantization.lower({"2": "w8a16"}, model, context(((rows(),), {}), []))


# --- what ran ---------------------------------------------------------------------------------------------------------


def product(name: str, precision: Any, macs: int) -> Product:
    return Product(name=name, precision=precision, macs=macs)


def ran(calls: int, macs: int) -> Any:
    return SimpleNamespace(calls=calls, macs=macs)


QCONV, QLINEAR = "onednn::qconv_pointwise", "onednn::qlinear_pointwise"


def test_work_is_compared_with_what_was_planned() -> None:
    layers = {"a": ran(2, 100), "b": ran(1, 50), "c": ran(1, 30)}
    effect = {"a": "w8a8_static+minmax", "b": "bf16"}
    int8 = [product(QCONV, "int8", 100)] * 2
    bf16 = [product("mkldnn::_linear_pointwise", "bfloat16", 50)]
    float32 = [product("mkl::_mkl_linear", "float32", 30)]
    assert check_kernels(effect, layers, [*int8, *bf16, *float32], "cpu") == {
        "a": f"{QCONV} (int8)",
        "b": "mkldnn::_linear_pointwise (bfloat16)",
        "c": "mkl::_mkl_linear (float32)",
    }
    assert check_kernels({}, {}, [], "cpu") == {}
    with pytest.raises(RefusedError, match=r"1 layer calls should run in bfloat16 .* shows 0, with 0%"):
        check_kernels(effect, layers, int8, "cpu")
    with pytest.raises(RefusedError, match=r"2 layer calls should run in int8 .* shows 1, with 50%.*1 x onednn::qconv"):
        check_kernels(effect, layers, [int8[0], *bf16], "cpu")
    with pytest.raises(RefusedError, match=r"shows 0, with 0% .*Kernels seen: none"):
        check_kernels(effect, layers, [], "cpu")


def test_a_small_product_does_not_stand_for_a_large_one() -> None:
    layers = {"large": ran(1, 1000), "small": ran(1, 10)}
    effect = {"large": "w8a8", "small": "w8a8"}
    with pytest.raises(RefusedError, match=r"2 layer calls should run in int8 .* shows 2, with 2%"):
        check_kernels(effect, layers, [product(QLINEAR, "int8", 10)] * 2, "cpu")


def test_schemes_that_share_a_kernel_are_counted_together() -> None:
    layers = {"static": ran(1, 100), "dynamic": ran(1, 100)}
    effect = {"static": "w8a8_static", "dynamic": "w8a8"}
    with pytest.raises(RefusedError, match=r"2 layer calls should run in int8 .* shows 1, with 50%"):
        check_kernels(effect, layers, [product(QLINEAR, "int8", 100)], "cpu")
    for device in ("cpu", "cuda:0"):
        assert road_of("w8a8", device).kernels == road_of("w8a8_static", device).kernels  # type: ignore[union-attr]


def test_layers_that_a_compiler_runs_in_one_kernel() -> None:
    layers = {"q": ran(1, 100), "k": ran(1, 50)}
    effect = {"q": "bf16", "k": "bf16"}
    found = check_kernels(effect, layers, [product("aten::addmm", "bfloat16", 150)], "cuda:0")
    assert found == {"q": "not seen alone", "k": "not seen alone"}
