"""The front of a study measured again on this machine: searched on a laptop, deployed on a server.

The policies and the weights trained for them are the first study's; references, kernels, ranges, quality and energy are
this machine's. It is a study of its own, with a front of its own: what is cheap there need not be cheap here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen import hardware
from autogreen.errors import ConfigError
from autogreen.experiment import Budget, from_json, override
from autogreen.front import Front
from autogreen.heritage import Heritage
from autogreen.point import Point
from autogreen.store import Store
from autogreen.sweep import Progress, sweep
from autogreen.wording import plain_spread

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Remeasured:
    """there, here: both fronts. refused: of each policy that this machine did not run, by id, the reason."""

    there: Front
    here: Front
    refused: Mapping[str, str]

    def rows(self) -> list[tuple[Point, Point | None]]:
        """Every member there, cheapest first, and what it is here."""
        found = {point.id: point for point in (*self.here.members, *self.here.others)}
        return [(point, found.get(point.id)) for point in self.there.members]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        members = {point.id for point in self.here.members}
        policies = [
            {
                "id": old.id,
                "does": old.words,
                "there": {"ratio": asdict(old.ratio), "loss": asdict(old.loss)},
                "here": None if new is None else {"ratio": asdict(new.ratio), "loss": asdict(new.loss)},
                "on_front": old.id in members,
                "refused": self.refused.get(old.id),
            }
            for old, new in self.rows()
        ]
        return {"policies": policies, "there": _where(self.there), "here": _where(self.here)}

    def table(self) -> "Table":
        """For the terminal: loss and energy ratio there and here."""
        from rich.table import Table
        from rich.text import Text

        where = f"there: {_where(self.there)}; here: {_where(self.here)}"
        table = Table(title=Text(f"{self.there.results.study}, measured again"), caption=Text(where))
        for head in ("policy", "ratio there", "ratio here", "loss there", "loss here", "on the front", "what it does"):
            table.add_column(Text(head), overflow="fold")
        members = {point.id for point in self.here.members}
        for old, new in self.rows():
            now = ("–", "–", "no")
            if new is not None:
                now = (plain_spread(new.ratio, 3), plain_spread(new.loss), "yes" if old.id in members else "no")
            said = old.words if old.id not in self.refused else f"not run here: {self.refused[old.id]}"
            cells = (old.id, plain_spread(old.ratio, 3), now[0], plain_spread(old.loss), now[1], now[2], said)
            table.add_row(*map(Text, cells))
        return table


def remeasure(
    name: str, runs: Path, *, to: str, overrides: tuple[str, ...] = (), fresh: bool = False
) -> Iterator[Progress]:
    """Evaluate the front of study `name` as study `to`, with the weights that it has; go on where that was stopped.

    Args:
        overrides: ``key.key=value`` texts for the experiment, `device=cuda:0` for one. The meter is this machine's own
            choice unless they name one.
        fresh: delete study `to` and begin it anew.

    Raises:
        ConfigError: `to` is the study itself; its model was given in Python, so that no other process can build it.
        StudyError: no such study, an empty front, weights that are gone.
    """
    if to == name:
        raise ConfigError(f"{to!r} is the study itself; name another with --as.")
    source = Store.open(runs / name)
    data: dict[str, Any] = {**source.get("facts", {}).get("experiment", {}), "meter": {}, "training_device": None}
    if data.get("task") is None:
        raise ConfigError(
            f"the model of {name!r} was given in Python, and only that program can build it. Run it on this machine "
            f"with warm_start={name!r}: autogreen.search then tries that front first."
        )
    for text in overrides:
        override(data, text)
    folder = runs / to
    if fresh:
        Store.discard(folder)
    heritage = _kept(folder) or Heritage.of(source)
    count = len(heritage.policies)
    asked = from_json({**data, "strategy": "direct", "warm_start": None, "seeds": 1}, name=to, folder=Path.cwd())
    budget = Budget(trials=count, trial_seconds=asked.budget.trial_seconds)
    experiment = replace(asked, budget=budget, finalists=count)
    store = Store.create(folder, experiment.objectives)
    store.put("heritage", heritage.to_json())
    yield from sweep(experiment, folder, runs / ".cache", heritage)


def remeasured(to: str, runs: Path) -> Remeasured:
    """What a study that was measured again tells beside the one that its policies come from.

    Raises:
        StudyError: no such study, or it has not measured its references yet.
    """
    store = Store.open(runs / to)
    heritage = _kept(store.folder)
    if heritage is None:
        raise ConfigError(f"{to!r} was not measured again from another study; `autogreen front {to}` shows it.")
    refused = {
        heritage.policies[trial.user_attrs["proposal"]["given"]].id: trial.user_attrs["reason"]
        for trial in store.study.get_trials(deepcopy=False)
        if "reason" in trial.user_attrs and "given" in trial.user_attrs.get("proposal", {})
    }
    there = Front.of(Store.open(runs / heritage.study).results())
    return Remeasured(there=there, here=Front.of(store.results()), refused=refused)


def _kept(folder: Path) -> Heritage | None:
    """What a study that was begun already took over; its front may have moved on since."""
    if not (folder / "study.db").exists():
        return None
    data = Store.open(folder).get("heritage")
    return None if data is None else Heritage.from_json(data)


def _where(front: Front) -> str:
    results = front.results
    return f"{hardware.name(dict(results.hardware))}, energy {results.tier}"
