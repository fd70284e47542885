"""Checkpoints of the transformers library: a plain loader gives what was measured; what none describes is refused."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import bert
from quantizing import BATCH, QUIET, context
from safetensors.torch import load_file
from torch import Tensor, nn

from autogreen.engines import ENGINES, Program, Recipe, artifact_bytes
from autogreen.errors import BundleError, RefusedError
from autogreen.techniques import Target
from autogreen.techniques.precision import Precision
from autogreen.techniques.pruning.blocks import skip
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.schemes import check_kernels, missing_kernel
from autogreen.techniques.trace import layers

transformers = pytest.importorskip("transformers")
pytestmark = QUIET
FOLDER = "model.hf"


def texts(count: int = BATCH, seed: int = 1, vocabulary: int = 32) -> Tensor:
    return torch.randint(5, vocabulary, (count, 16), generator=torch.Generator().manual_seed(seed))


def decoder(**sizes: Any) -> nn.Module:
    from autogreen.tasks.decoding import ATTENTION, Scoring

    torch.manual_seed(0)
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, **{**settings, **sizes})
    return Scoring(transformers.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)).eval()


def classifier(folder: Path) -> nn.Module:
    from autogreen.tasks.huggingface import Classifier

    found = transformers.AutoModelForSequenceClassification.from_pretrained(bert(folder / "source"))
    return Classifier(found).eval()


def lowered(model: nn.Module, effect: dict[str, str], dtype: str = "", device: str = "cpu") -> nn.Module:
    around = context(((texts().to(device),), {}), [], engine="transformers", device=device)
    model = copy.deepcopy(model)
    if dtype:
        model = Precision.lower({"dtype": dtype}, model, around)
    return Quantization.lower(effect, model, around)


def built(model: nn.Module, folder: Path, device: str = "cpu", **named: Tensor) -> Program:
    example: Any = ((), named) if named else ((texts().to(device),), {})
    ENGINES["transformers"].save(model, example, folder)
    program = Program(folder, Recipe(engine="transformers", batch=BATCH, threads=1, device=device))
    program.run(*example)
    return program


def test_a_plain_loader_gives_what_was_measured(tmp_path: Path) -> None:
    model = decoder()
    program = built(model, tmp_path)
    for count in (1, BATCH, 6):
        with torch.no_grad():
            torch.testing.assert_close(program(texts(count)), model(texts(count)), rtol=1e-4, atol=1e-5)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / FOLDER)
    with torch.no_grad():
        torch.testing.assert_close(plain(texts()).logits, model.lm(texts()).logits, rtol=1e-4, atol=1e-5)
    assert artifact_bytes(tmp_path) == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert program.trace(((texts(),), {})).macs["float32"] > 0


def test_quantized_layers_stand_in_the_checkpoint_and_run_in_integers(tmp_path: Path) -> None:
    if reason := missing_kernel("w8a8", device="cpu", engine="transformers"):
        pytest.skip(reason)
    model = decoder()
    effect = {name: "w8a8" for name in layers(model, ((texts(),), {})) if "_proj" in name and "layers.1" in name}
    program = built(lowered(model, effect), tmp_path)
    example = ((texts(),), {})
    found = program.trace(example)
    told = check_kernels(effect, layers(model, example), found.products, "cpu", "transformers")
    assert {told[name] for name in effect} == {"aten::_int_mm (int8)"} and len(effect) == 7
    assert told["lm.model.layers.0.mlp.up_proj"] == "aten::mm (float32)"
    weights = load_file(tmp_path / FOLDER / "model.safetensors")
    assert sum(leaf.dtype == torch.int8 and min(leaf.shape) > 1 for leaf in weights.values()) == 7
    code = f"""
import json, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / FOLDER)!r})
ids = torch.tensor({texts().tolist()})
with torch.no_grad():
    print(json.dumps([type(model.model.layers[1].mlp.up_proj.weight).__name__, model(ids).logits[0, 0].tolist()]))
