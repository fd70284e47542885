"""MLflow's registry: bundles as versions of a model, and which of them serves.

    register    bundle -> pyfunc model (code, signature, example) -> version with tags, alias `challenger`
    promote     challenger and champion -> downloaded, every hash compared -> measured here -> alias `champion`

A version appears with all of its tags at once, after its files. Two of them hold it together: the hash of the bundle's
manifest, by which a bundle that is registered again is found again; and that of all files, which whoever can write to
the artifact store alone cannot make fit. Who can write to both can do what he likes.
"""

import hashlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import autogreen
from autogreen import hardware
from autogreen.bundle import Manifest, read
from autogreen.bundle.manifest import NAME
from autogreen.bundle.read import sha256
from autogreen.bundle.service import Interface, Slot
from autogreen.errors import BundleError, ConfigError, NotConclusiveError, TrackingError
from autogreen.measurement import Interval
from autogreen.outcome import Outcome
from autogreen.succession import Succession, Terms, succeed
from autogreen.tracking.connection import experiment_for, patience
from autogreen.tracking.mirror import TAG_CHARACTERS, cut, experiment_title

CHALLENGER, CHAMPION = "challenger", "champion"
MANIFEST, FILES = "autogreen.manifest_sha256", "autogreen.files_sha256"  # the tags that hold a version together
TIMEOUT_S = 60.0  # of one request; an upload is one a file
EXAMPLES = 2  # rows of the input example
PACKAGES = ("mlflow", "numpy", "pydantic", "PyYAML", "safetensors", "torch", "torchao")  # what serving imports,
OF_ENGINES = {"onnxruntime": ("onnx", "onnxruntime"), "transformers": ("transformers",)}  # and what these do beside it
# What MLflow and Python add where a model was downloaded or run.
ADDED = re.compile(r"registered_model_meta|(.*/)?__pycache__/.*")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a registered model. created: False where this bundle was registered before. aliases: its own."""

    model: str
    number: str
    created: bool
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """What `mlflow models serve -m` takes."""
        return f"models:/{self.model}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What came of a challenger. champion: version that served before, or None."""

    model: str
    challenger: str
    champion: str | None
    succession: Succession

    @property
    def outcome(self) -> Outcome:
        """`kept`: the alias was moved."""
        return self.succession.outcome

    @property
    def told(self) -> str:
        """One sentence."""
        after = f"version {self.champion} stays" if self.champion else "there is still none"
        if self.outcome == "kept":
            after = f"version {self.challenger} it is now"
        return f"{self.model}: the challenger, version {self.challenger}: {self.outcome}; champion: {after}"

    def to_json(self) -> dict[str, Any]:
        """One plain object without NaN or infinity."""
        told = {"model": self.model, "challenger": self.challenger, "champion": self.champion}
        return {**told, "promoted": self.outcome == "kept", **self.succession.to_json()}

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{finding.outcome}: {finding.asked}: {finding.reason}" for finding in self.succession.findings]
        return "\n".join([*lines, self.told])


def address(uri: str | None, runs: Path) -> str:
    """Of the server that was named, or of the studies' own database."""
    return uri or f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def register(bundle: Path, model: str, *, uri: str) -> Version:
    """Log a bundle as a pyfunc model and make it the challenger; one that was registered before is found again.

    Raises:
        BundleError: it is none.
        ConfigError: MLflow takes no such name.
        TrackingError: the server cannot be reached, or refuses. No version is left without its tags; calling this again
            finishes what was begun.
    """
    _check_name(model)
    manifest, identity = read(bundle), sha256(bundle / NAME)
    with server(uri) as client:
        aliases = _aliases(client, model)
        known = client.search_model_versions(f"name = '{model}' and tags.`{MANIFEST}` = '{identity}'")
        number = str(known[0].version) if known else _create(client, model, bundle, manifest, identity, uri)
        if aliases.get(CHAMPION) != number:
            client.set_registered_model_alias(model, CHALLENGER, number)
            aliases = {**aliases, CHALLENGER: number}
    mine = tuple(alias for alias, held in sorted(aliases.items()) if held == number)
    return Version(model=model, number=number, created=not known, aliases=mine)


