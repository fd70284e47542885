"""Serving: a real server on the registered model, a process without autogreen, the documented lines of Python."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_bundle import Study, artifact, inputs, network, original, study
from torch import Tensor, nn

from autogreen import bundle
from autogreen.bundle.read import examples
from autogreen.bundle.service import Service
from autogreen.engines import ENGINES, Recipe
from autogreen.errors import BundleError, ConfigError
from autogreen.tracking import models

__all__ = ["original", "study"]  # fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
ROOT = Path(__file__).parent.parent
# What autogreen depends on and serving does not.
NOT_SERVED = ("autogreen", "optuna", "torch_pruning", "pynvml", "plotly", "typer", "psutil")


class Reader(nn.Module):
    """Token ids and a mask by name, a flag by default; a dict comes back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.words, self.head = nn.Embedding(1000, 32), nn.Linear(32, 5)

    def forward(self, ids: Tensor, mask: Tensor, scaled: bool = True) -> dict[str, Tensor]:
        found = (self.words(ids) * mask[..., None]).sum(1)
        logits = self.head(found / mask.sum(1, keepdim=True) if scaled else found)
        return {"logits": logits, "best": logits.argmax(-1), "half": logits.to(torch.bfloat16)}


def texts(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 1000, (rows, 12), generator=chance)
    return ids, (torch.rand(rows, 12, generator=chance) > 0.3).float().index_fill_(1, torch.tensor([0]), 1.0)


def alone(study: Study, folder: Path, model: nn.Module, given: Any, engine: str) -> Path:
    """A bundle of a model that is its own reference."""
    recipe = Recipe(engine=engine, batch=8, threads=1, device="cpu")
    evaluation = replace(study.evaluation, recipe=recipe, ratio=None)
    ENGINES[engine].save(model, given, folder / "artifacts" / evaluation.key)
    (folder / "artifacts" / evaluation.key / "recipe.json").write_text("{}")
    weights = study.artifacts / study.evaluation.key / "weights.safetensors"
    shutil.copy(weights, folder / "artifacts" / evaluation.key)
    return study.export(folder / "bundle", evaluation=evaluation, artifacts=folder / "artifacts", golden=given)


