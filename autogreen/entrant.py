"""What can be compared: a bundle, or a policy of a study whose artifact is kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autogreen.bundle.manifest import Manifest, workload
from autogreen.bundle.read import read
from autogreen.engines import Recipe
from autogreen.errors import ConfigError, RefusedError, StudyError
from autogreen.evaluation import Evaluation
from autogreen.front import RULES, Front
from autogreen.measurement import Protocol
from autogreen.meters import Tier
from autogreen.point import Point
from autogreen.queueing import Load
from autogreen.store import Store
from autogreen.wording import words
from autogreen.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One program before it is loaded.

    name: as the user wrote it, and what it is in words. study, key: which policy it is. folder: of the artifact.
    bundle: the folder is a bundle; golden inputs then lie in it, else in the study's folder.
    item: what is counted; items: of one call. hardware: as `hardware.describe` gave it. tier, protocol, meter: of its
    own measurement. workload: in which it was searched. native_code: the user trusts machine code that came with
    the bundle.
    """

    name: str
    study: str
    key: str
    folder: Path
    bundle: bool
    recipe: Recipe
    item: str
    items: int
    hardware: dict[str, Any]
    tier: Tier
    protocol: Protocol
    meter: dict[str, Any]
    workload: Workload
    native_code: bool

    @property
    def load(self) -> Load | None:
        """What it has to bear as a server; None in other workloads."""
        return self.workload.load(self.recipe.batch, self.recipe.batch_delay_s)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into an equal object."""
        return {**asdict(self), "folder": str(self.folder), "workload": self.workload.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Entrant":
        """The inverse of `to_json`."""
        made = {
            "folder": Path(data["folder"]),
            "recipe": Recipe(**data["recipe"]),
            "protocol": Protocol(**data["protocol"]),
            "workload": Workload(**data["workload"]),
        }
        return cls(**{**data, **made})


def find(text: str, runs: Path, *, native_code: bool = False) -> Entrant:
    """A bundle by its folder, or STUDY:RULE: `baseline`, `plain`, a rule of `Front.pick`, or a policy's id.

    Args:
        native_code: machine code that came with a bundle may run; a study's own always does.

    Raises:
        RefusedError: the bundle was only converted.
        ConfigError: neither a folder nor of that form, or the rule fits nothing.
        StudyError: no such study, or the artifact is gone.
        BundleError: the folder is no bundle, or was changed.
    """
    study, colon, rule = text.partition(":")
    if Path(text).is_dir() or not colon:
        if not Path(text).exists() and (runs / text / "study.db").exists():
            raise ConfigError(f"{text!r} is a study; say which of its policies, for example {text}:knee.")
        if not Path(text).exists():
            raise ConfigError(f"{text!r} is neither a folder nor of the form STUDY:RULE, for example digits:knee.")
        folder = Path(text).absolute()
        return _of_bundle(text, folder, read(folder), native_code)
    if not study or not rule:
        raise ConfigError(f"{text!r} is not of the form STUDY:RULE. Rules: baseline, plain, {', '.join(RULES)}.")
    return _of_study(text, Store.open(runs / study), rule)


def _of_bundle(text: str, folder: Path, manifest: Manifest, native_code: bool) -> Entrant:
    if manifest.energy is None:
        raise RefusedError(
            f"{text} was converted from {manifest.converted_from!r}: energy not measured, and no protocol to measure "
            f"it by. Search with engine: {manifest.recipe.engine}, and compare what that finds."
        )
    return Entrant(
        name=f"{text} ({manifest.key} of {manifest.study})",
        study=manifest.study,
        key=manifest.key,
        folder=folder,
        bundle=True,
        recipe=manifest.recipe,
        item=manifest.item,
        items=manifest.energy.items_per_call,
        hardware={**manifest.hardware, "torch": manifest.versions.torch},
        tier=manifest.energy.tier,
        protocol=manifest.energy.protocol,
        meter=dict(manifest.energy.meter),
        workload=workload(manifest, text),
        native_code=native_code,
    )


def _of_study(text: str, store: Store, rule: str) -> Entrant:
    results = store.results()
    if rule in ("baseline", "plain"):
        found: Evaluation = getattr(results, rule)
    else:
        found = _picked(Front.of(results), rule).evaluation
    folder = store.folder.absolute() / "artifacts" / found.key
    if not folder.is_dir() or found.recipe is None or found.measurement is None:
        raise StudyError(
            f"the artifact of {text} ({found.key}) is gone: a study keeps those of its references and of what may be "
            f"on the front. Pick one of these (autogreen front {results.study}), or compare a bundle of it."
        )
    return Entrant(
        name=f"{text} ({found.effect.id}: {words(found.effect.parts)})",
        study=results.study,
        key=found.key,
        folder=folder,
        bundle=False,
        recipe=found.recipe,
        item=results.item,
        items=found.measurement.items_per_call,
        hardware=dict(results.hardware),
        tier=results.tier,
        protocol=Protocol(**results.experiment.get("protocol", {})),
        meter=dict(results.experiment.get("meter", {})),
        workload=Workload(**results.workload),
        native_code=True,  # made here, by this study
    )


def _picked(front: Front, rule: str) -> Point:
    """A member by any rule, or what was measured and beaten, by the whole of its id."""
    beaten = [point for point in front.others if point.id == rule.strip()]
    return beaten[0] if beaten else front.pick(rule)