def promote(
    model: str,
    *,
    uri: str,
    terms: Terms | None = None,
    protocol: Mapping[str, Any] | None = None,
    native_code: bool = False,
) -> Promotion:
    """Measure the challenger here, beside the champion if there is one; move the alias if it may follow.

    What was found is written to the version as tags, whatever it is.

    Args:
        protocol: settings to change of the comparison of both.
        native_code: run machine code that came with them, where their format holds some.

    Raises:
        BundleError: what the registry holds was changed, or was not registered by autogreen.
        RefusedError: they do different work.
        ConfigError: no such model, or it has no challenger.
        NotConclusiveError: meanwhile another one became champion or challenger.
        TrackingError: the server cannot be reached, or refuses.
    """
    _check_name(model)
    with tempfile.TemporaryDirectory(prefix="autogreen-promote-") as scratch:
        with server(uri) as client:
            aliases = _challenged(client, model)
            new, old = aliases[CHALLENGER], aliases.get(CHAMPION)
            challenger = _download(client, model, new, Path(scratch), uri)
            champion = None if old is None else _download(client, model, old, Path(scratch), uri)
        names = (f"challenger, version {new}", f"champion, version {old}")
        found = succeed(challenger, champion, terms, names=names, protocol=protocol, native_code=native_code)
    with server(uri) as client:
        if _aliases(client, model) != aliases:
            raise NotConclusiveError(f"the aliases of {model} were moved while it was measured. Promote again.")
        for key, value in _found(found).items():
            client.set_model_version_tag(model, new, key, cut(value, TAG_CHARACTERS))
        if found.outcome == "kept":
            client.set_registered_model_alias(model, CHAMPION, new)
            client.delete_registered_model_alias(model, CHALLENGER)
    return Promotion(model=model, challenger=new, champion=old, succession=found)


@contextmanager
def server(uri: str) -> Iterator[Any]:
    """A client of MLflow.

    Raises:
        TrackingError: mlflow is not installed; the server cannot be reached, or refuses.
    """
    try:
        with patience(TIMEOUT_S):
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                yield MlflowClient(tracking_uri=uri, registry_uri=uri)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise TrackingError(
                    f"MLflow at {_public(uri)} cannot be reached, or refuses: {first[:300]} Start it, or name another "
                    "with --tracking; then give the same command again."
                ) from error
    except ModuleNotFoundError as error:
        raise TrackingError(f"{error.name} is not installed, which the registry needs: pip install mlflow.") from error


# --- a version --------------------------------------------------------------------------------------------------------


def _create(client: Any, model: str, bundle: Path, manifest: Manifest, identity: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it is there already; whatever else is wrong the next call meets
        client.create_registered_model(model)
    artifacts = None
    if uri.startswith("sqlite:///"):  # MLflow's default is the current folder
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    # beside the sweeps' own experiment: its runs are a mirror of studies, and their artifacts lie where it says
    title = f"{experiment_title(manifest.task, manifest.workload, manifest.hardware)} · models"
    experiment_id = experiment_for(client, title, artifacts)
    logged = client.create_logged_model(
        experiment_id,
        name=model.replace(".", "-"),  # MLflow takes no dots here
        params={key: str(value) for key, value in vars(manifest.recipe).items()},
        tags={MANIFEST: identity, "autogreen.study": manifest.study},
        model_type="autogreen",
    )
    try:
        with tempfile.TemporaryDirectory(prefix="autogreen-register-") as scratch:
            folder = _packed(Path(scratch), bundle, manifest, logged)
            tags = {**_tags(manifest), MANIFEST: identity, FILES: contents_sha256(folder)}
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        created = client.create_model_version(
            model,
            source=logged.artifact_location,
            tags={key: cut(value, TAG_CHARACTERS) for key, value in tags.items()},
            description=f"{manifest.key} of the sweep {manifest.study}, exported by autogreen",
            # with a database and no server MLflow would look the model up in whatever store it takes for the default
            model_id=logged.model_id if uri.startswith("http") else None,
        )
    except BaseException:
        with suppress(MlflowException, OSError):  # a server that died keeps it, unfinished and without a version
            client.delete_logged_model(logged.model_id)
        raise
    return str(created.version)


def _packed(scratch: Path, bundle: Path, manifest: Manifest, logged: Any) -> Path:
    """The pyfunc model as files: the bundle, this package as plain source, and the code that MLflow runs."""
    with warnings.catch_warnings(action="ignore"):  # of MLflow, about type hints of its own
        import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema

    interface = Interface.of(bundle, manifest)
    shutil.copytree(bundle, scratch / "bundle")  # the folder's own name would become part of the model
    packages = (*PACKAGES, *OF_ENGINES.get(manifest.recipe.engine, ()))
    place, identity = logged.artifact_location, logged.model_id
    mlflow.pyfunc.save_model(
        scratch / "model",
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"bundle": str(scratch / "bundle")},
        code_paths=[str(Path(autogreen.__file__).parent)],
        signature=ModelSignature(
            inputs=Schema([_spec(slot) for slot in interface.inputs]),
            outputs=Schema([_spec(slot) for slot in interface.outputs]),
        ),
        input_example=interface.examples(EXAMPLES),
        pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in packages],
        mlflow_model=Model(artifact_path=place, model_uuid=identity, model_id=identity),
    )
    for cache in (scratch / "model").rglob("__pycache__"):
        shutil.rmtree(cache)
    return scratch / "model"


def _spec(slot: Slot) -> Any:
    import numpy as np
    from mlflow.types import TensorSpec

    return TensorSpec(np.dtype(slot.dtype), slot.shape, slot.name)


