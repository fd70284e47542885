"""AOTInductor packages: the kernels that run in them, what they say of this machine, what is refused."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import Residual, images, settled
from quantizing import BATCH, QUIET, build, needs_int8, quantized
from torch import nn

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.engines.aot import Aot
from autogreen.errors import BundleError, RefusedError
from autogreen.techniques.quantization.schemes import check_kernels
from autogreen.techniques.trace import layers

pytestmark = [*QUIET, needs_int8]
MIXED = {"stem.0": "w8a8_static", "outer.0": "w8a8_static", "head": "w8a8"}  # inner.0 stays in float32
EXAMPLE = ((images(BATCH),), {})


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


@pytest.fixture(scope="module")
def program(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A network with convolutions in int8 and in float32, and a linear layer with ranges of the call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(quantized(net, MIXED), EXAMPLE, tmp_path_factory.mktemp("aot"), "aot")
    torch.set_num_threads(before)


def test_int8_layers_run_in_integer_kernels(net: nn.Module, program: Program) -> None:
    found = program.trace(EXAMPLE)
    assert check_kernels(MIXED, layers(net, EXAMPLE), found.products, "cpu", "aot") == {
        "stem.0": "onednn::qconv_pointwise (int8)",
        "outer.0": "onednn::qconv_pointwise (int8)",
        "head": "onednn::qlinear_pointwise (int8)",
        "inner.0": "mkldnn::_convolution_pointwise (float32)",
    }
    assert found.macs == {
        "int8": BATCH * (64 * 27 * 16 + 64 * 216 * 16 + 16 * 5),
        "float32": BATCH * 64 * 144 * 24,
    }
    with torch.no_grad():
        wanted = net(images(7))
    assert float((program(images(7)) - wanted).abs().max() / wanted.abs().max()) < 0.05


def test_the_package_says_nothing_of_this_machine(program: Program) -> None:
    names = sorted(path.name for path in program.folder.iterdir())
    assert names == ["model.json", "model.pt2"]
    words = [str(program.folder), str(Path(__file__).parent), "nets.py", str(Path.cwd()), torch.__path__[0]]
    with zipfile.ZipFile(program.folder / "model.pt2") as archive:
        assert not any(name.endswith(".cpp") for name in archive.namelist())
        contents = [archive.read(name) for name in archive.namelist()]
    for content in (*contents, (program.folder / "model.json").read_bytes()):
        assert not any(word.encode() in content for word in words)


def test_it_loads_in_a_process_without_torchao(program: Program) -> None:
    import subprocess
    import sys

    code = f"""
import sys, torch
sys.modules["torchao"] = None
run = torch._inductor.aoti_load_package({str(program.folder / "model.pt2")!r})
print(tuple(run(torch.zeros({BATCH}, 3, 8, 8)).shape))
"""
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert told.stdout.strip().endswith(f"({BATCH}, 5)"), told.stderr


def test_threads_in_the_code_must_be_those_of_the_recipe(program: Program) -> None:
    with pytest.raises(BundleError, match=r"compiled for 1 thread\(s\), and its recipe says 2"):
        Aot.load(program.folder, replace(program.recipe, threads=2))


def copied(program: Program, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in program.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_calls_that_no_profile_shows_are_no_calls(program: Program, tmp_path: Path) -> None:
    folder = copied(program, tmp_path)
    told = json.loads((folder / "model.json").read_text())
    told["products"].append(told["products"][0])
    (folder / "model.json").write_text(json.dumps(told))
    forged = Program(folder, program.recipe)
    with pytest.raises(RefusedError, match=r"wrote 3 calls of onednn::qconv_pointwise, a profile .* shows 2"):
        forged.trace(EXAMPLE)


@pytest.mark.parametrize("name", ["data/aotinductor/model/../../evil.so", "data/weights/x.pt", "data/sample_inputs/m"])
def test_a_crafted_package_is_refused_before_it_is_loaded(
    name: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(program, tmp_path)
    with zipfile.ZipFile(folder / "model.pt2", "a") as archive:
        archive.writestr(f"model/{name}", b"x")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(BundleError, match="which no export of autogreen writes"):
        Program(folder, program.recipe)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"threads": "1", "products": []}', '{"threads": 1, "products": [{"name": 1}]}', "[" * 100_000],
    ids=["empty", "list", "text", "fields", "deep"],
)
def test_a_damaged_list_of_calls(content: str, program: Program, tmp_path: Path) -> None:
    folder = copied(program, tmp_path)
    (folder / "model.json").write_text(content)
    with pytest.raises(BundleError, match=r"model\.json is damaged"):
        Aot.inspect(folder)
    (folder / "model.json").unlink()
    with pytest.raises(BundleError, match=r"model\.json is missing"):
        Aot.inspect(folder)


def test_what_the_compiler_cannot_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(RefusedError, match=r"Linear cannot be compiled by AOTInductor \(RuntimeError: no compiler\)"):
        ENGINES["aot"].save(nn.Linear(12, 5), ((torch.zeros(BATCH, 12),), {}), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_recipe_with_two_threads_runs_a_package_of_two(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ENGINES["aot"].save(nn.Linear(12, 5).eval(), ((torch.zeros(BATCH, 12),), {}), tmp_path)
        recipe = Recipe(engine="aot", batch=BATCH, threads=2, device="cpu")
        assert Program(tmp_path, recipe)(torch.zeros(3, 12)).shape == (3, 5)
    finally:
        torch.set_num_threads(before)
