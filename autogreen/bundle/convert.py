"""The program of a bundle in another engine's format: equal outputs, checked; energy not measured."""

import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from autogreen.bundle import golden
from autogreen.bundle.manifest import Manifest
from autogreen.bundle.read import examples, opened, read
from autogreen.bundle.write import finish, whole_or_nothing
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import BundleError, RefusedError

SOURCES = ("eager", "inductor")  # whose artifact is the exported program itself
TARGETS = (*SOURCES, "aot", "onnxruntime")  # what takes a graph
KEPT = ("policy.yaml", "weights.safetensors", "golden.safetensors")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """folder: the new bundle. difference: of its golden outputs from the recorded ones (see `golden.difference`), at
    most `tolerance`."""

    folder: Path
    difference: float
    tolerance: float


def convert(folder: Path, *, engine: str, to: Path) -> Conversion:
    """Write a bundle's program in the format of another engine, as folder `to`. It runs here twice, trains nothing.

    Raises:
        RefusedError: the target does not run here, or cannot carry the program; which part, and why.
        BundleError: the bundle is not what its manifest says; the outputs differ; `to` is not empty. Nothing is left
            behind.
    """
    folder, manifest = Path(folder), read(folder)
    recipe = replace(manifest.recipe, engine=engine, mode="default", cuda_graph=False)
    _refuse(manifest, recipe)
    from autogreen.engines import exported
    from autogreen.tasks import cut, to_device

    inputs, expected = examples(folder, manifest)
    source = opened(folder, manifest.recipe, manifest.versions.torch, native_code=False)
    example = to_device(cut(inputs, recipe.batch)[0], recipe.device)
    source.run(*example)
    wanted = source.trace(example).macs
    with whole_or_nothing(Path(to)) as partial:
        # threads are now the recipe's, which some compilers write into their code
        ENGINES[engine].save(exported.load(folder, recipe.device), example, partial)
        program = Program(partial, recipe)
        program.run(*example)
        ran = program.trace(example)
        for precision in sorted(wanted.keys() - {"float32"}):
            if (found := ran.macs.get(precision, 0)) < wanted[precision]:
                named = [layer for layer, kernel in manifest.layers.items() if kernel.endswith(f"({precision})")]
                raise RefusedError(
                    f"{engine} cannot carry {', '.join(named) or 'layers'} in {precision}: of the multiply-accumulates "
                    f"that ran in it, {found / wanted[precision]:.0%} do there, the others would be simulated. Search "
                    f"with engine: {engine}, whose options are those with real kernels."
                )
        tolerance = max(manifest.golden.tolerance, golden.tolerance(ran.kernels))
        difference = golden.difference(expected, program(*inputs[0], **inputs[1]))
        if not difference <= tolerance:
            raise BundleError(
                f"{engine} gives other outputs than {folder}: they differ by {difference:.3g} of their largest value, "
                f"{tolerance:g} is allowed. Search with engine: {engine}."
            )
        for name in KEPT:
            shutil.copyfile(folder / name, partial / name)
        finish(
            partial,
            replace(
                manifest,
                recipe=recipe,
                converted_from=manifest.recipe.engine,
                kernels=ran.kernels,
                layers={},
                energy=None,
                golden=replace(manifest.golden, tolerance=tolerance),
                versions=replace(manifest.versions, torch=version("torch")),
                files={},
            ),
        )
    return Conversion(folder=Path(to), difference=difference, tolerance=tolerance)


def _refuse(manifest: Manifest, recipe: Recipe) -> None:
    source, target = manifest.recipe.engine, recipe.engine
    if source not in SOURCES:
        raise RefusedError(
            f"the bundle holds the format of {source!r}, from which nothing else can be made. Convert the bundle of "
            f"{' or '.join(SOURCES)} that it came from."
        )
    if manifest.recipe.parts != ("",):
        raise RefusedError(
            f"the bundle holds a model in parts ({', '.join(manifest.recipe.parts)}), and {target!r} carries whole "
            "models. Export a policy with degrees of data only."
        )
    if target in ENGINES and target not in TARGETS:
        raise RefusedError(
            f"{target!r} takes a model of its own library, and the bundle holds a graph of operators. Search with "
            f"engine: {target}."
        )
    if reason := ENGINES[target].missing(recipe.device):
        raise RefusedError(f"engine {target!r}: {reason}.")
