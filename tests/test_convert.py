"""A bundle in another engine's format; formats that run machine code, which nobody loads by accident."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Residual, images, settled
from quantizing import BATCH, QUIET, needs_int8, quantized
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from autogreen import bundle, comparison
from autogreen.bundle import manifest
from autogreen.cli.app import app
from autogreen.engines import ENGINES, Recipe
from autogreen.errors import BundleError, RefusedError
from autogreen.testing import scripted_results

pytestmark = [*QUIET, needs_int8]
LINEAR_ONLY = {"head": "w8a8_static"}
EVERY = {"stem.0": "w8a8_static", "inner.0": "w8a8_static", "outer.0": "w8a8_static", "head": "w8a8_static"}


def exported(
    folder: Path, model: nn.Module, engine: str, layers: dict[str, str], inputs: Callable[..., torch.Tensor] = images
) -> Path:
    """A bundle as a sweep's export writes it, of scripted figures and a real program."""
    scripted = scripted_results([(0.01, 0.5)])
    evaluation = scripted.trials[0].evaluation
    assert evaluation is not None
    recipe = Recipe(engine=engine, batch=BATCH, threads=1, device="cpu")
    torch.set_num_threads(1)
    place = folder / "artifacts" / evaluation.key
    place.mkdir(parents=True)
    ENGINES[engine].save(model, ((inputs(BATCH),), {}), place)
    save_file({"w": torch.zeros(1)}, place / "weights.safetensors")
    (place / "recipe.json").write_text(json.dumps(asdict(recipe)))
    shutil.copytree(place, folder / "artifacts" / scripted.baseline.key)
    evaluation = replace(evaluation, recipe=recipe, layers=layers)
    baseline = replace(scripted.baseline, recipe=recipe)
    results = replace(scripted, baseline=baseline, trials=(replace(scripted.trials[0], evaluation=evaluation),))
    return bundle.export(
        evaluation, results=results, artifacts=folder / "artifacts", golden=((inputs(16),), {}), to=folder / "bundle"
    )


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


@pytest.fixture(scope="module")
def make(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, str]], Path]:
    made: dict[str, Path] = {}

    def of(effect: dict[str, str]) -> Path:
        if str(effect) not in made:
            graph, layers = quantized(net, effect), dict.fromkeys(effect, "onednn::qlinear_pointwise (int8)")
            made[str(effect)] = exported(tmp_path_factory.mktemp("made"), graph, "inductor", layers)
        return made[str(effect)]

    return of


