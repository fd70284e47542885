"""Every engine: what is loaded equals what was saved, for any number of examples; the file is safe and says nothing
of the machine it was made on."""

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Concatenated, Keywords, Mlp, Residual, Wrapped, images, rows, settled
from torch import Tensor, nn

from autogreen.engines import ENGINES, Program, Recipe, Runtime, exported
from autogreen.errors import BundleError, ConfigError, RefusedError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # torch's ONNX exporter copies its own
]
BATCH = 4


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def masked(count: int, seed: int = 1) -> dict[str, Tensor]:
    return {"values": rows(count, seed), "mask": (rows(count, seed + 1) > 0).float()}


CARRIERS = [
    name for name in ENGINES if name != "transformers"
]  # that one takes models of its library: a file of its own


@pytest.fixture(scope="module", params=CARRIERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, nn.Module]:
    """One program an engine, shared: the compiled ones take seconds."""
    if missing := ENGINES[request.param].missing("cpu"):
        pytest.skip(missing)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # compilers write the number into their code
    model, folder = Keywords().eval(), tmp_path_factory.mktemp(request.param)
    ENGINES[request.param].save(model, ((), masked(BATCH)), folder)
    return Program(folder, Recipe(engine=request.param, batch=BATCH, threads=1, device="cpu")), model


# --- every engine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [BATCH, 1, 3, 5, 9, 3 * BATCH])
def test_what_is_loaded_equals_the_model_for_any_number_of_examples(
    program: tuple[Program, nn.Module], count: int
) -> None:
    loaded, model = program
    inputs = masked(count, seed=count)
    ours = loaded(**inputs)
    with torch.no_grad():
        theirs = model(**inputs)
    assert list(ours) == list(theirs) == ["logits", "norm"]
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_full_batch_runs_without_gradients(program: tuple[Program, nn.Module]) -> None:
    loaded, _ = program
    with torch.enable_grad():
        outputs = loaded.run((), masked(BATCH))
    assert not outputs["logits"].requires_grad and outputs["logits"].shape == (BATCH, 5)


def test_threads_are_those_of_the_recipe(program: tuple[Program, nn.Module]) -> None:
    loaded, _ = program
    torch.set_num_threads(2)
    loaded.run((), masked(BATCH))
    assert torch.get_num_threads() == 1


def test_the_profile_counts_each_matrix_product_once(program: tuple[Program, nn.Module]) -> None:
    loaded, _ = program
    found = loaded.trace(((), masked(BATCH)))
    assert sum(kernel.calls for kernel in found.kernels) == 3 and len(found.products) == 3
    assert found.macs == {"float32": BATCH * (12 * 32 + 32 * 24 + 24 * 5)}
    assert found.peak_bytes is None or 0 < found.peak_bytes < 1_000_000


def test_every_engine_says_what_loading_executes(program: tuple[Program, nn.Module]) -> None:
    engine = ENGINES[program[0].recipe.engine]
    assert len(engine.executes.split()) > 3 and engine.native == ("machine code" in engine.executes)
    assert {path.name.partition(".")[0] for path in program[0].folder.iterdir()} == {"model"}


def test_an_engine_without_its_libraries_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from autogreen.engines import onnxruntime

    monkeypatch.setattr(onnxruntime, "find_spec", lambda name: None)
    told = Runtime.refusal({"engine": "onnxruntime"}, "cpu")
    assert told is not None and "onnxruntime is not installed: pip install 'autogreen[onnx]'" in told
    with pytest.raises(RefusedError, match="pip install"):
        ENGINES["onnxruntime"].save(Mlp().eval(), ((rows(BATCH),), {}), tmp_path)
    assert Runtime.refusal({"engine": "eager"}, "cpu") is None


# --- the shared artifact ----------------------------------------------------------------------------------------------


def saved(folder: Path, model: nn.Module, *inputs: Tensor) -> Path:
    ENGINES["eager"].save(model, (inputs, {}), folder)
    return folder / exported.FILE


def eager(folder: Path, batch: int = BATCH) -> Program:
    return Program(folder, Recipe(engine="eager", batch=batch, threads=1, device="cpu"))


@pytest.mark.parametrize("make", [Residual, Concatenated])
def test_convolutional_networks(make: Any, tmp_path: Path) -> None:
    model = settled(make())
    saved(tmp_path, model, images(BATCH))
    with torch.no_grad():
        torch.testing.assert_close(eager(tmp_path)(images(7)), model(images(7)), rtol=1e-5, atol=1e-5)


def test_a_dataclass_comes_back_as_a_dict(tmp_path: Path) -> None:
    model = Wrapped().eval()
    saved(tmp_path, model, rows(BATCH))
    ours, theirs = eager(tmp_path)(rows(6)), model(rows(6))
    torch.testing.assert_close(ours["logits"], theirs.logits)
    torch.testing.assert_close(ours["hidden"], theirs.hidden)
    assert type(model) is Wrapped  # saving changes a copy


