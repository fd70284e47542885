"""A factorial on disk, replayed: what stands in the table is what a search is told."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from autogreen.explore import explore
from autogreen.strategies.direct import Direct
from autogreen.strategies.guided import Guided

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SPACE = {
    "quantization": [
        {"target": "a", "scheme": {"ordered": ["none", "w8a8"]}},
        {"target": "b", "scheme": {"ordered": ["none", "bf16", "w8a8"]}},
    ]
}
NAMES = ("quantization[a].scheme", "quantization[b].scheme")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    yield importlib.import_module("recorded")
    sys.modules.pop("recorded", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Losses 0.01 and 0.02 for the last options, half of that between; each saves a quarter. The last row failed."""
    choices = [
        {"name": name, "options": options, "losses": losses, "savings": savings, "group": "quantization"}
        for name, options, losses, savings in (
            (NAMES[0], ["none", "w8a8"], [0.0, 0.1], [0.0, 0.25]),
            (NAMES[1], ["none", "bf16", "w8a8"], [0.0, 0.1, 0.2], [0.0, 0.2, 0.25]),
        )
    ]
    lines: list[dict[str, Any]] = [{"experiment": {"space": SPACE}, "max_loss": 0.05, "choices": choices}]
    for a in range(2):
        for b in range(3):
            loss, ratio = 0.01 * a + 0.01 * b, 1 - 0.25 * a - 0.125 * b
            lines.append({"row": [a, b], "loss": [loss, loss - 0.002, loss + 0.002], "ratio": [ratio, ratio, ratio]})
    lines[-1] = {"row": [1, 2], "failed": "it was killed"}
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_policies_are_told_as_they_were_measured(recorded: Any, path: Path) -> None:
    table = recorded.Recorded(path)
    policy = table.space.filled({NAMES[0]: "w8a8", NAMES[1]: "bf16"})
    found = table.evaluate(policy)
    assert (found.loss.mean, found.loss.low, found.loss.high) == pytest.approx((0.02, 0.018, 0.022))
    assert found.ratio.mean == pytest.approx(0.625)
    assert table.share([table.space.filled(dict.fromkeys(NAMES, "none"))]) == 0.0
    with pytest.raises(KeyError):
        table.evaluate(table.space.filled({NAMES[0]: "w8a8", NAMES[1]: "w8a8"}))


@pytest.mark.parametrize("strategy", ["direct", "guided"])
def test_a_strategy_finds_the_whole_front_of_a_table(recorded: Any, path: Path, strategy: str) -> None:
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps({"row": [1, 2], "loss": [0.03, 0.028, 0.032], "ratio": [0.5, 0.5, 0.5]})
    path.write_text("\n".join(lines))
    table = recorded.Recorded(path)
    made = Direct(table.space) if strategy == "direct" else Guided(table.space, table.forecast, seed=0, max_loss=0.05)
    found = [trial.policy for trial in explore(table.evaluate, made, trials=6, max_loss=0.05)]
    assert len(found) == 6 and table.share(found) == pytest.approx(1.0)