@pytest.fixture(scope="module")
def reader(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids, mask = texts(8)
    given = ((ids,), {"mask": mask, "scaled": True})
    return alone(study, tmp_path_factory.mktemp("reader"), Reader().eval(), given, "inductor")


@pytest.fixture(scope="module")
def registered(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of the registered version lie."""
    uri = models.address(None, tmp_path_factory.mktemp("runs"))
    found = models.register(reader, "reader", uri=uri)
    with models.server(uri) as client:
        return Path(client.get_model_version("reader", found.number).source.removeprefix("file://"))


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(registered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = ["models", "serve", "-m", str(registered), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where uvicorn is
    environment = {**os.environ, "PATH": path, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment.pop("PYTHONPATH", None)
    with (
        log.open("w") as told,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=log.parent,
            env=environment,
            stdout=told,
            stderr=told,
            start_new_session=True,
        ) as process,
    ):
        try:
            until = time.monotonic() + 180
            while not up(f"http://127.0.0.1:{port}/ping"):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def ask(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as found:
        return json.loads(found.read())["predictions"]


def test_fifty_requests_of_any_size_get_the_models_outputs(server: str, reader: Path) -> None:
    model, tolerance = Reader().eval(), bundle.read(reader).golden.tolerance
    for seed in range(50):
        ids, mask = texts(1 + seed % 19, seed)
        found = ask(server, {"inputs": {"arg0": ids.tolist(), "mask": mask.tolist()}})
        with torch.no_grad():
            wanted = model(ids, mask)
        assert set(found) == {"logits", "best", "half"}
        apart = (torch.tensor(found["logits"]) - wanted["logits"]).abs().max() / wanted["logits"].abs().max()
        assert apart <= tolerance and found["best"] == wanted["best"].tolist()


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"arg0": [[1] * 12]}},
        {"inputs": {"arg0": [[1] * 12], "mask": [[1.0] * 11]}},
        {"inputs": {"arg0": [[1] * 12], "mask": [[1.0] * 12] * 2}},
        {"inputs": {"arg0": [["x"] * 12], "mask": [[1.0] * 12]}},
        {"inputs": [[1.0] * 12]},
        {"what": 1},
    ],
)
def test_a_wrong_request_is_the_callers_mistake_and_the_server_lives_on(server: str, body: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as told:
        ask(server, body)
    assert told.value.code == 400
    assert len(ask(server, {"inputs": {"arg0": [[1] * 12], "mask": [[1.0] * 12]}})["best"]) == 1


# --- processes without autogreen --------------------------------------------------------------------------------------

BARE = f"""
import importlib.abc, importlib.util, sys
class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_SERVED} and not any("/code" in place for place in sys.path[:3]):
            raise ModuleNotFoundError(name)
        if name.partition(".")[0] in {NOT_SERVED[1:]}:
            raise ModuleNotFoundError(name)
sys.meta_path = [Bare(), *(one for one in sys.meta_path if "editable" not in repr(one))]
try:
    import autogreen
except ModuleNotFoundError:
    pass
else:
    sys.exit("autogreen is here")
"""


def bare(code: str, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-P", "-c", BARE + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_the_registered_model_needs_no_autogreen_where_it_serves(
    registered: Path, reader: Path, tmp_path: Path
) -> None:
    (golden, kwargs), outputs = examples(reader, bundle.read(reader))
    save_file({"arg0": golden[0].numpy(), "mask": kwargs["mask"].numpy()}, tmp_path / "given.safetensors")
    code = f"""
import os
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
import mlflow
from safetensors.numpy import load_file, save_file
model = mlflow.pyfunc.load_model({str(registered)!r})
found = model.predict(load_file("given.safetensors"))
save_file(found, "found.safetensors")
import autogreen
print(autogreen.__file__)
"""
    told = bare(code, tmp_path)
    assert str(registered / "code" / "autogreen") in told
    found = load_file(tmp_path / "found.safetensors")
    assert np.allclose(found["logits"], outputs["logits"], atol=1e-5) and found["half"].dtype == np.float32
    assert np.array_equal(found["best"], outputs["best"]) and found["best"].dtype == np.int64


def snippet() -> str:
    (found,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert "import autogreen" not in found
    return found


def test_the_documented_lines_load_a_bundle(study: Study, tmp_path: Path) -> None:
    model, given = network(16), inputs(8)
    alone(study, tmp_path, model, given, "eager")  # both engines share the archive, and these lines compile it
    torch.save(given[0][0], tmp_path / "inputs.pt")
    code = f"import torch\ninputs = torch.load('inputs.pt')\n{snippet()}\ntorch.save(outputs, 'outputs.pt')\n"
    bare(code, tmp_path)
    assert torch.allclose(torch.load(tmp_path / "outputs.pt"), model(*given[0]), atol=1e-5)
    with (tmp_path / "bundle" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(AssertionError, match=r"AssertionError: weights\.safetensors"):  # of that process
        bare(code, tmp_path)


# --- arrays by name ---------------------------------------------------------------------------------------------------


def test_what_a_caller_sees(reader: Path) -> None:
    service = Service(reader)
    seen = {slot.name: (slot.dtype, slot.shape) for slot in service.interface.inputs}
    assert seen == {"arg0": ("int64", (-1, 12)), "mask": ("float32", (-1, 12))}
    outputs = {slot.name: slot.dtype for slot in service.interface.outputs}
    assert outputs == {"logits": "float32", "best": "int64", "half": "float32"}
    given = service.interface.examples(3)
    assert {name: len(value) for name, value in given.items()} == {"arg0": 3, "mask": 3}
    assert {name: len(value) for name, value in service(given).items()} == {"logits": 3, "best": 3, "half": 3}
    ids, mask = given["arg0"], given["mask"]
    for wrong, told in (
        ({"arg0": ids}, "takes arg0, mask; it was given arg0"),
        (ids, "takes arg0, mask; it was given one array"),
        ({"arg0": ids.astype("int32"), "mask": mask}, "arg0 must be int64"),
        ({"arg0": ids[:, :5], "mask": mask}, r"shape \[-1, 12\]"),
        ({"arg0": ids[:2], "mask": mask}, r"one number of examples, at least 1; given were \[2, 3\]"),
        ({"arg0": ids[:0], "mask": mask[:0]}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            service(wrong)


def test_a_service_that_would_answer_wrongly_does_not_start(original: Path, tmp_path: Path) -> None:
    from test_bundle import seal

    shutil.copytree(original, tmp_path / "copy")
    artifact(tmp_path / "other", network(256, seed=1), Recipe(engine="eager", batch=32, threads=1, device="cpu"))
    shutil.copy(tmp_path / "other" / "model.pt2", tmp_path / "copy" / "model.pt2")
    with pytest.raises(BundleError, match=r"changed after the export|bytes; the manifest says"):
        Service(tmp_path / "copy")
    with pytest.raises(BundleError, match="other outputs here than recorded"):
        Service(seal(tmp_path / "copy"))
