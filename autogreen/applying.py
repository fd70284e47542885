"""A policy that was found, on new weights of the same network: a sweep of this one policy, with its own references.

POLICY  ->  what it does to this model: the same as to its own?  ->  an experiment whose space is that policy
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.entrant import find
from autogreen.errors import ConfigError, RefusedError
from autogreen.experiment import Experiment
from autogreen.policy import Effect
from autogreen.preview import prepared
from autogreen.restriction import surveyed
from autogreen.schema import read_yaml
from autogreen.space import SearchSpace
from autogreen.store import Store
from autogreen.tasks import retrained

SHOWN = 3  # differences named in an error


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a policy comes from. data: the policy. id: of what it did to its own model; None: a file does not tell.
    parts: the same in full; None: a bundle does not tell."""

    name: str
    data: Mapping[str, Any]
    id: str | None = None
    parts: Mapping[str, Any] | None = None


def origin(text: str, runs: Path) -> Origin:
    """A policy by its file, the folder of a bundle, or STUDY:RULE (see `entrant.find`).

    Raises:
        AutogreenError: there is none.
    """
    if Path(text).is_file() or (":" not in text and text.endswith((".yaml", ".yml"))):
        return Origin(name=Path(text).stem, data=read_yaml(Path(text)))
    found = find(text, runs)
    if found.bundle:
        data = read_yaml(found.folder / "policy.yaml")
        return Origin(name=found.key.partition("-")[0], data=data, id=found.key.partition("-")[0])
    trial = Store.open(runs / found.study).trial(found.key)
    if trial is None:
        raise ConfigError(f"{text} is a reference of {found.study}, no policy that was tried; name one on its front.")
    effect = Effect.of(trial.user_attrs["evaluation"]["effect"])
    return Origin(name=effect.id, data=trial.user_attrs["policy"], id=effect.id, parts=effect.parts)


def applied(policy: Origin, experiment: Experiment, *, weights: Path | None, runs: Path) -> Experiment:
    """The experiment that searches nothing but this policy; `sweep` measures it, `export` writes its bundle.

    Args:
        weights: safetensors of the new baseline's state; None: the task's own model is the new one.

    Raises:
        ConfigError: not one policy, or a file that cannot be read.
        RefusedError: the weights are of another network, or the policy does something else to this one.
    """
    space = SearchSpace.from_json(policy.data, policy.name)
    space.policy()  # one policy, not a space: said before a model is built
    name = f"{experiment.name}-apply-{policy.name}"
    task = experiment.task
    if weights is not None:
        task = retrained.Retrained(task=task, weights=weights.absolute())
        name += f"-{retrained.sha256(weights)[:8]}"
    one = replace(experiment, name=name, task=task, space=space, finalists=max(1, experiment.finalists))
    anatomy = Anatomy.from_json(prepared(one, surveyed(space), runs)["anatomy"])
    effect = space.expand(anatomy).policy().effect(anatomy)
    if policy.id is not None and effect.id != policy.id:
        raise RefusedError(
            f"the policy {policy.name} does something else to this {anatomy.model} than to the model it was found for: "
            f"{_apart(effect, policy)}. It is another architecture: search again, or give the policy.yaml alone, which "
            "does not say what it did."
        )
    return one


def _apart(effect: Effect, policy: Origin) -> str:
    if policy.parts is None:
        return f"{effect.id} instead of {policy.id}, other widths, or other layers that its patterns match"
    here, there = dict(_flat(effect.parts)), dict(_flat(policy.parts))
    told = [
        f"{name} is {here.get(name, 'left alone')}, was {there.get(name, 'left alone')}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more


def _flat(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, Mapping):
        for key, part in data.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(data, sort_keys=True)