@pytest.fixture(scope="module")
def converted(make: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {}
    for engine in ("onnxruntime", "aot"):
        to = tmp_path_factory.mktemp(engine) / "new"
        made = bundle.convert(make(LINEAR_ONLY), engine=engine, to=to)
        assert made.folder == to and made.difference <= made.tolerance
        places[engine] = to
    return places


@pytest.mark.parametrize("engine", ["onnxruntime", "aot"])
def test_a_converted_bundle_gives_the_recorded_outputs_and_no_energy(
    engine: str, converted: dict[str, Path], make: Any
) -> None:
    folder = converted[engine]
    found = bundle.read(folder)
    assert found.energy is None and found.converted_from == "inductor" and found.recipe.engine == engine
    assert {kernel.precision for kernel in found.kernels} == {"int8", "float32"} and found.files
    card = (folder / "MODEL_CARD.md").read_text()
    assert "**Energy not measured**" in card and ENGINES[engine].executes in card
    assert ("--trust-native-code" in card) == (engine == "aot")
    program, original = bundle.load(folder, native_code=True), bundle.load(make(LINEAR_ONLY))
    assert torch.allclose(program(images(7)), original(images(7)), atol=1e-2)
    told = bundle.verify(folder, native_code=True)
    assert told.ratio is None and "energy not measured" in told.summary() and told.examples == 16
    with pytest.raises(RefusedError, match=r"converted from 'inductor': energy not measured.*Search with engine"):
        comparison.compare(str(folder), str(folder), runs=folder)


def test_machine_code_of_a_bundle_runs_only_where_that_is_said(converted: dict[str, Path], net: nn.Module) -> None:
    folder = converted["aot"]
    bundle.read(folder)  # what it states can be read
    for refused in (bundle.load, bundle.verify):
        with pytest.raises(BundleError, match=r"not loaded: its format 'aot' runs machine code.*--trust-native-code"):
            refused(folder)
    told = CliRunner().invoke(app, ["verify", str(folder)])
    assert told.exit_code != 0
    told = CliRunner().invoke(app, ["verify", str(folder), "--trust-native-code"])
    assert told.exit_code == 0 and "energy not measured" in told.output


def test_an_exported_package_is_measured_beside_another_only_where_that_is_said(tmp_path: Path, net: nn.Module) -> None:
    from autogreen.entrant import find

    folder = exported(tmp_path, net, "aot", {})
    with pytest.raises(BundleError, match="native_code=True"):
        bundle.load(folder)
    assert bundle.load(folder, native_code=True)(images(3)).shape == (3, 5)
    assert not find(str(folder), tmp_path).native_code and find(str(folder), tmp_path, native_code=True).native_code
    with pytest.raises(RefusedError, match=r"holds the format of 'aot', from which nothing else can be made"):
        bundle.convert(folder, engine="onnxruntime", to=tmp_path / "other")


def test_what_the_target_cannot_carry_is_refused_by_part_and_reason(make: Any, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"int8 convolution \S+ gives float32 results.*search with engine"):
        bundle.convert(make(EVERY), engine="onnxruntime", to=tmp_path / "new")
    with pytest.raises(RefusedError, match=r"eager cannot carry head in int8: .* 0% do there.*simulated"):
        bundle.convert(make(LINEAR_ONLY), engine="eager", to=tmp_path / "new")
    with pytest.raises(RefusedError, match=r"'transformers' takes a model of its own library.*Search with engine"):
        bundle.convert(make(LINEAR_ONLY), engine="transformers", to=tmp_path / "new")
    assert not [*tmp_path.iterdir()]


def test_a_checkpoint_in_a_bundle(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def texts(count: int) -> torch.Tensor:
        return torch.randint(0, 32, (count, 6), generator=torch.Generator().manual_seed(count))

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, use_cache=False, **sizes)).eval()
    folder = exported(tmp_path, model, "transformers", {}, texts)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "model.hf")
    with torch.no_grad():
        torch.testing.assert_close(
            bundle.load(folder)(texts(3))["logits"], plain(texts(3)).logits, rtol=1e-4, atol=1e-5
        )
    assert "a model class of the transformers library" in (folder / "MODEL_CARD.md").read_text()
    (folder / "model.hf" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"holds what the manifest does not name: model\.hf/pytorch_model\.bin"):
        bundle.load(folder)


def test_a_format_whose_library_is_missing(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autogreen.engines import onnxruntime

    monkeypatch.setattr(onnxruntime, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match=r"engine 'onnxruntime': .* is not installed: pip install"):
        bundle.convert(make(LINEAR_ONLY), engine="onnxruntime", to=tmp_path / "new")
    told = CliRunner().invoke(app, ["convert", str(make(LINEAR_ONLY)), "--engine", "onxruntime", "--to", str(tmp_path)])
    assert told.exit_code != 0 and "Did you mean 'onnxruntime'" in str(told.exception)


def test_outputs_that_are_not_the_recorded_ones(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import autogreen.engines

    call = autogreen.engines.Program.__call__
    monkeypatch.setattr(autogreen.engines.Program, "__call__", lambda self, *args, **named: call(self, *args) + 1)
    with pytest.raises(BundleError, match=r"onnxruntime gives other outputs than .*Search with engine: onnxruntime"):
        bundle.convert(make(LINEAR_ONLY), engine="onnxruntime", to=tmp_path / "new")
    assert not [*tmp_path.iterdir()]


def restated(folder: Path, change: Callable[[Any], object]) -> Path:
    data = json.loads((folder / manifest.NAME).read_text())
    del data[manifest.DIGEST]
    change(data)
    (folder / manifest.NAME).write_text(manifest.seal(data))
    return folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"converted_from": None}, "energy stands in every bundle but those that were only converted"),
        ({"converted_from": "nothing"}, "converted from 'nothing', which is no engine"),
    ],
)
def test_a_manifest_without_energy_says_why(
    change: dict[str, Any], told: str, converted: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(converted["onnxruntime"], tmp_path / "copy"))
    with pytest.raises(BundleError, match=told):
        bundle.read(restated(copy, lambda data: data.update(change)))
