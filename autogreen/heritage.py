"""What one study takes over from another: policies, and the weights that were trained for them.

A study measured again elsewhere (`autogreen.remeasure`) proposes what the first one found and trains nothing: the
baseline, the controls and every member of the front get the weights that they had. What ships is made anew from them,
with the kernels and ranges of this machine.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autogreen.errors import StudyError
from autogreen.front import Front
from autogreen.store import Store


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """One policy. id, key: of its effect and its evaluation where it was found. policy: its settings. answers: to the
    holes of its space."""

    id: str
    key: str
    policy: Mapping[str, Any]
    answers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Heritage:
    """study: the one beside this that it comes from. policies: its front, cheapest first. baseline, controls (by name):
    keys of their evaluations; a control whose weights are gone is trained anew."""

    study: str
    policies: tuple[Inherited, ...]
    baseline: str
    controls: Mapping[str, str]

    @classmethod
    def of(cls, store: Store) -> "Heritage":
        """The front of a study as it stands, with its weights.

        Raises:
            StudyError: the front is empty, or weights are gone.
        """
        front = Front.of(store.results())
        if not front.members:
            raise StudyError(f"the front of {store.folder.name!r} is empty: there is nothing to measure again.")
        found = cls(
            study=store.folder.name,
            policies=tuple(
                Inherited(id=point.id, key=point.evaluation.key, policy=point.trial.policy, answers=point.trial.params)
                for point in front.members
                if point.trial is not None
            ),
            baseline=front.baseline.evaluation.key,
            controls={name: one.key for name, one in front.results.controls.items()},
        )
        needed = (found.baseline, *(one.key for one in found.policies))
        if missing := [key for key in needed if found.weights(store.folder.parent, key) is None]:
            raise StudyError(
                f"the weights of {missing[0]} ({len(missing)} of {len(needed)}) are gone from {store.folder}. Copy the "
                f"whole folder, or train anew: a sweep with `warm_start: {found.study}` tries its front first."
            )
        return found

    def weights(self, runs: Path, key: str) -> Path | None:
        """The file of what was trained for an evaluation; None where it is gone."""
        file = (runs / self.study / "artifacts" / key / "weights.safetensors").absolute()
        return file if file.is_file() else None

    def control_weights(self, runs: Path) -> dict[str, Path]:
        """Of the controls, by name, as far as they are kept."""
        files = {name: self.weights(runs, key) for name, key in self.controls.items()}
        return {name: file for name, file in files.items() if file is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Heritage":
        """The inverse of `to_json`."""
        return cls(**{**data, "policies": tuple(Inherited(**one) for one in data["policies"])})
