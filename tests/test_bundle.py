"""Bundles: written whole or not at all, checked before they are opened, and held to what they promise."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from autogreen import bundle, hardware
from autogreen.bundle import golden, manifest, worker, write
from autogreen.engines import ENGINES, Kernel, Precision, Program, Recipe
from autogreen.engines.archive import refuse_code
from autogreen.errors import BundleError, NotConclusiveError
from autogreen.evaluation import Evaluation, Published
from autogreen.measure import measure_beside
from autogreen.measurement import Beside, Interval, Measurement, Protocol, Window
from autogreen.meters import Reading, choose
from autogreen.repeatability import at_least, half_width
from autogreen.results import Results
from autogreen.tasks import trees
from autogreen.testing import scripted_evaluation, scripted_results

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

QUICK = Protocol(warmup_s=0.05, window_s=0.05, min_windows=4, max_windows=4, target_relative=1.0, foreign_limit=100)
BATCH = 32


def network(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8)).eval()


def inputs(rows: int = 40) -> Any:
    return (torch.randn(rows, 64, generator=torch.Generator().manual_seed(0)),), {}


def artifact(folder: Path, model: nn.Module, recipe: Recipe) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    ENGINES[recipe.engine].save(model, inputs(recipe.batch), folder)
    save_file(model.state_dict(), folder / "weights.safetensors")
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))


@dataclass(frozen=True)
class Study:
    """A measured candidate beside its reference, as a sweep leaves them."""

    evaluation: Evaluation
    results: Results
    artifacts: Path

    def export(self, to: Path, **changed: Any) -> Path:
        return bundle.export(
            changed.pop("evaluation", self.evaluation),
            **{"results": self.results, "artifacts": self.artifacts, "golden": inputs(), "to": to, **changed},
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    artifacts = tmp_path_factory.mktemp("study") / "artifacts"
    scripted = scripted_results([(0.01, 0.5)])
    candidate, reference = scripted.trials[0].evaluation, scripted.baseline
    assert candidate is not None
    recipe = Recipe(engine="eager", batch=BATCH, threads=1, device="cpu")
    bigger = Recipe(engine="eager", batch=2 * BATCH, threads=1, device="cpu")
    programs = []
    for key, width, one in ((candidate.key, 256, recipe), (reference.key, 1024, bigger)):
        artifact(artifacts / key, network(width), one)
        programs.append((Program(artifacts / key, one), inputs(one.batch)))
    (program, given), (other, theirs) = programs
    meter = choose("cpu", "estimate")
    beside = measure_beside(
        lambda: program.run(*given),
        lambda: other.run(*theirs),
        items=recipe.batch,
        reference_items=bigger.batch,
        meter=meter,
        protocol=QUICK,
    )
    evaluation = replace(
        candidate,
        recipe=recipe,
        measurement=beside.candidate,
        ratio=beside.ratio,
        kernels=(Kernel(name="aten::addmm", precision="float32", calls=2),),
    )
    results = replace(
        scripted,
        experiment={"protocol": asdict(QUICK), "meter": {"name": "estimate"}},
        hardware=hardware.describe("cpu"),
        boundary=meter.boundary,
        baseline=replace(reference, recipe=bigger, measurement=beside.reference),
        trials=(replace(scripted.trials[0], evaluation=evaluation),),
    )
    return Study(evaluation, results, artifacts)


@pytest.fixture(scope="module")
def original(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.export(tmp_path_factory.mktemp("bundles") / "original")


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def stated(folder: Path) -> Any:
    data = json.loads((folder / manifest.NAME).read_text())
    del data[manifest.DIGEST]
    return data


def seal(folder: Path, change: Callable[[Any], object] = lambda data: None) -> Path:
    """What one who knows the format can do: change what it says, and make every hash fit again."""
    data = stated(folder)
    for name in data["files"]:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            data["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(data)
    (folder / manifest.NAME).write_text(manifest.seal(data))
    return folder


def put(path: tuple[Any, ...], value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_bundle_holds_what_it_names_and_states_its_numbers(original: Path, study: Study) -> None:
    names = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
    expected = {"policy.yaml", "model.pt2", "weights.safetensors", "golden.safetensors", "MODEL_CARD.md"}
    assert names == expected | {"manifest.json", "reference/model.pt2", "reference/recipe.json"}
    found = bundle.read(original)
    assert found.energy.ratio == study.evaluation.ratio and found.energy.tier == "estimated"
    assert found.energy.ratio_prediction == bundle.prediction(found.energy.ratio)
    assert found.energy.protocol.min_windows == found.energy.windows == 4
    assert found.energy.meter == {"name": "estimate"}
    assert found.validation.quality_loss == study.evaluation.loss and found.test is None
    assert found.golden.examples == 40 and found.golden.tolerance == golden.TOLERANCES["float32"]
    assert found.versions.torch == torch.__version__
    card = (original / "MODEL_CARD.md").read_text()
    assert "estimated" in card and "who made it" in card and "program(arg0)" in card
    assert "layer0" in (original / "policy.yaml").read_text()


def test_joules_are_divided_by_the_items_that_the_search_counted(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a text that is read at once an item is a token, and a batch has many more of them than examples."""
    ours, theirs = study.evaluation.measurement, study.results.baseline.measurement
    assert ours is not None and theirs is not None
    baseline = replace(study.results.baseline, measurement=replace(theirs, items_per_call=2 * BATCH * 16))
    evaluation = replace(study.evaluation, measurement=replace(ours, items_per_call=BATCH * 16))
    folder = study.export(tmp_path / "b", evaluation=evaluation, results=replace(study.results, baseline=baseline))
    asked: dict[str, Any] = {}

    def note(*args: Any, **settings: Any) -> Any:
        asked.update(settings)
        return beside_others(8, 0), ()

    monkeypatch.setattr(worker, "measure_programs", note)
    worker.check(
        seal(folder, put(("energy", "ratio_prediction"), {"mean": 0.1, "low": 0.05, "high": 0.2})), QUICK, None
    )
    assert (asked["items"], asked["reference_items"]) == (BATCH * 16, 2 * BATCH * 16)