def test_the_model_may_be_on_its_way_through_training(tmp_path: Path) -> None:
    model = nn.Sequential(Mlp(), nn.Dropout(0.9)).train()
    saved(tmp_path, model, rows(BATCH))
    assert model.training
    torch.testing.assert_close(eager(tmp_path)(rows(BATCH)), model[0](rows(BATCH)))


def test_the_file_holds_no_pickle_and_no_trace_of_this_machine(tmp_path: Path) -> None:
    path = saved(tmp_path / "deep" / "folder", settled(Residual()), images(BATCH))
    assert [found.name for found in path.parent.iterdir()] == [exported.FILE]
    words = [str(tmp_path), str(Path(__file__).parent), str(Path.home()), str(Path.cwd()), torch.__path__[0]]
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not any(word.encode() in content for word in words if len(word) > 4), name
            assert b"nets.py" not in content, name
            assert not content.startswith((b"\x80", b"PK")), f"{name} is a pickle"


def test_equal_models_give_equal_contents(tmp_path: Path) -> None:
    model = settled(Residual())
    first, second = (saved(tmp_path / name, model, images(BATCH)) for name in "ab")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        assert {name: one.read(name) for name in one.namelist() if "weights" in name} == {
            name: other.read(name) for name in other.namelist() if "weights" in name
        }


def rewritten(path: Path, change: Any) -> Path:
    """The same archive with entries changed, added (new names) or left out (None)."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)
    return path


class Bomb:
    def __reduce__(self) -> Any:
        return pickle.loads, (pickle.dumps("ran"),)


def bomb() -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    return buffer.getvalue()


def in_sample_inputs(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {name: bomb() if "sample_inputs" in name else content for name, content in entries.items()}


def as_a_weight(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {
        name: content.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else content
        for name, content in entries.items()
    }


def as_an_object(entries: dict[str, bytes]) -> dict[str, bytes]:
    root = next(iter(entries)).partition("/")[0]
    return {**entries, f"{root}/data/constants/opaque_obj_0": bomb()}


def as_old_weights(entries: dict[str, bytes]) -> dict[str, bytes]:
    root = next(iter(entries)).partition("/")[0]
    return {**entries, f"{root}/data/weights/model.pt": bomb()}


def in_the_old_layout(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {
        "version": b"8.14",
        "serialized_exported_program.json": b"{}",
        "serialized_state_dict.pt": bomb(),
        "serialized_constants.pt": bomb(),
        "serialized_example_inputs.pt": bomb(),
    }


@pytest.mark.parametrize(
    "change", [in_sample_inputs, as_a_weight, as_an_object, as_old_weights, in_the_old_layout], ids=lambda f: f.__name__
)
def test_a_crafted_archive_is_refused_before_it_is_loaded(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(saved(tmp_path, Mlp().eval(), rows(BATCH)), change)
    monkeypatch.setattr(torch.export, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))
    for engine in ENGINES:
        with pytest.raises(BundleError):
            ENGINES[engine].load(tmp_path, Recipe(engine=engine, batch=BATCH, threads=1, device="cpu"))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(10)])
def test_a_damaged_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / exported.FILE).write_bytes(content)
    with pytest.raises(BundleError):
        eager(tmp_path)


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = saved(tmp_path, Mlp().eval(), rows(BATCH))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BundleError, match="damaged"):
        eager(tmp_path)


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        eager(tmp_path)


def test_a_model_that_cannot_be_exported_is_refused_by_name(tmp_path: Path) -> None:
    class Moody(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x

    with pytest.raises(RefusedError, match=r"Moody cannot be exported by torch\.export"):
        saved(tmp_path, Moody().eval(), rows(BATCH))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_runtime_names_an_engine() -> None:
    assert Runtime(engine="inductor").engine == "inductor" and Runtime().engine == "eager"
    with pytest.raises(ConfigError, match=r"unknown engine 'induktor'\. Did you mean 'inductor'"):
        Runtime(engine="induktor")


def test_threads_are_set_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, Mlp().eval(), rows(BATCH))
    seen = []
    load = exported.load
    monkeypatch.setattr(exported, "load", lambda *args: (seen.append(torch.get_num_threads()), load(*args))[1])
    torch.set_num_threads(1)
    recipe = Recipe(engine="eager", batch=BATCH, threads=2, device="cpu")
    Program(tmp_path, recipe)
    Program(tmp_path, replace(recipe, threads=1))
    assert seen == [2, 1]


def test_a_fresh_process_knows_the_operators_of_int8_programs() -> None:
    code = """
from pathlib import Path
import torch
from autogreen.engines import exported
from autogreen.errors import BundleError
try:
    exported.load(Path("nowhere"), "cpu")
except BundleError:
    print(torch.ops.quantized_decomposed.quantize_per_tensor)
"""
    import subprocess
    import sys

    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert "quantize_per_tensor" in told.stdout, told.stderr
