"""Kernels: which cases are asked, what is kept, how a cell is measured, and what a search makes of it."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from autogreen import cli, hardware, restriction
from autogreen.anatomy import Anatomy
from autogreen.errors import ConfigError, EvaluationError, MeterError, RefusedError
from autogreen.kernels import Case, Cell, Kernels, Shape, bench, cases, keep, kept, page, session, table
from autogreen.measurement import Interval, Protocol
from autogreen.meters import choose
from autogreen.space import SearchSpace
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.techniques import Unit
from autogreen.techniques.quantization.schemes import SCHEMES
from autogreen.testing import ScriptedMeter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
QUICK = Protocol(warmup_s=0.0, preheat_s=0.0, window_s=0.01, min_windows=2, max_windows=2, foreign_limit=99.0)
HERE = {"device": "cpu", "cpu": "Scripted CPU", "cores": 2, "cpu_capability": "AVX2", "torch": "2.13"}
NONE = Kernels.none_yet(HERE, "measured", "scripted")
LINEAR = Shape(kind="linear", inputs=64, outputs=32)


def cell(scheme: str, ratio: float, shape: Shape = LINEAR, rows: int = 32, half: float = 0.01, **more: Any) -> Cell:
    around = Interval(mean=ratio, low=ratio * (1 - half), high=ratio * (1 + half))
    return Cell(
        case=Case(shape=shape, rows=rows, scheme=scheme), ratio=around, row_j=around, plain_row_j=around, **more
    )


# --- values -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_exactly(tmp_path: Path) -> None:
    refused = Cell(case=Case(shape=LINEAR, rows=1, scheme="fp8"), refused="no kernel")
    found = NONE.having(refused).having(
        cell("w8a8", 0.1 + 0.2, kernels=("onednn::qlinear (int8)",), warnings=("noisy",), copies=7, measured="2026")
    )
    path = keep(found, tmp_path)
    assert kept(HERE, "measured", "scripted", tmp_path) == found
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_two_processes_keep_what_both_measured(tmp_path: Path) -> None:
    """Each began when nothing was known."""
    one, other = cell("w8a8", 0.5), cell("fp16", 0.9)
    todo = tuple(found.case for found in (one, other))

    def bench(shape: Shape, rows: int, schemes: tuple[str, ...], *more: Any) -> Any:
        keep(NONE.having(other), tmp_path)  # meanwhile
        yield one

    list(session.measure(todo[:1], NONE, cache=tmp_path, protocol=QUICK, bench=bench))
    assert kept(HERE, "measured", "scripted", tmp_path) == NONE.having(one).having(other)
    keep(NONE.having(cell("fp16", 0.7)), tmp_path)
    assert kept(HERE, "measured", "scripted", tmp_path) == NONE.having(one).having(cell("fp16", 0.7))


def test_keeping_waits_for_another_process(tmp_path: Path) -> None:
    import fcntl
    import os
    import threading

    folder = keep(NONE, tmp_path).parent
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    late = threading.Thread(target=keep, args=(NONE.having(cell("w8a8", 0.5)), tmp_path))
    late.start()
    late.join(0.2)
    assert late.is_alive() and kept(HERE, "measured", "scripted", tmp_path) == NONE
    os.close(lock)
    late.join()
    assert kept(HERE, "measured", "scripted", tmp_path) == NONE.having(cell("w8a8", 0.5))


def test_another_machine_or_meter_knows_nothing(tmp_path: Path) -> None:
    keep(NONE.having(cell("w8a8", 0.5)), tmp_path)
    assert kept(HERE, "measured", "scripted", tmp_path) is not None
    for change in ({"cpu": "Another"}, {"torch": "2.14"}, {"driver": "580"}):
        assert kept({**HERE, **change}, "measured", "scripted", tmp_path) is None
    assert kept(HERE, "estimated", "scripted", tmp_path) is None
    assert kept(HERE, "measured", "another board", tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"cells": [1]}', '{"cells": [{"case": {}}]}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = keep(NONE, tmp_path)
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"{path.name} cannot be read .*Delete it"):
        kept(HERE, "measured", "scripted", tmp_path)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        keep(NONE, tmp_path)


def test_a_new_answer_takes_the_place_of_the_old_one() -> None:
    found = NONE.having(cell("w8a8", 0.5)).having(cell("fp16", 0.9)).having(cell("w8a8", 0.6))
    assert [(one.case.scheme, one.ratio and one.ratio.mean) for one in found.cells] == [("fp16", 0.9), ("w8a8", 0.6)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows", "scheme", "found"),
    [
        (64, 32, 32, "w8a8", True),
        (128, 64, 64, "w8a8", True),
        (32, 16, 16, "w8a8", True),
        (129, 32, 32, "w8a8", False),
        (64, 15, 32, "w8a8", False),
        (64, 32, 65, "w8a8", False),
        (64, 32, 32, "w8a16", False),
    ],
)
def test_a_cell_speaks_for_what_is_within_a_factor_of_two(
    inputs: int, outputs: int, rows: int, scheme: str, found: bool
) -> None:
    known = NONE.having(cell("w8a8", 0.5)).having(Cell(case=Case(shape=LINEAR, rows=32, scheme="w8a16"), refused="no"))
    shape = Shape(kind="linear", inputs=inputs, outputs=outputs)
    assert (known.nearest(Case(shape=shape, rows=rows, scheme=scheme)) is not None) == found


def test_the_nearest_cell_speaks_and_another_kernel_size_does_not() -> None:
    conv, point = Shape(kind="conv", inputs=64, outputs=32, taps=9), Shape(kind="conv", inputs=64, outputs=32)
    known = NONE.having(cell("w8a8", 1.0, rows=16)).having(cell("w8a8", 2.0, rows=40)).having(cell("w8a8", 3.0, conv))
    near = known.nearest(Case(shape=LINEAR, rows=32, scheme="w8a8"))
    assert near is not None and near.case.rows == 40
    assert known.nearest(Case(shape=point, rows=32, scheme="w8a8")) is None


# --- which cases are asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_usual_cases_hold_every_scheme_but_the_plain_layer(device: str) -> None:
    asked = cases.cases_of((), (), cases.schemes_asked((), device), device)
    assert {case.scheme for case in asked} == set(SCHEMES) - {"none", *(["bf16"] if device == "cuda:0" else [])}
    assert len(asked) == len(set(asked)) and {1, 32} < {case.rows for case in asked}
    assert {case.shape.kind for case in asked} == ({"linear", "conv"} if device == "cpu" else {"linear"})


def test_shapes_and_rows_of_the_user_replace_them() -> None:
    named = [cases.shape_of("1024x4096"), cases.shape_of(" 64X128x3x3 ")]
    assert named == [
        Shape(kind="linear", inputs=1024, outputs=4096),
        Shape(kind="conv", inputs=64, outputs=128, taps=9),
    ]
    asked = cases.cases_of(named, cases.rows_of(["1,32", "7"]), ["fp16"], "cpu")
    assert [case.rows for case in asked] == [1, 32, 7, 1, 32, 7]
    assert [str(shape) for shape in named] == ["1024 x 4096", "64 x 128 x 3 x 3"]


@pytest.mark.parametrize(
    "text", ["1024", "0x4", "-1x4", "4x", "axb", "4x4x3", "4x4x3x5", "4x4x2x2", "1.5x4", "4x4x3x3x3"]
)
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no pair of positive whole numbers: INPUTSxOUTPUTS"):
        cases.shape_of(text)


@pytest.mark.parametrize("text", ["", "0", "1,,2", "x", "1.5", "-3"])
def test_rows_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no positive whole number"):
        cases.rows_of([text])


def unit(name: str, inputs: int = 64, width: int = 32, kind: Any = "linear", block: str = "", **more: Any) -> Unit:
    return Unit(name=name, members=(name,), kind=kind, width=width, inputs=inputs, calls=1, block=block or name, **more)


def anatomy(*units: Unit) -> Anatomy:
    return Anatomy(model="Net", parameters=1, units={"quantization": units})


def test_layers_of_a_model_are_asked_once_the_most_work_first() -> None:
    found, notes = cases.cases_in(
        anatomy(
            unit("small", 8, 8),
            unit("a"),
            unit("b"),
            unit("conv", kind="conv", rows=49, taps=9),
            unit("deep", kind="conv", groups=64),
            unit("tokens", 8, 8, rows=3),
        ),
        [2],
        (),
        ["w8a8"],
        most=3,
    )
    conv = Shape(kind="conv", inputs=64, outputs=32, taps=9)
    tokens = Shape(kind="linear", inputs=8, outputs=8)
    assert [(case.shape, case.rows) for case in found] == [(conv, 98), (LINEAR, 2), (tokens, 6)]
    total = 64 * 32 * 9 * 98 + 2 * 64 * 32 * 2 + 64 * 6 + 64 * 2
    assert notes == (
        "1 layers are grouped or have uneven kernels and are not asked: deep",
        f"the 3 largest of 4 shapes and rows are asked; the others do {128 / total:.1%} of the work",
    )


# --- a session --------------------------------------------------------------------------------------------------------

ASKED = tuple(Case(shape=LINEAR, rows=rows, scheme=scheme) for rows in (1, 32) for scheme in ("fp16", "w8a8"))


class Bench:
    """Answers at once; `faults`: an exception in the place of a case."""

    def __init__(self, **faults: BaseException) -> None:
        self.faults, self.asked, self.warm = faults, list[Case](), list[bool]()

    def __call__(
        self, shape: Shape, rows: int, schemes: tuple[str, ...], protocol: Protocol, warm: bool
    ) -> Iterator[Cell]:
        self.warm.append(warm)
        for scheme in schemes:
            self.asked.append(Case(shape=shape, rows=rows, scheme=scheme))
            if fault := self.faults.pop(f"{scheme}_{rows}", None):
                raise fault
            yield cell(scheme, 0.5, shape, rows)


def run(made: Bench, cache: Path, again: bool = False) -> list[session.Step]:
    known = kept(HERE, "measured", "scripted", cache) or NONE
    todo = session.missing(known, ASKED, again=again)
    return list(session.measure(todo, known, cache=cache, protocol=QUICK, bench=made))


def test_every_answer_is_kept_and_none_is_asked_twice(tmp_path: Path) -> None:
    made = Bench()
    steps = run(made, tmp_path)
    assert made.asked == list(ASKED) and made.warm == [False, True]
    assert [(step.done, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)] and steps[-1].left_s == 0
    assert kept(HERE, "measured", "scripted", tmp_path) == steps[-1].kernels
    assert run(Bench(), tmp_path) == []
    assert len(run(Bench(), tmp_path, again=True)) == 4


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), MeterError("the counter vanished")])
def test_what_was_measured_before_an_interruption_stays(tmp_path: Path, fault: BaseException) -> None:
    with pytest.raises(type(fault)):
        run(Bench(fp16_32=fault), tmp_path)
    second = Bench()
    run(second, tmp_path)
    assert second.asked == list(ASKED[2:])


def test_a_process_that_dies_costs_one_scheme(tmp_path: Path) -> None:
    made = Bench(fp16_1=EvaluationError("the process died (signal SIGSEGV)"))
    steps = run(made, tmp_path)
    assert steps[0].cell.refused == "the process died (signal SIGSEGV)" and steps[0].cell.verdict == "refused"
    assert [step.cell.ratio is not None for step in steps] == [False, True, True, True]
    assert made.asked == list(ASKED)


def test_where_no_scheme_runs_each_reason_is_told() -> None:
    here = session.Here(hardware=HERE, tier="measured", boundary="scripted", missing={"fp8": "no", "w4a16": "never"})
    with pytest.raises(RefusedError, match=r"none of these .* on 'cpu'.*fp8: no\. w4a16: never\."):
        session.runnable(here, ("fp8", "w4a16"))
    here = replace(here, missing={**here.missing, "w8a8": None})
    assert session.runnable(here, ("fp8", "w8a8")) == (("w8a8",), ("fp8: no",))


def test_the_forecast_grows_with_what_is_asked() -> None:
    one, all_ = (session.forecast_s(asked, session.PROTOCOL) for asked in (ASKED[:1], ASKED))
    assert 20 < one < all_ < 600


# --- measuring --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 kB, so that two or three small layers pass them by."""
    monkeypatch.setattr("autogreen.floor.cache_bytes", lambda device: 10_000)


