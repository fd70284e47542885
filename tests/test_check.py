"""check: what came of each limit, its exit code, and one JSON object whatever happens."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_bundle import Study, original, seal, study

from autogreen import cli
from autogreen.bundle import Limits, Verification, check
from autogreen.bundle import check as module_face
from autogreen.errors import ConfigError
from autogreen.evaluation import Published
from autogreen.measurement import Interval
from autogreen.outcome import EXIT_CODES, Outcome, worst

__all__ = ["original", "study"]  # fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]
MODULE = sys.modules[module_face.__module__]
FOUND = Verification(
    study="s",
    key="k",
    hardware="Scripted CPU",
    examples=40,
    difference=1e-6,
    tolerance=1e-3,
    ratio=Interval(mean=0.40, low=0.39, high=0.41),
    promised=Interval(mean=0.41, low=0.36, high=0.45),
    busy=None,
    notes=(),
    warnings=("one window was hot",),
)


@pytest.mark.parametrize(
    ("mean", "low", "high", "busy", "outcome"),
    [
        (0.40, 0.39, 0.41, None, "kept"),
        (0.40, 0.39, 0.41, "Much else ran.", "kept"),
        (0.60, 0.59, 0.61, None, "broken"),
        (0.60, 0.59, 0.61, "Much else ran.", "inconclusive"),
        (0.60, 0.44, 0.80, None, "inconclusive"),
        (0.30, 0.29, 0.31, None, "broken"),  # too good: something is not as it was
        (0.30, 0.20, 0.37, None, "inconclusive"),
    ],
)
def test_what_is_not_known_well_enough_breaks_no_promise(
    mean: float, low: float, high: float, busy: str | None, outcome: Outcome
) -> None:
    found = replace(FOUND, ratio=Interval(mean=mean, low=low, high=high), busy=busy)
    assert found.outcome == outcome
    told = {"kept": "it takes", "broken": "does not keep its promise", "inconclusive": "not conclusive"}
    assert told[outcome] in found.told


@pytest.fixture(scope="module")
def tested(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose quality on test is known."""
    evaluation = study.evaluation
    assert evaluation.measurement is not None and evaluation.ratio is not None
    published = Published(
        key=evaluation.key,
        test=Interval(mean=0.97, low=0.96, high=0.98),
        test_loss=Interval(mean=0.01, low=0.005, high=0.015),
        ratio=evaluation.ratio,
        measurement=evaluation.measurement,
    )
    results = replace(study.results, published={evaluation.key: published})
    return study.export(tmp_path_factory.mktemp("tested") / "bundle", results=results)


