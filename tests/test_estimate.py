"""The estimate: the vendor's figures behind it, who wins, what it refuses; and that a study never mixes tiers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import toys

from autogreen import workbench
from autogreen.errors import RefusedError, StudyError
from autogreen.meters import choose, estimate
from autogreen.meters.estimate import EstimateMeter
from autogreen.meters.tdp import PROCESSORS, match, model_name
from autogreen.sweep import sweep
from autogreen.testing import ScriptedMeter

REST = 0.74 / 3.5  # of full load, the average of a large cloud


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch):
    """Make this machine another one."""
    return lambda name: monkeypatch.setattr(estimate, "model_name", lambda: name)


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [  # as Linux writes them
        ("Intel(R) Xeon(R) 6980P", "Intel Xeon 6980P"),
        ("INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.10GHz", "Intel Xeon Platinum 8592+"),
        ("Intel(R) Xeon(R) Platinum 8488C", "Intel Xeon Platinum 8480+"),
        ("Intel(R) Xeon(R) Gold 6430", "Intel Xeon Gold 6448Y"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "Intel Xeon Platinum 8380"),
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "Intel Xeon Platinum 8280"),
        ("Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", "Intel Xeon Platinum 8180"),
        ("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", "Intel Xeon Gold 6148"),
        ("AMD EPYC 9965 192-Core Processor", "AMD EPYC 9965"),
        ("AMD EPYC 9655 96-Core Processor", "AMD EPYC 9755"),
        ("AMD EPYC 9654 96-Core Processor", "AMD EPYC 9654"),
        ("AMD EPYC 9754 128-Core Processor", "AMD EPYC 9754"),
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763"),
        ("AMD EPYC 7R13 Processor", "AMD EPYC 7763"),
        ("AMD EPYC 7B12", "AMD EPYC 7742"),
        ("AMD EPYC 7413 24-Core Processor", "AMD EPYC 7543"),
        ("AMD EPYC 7601 32-Core Processor", "AMD EPYC 7601"),
        ("AMD Ryzen AI 9 HX 370 w/ Radeon 890M", "AMD Ryzen AI 9 HX 370"),
        ("AMD Ryzen 9 9950X 16-Core Processor", "AMD Ryzen 9 7950X"),
        ("AMD Ryzen 9 3900X 12-Core Processor", "AMD Ryzen 9 5950X"),
        ("11th Gen Intel(R) Core(TM) i7-11700 @ 2.50GHz", "Intel Core i7-11700"),
        ("Intel(R) Core(TM) i7-10750H CPU @ 2.60GHz", "Intel Core i7-10750H"),
        ("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", "Intel Core i7-8550U"),
    ],
)
def test_a_processor_is_found_by_its_name(name: str, model: str) -> None:
    found = match(name)
    assert found is not None and found.model == model


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "AMD EPYC",  # a virtual machine that tells no more
        "Intel(R) Xeon(R) CPU @ 2.20GHz",
        "Intel Xeon Processor (Skylake, IBRS)",
        "Neoverse-N1",
        "Apple M1",
        "AMD EPYC 72F3 8-Core Processor",  # 11 W a thread, five times its relatives
        "AMD EPYC 9754S 128-Core Processor",  # one thread a core
        "Intel(R) Xeon(R) Platinum 8256 CPU @ 3.80GHz",  # four cores
        "Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz",  # another generation
        "11th Gen Intel(R) Core(TM) i7-11700K @ 3.60GHz",
        "13th Gen Intel(R) Core(TM) i9-13900K",
    ],
)
def test_what_is_not_known_is_not_guessed(name: str | None) -> None:
    assert match(name) is None


@pytest.mark.parametrize(
    ("name", "tdp_w", "threads"),
    [  # the vendors' figures of models that are taken for their neighbour
        ("Xeon(R) Platinum 8570", 350, 112),
        ("Xeon(R) Platinum 8461V", 300, 96),
        ("Xeon(R) Platinum 8468", 350, 96),
        ("Xeon(R) Platinum 8352V", 195, 72),
        ("Xeon(R) Platinum 8362", 265, 64),
        ("Xeon(R) Gold 6348", 235, 56),
        ("Xeon(R) Gold 6248R", 205, 48),
        ("Xeon(R) Platinum 8168", 205, 48),
        ("Xeon(R) Gold 6130", 125, 32),
        ("EPYC 9845", 390, 320),
        ("EPYC 9645", 320, 192),
        ("EPYC 9534", 280, 128),
        ("EPYC 7713", 225, 128),
        ("EPYC 7643", 225, 96),
        ("EPYC 7642", 225, 96),
        ("EPYC 7H12", 280, 128),
        ("EPYC 7453", 225, 56),
        ("EPYC 7343", 190, 32),
        ("EPYC 7303", 130, 32),
    ],
)
def test_neighbours_differ_by_less_than_the_range_stated(name: str, tdp_w: float, threads: int) -> None:
    found = match(name)
    assert found is not None and 1 / 1.4 < tdp_w / threads / found.thread_w < 1.4


@pytest.mark.parametrize(
    ("model", "full_w"),
    [  # watts per thread at full load, averages by generation from SPECpower results (Cloud Carbon Footprint)
        ("Intel Xeon Platinum 8180", 4.26),
        ("Intel Xeon Platinum 8280", 3.97),
        ("AMD EPYC 7601", 2.55),
        ("AMD EPYC 7742", 1.69),
        ("AMD EPYC 7763", 2.02),
    ],
)
def test_the_table_agrees_with_power_that_was_measured(model: str, full_w: float) -> None:
    (found,) = (processor for processor in PROCESSORS if processor.model == model)
    assert full_w / found.thread_w == pytest.approx(1.03, abs=0.14)


def test_every_entry_is_plausible() -> None:
    assert len({processor.model for processor in PROCESSORS}) == len(PROCESSORS)
    for processor in PROCESSORS:
        assert processor.threads in (processor.cores, 2 * processor.cores)
        assert 1 < processor.thread_w < 6 and processor.source


def test_a_system_without_names(tmp_path: Path) -> None:
    assert model_name(tmp_path / "cpuinfo") is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n")
    assert model_name(tmp_path / "cpuinfo") is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\n")
    assert model_name(tmp_path / "cpuinfo") == "AMD EPYC 7763 64-Core Processor"


# --- the meter --------------------------------------------------------------------------------------------------------


def watts(meter: EstimateMeter, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """What a busy core adds and what is spent at rest, from two windows of 10 s."""
    script = iter([(0.0, 0.0, 0.0), (10.0, 0.0, 0.0), (20.0, 0.0, 0.0), (30.0, 10.0, 10.0)])
    monkeypatch.setattr(estimate, "_now", lambda: next(script))
    energies = []
    for _ in range(2):
        meter.start()
        energies.append(meter.stop().energy_j)
    return (energies[1] - energies[0]) / 10, energies[0] / 10


def test_the_vendors_figures_make_the_model(named, monkeypatch) -> None:
    named("AMD EPYC 7763 64-Core Processor")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    meter = EstimateMeter()
    full_w = 280 / 128
    assert watts(meter, monkeypatch) == pytest.approx((full_w * (1 - REST), 4 * full_w * REST))
    assert "after AMD EPYC 7763 (280 W, 128 threads; AMD processor specifications)" in meter.boundary


@pytest.mark.parametrize("name", [None, "AMD EPYC"])
def test_an_unknown_processor_keeps_the_averages(name, named, monkeypatch) -> None:
    named(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    meter = EstimateMeter()
    assert watts(meter, monkeypatch) == pytest.approx((2.76, 1.48))
    assert "averages of a large cloud" in meter.boundary


def test_the_users_own_figures_win(named, monkeypatch) -> None:
    named("AMD EPYC 7763 64-Core Processor")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    own = choose("cpu", "estimate", watts_per_core=5.0, idle_watts=2.0)
    assert watts(own, monkeypatch) == pytest.approx((5.0, 2.0)) and own.boundary.endswith("your own figures)")
    half = choose("cpu", "estimate", watts_per_core=5.0)
    assert watts(half, monkeypatch) == pytest.approx((5.0, 4 * 280 / 128 * REST))
    assert "watts_per_core your own, else after AMD EPYC 7763" in half.boundary


def test_the_diagnosis_says_where_the_figures_come_from(named) -> None:
    named("AMD EPYC 7763 64-Core Processor")
    told = EstimateMeter.diagnose("cpu")
    assert told.available and "AMD EPYC 7763" in told.reason and "thread counts" in told.reason
    named(None)
    assert "in no table" in EstimateMeter.diagnose("cpu").reason
    assert not EstimateMeter.diagnose("cuda").available


# --- tiers ------------------------------------------------------------------------------------------------------------


def test_a_study_never_mixes_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same experiment on a machine that has meanwhile got a counter."""

    def begin() -> None:
        steps = sweep(toys.experiment(), tmp_path / "toy", tmp_path / ".cache")
        next(steps)  # announces the preparation
        try:
            next(steps)
        finally:
            steps.close()

    begin()
    begin()  # the same tier goes on
    monkeypatch.setattr(workbench, "choose", lambda *args, **settings: ScriptedMeter(tier="measured"))
    with pytest.raises(StudyError, match=r"meter was 'estimated \{\}', is 'measured \{\}'.*--fresh"):
        begin()


def test_the_tier_stands_with_every_number() -> None:
    meter = EstimateMeter()
    assert meter.tier == "estimated" and json.dumps(meter.boundary)


@pytest.mark.parametrize("hole", [{"choice": [1, 2]}, {"int": {"low": 1, "high": 2}}])
def test_an_estimate_does_not_search_thread_counts(tmp_path: Path, hole: dict[str, Any]) -> None:
    experiment = toys.experiment(space={**toys.SPACE, "parallelism": {"threads": hole}})
    with pytest.raises(RefusedError, match=r"parallelism\.threads is open \(1, 2\).*threads: 1.*doctor"):
        list(sweep(experiment, tmp_path / "toy", tmp_path / ".cache"))
    experiment.refuse_untellable("measured")
    toys.experiment(space={**toys.SPACE, "parallelism": {"threads": 1}}).refuse_untellable("estimated")