def test_layers_pass_twice_the_caches_by(small_caches: None) -> None:
    weights, moved = 64 * 32, 32 * (64 + 32) * 4  # 8-bit weights are the narrowest on a processor
    assert bench.copies_of(LINEAR, 32, "cpu", 4) == -(-2 * 10_000 // (weights + moved)) == 2
    assert bench.copies_of(Shape(kind="linear", inputs=4, outputs=4), 1, "cpu", 4) == bench.MOST_COPIES
    assert bench.copies_of(Shape(kind="linear", inputs=1 << 14, outputs=1 << 14), 1, "cpu", 4) == 1


@pytest.mark.parametrize(
    ("shape", "rows", "size"),
    [
        ("64x32", 32, (32, 64)),
        ("4x8x3x3", 64, (1, 4, 8, 8)),
        ("4x8x3x3", 18, (2, 4, 3, 3)),
        ("4x8x5x5", 7, (7, 4, 1, 1)),
        ("4x8x1x1", 4096, (4, 4, 32, 32)),
    ],
)
def test_a_subject_has_the_rows_that_are_asked(
    shape: str, rows: int, size: tuple[int, ...], small_caches: None
) -> None:
    subject = bench.make(cases.shape_of(shape), rows, "cpu")
    inputs = subject.example[0]
    assert {tuple(leaf.shape) for leaf in inputs} == {size} and subject.recipe.batch == size[0]
    assert len(subject.units) == subject.copies == len(inputs)  # each layer is a unit, fed by a tensor of its own
    assert {one.rows * size[0] for one in subject.units} == {rows}
    assert {(one.inputs, one.width, one.taps) for one in subject.units} == {
        (cases.shape_of(shape).inputs, cases.shape_of(shape).outputs, cases.shape_of(shape).taps)
    }
    again = bench.make(cases.shape_of(shape), rows, "cpu")
    for one, other in zip(inputs, again.example[0], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(subject.model(*inputs)[0], again.model(*again.example[0])[0])


def test_a_cell_is_measured_on_the_road_that_ships(small_caches: None) -> None:
    """Compiled: the plain layers and one scheme."""
    meter = ScriptedMeter(watts=50.0)
    found = list(bench.bench(LINEAR, 32, ("w8a8_static",), device="cpu", meter=meter, protocol=QUICK, warm=False))
    (one,) = found
    assert one.refused == "" and one.kernels == ("onednn::qlinear_pointwise (int8)",)
    assert all(kernel.endswith("(float32)") for kernel in one.plain_kernels) and one.plain_kernels
    assert one.ratio is not None and one.row_j is not None and one.plain_row_j is not None
    assert one.ratio.mean == pytest.approx(one.row_j.mean / one.plain_row_j.mean, rel=0.5)
    assert one.copies == 2 and one.measured and one.autogreen and meter.opened >= 4
    assert Cell.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one


def test_a_scheme_that_ran_simulated_is_refused_and_told(small_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ENGINE", "eager")
    monkeypatch.setattr(bench, "lower", lambda parts, model, context: model)  # promises int8 weights, and does nothing
    meter = ScriptedMeter()
    (one,) = bench.bench(LINEAR, 32, ("w8a16",), device="cpu", meter=meter, protocol=QUICK, warm=False)
    assert one.ratio is None and "simulated" in one.refused and meter.opened == 0


def test_a_kernel_that_fails_ends_its_process(small_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others must not suffer from what it leaves behind; the session asks for them in a fresh one."""

    def fails(parts: Any, model: Any, context: Any) -> Any:
        raise RuntimeError("an illegal memory access\nand a long story")

    monkeypatch.setattr(bench, "ENGINE", "eager")
    monkeypatch.setattr(bench, "lower", fails)
    asked = ("fp8", "w8a16", "w4a16")
    found = bench.bench(LINEAR, 32, asked, device="cpu", meter=ScriptedMeter(), protocol=QUICK, warm=False)
    assert "no kernel computes it on a processor" in next(found).refused
    with pytest.raises(EvaluationError, match=r"^RuntimeError: an illegal memory access$"):
        next(found)


def test_a_fault_of_the_meter_passes_through(small_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: Any, **more: Any) -> Any:
        raise MeterError("the counter vanished")

    monkeypatch.setattr(bench, "ENGINE", "eager")
    monkeypatch.setattr(bench, "check_kernels", lambda *arguments: None)
    monkeypatch.setattr(bench, "measure_beside", gone)
    found = bench.bench(LINEAR, 32, ("w8a16",), device="cpu", meter=ScriptedMeter(), protocol=QUICK, warm=False)
    with pytest.raises(MeterError, match="the counter vanished"):
        list(found)


@pytest.mark.gpu
def test_cells_of_a_gpu_replay_graphs_beside_plain_bfloat16(small_caches: None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    shape = Shape(kind="linear", inputs=256, outputs=512)
    schemes = cases.schemes_asked((), "cuda:0")
    found = list(bench.bench(shape, 32, schemes, device="cuda:0", meter=ScriptedMeter(), protocol=QUICK, warm=False))
    assert [one.case.scheme for one in found] == list(schemes)
    figures = [one for one in found if one.ratio is not None]
    assert {"fp16", "w8a8", "w4a16"} <= {one.case.scheme for one in figures}, [one.refused for one in found]
    for one in figures:
        assert one.kernels and all(kernel.endswith("(bfloat16)") for kernel in one.plain_kernels)


def test_weights_that_stay_in_the_caches_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MOST_COPIES", 2)
    monkeypatch.setattr("autogreen.floor.cache_bytes", lambda device: 30_000)
    subject = bench.make(LINEAR, 1, "cpu")
    case = Case(shape=LINEAR, rows=1, scheme="w8a8")
    (told,) = bench._cached(case, subject)
    assert "2 layers" in told and "in w8a8 and stay in the caches" in told
    monkeypatch.setattr("autogreen.floor.cache_bytes", lambda device: 4_000)
    assert bench._cached(case, subject) == ()
    monkeypatch.setattr("autogreen.floor.cache_bytes", lambda device: None)
    assert "not told" in bench._cached(case, subject)[0]


def test_cells_come_from_a_process_of_their_own() -> None:
    ask = session.in_a_process("cpu", {})
    found = list(ask(LINEAR, 32, ("fp8", "w4a16"), QUICK, False))  # nothing is built for these
    assert [one.case.scheme for one in found] == ["fp8", "w4a16"]
    assert all("no kernel computes it on a processor" in one.refused and one.measured for one in found)


# --- shown ------------------------------------------------------------------------------------------------------------


def shown() -> Kernels:
    evil = "<img src=x onerror=alert(1)>"
    found = NONE.having(cell("w8a8", 0.62, kernels=("onednn::qlinear (int8)",), warnings=(evil,)))
    found = found.having(cell("w8a8", 2.0, rows=1)).having(cell("fp16", 1.0, half=0.1))
    return found.having(Cell(case=Case(shape=LINEAR, rows=1, scheme="fp16"), refused="no instructions"))


def printed(shape: Any, width: int = 120) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width).print(shape)
    return out.getvalue()


def test_the_table_has_a_line_a_scheme_and_a_column_a_number_of_rows() -> None:
    text = printed(table.table(shown()))
    assert "energy over the plain float32 layer, measured" in table.heading(shown())
    lines = [[part.strip() for part in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert lines == [["64 x 32", "fp16", "-", "1.00"], ["", "w8a8", "2.00", "0.62"]]
    assert "0.62 (0.61–0.63)" in printed(table.table(shown(), intervals=True))
    assert "Estimated from processor time" in table.reading(replace(shown(), tier="estimated"))
    assert "estimated" in table.heading(replace(shown(), tier="estimated"))
    told = table.remarks(shown())
    assert told[0] == "fp16 at 1 x 64 x 32: no figure: no instructions" and told[1].startswith(
        "w8a8 at 32 x 64 x 32: <img"
    )
    assert [one.verdict for one in shown().cells] == ["refused", "costs", "same", "saves"]


def test_the_heat_map_stands_alone_and_names_cannot_inject(tmp_path: Path) -> None:
    page.write_page(shown(), tmp_path / "new" / "kernels.html")
    text = (tmp_path / "new" / "kernels.html").read_text()
    assert 3e6 < len(text) < 6e6
    own = re.sub(r"<script[^>]*>/\*\*?\s*\n?\* plotly\.js.*?</script>", "", text, flags=re.DOTALL)
    assert len(own) < 60_000 and not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "<img" not in own and "alert(1)" in own
    data = own.replace("\\u003c", "<").replace("\\u003e", ">")
    assert "0.62 (0.61–0.63) times the plain layer" in data.replace("\\u2013", "–")
    assert "no figure: no instructions" in data and "onednn::qlinear (int8)" in data and '"zmid":0' in data
    with pytest.raises(ConfigError, match="Name another file"):
        page.write_page(shown(), tmp_path)


# --- what a search makes of it ----------------------------------------------------------------------------------------

NET = anatomy(unit("a"), unit("b", block="x"), unit("c", 640, 320, block="x"))
HOLE = {"choice": ["none", "w8a8", "w8a8_static"]}
KNOWN = NONE.having(cell("w8a8", 2.31)).having(cell("w8a8_static", 1.04))


def dear(rules: Any, known: Kernels = KNOWN, batch: int | None = 32, dtype: str = "float32", **more: Any) -> Any:
    space = SearchSpace.from_json({"quantization": rules, "runtime": {"engine": "inductor"}, **more}).expand(NET)
    return restriction.dear_options(space, NET, known, device="cpu", batch=batch, dtype=dtype)


def test_an_option_that_costs_for_sure_is_not_tried() -> None:
    found = dear([{"each": "*", "scheme": HOLE}])
    reason = "measured to take 2.31 (2.29–2.33) times the plain layer at 32 x 64 x 32"
    assert found == {"quantization[a].scheme": {"w8a8": reason}, "quantization[b].scheme": {"w8a8": reason}}


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.06])
def test_what_may_be_as_cheap_is_tried(ratio: float) -> None:
    assert dear([{"each": "*", "scheme": HOLE}], NONE.having(cell("w8a8", ratio, half=0.02))) == {}


def test_a_shared_hole_loses_only_what_is_dear_in_all_its_layers() -> None:
    assert dear([{"each": "[bc]", "by": "block", "scheme": HOLE}]) == {}
    assert dear([{"target": "*", "scheme": HOLE}]) == {}
    large = cell("w8a8", 1.5, Shape(kind="linear", inputs=640, outputs=320))
    (found,) = dear([{"target": "*", "scheme": HOLE}], KNOWN.having(large)).values()
    assert found == {"w8a8": "measured to take 1.50 (1.48–1.52) times the plain layer at 32 x 640 x 320"}


def test_a_layer_that_an_earlier_rule_covers_does_not_count() -> None:
    rules = [{"target": "c", "scheme": "none"}, {"target": "*", "scheme": HOLE}]
    assert list(dear(rules)) == ["quantization[*].scheme"]


def test_a_literal_stays() -> None:
    assert dear([{"target": "a", "scheme": "w8a8"}, {"each": "[bc]", "scheme": HOLE}]).keys() == {
        "quantization[b].scheme"
    }


@pytest.mark.parametrize(
    "more",
    [
        {"known": NONE},
        {"batch": None},
        {"batch": None, "parallelism": {"batch": {"choice": [16, 32]}}},
        {"batch": 65},
        {"runtime": {"engine": "eager"}},
        {"dtype": "bfloat16"},
    ],
)
def test_where_it_is_not_sure_nothing_is_taken_out(more: Any) -> None:
    assert dear([{"each": "*", "scheme": HOLE}], **more) == {}


def test_a_hole_without_the_plain_layer_keeps_all_its_options() -> None:
    assert dear([{"each": "*", "scheme": {"choice": ["w8a8", "w8a8_static"]}}]) == {}


def test_a_batch_of_one_option_is_known() -> None:
    assert dear([{"each": "*", "scheme": HOLE}], batch=None, parallelism={"batch": 32})


def test_a_float32_model_on_a_gpu_is_held_against_its_bf16_option() -> None:
    known = replace(KNOWN, plain="bfloat16")
    for options, lost in ((["none", "w8a8"], False), (["none", "bf16", "w8a8"], True)):
        rules = [{"target": "a", "scheme": {"choice": options}}]
        space = SearchSpace.from_json({"quantization": rules, "runtime": {"engine": "inductor"}}).expand(NET)
        found = restriction.dear_options(space, NET, known, device="cuda:0", batch=32, dtype="float32")
        assert bool(found) == lost


# --- inside a study ---------------------------------------------------------------------------------------------------

SPACE = {
    "quantization": [
        {"target": "3", "scheme": "w8a8_static"},
        {"each": "*", "scheme": {"choice": ["none", "w8a8_static"]}},
    ],
    "runtime": {"engine": "inductor"},
}
LAST = Shape(kind="linear", inputs=576, outputs=4)
MIDDLE = Shape(kind="conv", inputs=16, outputs=16, taps=9)


def known_kernels(cache: Path, *cells: Cell) -> Path:
    """Kept for this very machine and meter."""
    meter = choose("cpu")
    found = Kernels.none_yet(hardware.describe("cpu"), meter.tier, meter.boundary)
    for one in cells:
        found = found.having(one)
    return keep(found, cache)


def prepared(folder: Path) -> list[str]:
    """Notes of the first stage; the search is stopped before anything is compiled."""
    notes = []
    steps = sweep(toys.experiment(space=SPACE), folder, folder.parent / ".cache")
    for step in steps:
        if step.stage != "preparing":
            break
        notes.append(step.note)
    steps.close()  # type: ignore[attr-defined]
    return [note for note in notes if note.startswith("left out")]


def test_a_search_leaves_out_what_costs_and_sees_the_same_space_when_it_goes_on(tmp_path: Path) -> None:
    file = known_kernels(
        tmp_path / ".cache",
        cell("w8a8_static", 2.31, LAST, rows=64),
        cell("w8a8_static", 3.0, MIDDLE, rows=36 * 64),  # a literal: the user wants it
    )
    left_out = prepared(tmp_path / "toy")
    assert left_out == [
        "left out: scheme 'w8a8_static': measured to take 2.31 (2.29–2.33) times the plain layer at 64 x 576 x 4 "
        "(1 knobs)"
    ]
    kept_with_it = Store.open(tmp_path / "toy").get("dear")
    assert list(kept_with_it) == ["quantization[6].scheme"]
    file.unlink()
    assert prepared(tmp_path / "toy") == left_out
    known_kernels(tmp_path / ".cache", cell("w8a8_static", 0.5, LAST, rows=64))
    assert prepared(tmp_path / "toy") == left_out


def test_what_is_measured_later_changes_no_study(tmp_path: Path) -> None:
    assert prepared(tmp_path / "toy") == []
    known_kernels(tmp_path / ".cache", cell("w8a8_static", 2.31, LAST, rows=64))
    assert prepared(tmp_path / "toy") == []
    store = Store.create(tmp_path / "old")
    store.put("facts", {"holes": {}})  # begun before kernels were kept with studies
    assert prepared(tmp_path / "old") == []
    assert len(prepared(tmp_path / "new")) == 1


def test_a_damaged_file_stops_a_search_by_name(tmp_path: Path) -> None:
    file = known_kernels(tmp_path / ".cache")
    file.write_text("{")
    with pytest.raises(ConfigError, match=rf"{file.name} cannot be read"):
        prepared(tmp_path / "toy")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`autogreen kernels` in an empty folder, with a bench that answers at once; exits are returned."""
    here = session.Here(
        hardware=HERE, tier="measured", boundary="scripted", missing=dict.fromkeys(SCHEMES) | {"fp8": "no kernel"}
    )
    made = Bench()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "look", lambda device, meter: here)
    monkeypatch.setattr(session, "in_a_process", lambda device, meter: made)

    def call(*arguments: str) -> tuple[int, Bench]:
        monkeypatch.setattr(sys, "argv", ["autogreen", "kernels", "--device", "cpu", *arguments])
        made.asked.clear()
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), made
        return 0, made

    return call


def test_the_command_measures_tells_and_writes(command: Any, capsys: Any, tmp_path: Path) -> None:
    arguments = ["--shape", "64x32", "--rows", "1,32", "--scheme", "w8a8", "--scheme", "fp8"]
    code, made = command(*arguments, "--json", "found.json", "--html", "found.html")
    told = capsys.readouterr().out
    assert code == 0 and [case.rows for case in made.asked] == [1, 32]
    assert "note: fp8: no kernel" in told and "0 of 2 cells are known; measuring 2, about " in told
    assert "1/2 w8a8 at 1 x 64 x 32: 0.50 (0.49–0.51)" in told and "2/2 w8a8 at 32" in told
    written = Kernels.from_json(json.loads((tmp_path / "found.json").read_text()))
    assert [one.case.rows for one in written.cells] == [1, 32]
    assert "Plotly.newPlot" in (tmp_path / "found.html").read_text()
    code, made = command(*arguments[:2], "--rows", "1", "--rows", "7", "--scheme", "w8a8", "--intervals")
    told = capsys.readouterr().out
    assert [case.rows for case in made.asked] == [7] and "1 of 2 cells are known; measuring 1" in told
    assert "0.50 (0.49–0.51) │" in told and "energy over the plain float32 layer, measured" in told
    code, made = command(*arguments)
    assert made.asked == [] and "measuring" not in capsys.readouterr().out


def test_an_experiment_gives_its_models_layers(command: Any, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "toys.py").write_text(Path(toys.__file__).read_text())
    text = 'task: {"toys:Corners": {width: 8}}\nworkload: {batch: 4}\nspace: {runtime: {engine: eager}}\n'
    (tmp_path / "corners.yaml").write_text(f"{text}executor: inline\n")
    code, made = command("--experiment", "corners.yaml", "--scheme", "w8a8_static")
    assert code == 0, capsys.readouterr().err
    asked = [(str(case.shape), case.rows) for case in made.asked]
    assert asked == [("8 x 8 x 3 x 3", 144), ("1 x 8 x 3 x 3", 144), ("288 x 4", 4)]
    assert not list((tmp_path / "runs").glob(".corners*"))
    command("--experiment", "corners.yaml", "--scheme", "w8a8_static", "--rows", "2")
    assert {case.rows for case in made.asked} == {2}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scheme", "w8a9"], "unknown scheme 'w8a9'. Did you mean 'w8a8'"),
        (["--scheme", "none"], "scheme 'none' is the plain layer itself"),
        (["--shape", "12"], "shape '12' is no pair of positive whole numbers"),
        (["--rows", "0"], "rows '0' is no positive whole number"),
        (["--scheme", "fp8"], "none of these schemes has a real kernel on 'cpu'"),
        (["--protocol", "windows=3"], "unknown key 'windows'"),
        (["--protocol", "max_windows"], "not of the form KEY=VALUE"),
        (["--experiment", "x.yaml", "--shape", "1x1"], "leave --shape out"),
        (["--experiment", "x.yaml"], "x.yaml does not exist"),
        (["--device", "cuda:7"], "device 'cuda:7' is not here"),
    ],
)
def test_mistakes_get_one_clear_line(command: Any, capsys: Any, arguments: list[str], told: str) -> None:
    code, made = command(*arguments)
    error = capsys.readouterr().err
    assert code == 1 and told in error and error.count("\n") == 1 and made.asked == []


def test_a_fault_of_the_meter_ends_the_command_by_name(command: Any, capsys: Any) -> None:
    _, made = command("--shape", "64x32", "--rows", "1", "--scheme", "w8a8")
    made.faults["w8a8_32"] = MeterError("the counter vanished.")
    code, _ = command("--shape", "64x32", "--rows", "1,32", "--scheme", "w8a8")
    assert code == 1 and "error: the counter vanished." in capsys.readouterr().err