def verified(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """What was measured, in words that a test can choose; measuring itself is tested with `verify`."""
    monkeypatch.setattr(MODULE, "examine", lambda folder, **settings: replace(FOUND, **changed))


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["autogreen", "check", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    told = capsys.readouterr()
    return stopped.value.code, told.out, told.err


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        ({}, "kept"),
        ({"max_ratio": 0.41}, "kept"),
        ({"max_ratio": 0.40}, "inconclusive"),
        ({"max_ratio": 0.389}, "broken"),
        ({"min_quality": 0.96}, "kept"),
        ({"min_quality": 0.97}, "inconclusive"),
        ({"min_quality": 0.981}, "broken"),
        ({"max_loss": 0.015}, "kept"),
        ({"max_loss": 0.01}, "inconclusive"),
        ({"max_loss": 0.004}, "broken"),
        ({"max_ratio": 0.40, "min_quality": 0.99}, "broken"),
        ({"max_ratio": 0.41, "min_quality": 0.96, "max_loss": 0.015}, "kept"),
    ],
)
def test_a_limit_is_kept_broken_or_open(
    tested: Path,
    limits: dict[str, float],
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verified(monkeypatch)
    options = [text for key, value in limits.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    code, out, err = run(monkeypatch, capsys, str(tested), *options, "--json")
    found = json.loads(out)
    assert (code, found["exit_code"], found["outcome"], err) == (EXIT_CODES[outcome], code, outcome, "")
    assert len(found["findings"]) == 2 + len(limits) and all(finding["reason"] for finding in found["findings"])
    assert found["test"]["quality"]["mean"] == 0.97 and found["verification"]["ratio"]["mean"] == 0.40


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({"ratio": None, "notes": ("other hardware",)}, "unmeasured"),
        ({"ratio": Interval(mean=0.5, low=0.49, high=0.51)}, "broken"),
        (
            {"ratio": Interval(mean=0.5, low=0.49, high=0.51), "busy": "8 of 8 windows ran beside others."},
            "inconclusive",
        ),
    ],
)
def test_the_promise_counts_without_any_limit(
    tested: Path, changed: dict[str, Any], outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified(monkeypatch, **changed)
    found = check(tested)
    assert found.outcome == outcome and found.findings[1].outcome == outcome
    assert found.summary().splitlines()[-1] == f"{tested}: {outcome}" and "one window was hot" in found.summary()


def test_a_ratio_of_a_busy_machine_proves_no_limit_either(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified(monkeypatch, ratio=Interval(mean=0.2, low=0.19, high=0.21), busy="8 of 8 windows ran beside others.")
    assert check(tested, Limits(max_ratio=0.5)).findings[2].outcome == "inconclusive"
    verified(monkeypatch, ratio=None, promised=None, notes=("this is the reference itself",))
    found = check(tested, Limits(max_ratio=0.5))
    assert [finding.outcome for finding in found.findings] == ["kept", "kept", "unmeasured"]


def test_what_was_never_judged_on_test_proves_nothing(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified(monkeypatch)
    found = check(original, Limits(min_quality=0.1, max_loss=0.9))
    assert [finding.outcome for finding in found.findings[2:]] == ["inconclusive", "inconclusive"]
    assert "Raise `finalists`" in found.findings[2].reason


@pytest.mark.parametrize("what", ["nowhere", "damaged"])
def test_a_bundle_that_is_none_is_one_json_object_too(
    original: Path,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if what == "damaged":
        shutil.copytree(original, tmp_path / what)
        (tmp_path / what / "model.pt2").write_bytes(b"PK")
        seal(tmp_path / what)
    code, out, err = run(monkeypatch, capsys, str(tmp_path / what), "--json")
    found = json.loads(out)
    assert (code, found["outcome"], found["verification"], err) == (1, "broken", None, "")
    assert what in found["findings"][0]["reason"]


@pytest.mark.parametrize("option", ["--max-ratio=0", "--max-ratio=nan", "--min-quality=inf", "--max-loss=x", "--w=1"])
def test_usage_has_a_code_of_its_own(
    tested: Path, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, str(tested), option, "--json")
    assert (code, out) == (2, "") and option.partition("=")[0].strip("-").replace("-", "_") in err.replace("-", "_")
    with pytest.raises(ConfigError, match="max_ratio is -1"):
        Limits(max_ratio=-1)


def test_really_measured_in_a_fresh_process(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "copy")
    generous = {"mean": 1.0, "low": 0.01, "high": 100.0}  # a microsecond's work on a machine that tests share
    seal(tmp_path / "copy", lambda data: data["energy"].update(ratio_prediction=generous))
    found = check(tmp_path / "copy", Limits(max_ratio=1000.0))
    assert found.outcome == "kept" and found.verified is not None and found.verified.ratio is not None


def test_outcomes_are_ordered_and_have_codes_of_their_own() -> None:
    assert worst([]) == "kept" and worst(["kept", "inconclusive"]) == "inconclusive"
    assert worst(["unmeasured", "inconclusive", "kept"]) == "unmeasured"
    assert worst(["unmeasured", "broken", "inconclusive"]) == "broken"
    assert sorted(EXIT_CODES.values()) == [0, 1, 3, 4]
