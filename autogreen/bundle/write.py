"""Write a bundle: all of it or nothing."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import autogreen
from autogreen.bundle import golden as goldens
from autogreen.bundle.card import card
from autogreen.bundle.manifest import (
    FORMAT,
    NAME,
    Energy,
    File,
    Golden,
    Manifest,
    Quality,
    Versions,
    prediction,
    render,
)
from autogreen.bundle.read import REFERENCE, opened, read, sha256
from autogreen.carbon import J_PER_WH, Carbon
from autogreen.engines import Recipe
from autogreen.errors import BundleError
from autogreen.evaluation import Evaluation, Published
from autogreen.measurement import Protocol
from autogreen.repeatability import Repeatability, at_least
from autogreen.results import Results

if TYPE_CHECKING:
    from autogreen.tasks import Inputs

EXAMPLES = 16  # golden examples at least, where there are so many: a single one misses what only some inputs reach


def export(
    evaluation: Evaluation,
    *,
    published: Published | None = None,
    results: Results,
    artifacts: Path,
    golden: "Inputs",
    to: Path,
) -> Path:
    """Write the bundle of a measured evaluation as folder `to`, and return it. Runs the artifact, trains nothing.

    Args:
        published: the same policy measured afresh and judged on test, by default as the results know it; its energy
            then stands in the manifest.
        artifacts: the study's folder of artifacts, by evaluation key.
        golden: real inputs (positional, keyword arguments), such as the first validation batch. Kept are as many
            examples as a batch of the artifact and of the reference takes, 16 at least, where there are so many.

    Raises:
        BundleError: the policy was not measured, its artifact is gone, its outputs are NaN or change from run to run,
            `to` is not empty, the disk is full, no permission. Nothing is left behind.
    """
    published = published or results.published.get(evaluation.key)
    recipe, energy = _recipe(evaluation), _energy(evaluation, published, results)
    parts = {"": evaluation} if energy.ratio is None else {"": evaluation, REFERENCE: results.baseline}
    batch = max(_recipe(part).batch for part in parts.values())
    for part in parts.values():
        if not (artifacts / part.key).is_dir():
            raise BundleError(f"the artifact {artifacts / part.key} is gone. Those on the front are kept: pick one.")
    with whole_or_nothing(Path(to)) as partial:
        for name, part in parts.items():
            _copy(artifacts / part.key, partial / name, without="weights.safetensors" if name else "recipe.json")
        policy = yaml.safe_dump(_policy(evaluation, results), sort_keys=False, allow_unicode=True)
        (partial / "policy.yaml").write_text(policy, encoding="utf-8")
        manifest = Manifest(
            format=FORMAT,
            study=results.study,
            key=evaluation.key,
            task=results.task,
            workload=dict(results.workload),
            item=results.item,
            hardware=dict(results.hardware),
            versions=Versions(
                autogreen=autogreen.__version__,
                torch=version("torch"),
                torchao=version("torchao"),
                python=platform.python_version(),
            ),
            recipe=recipe,
            converted_from=None,
            kernels=evaluation.kernels,
            layers=dict(evaluation.layers),
            validation=Quality(quality=evaluation.quality, quality_loss=evaluation.loss),
            test=None if published is None else Quality(quality=published.test, quality_loss=published.test_loss),
            energy=energy,
            golden=_record(partial, recipe, golden, max(batch, EXAMPLES), goldens.tolerance(evaluation.kernels)),
            files={},
        )
        finish(partial, manifest)
    return Path(to)


def finish(folder: Path, manifest: Manifest) -> None:
    """Write the card and, over all files that are there, the manifest; what is written, `read` takes."""
    (folder / "MODEL_CARD.md").write_text(card(manifest), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): File(size_bytes=path.stat().st_size, sha256=sha256(path)) for path in paths
    }
    (folder / NAME).write_text(render(replace(manifest, files=files)), encoding="utf-8")
    read(folder)


def _recipe(evaluation: Evaluation) -> Recipe:
    if evaluation.status != "measured" or evaluation.recipe is None:
        raise BundleError(
            f"{evaluation.key} was {evaluation.status}, not measured: nothing can be promised. Pick one on the front."
        )
    return evaluation.recipe


def _energy(evaluation: Evaluation, published: Published | None, results: Results) -> Energy:
    experiment, reference = results.experiment, results.baseline.measurement
    origin = published or evaluation
    assert origin.key == evaluation.key, "published is about another policy"
    measurement, ratio = origin.measurement, origin.ratio
    if ratio is not None:
        ratio = at_least(ratio, Repeatability.of(results).ratio)
    assert measurement is not None, "what was measured has a measurement"
    joules, carbon = measurement.energy_per_item_j.mean, Carbon.of(experiment)
    windows = sum(window.used for window in measurement.windows)
    size = max(2, windows)
    protocol = Protocol(**{**experiment.get("protocol", {}), "min_windows": size, "max_windows": size})
    return Energy(
        items_per_call=measurement.items_per_call,
        reference_items_per_call=None if ratio is None or reference is None else reference.items_per_call,
        per_item_j=measurement.energy_per_item_j,
        range_per_item_j=measurement.range_per_item_j,
        net_per_item_j=measurement.net_energy_per_item_j,
        idle_w=measurement.idle_w,
        per_item_wh=joules / J_PER_WH,
        energy_delay_js=measurement.energy_delay_js,
        times_above_floor=origin.times_above_floor,
        emission_per_item_g=None if carbon is None else carbon.emission_g(joules),
        carbon=carbon,
        latency_s=measurement.latency_s,
        served=measurement.served,
        tier=measurement.tier,
        boundary=measurement.boundary,
        windows=windows,
        protocol=protocol,
        meter=dict(experiment.get("meter", {})),
        warnings=measurement.warnings,
        ratio=ratio,
        ratio_prediction=None if ratio is None else prediction(ratio),
    )


def _policy(evaluation: Evaluation, results: Results) -> Mapping[str, Any]:
    """The policy as the search wrote it; of a reference or control, its sections that hold one setting."""
    for trial in results.trials:
        if trial.evaluation is not None and trial.evaluation.key == evaluation.key:
            return dict(trial.policy)
    return {name: part for name, part in evaluation.effect.parts.items() if name in ("parallelism", "runtime")}


def _copy(source: Path, target: Path, without: str) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and str(name) != without:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _record(folder: Path, recipe: Recipe, inputs: "Inputs", count: int, tolerance: float) -> Golden:
    """Run the artifact in its new place, twice, and keep what went in and came out."""
    from safetensors.torch import save

    from autogreen.tasks import cut, rows, to_device

    inputs = to_device(inputs, "cpu")
    if rows(inputs) > count:
        inputs = cut(inputs, count)[0]
    args, kwargs = inputs
    program = opened(folder, recipe, version("torch"), native_code=True)  # made here, by this study
    try:
        outputs, again = program(*args, **kwargs), program(*args, **kwargs)
    except Exception as error:
        raise BundleError(
            f"the artifact failed on the golden inputs ({type(error).__name__}: {error}). Give it inputs such as the "
            "task's own batches."
        ) from error
    apart = goldens.difference(outputs, again)
    if not apart <= tolerance:
        raise BundleError(
            f"the artifact's outputs are NaN or change from run to run (by {apart:.3g} of their largest value; "
            f"{tolerance:g} is allowed): nobody could verify it. Pick another policy."
        )
    from autogreen.tasks import trees

    input_shape, input_tensors = trees.pack((args, kwargs), "input")
    output_shape, output_tensors = trees.pack(outputs, "output")
    # bytes first: an error of the disk then comes as Python's own
    (folder / "golden.safetensors").write_bytes(save(input_tensors | output_tensors))
    return Golden(inputs=input_shape, outputs=output_shape, examples=rows(inputs), tolerance=tolerance)


@contextmanager
def whole_or_nothing(to: Path) -> Iterator[Path]:
    """A new folder beside `to` that takes its name when all went well, and is removed when not."""
    try:
        refuse_taken(to)
        created = [parent for parent in to.absolute().parents if not parent.exists()]
        partial = to.absolute().parent / f".{to.absolute().name}.{os.getpid()}"
    except OSError as error:
        raise _failed(to, error) from error
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(to)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise _failed(to, error) from error
        raise


def refuse_taken(to: Path) -> None:
    """Raise where a bundle cannot be written because something is there; asked early, where a bundle takes long."""
    if to.is_symlink() or to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise BundleError(f"{to} exists and is not empty. Name a new folder, or remove this one first.")


def _failed(to: Path, error: OSError) -> BundleError:
    return BundleError(
        f"the bundle {to} cannot be written: {error.strerror or error}. Free space, or name a folder that you may "
        "write to; nothing was left behind."
    )
