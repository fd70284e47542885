"""A factorial that was measured (`factorial.py`), as something to search: what stands in the table is the truth."""

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from autogreen.evaluation import Evaluation
from autogreen.measurement import Interval
from autogreen.point import hypervolume
from autogreen.policy import Policy
from autogreen.space import SearchSpace
from autogreen.strategies.forecast import Choice, Forecast
from autogreen.testing import scripted_evaluation


class Recorded:
    """Has what `autogreen.testing.Simulator` has; a policy that failed when it was measured is not there."""

    def __init__(self, path: Path) -> None:
        self.told, *lines = map(json.loads, path.read_text().splitlines())
        self.max_loss: float = self.told["max_loss"]
        self.space = SearchSpace.from_json(self.told["experiment"]["space"])
        self.lines = {self._key(line["row"]): line for line in lines if "failed" not in line}

    @cached_property
    def forecast(self) -> Forecast:
        """What the probes of that model said."""
        choices = [
            Choice(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})  # type: ignore[arg-type]
            for told in self.told["choices"]
        ]
        return Forecast(choices=tuple(choices), unit="divergence")

    def evaluate(self, policy: Policy) -> Evaluation:
        """As it was measured then."""
        line = self.lines[_text(policy)]
        loss, ratio = (_interval(line[name]) for name in ("loss", "ratio"))
        halves = ((loss.high - loss.low) / 2, (ratio.high - ratio.low) / 2 / ratio.mean)
        return scripted_evaluation(loss.mean, ratio.mean, name=_text(policy), noise=halves)

    def share(self, policies: Sequence[Policy]) -> float:
        """Hypervolume of these policies over that of the whole table, within (max_loss, the reference's energy)."""
        return self._covered([self.lines[_text(policy)] for policy in policies]) / self._whole

    @cached_property
    def _whole(self) -> float:
        return self._covered(list(self.lines.values()))

    def _covered(self, lines: Sequence[dict[str, Any]]) -> float:
        places = [(line["loss"][0], math.log(line["ratio"][0])) for line in lines]
        return hypervolume(places, (self.max_loss, 0.0))

    def _key(self, row: Sequence[int]) -> str:
        holes = self.space.holes()
        answers = {name: (hole.options or ())[at] for (name, hole), at in zip(holes.items(), row, strict=True)}
        return _text(self.space.filled(answers))


def _interval(told: Sequence[float]) -> Interval:
    mean, low, high = told
    return Interval(mean=mean, low=low, high=high)


def _text(policy: Policy) -> str:
    return json.dumps(policy.to_json(), sort_keys=True)