"""
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    kind, logits = json.loads(told.stdout.strip().splitlines()[-1])
    with torch.no_grad():
        wanted = model.lm(texts()).logits[0, 0]
    assert kind == "Int8Tensor"
    assert float((torch.tensor(logits) - wanted).abs().max() / wanted.abs().max()) < 0.05


def test_one_data_type_for_the_whole_checkpoint(tmp_path: Path) -> None:
    if reason := Precision.refusal({"dtype": "bf16"}, (), Target(device="cpu", engine="transformers")):
        pytest.skip(reason)
    model = decoder()
    program = built(lowered(model, {}, "bf16"), tmp_path)
    assert json.loads((tmp_path / FOLDER / "config.json").read_text())["dtype"] == "bfloat16"
    ours = program(texts())
    with torch.no_grad():
        assert ours.dtype == torch.float32 and float((ours - model(texts())).abs().max()) < 0.1
    assert set(program.trace(((texts(),), {})).macs) == {"bfloat16"}


@pytest.mark.parametrize("scheme", ["bf16", "w8a8_static", "w8a16", "w4a16", "fp8"])
def test_schemes_that_no_checkpoint_carries_here_are_refused(scheme: str) -> None:
    reason = Quantization.refusal({"a": scheme}, (), Target(device="cpu", engine="transformers"))
    assert reason is not None and f"scheme {scheme!r} for a: " in reason


def narrowed(model: nn.Module, which: tuple[int, ...]) -> nn.Module:
    for place in which:
        layer = model.get_submodule(f"lm.bert.encoder.layer.{place}")
        layer.intermediate.dense, layer.output.dense = nn.Linear(32, 48), nn.Linear(48, 32)  # type: ignore[union-attr]
    return model


def masked(count: int = BATCH) -> dict[str, Tensor]:
    return {"input_ids": texts(count), "attention_mask": torch.ones(count, 16, dtype=torch.long)}


def test_a_pruned_encoder_with_one_width_and_its_tokenizer(tmp_path: Path) -> None:
    model = narrowed(classifier(tmp_path), (0, 1))
    skip(model, "lm.bert.encoder.layer.0", 0)
    program = built(model, tmp_path / "out", **masked())
    with torch.no_grad():
        torch.testing.assert_close(program(**masked(3)), model(**masked(3)), rtol=1e-4, atol=1e-5)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / FOLDER)
    assert loaded.config.intermediate_size == 48 and loaded.config.num_hidden_layers == 1
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / FOLDER).pad_token == "[PAD]"
    for path in (tmp_path / "out" / FOLDER).glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_biases_of_quantized_layers_stay_as_they_are(tmp_path: Path) -> None:
    if reason := missing_kernel("w8a8", device="cpu", engine="transformers"):
        pytest.skip(reason)
    model, example = classifier(tmp_path), ((), masked())
    effect = {name: "w8a8" for name in layers(model, example) if name.endswith("intermediate.dense")}
    around = context(example, [], engine="transformers")
    program = built(Quantization.lower(effect, copy.deepcopy(model), around), tmp_path / "out", **masked())
    told = check_kernels(effect, layers(model, example), program.trace(example).products, "cpu", "transformers")
    assert {told[name] for name in effect} == {"aten::_int_mm (int8)"} and len(effect) == 2
    with torch.no_grad():
        wanted = model(**masked(3))
    assert float((program(**masked(3)) - wanted).abs().max() / wanted.abs().max()) < 0.05
    bias = "bert.encoder.layer.0.intermediate.dense.bias"
    assert load_file(tmp_path / "out" / FOLDER / "model.safetensors")[bias].dtype == torch.float32


def test_what_a_plain_config_cannot_describe_is_refused_by_layer_and_width(tmp_path: Path) -> None:
    model = narrowed(classifier(tmp_path), (1,))
    with pytest.raises(
        RefusedError,
        match=r"cannot describe bert\.encoder\.layer\.1\.intermediate\.dense\.weight: it is "
        r"48 x 32, a BertForSequenceClassification of this config has 64 x 32 there",
    ):
        built(model, tmp_path / "out", **masked())


def test_what_is_no_model_of_the_library_is_refused(tmp_path: Path) -> None:
    from autogreen.tasks.decoding import Decoding

    for model in (nn.Linear(3, 4), Decoding(decoder().lm, texts())):  # type: ignore[arg-type]
        with pytest.raises(RefusedError, match=r"is no model of the transformers library, nor one of Classifier, Enc"):
            ENGINES["transformers"].save(model, ((texts(),), {}), tmp_path / "out")
    own = type("Mine", (transformers.LlamaForCausalLM,), {"__module__": "mine"})(decoder().lm.config)
    with pytest.raises(RefusedError, match="Mine is code of its own"):
        ENGINES["transformers"].save(own, ((texts(),), {}), tmp_path / "out")


# --- crafted folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ENGINES["transformers"].save(decoder(), ((texts(),), {}), tmp_path)
    return tmp_path


def refused(folder: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded")
    )
    with pytest.raises(BundleError, match=told):
        Program(folder, Recipe(engine="transformers", batch=BATCH, threads=1, device="cpu"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "modeling_x.py", "adapter_config.json", "a/config.json"]
)
def test_only_safetensors_and_json(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / FOLDER / name).parent.mkdir(exist_ok=True)
    (saved / FOLDER / name).write_bytes(b"x")
    refused(saved, "neither safetensors nor a known JSON file", monkeypatch)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"auto_map": {"AutoModel": "evil--repo.Model"}}, "states 'auto_map', which runs code"),
        ({"text_config": {"auto_map": {"AutoConfig": "x.Y"}}}, "states 'auto_map'"),
        ({"attn_implementation": "evil/kernels"}, "wants the attention 'evil/kernels'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "wants to be quantized by 'gptq'"),
        (
            {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "EvilConfig"}}}},
            r"quantized by 'torchao' \(EvilConfig\)",
        ),
        ({"architectures": ["Evil"]}, "names the class 'Evil'"),
        ({"architectures": ["pipeline"]}, "names the class 'pipeline'"),
    ],
)
def test_a_crafted_config(change: dict[str, Any], told: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved / FOLDER / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(saved, told, monkeypatch)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"wrapper": "os:system"}', '{"wrapper": 1}', " " * 2000])
def test_a_crafted_wrapper(content: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "model.json").write_text(content)
    refused(saved, r"model\.json is damaged", monkeypatch)


@pytest.mark.parametrize("content", ["", "[]", '{"a":' * 100_000])
def test_a_damaged_config(content: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / FOLDER / "config.json").write_text(content)
    refused(saved, r"config\.json is damaged", monkeypatch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
def test_torchao_layers_on_a_gpu(scheme: str, tmp_path: Path) -> None:
    if reason := missing_kernel(scheme, device="cuda:0", engine="transformers"):
        pytest.skip(reason)
    model = decoder(hidden_size=256, intermediate_size=512).to("cuda:0")
    example = ((texts().to("cuda:0"),), {})
    effect = {name: scheme for name in layers(model, example) if "mlp" in name}
    ENGINES["transformers"].save(lowered(model, effect, "bf16", "cuda:0"), example, tmp_path)
    recipe = Recipe(engine="transformers", batch=BATCH, threads=1, device="cuda:0")
    program = Program(tmp_path, recipe)
    for _ in range(2):
        found = program.run(*example).clone()
    with torch.no_grad():
        assert float((found - model(*example[0])).abs().max()) < 0.2
    ran = program.trace(example).products
    told = check_kernels(effect, layers(model, example), ran, "cuda:0", "transformers")
    kernel = {"w8a8": "aten::_int_mm", "fp8": "aten::_scaled_mm"}[scheme]
    assert all(told[name].startswith(kernel) for name in effect), told