def test_the_card_tells_which_kernel_ran_which_layer(study: Study, original: Path, tmp_path: Path) -> None:
    layers = {"0": "aten::addmm (float32)", "2": "onednn::qlinear (int8)", "4": "aten::addmm (float32)"}
    folder = study.export(tmp_path / "b", evaluation=replace(study.evaluation, layers=layers))
    assert bundle.read(folder).layers == layers
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| aten::addmm (float32) | 2 | `0`, `4` |" in card and "| onednn::qlinear (int8) | 1 | `2` |" in card
    assert "## Kernels" not in (original / "MODEL_CARD.md").read_text()


def test_published_numbers_replace_those_of_the_search(study: Study, tmp_path: Path) -> None:
    ratio, quality = Interval(mean=0.3, low=0.29, high=0.31), Interval(mean=0.9, low=0.8, high=0.95)
    measurement = study.evaluation.measurement
    assert measurement is not None
    fresh = Published(key=study.evaluation.key, test=quality, test_loss=quality, ratio=ratio, measurement=measurement)
    folder = study.export(tmp_path / "b", results=replace(study.results, published={fresh.key: fresh}))
    found = bundle.read(folder)
    assert found.energy.ratio == ratio and found.test is not None and found.test.quality == quality


def test_other_forms_of_the_energy_stand_beside_it(study: Study, tmp_path: Path) -> None:
    measurement = study.evaluation.measurement
    assert measurement is not None
    evaluation = replace(study.evaluation, measurement=replace(measurement, idle_w=0.5), times_above_floor=7.0)
    carbon = {"g_per_kwh": 360, "source": "a grid | its operator, 2025"}
    results = replace(study.results, experiment={**study.results.experiment, "carbon": carbon})
    folder = study.export(tmp_path / "b", evaluation=evaluation, results=results)
    energy = bundle.read(folder).energy
    joules, latency_s = energy.per_item_j.mean, energy.latency_s.mean
    assert energy.net_per_item_j is not None
    assert energy.net_per_item_j.mean == pytest.approx(joules - 0.5 * latency_s / BATCH) and energy.idle_w == 0.5
    assert energy.per_item_wh == pytest.approx(joules / 3600) and energy.times_above_floor == 7
    assert energy.energy_delay_js == pytest.approx(joules * BATCH * latency_s)
    assert energy.emission_per_item_g == pytest.approx(joules * 1e-4) and energy.carbon is not None
    card = (folder / "MODEL_CARD.md").read_text()
    for said in ("watt-hours per", "at rest (0.5 W)", "joule-seconds", "360 gCO2e/kWh (a grid \\| its operator, 2025)"):
        assert said in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1  # no value breaks the table