def _tags(manifest: Manifest) -> dict[str, str]:
    """What a version says about itself in the registry's list."""
    energy, recipe, test = manifest.energy, manifest.recipe, manifest.test
    joules: dict[str, Any] = {"energy": f"not measured: converted from {manifest.converted_from}"}
    if energy is not None:
        joules = {
            "tier": energy.tier,
            "boundary": energy.boundary,
            f"energy_per_{manifest.item}_j": energy.per_item_j,
            "energy_ratio": energy.ratio,
            "energy_ratio_promised": energy.ratio_prediction,
        }
    told: dict[str, Any] = {
        "autogreen.study": manifest.study,
        "autogreen.key": manifest.key,
        "policy_id": manifest.key.partition("-")[0],
        "task": manifest.task,
        "workload": " ".join(str(value) for value in manifest.workload.values() if value is not None),
        "hardware": hardware.name(manifest.hardware),
        "engine": recipe.engine,
        "batch": recipe.batch,
        "threads": recipe.threads,
        **joules,
        "quality_validation": manifest.validation.quality,
        "quality_loss_validation": manifest.validation.quality_loss,
        "quality_test": None if test is None else test.quality,
        "quality_loss_test": None if test is None else test.quality_loss,
    }
    return {key: _value(value) for key, value in told.items() if value is not None}


def _value(value: Any) -> str:
    return f"{value.mean:.4g} ({value.low:.4g} to {value.high:.4g})" if isinstance(value, Interval) else str(value)


def _found(found: Succession) -> dict[str, str]:
    """What a promotion leaves on the version."""
    verified, beside = found.promise.verified, found.comparison
    open_ = [finding for finding in found.findings if finding.outcome != "kept"]
    told: dict[str, Any] = {
        "promotion": found.outcome,
        "promotion_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "promotion_reason": "; ".join(f"{finding.asked}: {finding.reason}" for finding in open_) or "all kept",
        "promotion_hardware": "not measured" if verified is None else verified.hardware,
        "promotion_energy_ratio": "not measured" if verified is None else verified.ratio or "not measured",
        "promotion_beside_champion": "not measured" if beside is None else beside.ratio,
    }
    return {key: _value(value) for key, value in told.items()}


# --- reading back -----------------------------------------------------------------------------------------------------


def contents_sha256(folder: Path) -> str:
    """One hash over names and contents of all files, without what MLflow and Python add later."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(folder / path)}  {path}\n" for path in paths if not ADDED.fullmatch(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _download(client: Any, model: str, number: str, scratch: Path, uri: str) -> Path:
    """The bundle of a version, every hash compared before anything in it is opened."""
    from mlflow.artifacts import download_artifacts

    tags, place = client.get_model_version(model, number).tags, f"models:/{model}/{number}"
    if not {MANIFEST, FILES} <= tags.keys():
        raise BundleError(f"{place} was not registered by autogreen: it has no tag {MANIFEST}. Register its bundle.")
    files = client.get_model_version_download_uri(model, number)  # "models:/..." is looked up in the default store
    folder = Path(download_artifacts(files, dst_path=str(scratch / number), tracking_uri=uri))
    bundle = folder / "artifacts" / "bundle"
    if any(path.is_symlink() for path in folder.rglob("*")) or contents_sha256(folder) != tags[FILES]:
        raise BundleError(
            f"the files of {place} were changed in the artifact store after it was registered. Do not serve it; find "
            "out who did, and register the bundle again."
        )
    read(bundle)
    if sha256(bundle / NAME) != tags[MANIFEST]:
        raise BundleError(f"the bundle in {place} is not the one that its tag {MANIFEST} names. Register it again.")
    return bundle


def _aliases(client: Any, model: str) -> dict[str, str]:
    """Version by alias; none of a model that does not exist."""
    found = client.search_registered_models(f"name = '{model}'")
    return {alias: str(number) for one in found for alias, number in one.aliases.items()}


def _challenged(client: Any, model: str) -> dict[str, str]:
    aliases = _aliases(client, model)
    if CHALLENGER in aliases:
        return aliases
    names = sorted(one.name for one in client.search_registered_models())
    if model not in names:
        raise ConfigError(
            f"there is no registered model {model!r}. There are: {', '.join(names) or 'none'}. Register a bundle: "
            f"autogreen register BUNDLE {model}."
        )
    serving = f"; version {aliases[CHAMPION]} is its champion" if CHAMPION in aliases else ""
    raise ConfigError(
        f"{model} has no challenger{serving}. Register a bundle, or set the alias {CHALLENGER!r} to a version."
    )


def _check_name(model: str) -> None:
    if not re.fullmatch(r"\w[\w.\- ]{0,199}", model, re.ASCII):
        raise ConfigError(f"{model!r} is no name of a model: use letters, digits, '.', '-', '_', spaces; at most 200.")


def _public(uri: str) -> str:
    """Without a password."""
    return re.sub(r"//[^@/]*@", "//", uri)
