"""The floor: counted work and unit costs against closed forms; measurements below it and of other meters refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autogreen import floor
from autogreen.errors import MeterError
from autogreen.floor import UnitCosts, Work, count, keep, kept, measure_costs, times_above_floor, unit_cost_pj
from autogreen.measurement import Interval, Measurement, Protocol
from autogreen.testing import ScriptedClock, ScriptedMeter

QUICK = Protocol(warmup_s=0.0, window_s=0.01, min_windows=2, max_windows=2, foreign_limit=0.25)
HERE = {"cpu": "Scripted CPU", "cores": 2, "cpu_capability": "AVX2", "torch": "2.13"}
COSTS = UnitCosts(
    machine="Scripted CPU, 2 cores, AVX2",
    driver="none",
    torch="2.13",
    tier="measured",
    boundary="scripted",
    flop_pj={"float32": Interval(mean=10, low=9, high=11), "int8": Interval(mean=3, low=2, high=4)},
    byte_pj=Interval(mean=110, low=100, high=120),
    cache_bytes=1000,
    left_out={"bfloat16": "no instructions"},
    measured="2026-11-01T00:00:00+00:00",
)
METER = ScriptedMeter()


def measured(energy_j: float, half: float = 0.0, items: int = 1, **changes: Any) -> Measurement:
    energy = Interval(mean=energy_j, low=energy_j - half, high=energy_j + half)
    found = Measurement(
        energy_per_item_j=energy,
        latency_s=energy,
        items_per_call=items,
        tier="measured",
        boundary="scripted",
        windows=(),
    )
    return replace(found, **changes)


# --- the bound --------------------------------------------------------------------------------------------------------


def test_the_bound_is_the_larger_of_compute_and_memory() -> None:
    assert COSTS.lower_bound_j({"float32": 1e12}, 0) == pytest.approx(9)
    assert COSTS.lower_bound_j({"float32": 1e12, "int8": 1e12}, 0) == pytest.approx(11)
    assert COSTS.lower_bound_j({"float32": 1e12}, 1e12 + 1000) == pytest.approx(100)
    assert COSTS.lower_bound_j({}, 1000) == 0  # the caches hold it from one call to the next


def test_what_is_not_known_bounds_nothing() -> None:
    assert COSTS.lower_bound_j({"bfloat16": 1e12}, 0) == 0
    assert replace(COSTS, cache_bytes=None).lower_bound_j({}, 1e15) == 0


def test_a_sound_measurement_is_a_multiple_of_the_floor() -> None:
    work = Work(flops={"float32": 64e12}, weights=0, io_bytes=0)
    assert times_above_floor(measured(18.0, items=64), work, COSTS, ["float32"]) == pytest.approx(2)
    mixed = Work(flops={"float32": 32e12, "int8": 32e12}, weights=0, io_bytes=0)  # 32 x 9 + 32 x 2 = 352 J
    assert times_above_floor(measured(11.0, items=64), mixed, COSTS, ["float32", "int8"]) == pytest.approx(2)
    assert times_above_floor(measured(11.0, items=64), mixed, COSTS, ["int8"]) == pytest.approx(2)


def test_work_of_a_kernel_that_was_not_planned_counts_as_the_cheapest() -> None:
    work = Work(flops={"float32": 64e12}, weights=0, io_bytes=0)
    assert times_above_floor(measured(18.0, items=64), work, COSTS, ["float32", "int8"]) == pytest.approx(9)
    assert times_above_floor(measured(18.0, items=64), work, COSTS, ["float16"]) is None


def test_weights_take_the_width_of_the_cheapest_kernel() -> None:
    work = Work(flops={}, weights=10**12, io_bytes=1000)
    assert times_above_floor(measured(800.0), work, COSTS, ["float32"]) == pytest.approx(2)
    assert times_above_floor(measured(800.0), work, COSTS, ["int8"]) == pytest.approx(8)


def test_below_the_floor_is_refused_and_explained() -> None:
    work = Work(flops={"float32": 1e12}, weights=0, io_bytes=0)
    with pytest.raises(MeterError, match=r"measured 4 J a call.*at least 9 J.*window missed.*doctor --floor"):
        times_above_floor(measured(4.0, half=1.0), work, COSTS, ["float32"])
    assert times_above_floor(measured(8.1, half=1.0), work, COSTS, ["float32"]) == pytest.approx(0.9)  # within noise


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_an_unmeasured_precision_is_not_judged(precision: str) -> None:
    assert (
        times_above_floor(measured(1e-9), Work(flops={precision: 1e12}, weights=0, io_bytes=0), COSTS, [precision])
        is None
    )
    both = Work(flops={"float32": 1e12, precision: 1e12}, weights=0, io_bytes=0)
    assert times_above_floor(measured(18.0), both, COSTS, ["float32", precision]) == pytest.approx(2)


def test_where_no_kernel_was_recognised_nothing_is_judged() -> None:
    assert times_above_floor(measured(1e-9), Work(flops={"float32": 1e12}, weights=0, io_bytes=0), COSTS, []) is None


@pytest.mark.parametrize("change", [{"tier": "estimated"}, {"boundary": "another board"}])
def test_another_meter_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MeterError, match="another meter"):
        times_above_floor(measured(100.0, **change), Work(flops={}, weights=0, io_bytes=0), COSTS, ["float32"])


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Linear(10, 20), (4, 10), 2 * 4 * 10 * 20),
        (nn.Linear(10, 20), (4, 3, 10), 2 * 12 * 10 * 20),
        (nn.Conv2d(8, 16, 1), (2, 8, 5, 5), 2 * 2 * 25 * 8 * 16),
        (nn.Conv2d(8, 16, 3, padding=1), (2, 8, 5, 5), 2 * 2 * 25 * 8 * 16 * 9 / 4),
        (nn.Conv2d(8, 16, 3, stride=2, groups=4), (2, 8, 5, 5), 2 * 2 * 4 * 2 * 16 * 9 / 4),
        (nn.ConvTranspose2d(8, 16, 2, stride=2), (2, 8, 5, 5), 2 * 2 * 25 * 8 * 16 * 4 / 4),
        (nn.ReLU(), (2, 8), 0),
    ],
)
def test_flops_by_hand(layer: nn.Module, shape: tuple[int, ...], flops: float) -> None:
    assert count(layer, ((torch.rand(shape),), {})).flops == ({"float32": flops} if flops else {})


def test_lowered_layers_count_in_their_own_data_type() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    linear, convolution = 2 * 2 * 64 * 5, 2 * 2 * 16 * 4
    example = ((torch.rand(2, 1, 4, 4),), {})
    assert count(model, example, {"1.1": "int8"}).flops == {"float32": convolution, "int8": linear}
    assert count(model, example, {"0": "int8", "1.1": "int8"}).flops == {"int8": convolution + linear}
    assert count(model.double(), ((torch.rand(2, 1, 4, 4).double(),), {})).flops == {"float64": convolution + linear}


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x))  # type: ignore[no-any-return]

    assert count(Twice(), ((torch.rand(3, 8),), {}), {"inner": "bfloat16"}).flops == {"bfloat16": 2 * 2 * 3 * 64}


def test_weights_are_those_that_products_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.unused = nn.Embedding(1000, 8), nn.Linear(50, 50)
            self.inner, self.norm = nn.Linear(8, 8, bias=False), nn.LayerNorm(8)

        def forward(self, words: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.norm(self.inner(self.words(words))) * scale}

    example = ((torch.arange(4)[None],), {"scale": torch.ones(1)})
    work = count(Net(), example)
    assert work == Work(flops={"float32": 2 * 4 * 64}, weights=64, io_bytes=4 * 8 + 4 + 4 * 8 * 4)


def test_a_tied_embedding_is_read_as_a_whole() -> None:
    words, head = nn.Embedding(100, 8), nn.Linear(8, 100, bias=False)
    head.weight = words.weight
    assert count(nn.Sequential(words, head), ((torch.arange(4)[None],), {})).weights == 800


def test_an_exported_program_counts_like_its_model() -> None:
    model, example = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 5)), (torch.rand(2, 1, 6, 6),)
    program = torch.export.export(model.eval(), example).module()
    assert count(program, (example, {})) == count(model, (example, {}))


# --- unit costs -------------------------------------------------------------------------------------------------------


def scripted(watts: Any, **changes: Any) -> Interval:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=watts, clock=clock, **changes)
    return unit_cost_pj(lambda: clock.advance(0.01), 1e9, meter=meter, protocol=QUICK, clock=clock)


def test_a_unit_cost_is_energy_over_amount() -> None:
    found = scripted(100.0)
    assert (found.mean, found.low, found.high) == pytest.approx((1000, 1000, 1000))


def test_the_low_end_is_at_most_the_cheapest_window() -> None:
    found = scripted([100.0, 80.0])
    assert found.mean == pytest.approx(900) and found.low <= 800 < found.mean < found.high


def test_unit_costs_beside_other_programs_are_refused() -> None:
    with pytest.raises(MeterError, match=r"beside other programs \(1.00 foreign busy cores"):
        scripted(100.0, foreign_cores=1.0)


def test_a_counter_that_fails_is_an_error() -> None:
    with pytest.raises(MeterError, match="the board is gone"):
        scripted([MeterError("the board is gone")])


def test_measuring_a_real_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    product = floor._product

    def broken(dtype: str, device: str, side: int) -> Any:
        if dtype == "int8":
            raise RuntimeError("no such kernel\nand a long trace")
        return product(dtype, device, side)

    monkeypatch.setattr(floor, "_product", broken)
    monkeypatch.setattr(
        floor, "missing_instructions", lambda dtype, device: None if dtype in ("float32", "int8") else "not here"
    )
    costs = measure_costs("cpu", ScriptedMeter(watts=100.0), protocol=QUICK, side=64, copied=1 << 16)
    assert set(costs.flop_pj) == {"float32"} and costs.flop_pj["float32"].mean > 0 and costs.byte_pj.mean > 0
    assert costs.left_out == {
        "bfloat16": "not here",
        "float8": "not here",
        "float16": "not here",
        "int8": "its product does not run here: no such kernel",
    }
    assert (costs.tier, costs.boundary, costs.torch) == ("measured", "scripted", torch.__version__)
    assert torch.get_num_threads() == threads


def test_int8_takes_the_kernel_that_programs_take() -> None:
    if floor.missing_instructions("int8", "cpu"):
        pytest.skip("no int8 kernel on this processor")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        floor._product("int8", "cpu", 32)()
    assert any("qlinear" in event.name for event in recorded.events())


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_costs_come_back_as_they_were(tmp_path: Path) -> None:
    path = keep(COSTS, tmp_path)
    assert kept(HERE, METER, tmp_path) == COSTS
    assert json.loads(path.read_text())["tier"] == "measured"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no half-written file beside it


@pytest.mark.parametrize("change", [{"torch": "2.14"}, {"driver": "580"}, {"cores": 4}])
def test_another_machine_has_costs_of_its_own(change: dict[str, Any], tmp_path: Path) -> None:
    keep(COSTS, tmp_path)
    assert kept({**HERE, **change}, METER, tmp_path) is None


@pytest.mark.parametrize("change", [{"tier": "estimated"}, {"boundary": "another board"}])
def test_another_meter_has_costs_of_its_own(change: dict[str, Any], tmp_path: Path) -> None:
    keep(COSTS, tmp_path)
    other = replace(COSTS, **change)
    assert kept(HERE, ScriptedMeter(**change), tmp_path) is None
    keep(other, tmp_path)
    assert kept(HERE, ScriptedMeter(**change), tmp_path) == other and kept(HERE, METER, tmp_path) == COSTS


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"flop_pj": {}}'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    path = keep(COSTS, tmp_path)
    path.write_text(text)
    with pytest.raises(MeterError, match=rf"{path.name} cannot be read.*--floor"):
        kept(HERE, METER, tmp_path)


# --- caches -----------------------------------------------------------------------------------------------------------


def processor(folder: Path, cpu: int, caches: dict[str, tuple[str, str, str, str]]) -> None:
    for index, values in caches.items():
        place = folder / f"cpu{cpu}" / "cache" / index
        place.mkdir(parents=True)
        for name, value in zip(("type", "level", "shared_cpu_list", "size"), values, strict=True):
            (place / name).write_text(f"{value}\n")


def test_shared_caches_count_once(tmp_path: Path) -> None:
    for cpu in (0, 1):
        processor(
            tmp_path,
            cpu,
            {
                "index0": ("Data", "1", str(cpu), "32K"),
                "index1": ("Instruction", "1", str(cpu), "32K"),
                "index2": ("Unified", "2", str(cpu), "512K"),
                "index3": ("Unified", "3", "0-1", "16M"),
            },
        )
    assert floor.cache_bytes("cpu", tmp_path) == 2 * (32 + 512) * 1024 + (16 << 20)


def test_caches_that_are_not_told(tmp_path: Path) -> None:
    assert floor.cache_bytes("cpu", tmp_path) is None
    processor(tmp_path, 0, {"index0": ("Data", "1", "0", "much")})
    assert floor.cache_bytes("cpu", tmp_path) is None