def test_what_is_not_known_of_the_energy_is_not_told(original: Path) -> None:
    energy = bundle.read(original).energy
    assert energy.net_per_item_j is energy.emission_per_item_g is energy.carbon is energy.times_above_floor is None
    card = (original / "MODEL_CARD.md").read_text()
    assert "the device at rest" not in card and "CO2" not in card and "least that the work" not in card


def test_the_card_says_how_to_load(original: Path) -> None:
    program = bundle.load(original)
    given = inputs(7)
    wanted = network(256)(*given[0])
    assert torch.allclose(program(*given[0]), wanted, atol=1e-5)


def test_no_build_paths_no_pickles_no_dead_weights(original: Path) -> None:
    here, home = str(Path(__file__).parents[1]).encode(), str(Path.home()).encode()
    parts = {path.name: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    for archive in original.rglob("*.pt2"):
        with zipfile.ZipFile(archive) as opened:
            parts |= {f"{archive}:{name}": opened.read(name) for name in opened.namelist()}
    for name, content in parts.items():
        assert here not in content and home + b"/" not in content, name
        assert not (name.endswith((".pt", ".pkl")) and content), name
        assert not content.startswith(b"\x80"), f"{name} starts as a pickle does"
    weights = sum(leaf.numel() * 4 for leaf in network(256).state_dict().values())
    assert (original / "model.pt2").stat().st_size < 1.5 * weights


def test_prediction_is_wider_than_the_interval_and_never_narrower_than_drift() -> None:
    wide = bundle.prediction(Interval(mean=0.5, low=0.4, high=0.625))
    assert wide.low == pytest.approx(0.5 * 0.8 ** (2**0.5)) and wide.high == pytest.approx(0.5 * 1.25 ** (2**0.5))
    narrow = bundle.prediction(Interval(mean=0.5, low=0.499, high=0.501))
    assert narrow.high == pytest.approx(0.5 * (1 + manifest.DRIFT)) and narrow.low == pytest.approx(0.5 / 1.1)


def test_a_prediction_is_as_wide_as_the_study_could_not_repeat_itself() -> None:
    """The limit of repeatability with t(3) = 3.182 and t(8) = 2.306, as tables have them."""
    ratio = Interval(mean=0.5, low=0.49, high=0.51)

    def prediction(*differences: float) -> Interval:
        return bundle.prediction(at_least(ratio, half_width(differences)))

    found = prediction(0.2, -0.2, 0.2)
    assert found.high == pytest.approx(0.5 * math.exp(3.182 * 0.2), rel=1e-3)
    assert found.low == pytest.approx(0.5 * math.exp(-3.182 * 0.2), rel=1e-3)
    assert prediction(*(0.1,) * 8).high == pytest.approx(0.5 * math.exp(2.306 * 0.1), rel=1e-3)
    assert prediction(0.2, 0.2) == prediction(*(0.001,) * 8) == bundle.prediction(ratio)


def test_importing_loads_no_torch() -> None:
    code = "import autogreen.bundle, sys; assert 'torch' not in sys.modules and 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- all or nothing ---------------------------------------------------------------------------------------------------


def nothing_left(folder: Path) -> bool:
    return not any(folder.iterdir())


def test_an_existing_bundle_is_not_overwritten(study: Study, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("keep")
    with pytest.raises(BundleError, match="not empty"):
        study.export(tmp_path / "b")
    assert (tmp_path / "b" / "mine.txt").read_text() == "keep" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "empty").mkdir()
    assert study.export(tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_disk_leaves_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(write, "render", fail)
    with pytest.raises(BundleError, match=os.strerror(code)):
        study.export(tmp_path / "new" / "deep" / "b")
    assert nothing_left(tmp_path)


def test_a_really_full_disk(study: Study, tiny_disk: Callable[[str], Path]) -> None:
    disk = tiny_disk("256k")
    with pytest.raises(BundleError, match=f"{os.strerror(errno.ENOSPC)}.*nothing was left"):
        study.export(disk / "b")
    assert nothing_left(disk)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(study: Study, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BundleError, match="Permission denied"):
        study.export(tmp_path / "b")
    tmp_path.chmod(0o700)


def test_an_interrupt_leaves_nothing(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.export(tmp_path / "b")
    assert nothing_left(tmp_path)


def test_what_cannot_be_promised_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="gated, not measured"):
        study.export(tmp_path / "b", evaluation=scripted_evaluation(0.2, 0.5, status="gated"))
    with pytest.raises(BundleError, match="is gone"):
        study.export(tmp_path / "b", artifacts=tmp_path)
    with pytest.raises(BundleError, match="NaN or change"):
        study.export(tmp_path / "b", golden=((torch.full((4, 64), float("nan")),), {}))
    with pytest.raises(BundleError, match="failed on the golden inputs"):
        study.export(tmp_path / "b", golden=((torch.zeros(4, 65),), {}))
    assert nothing_left(tmp_path)


# --- changed bundles --------------------------------------------------------------------------------------------------


def test_one_flipped_byte_in_any_file_is_noticed(original: Path, copy: Path) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(BundleError, match=path.name):
                bundle.read(copy)
        path.write_bytes(content)
    assert bundle.read(copy) == bundle.read(original)


def test_missing_extra_and_linked_files(copy: Path) -> None:
    (copy / "golden.safetensors").rename(copy / "other")
    with pytest.raises(BundleError, match=r"lacks golden\.safetensors"):
        bundle.read(copy)
    shutil.copy(copy / "other", copy / "golden.safetensors")
    with pytest.raises(BundleError, match="does not name: other"):
        bundle.read(copy)
    (copy / "golden.safetensors").unlink()
    (copy / "golden.safetensors").symlink_to(copy / "other")
    with pytest.raises(BundleError, match="is a link"):
        bundle.read(copy)
    (copy / manifest.NAME).unlink()
    with pytest.raises(BundleError, match=r"is a link|has no manifest"):
        bundle.read(copy)
    for wrong in (copy / "nowhere", copy / "model.pt2"):
        with pytest.raises(BundleError, match="is no folder"):
            bundle.read(wrong)


FILE = {"size_bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(("files", "../../etc/passwd"), FILE), "no plain path"),
        (put(("files", "/etc/passwd"), FILE), "no plain path"),
        (put(("files", "a//b"), FILE), "no plain path"),
        (put(("files", "a/./b"), FILE), "no plain path"),
        (put(("files", "a\\b"), FILE), "no plain path"),
        (put(("files", "model.pt2"), {**FILE, "sha256": "x"}), "size or hash"),
        (put(("files", "model.pt2"), {**FILE, "size_bytes": -1}), "size or hash"),
        (put(("format",), 1), "format 1"),
        (put(("format",), 2), "format 2; this autogreen reads 5"),
        (put(("extra",), 1), "unknown key 'extra'"),
        (put(("energy", "extra"), 1), "unknown key 'extra'"),
        (put(("recipe", "extra"), 1), "unknown key 'extra'"),
        (lambda data: data.pop("study"), "study"),
        (lambda data: data["energy"].pop("tier"), "tier"),
        (lambda data: data["files"].pop("weights.safetensors"), "names no weights"),
        (put(("study",), 3), "study"),
        (put(("energy", "ratio", "mean"), "0.5"), "mean"),
        (put(("energy", "ratio"), None), "prediction"),
        (put(("energy", "reference_items_per_call"), None), "reference's items per call"),
        (put(("energy", "items_per_call"), 0), "one item at least"),
        (put(("golden", "tolerance"), 2.0), "tolerance"),
        (put(("recipe", "engine"), "egaer"), "unknown engine 'egaer'"),
        (put(("recipe", "device"), "cpu; rm"), "device"),
        (put(("recipe", "threads"), 10**9), "out of bounds"),
        (put(("recipe", "mode"), "fast"), "mode"),
        (put(("recipe", "cuda_graph"), True), "CUDA graph on 'cpu'"),
        (put(("energy", "protocol", "max_windows"), 10**9), "max_windows"),
    ],
)
def test_a_crafted_manifest_is_refused(copy: Path, change: Callable[[Any], object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.read(seal(copy, change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a manifest"),
        (b"[]", "no format"),
        (b"\xff", "not a manifest"),
        (b"[" * 100_000, "not a manifest"),
        (b"9" * 10_000, "not a manifest"),
        (b'{"format": 2, "format": 2}', "twice"),
        (b'{"format": 1, "x": NaN}', "finite"),
        (b'{"format": 1, "x": 1e999}', "finite"),
        (b" " * 2_000_000, "more than"),
    ],
)
def test_a_manifest_that_is_none(copy: Path, text: bytes, message: str) -> None:
    (copy / manifest.NAME).write_bytes(text)
    with pytest.raises(BundleError, match=message):
        bundle.read(copy)


# --- archives that run code -------------------------------------------------------------------------------------------

Entries = dict[str, bytes]


def rename(old: str, new: str) -> Callable[[Entries], None]:
    return lambda entries: entries.update({f"model/{new}": entries.pop(f"model/{old}")})


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Entries], None]:
    def apply(entries: Entries) -> None:
        data = json.loads(entries[f"model/{name}"])
        change(data)
        entries[f"model/{name}"] = json.dumps(data).encode()

    return apply


def add(name: str) -> Callable[[Entries], None]:
    return lambda entries: entries.update({name: b"\x80\x04."})


WEIGHTS, GRAPH = "data/weights/model_weights_config.json", "models/model.json"
FIRST = ("graph_module", "graph", "nodes", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [  # PyTorch's reader ignores case, and reads the old layout before the new one
        (add("model/data/sample_inputs/model.pt"), "pickled sample inputs"),
        (
            rename("data/sample_inputs/model.pt", "data/SAMPLE_INPUTS/model.pt"),
            "no export",
        ),
        (add("model/data/weights/model.pt"), "no export"),
        (add("model/data/aotinductor/model/x.so"), "no export"),
        (add("model/data/constants/opaque_obj_0"), "no export"),
        (add("other/archive_format"), "laid out"),
        (edit(WEIGHTS, put(("config", "0.weight", "use_pickle"), True)), "as a pickle"),
        (
            edit("data/constants/model_constants_config.json", put(("config", "x"), {"path_name": "opaque_obj_0"})),
            "pic",
        ),
        (edit(GRAPH, put((*FIRST, "target"), "torch.os.system")), "torch.os.system"),
        (edit(GRAPH, put((*FIRST, "target"), "torch.ops.load_library.x")), "no registered operator"),
        (edit(GRAPH, put((*FIRST, "target"), "torch.ops.aten.__class__")), "no registered operator"),
        (edit(GRAPH, put((*FIRST, "target"), "_operator.methodcaller")), "no registered operator"),
        (edit(GRAPH, put(("guards_code",), ["print(1)"])), "guards"),
        (edit(GRAPH, put((*FIRST, "inputs", 0, "arg"), {"as_expr": {"expr_str": "__import__('os')"}})), "arithmetic"),
        (edit(GRAPH, put((*FIRST, "inputs", 0, "arg"), {"as_expr": {"expr_str": "exit()"}})), "arithmetic"),
        (rename(GRAPH, "models/MODEL.json"), "no export"),
        (edit(WEIGHTS, put(("config",), [1])), "damaged"),
    ],
)
def test_a_crafted_archive_is_refused(copy: Path, change: Callable[[Entries], None], message: str) -> None:
    rewrite(copy / "model.pt2", change)
    with pytest.raises(BundleError, match=message):
        bundle.read(seal(copy))


def rewrite(path: Path, change: Callable[[Entries], None], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_archives_that_two_readers_read_differently(copy: Path) -> None:
    path = copy / "model.pt2"
    content = path.read_bytes()
    rewrite(path, lambda entries: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="two readers"):
        refuse_code(path)
    path.write_bytes(b"PK\x03\x04" + content)
    with pytest.raises(BundleError, match="two readers"):
        refuse_code(path)
    path.write_bytes(content[:-10])
    with pytest.raises(BundleError, match="damaged"):
        refuse_code(path)


def test_what_the_engines_write_passes(tmp_path: Path) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(64))
            self.inner = network(16)

        def forward(self, x: torch.Tensor, flag: bool = True) -> dict[str, Any]:
            first, second = (x * self.scale * torch.tensor(2.0)).split(32, dim=1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return {"logits": self.inner(torch.cat([second, first], 1)), "best": x.argmax(1)}

    ENGINES["eager"].save(Several(), inputs(4), tmp_path)
    refuse_code(tmp_path / "model.pt2")


# --- does it keep its promise? ----------------------------------------------------------------------------------------


def test_verify_in_a_fresh_process(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generous = {"mean": 1.0, "low": 0.01, "high": 100.0}  # a microsecond's work on a machine that tests share
    seal(copy, put(("energy", "ratio_prediction"), generous))
    monkeypatch.chdir(copy)
    found = bundle.verify(Path())
    assert found.difference <= found.tolerance and found.examples == 40 and found.notes == ()
    assert found.ratio is not None and found.promised is not None
    assert found.promised.low <= found.ratio.mean <= found.promised.high
    assert bundle.Verification.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert "golden examples" in found.summary() and "promised" in found.summary()


def test_wrong_outputs_are_named_with_the_figures(copy: Path, tmp_path: Path) -> None:
    ENGINES["eager"].save(network(256, seed=1), inputs(BATCH), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.pt2", copy / "model.pt2")
    with pytest.raises(BundleError, match=r"other outputs than recorded: they differ by .* 0\.001 is allowed"):
        bundle.verify(seal(copy), protocol=QUICK)


def test_a_broken_energy_promise_fails_with_the_figures(copy: Path) -> None:
    promised = {"mean": 0.02, "low": 0.01, "high": 0.03}
    seal(copy, lambda data: data["energy"].update(ratio=promised, ratio_prediction=promised))
    found = worker.check(copy, QUICK, None)
    assert found.outcome == "broken"
    assert re.search(r"does not keep its promise.*promised were 0\.02.* 0\.01 to 0\.03", found.told)


def beside_others(of: int, loaded: int, **company: Any) -> Beside:
    """A tenth of the reference's energy; the first `loaded` of `of` windows ran in this company."""
    alone = Reading(energy_j=1.0, low_j=1.0, high_j=1.0, duration_s=1.0, foreign_busy_s=0.01)
    readings = [replace(alone, **company) if number < loaded else alone for number in range(of)]
    side = Measurement(
        energy_per_item_j=Interval(mean=1.0, low=1.0, high=1.0),
        latency_s=Interval(mean=1.0, low=1.0, high=1.0),
        items_per_call=1,
        tier="estimated",
        boundary="scripted",
        windows=tuple(Window(reading=reading, calls=1, duration_s=1.0, used=True) for reading in readings),
    )
    return Beside(candidate=side, reference=side, ratio=Interval(mean=0.1, low=0.09, high=0.11))


@pytest.mark.parametrize(
    ("company", "told"),
    [
        ({"foreign_busy_s": 1.5}, r"4 of 16 windows ran beside other programs \(1\.50 foreign busy cores at most\)"),
        ({"guests": ("blender (pid 7) on board 0",)}, r"4 of 16 windows .*\(blender \(pid 7\) on board 0\)"),
        ({"disturbed": "a program came"}, r"4 of 16 windows .*\(a program came\)"),
    ],
)
def test_a_promise_missed_on_a_busy_machine_proves_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, company: dict[str, Any], told: str
) -> None:
    quiet = replace(QUICK, foreign_limit=0.25)
    monkeypatch.setattr(worker, "measure_programs", lambda *args, **settings: (beside_others(8, 2, **company), ()))
    put_promise = put(("energy", "ratio_prediction"), {"mean": 0.5, "low": 0.4, "high": 0.6})
    found = worker.check(seal(copy, put_promise), quiet, None)
    assert found.busy is not None and re.search(told, found.busy) and found.difference <= found.tolerance
    monkeypatch.setattr(
        sys.modules["autogreen.bundle.verify"], "ask", lambda *args, **settings: json.loads(json.dumps(found.to_json()))
    )
    with pytest.raises(
        NotConclusiveError, match=rf"copy: not conclusive: the machine was busy.*{told}.*outputs .* recorded"
    ):
        bundle.verify(copy)


@pytest.mark.parametrize(("loaded", "load"), [(1, 1.5), (8, 0.2)])
def test_little_load_excuses_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch, loaded: int, load: float) -> None:
    beside = beside_others(8, loaded, foreign_busy_s=load)
    monkeypatch.setattr(worker, "measure_programs", lambda *args, **settings: (beside, ()))
    promised = seal(copy, put(("energy", "ratio_prediction"), {"mean": 0.5, "low": 0.4, "high": 0.6}))
    found = worker.check(promised, replace(QUICK, foreign_limit=0.25), None)
    assert found.outcome == "broken" and found.busy is None
    monkeypatch.setattr(sys.modules["autogreen.bundle.verify"], "ask", lambda *args, **settings: found.to_json())
    with pytest.raises(BundleError, match=r"copy does not keep its promise"):
        bundle.verify(promised)


def test_a_promise_kept_on_a_busy_machine_is_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = beside_others(8, 8, foreign_busy_s=1.5)
    monkeypatch.setattr(worker, "measure_programs", lambda *args, **settings: (beside, ()))
    promised = seal(copy, put(("energy", "ratio_prediction"), {"mean": 0.1, "low": 0.05, "high": 0.2}))
    found = worker.check(promised, QUICK, None)
    assert found.busy is None and found.outcome == "kept"


def test_wrong_outputs_fail_on_a_busy_machine_too(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    beside = beside_others(8, 8, foreign_busy_s=1.5)
    monkeypatch.setattr(worker, "measure_programs", lambda *args, **settings: (beside, ()))
    ENGINES["eager"].save(network(256, seed=1), inputs(BATCH), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.pt2", copy / "model.pt2")
    with pytest.raises(BundleError, match="other outputs than recorded"):
        worker.check(seal(copy), QUICK, None)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (put(("hardware", "cpu"), "Another CPU"), "other hardware"),
        (put(("energy", "tier"), "measured"), "estimated here and was measured there"),
        (put(("energy", "boundary"), "the whole rack"), "another boundary"),
        (put(("energy", "meter"), {"name": "nvml"}), "energy not measured"),
        (
            lambda data: data["energy"].update(ratio=None, ratio_prediction=None, reference_items_per_call=None),
            "the reference itself",
        ),
    ],
)
def test_elsewhere_only_outputs_are_checked_and_that_is_said(
    copy: Path, change: Callable[[Any], object], note: str
) -> None:
    found = worker.check(seal(copy, change), QUICK, None)
    assert found.ratio is None and note in found.notes[0] and "outputs only" in found.notes[0]
    assert found.difference <= found.tolerance and "note: " in found.summary()
    assert found.outcome == ("kept" if found.promised is None else "unmeasured") and found.told in found.summary()


def test_a_bundle_of_a_missing_device_says_so(copy: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(BundleError, match="finds no such device"):
        bundle.load(seal(copy, put(("recipe", "device"), "cuda:0")))


def test_a_reference_with_a_crafted_recipe(copy: Path) -> None:
    (copy / "reference" / "recipe.json").write_text('{"engine": "eager"}')
    with pytest.raises(BundleError, match="not a recipe"):
        worker.check(seal(copy), QUICK, None)


def test_an_archive_that_does_not_load_is_told_with_versions(copy: Path) -> None:
    rewrite(copy / "model.pt2", edit(GRAPH, put(("schema_version", "major"), 999)))
    with pytest.raises(BundleError, match=r"cannot be loaded .*exported with torch"):
        bundle.load(seal(copy))


def test_a_stuck_or_dying_process_is_a_clear_message(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match=r"not verified within 0\.05 s"):
        bundle.verify(original, limit_s=0.05)
    (tmp_path / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BundleError, match=r"died .signal SIGKILL"):
        bundle.verify(original)


# --- golden examples --------------------------------------------------------------------------------------------------


def test_outputs_by_name_are_compared_whatever_their_order() -> None:
    outputs = {"logits": torch.ones(2), "best": torch.zeros(2)}
    shape, tensors = trees.pack(outputs, "output")
    kept = json.loads(json.dumps(shape, sort_keys=True))  # as a manifest keeps it
    assert golden.difference(trees.unpack(kept, tensors), outputs) == 0
    assert golden.difference({"best": torch.ones(2), "logits": torch.ones(2)}, outputs) == 1


def test_trees_make_a_round_trip() -> None:
    tree = (({"a.b": torch.ones(2), "a": {"b": torch.zeros(1)}}, [1, 2.5, None, "x", True]), {})
    shape, tensors = trees.pack(tree, "input")
    assert len(tensors) == 2
    assert golden.difference(trees.unpack(json.loads(json.dumps(shape)), tensors), tree) == 0
    with pytest.raises(BundleError, match="input is a object"):
        trees.pack(object(), "input")
    for broken in ({"tensor": "gone"}, {"tuple": {}}, {"value": []}, {}, {"dict": {}, "list": []}, 3):
        with pytest.raises(BundleError, match="cannot be read"):
            trees.unpack(broken, tensors)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([1.0, 10.5]), 0.05),
        (torch.tensor([float("nan"), 10.0]), float("inf")),
        (torch.tensor([1, 10]), float("inf")),
        (torch.tensor([1.0]), float("inf")),
        ([torch.tensor([1.0, 10.0])], float("inf")),
    ],
)
def test_differences_are_relative_to_the_largest_value(actual: Any, expected: float) -> None:
    assert golden.difference(torch.tensor([1.0, 10.0]), actual) == pytest.approx(expected)


def test_differences_of_integers_masks_and_zeros() -> None:
    assert golden.difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    masked = torch.tensor([float("-inf"), 2.0])
    assert golden.difference(masked, masked) == 0
    assert golden.difference(torch.zeros(2), torch.zeros(2)) == 0
    assert golden.difference(torch.zeros(2), torch.ones(2)) == float("inf")
    assert golden.tolerance([]) == golden.TOLERANCES["float32"]
    assert golden.tolerance([Kernel(name="q", precision="int8", calls=1)]) == golden.TOLERANCES["int8"]


@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_precision_that_a_kernel_may_have_has_a_tolerance(precision: Precision) -> None:
    assert 0 < golden.tolerance([Kernel(name="any", precision=precision, calls=1)]) < 1


def test_what_multiplies_rounded_numbers_in_float32_is_as_rough_as_those() -> None:
    kernel = Kernel(name="aten::_weight_int8pack_mm", precision="float32", calls=1)
    assert golden.tolerance([kernel]) == golden.TOLERANCES["bfloat16"]
