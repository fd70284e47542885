"""Several processes for one policy: what they compute together is what one process computes."""

import copy
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from nets import Bert, Lm, images
from processes import ranks
from quantizing import QUIET, context, needs_int8
from safetensors.torch import save_file
from torch import nn

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import EvaluationError, RefusedError
from autogreen.ranks import build, open_program
from autogreen.ranks.crew import Crew, Crews
from autogreen.tasks import Inputs
from autogreen.techniques.parallelism import shards, stages
from autogreen.techniques.pruning import Pruning

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::ResourceWarning")]
BATCH = 4
TENSOR, PIPELINE, DATA = {"tensor": 2}, {"pipeline": 2, "micro_batch": 2}, {"data": 2}


class Mlp(nn.Module):
    """Four layers, of which the first two, and the next two, make a pair that can be split."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(32, width), nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 5)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class Residual(nn.Module):
    """A small network as that of the digits: convolutions, norms, a sum around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def texts(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 60, (rows, 8), generator=torch.Generator().manual_seed(seed))


def cases() -> dict[str, tuple[nn.Module, Inputs]]:
    from autogreen.tasks.decoding import Scoring

    torch.manual_seed(0)
    mask = torch.ones(BATCH, 8, dtype=torch.long)
    mask[0, 5:] = 0
    return {
        "network": (Residual().eval(), ((images(BATCH),), {})),
        "encoder": (Bert().eval(), ((texts(BATCH),), {"attention_mask": mask})),
        "decoder": (Lm().eval(), ((texts(BATCH),), {})),
        "scoring": (Scoring(Lm().lm).eval(), ((texts(BATCH),), {})),
    }


@pytest.fixture(scope="module")
def crews() -> Iterator[Crews]:
    hired = Crews()
    yield hired
    hired.close()
    assert not ranks(), "whoever hires a crew gives it back"


def made(
    model: nn.Module,
    example: Inputs,
    folder: Path,
    crews: Crews,
    parts: dict[str, Any] | None = None,
    engine: str = "eager",
    batches: Any = (),
    **degrees: int,
) -> Program:
    folder.mkdir(exist_ok=True)
    recipe = Recipe(engine=engine, batch=BATCH, threads=1, device="cpu", **degrees)
    save_file({name: leaf.contiguous() for name, leaf in model.state_dict().items()}, folder / "weights.safetensors")
    if recipe.tensor * recipe.pipeline > 1:
        around = context(example, list(batches), engine=engine)
        return build(parts or {}, copy.deepcopy(model), around, recipe, folder, crews)
    ENGINES[engine].save(model, example, folder)
    return open_program(folder, recipe, crews)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("kind", "degrees"),
    [
        *itertools.product(["encoder", "decoder", "scoring"], [DATA, PIPELINE, TENSOR]),
        ("network", DATA),
        ("network", PIPELINE),
        ("network", {"pipeline": 4, "micro_batch": 1}),
        ("encoder", {"tensor": 4}),
        ("decoder", {"data": 2, "tensor": 2}),
        ("scoring", {"pipeline": 3, "micro_batch": 2}),
    ],
    ids=str,
)
def test_ranks_compute_what_one_process_computes(
    kind: str, degrees: dict[str, int], tmp_path: Path, crews: Crews
) -> None:
    model, example = cases()[kind]
    program = made(model, example, tmp_path, crews, **degrees)
    args, kwargs = example
    twice = tuple(torch.cat([one, one.flip(0)])[:7] for one in args)  # more than a batch, and no multiple of it
    named = {name: torch.cat([one, one.flip(0)])[:7] for name, one in kwargs.items()}
    with torch.no_grad():
        wanted = model(*twice, **named)
    assert apart(program(*twice, **named), wanted) < 1e-4
    program.close()


def test_convolutions_are_not_split(tmp_path: Path, crews: Crews) -> None:
    with pytest.raises(RefusedError, match="nothing of this model can be split"):
        made(*cases()["network"], tmp_path, crews, **TENSOR)


@pytest.mark.parametrize("degrees", [DATA, TENSOR], ids=str)
def test_a_decoder_goes_on_where_its_ranks_were(degrees: dict[str, int], tmp_path: Path, crews: Crews) -> None:
    """Token by token, each rank with the keys and values of its own heads."""
    from autogreen.tasks.decoding import Decoding

    torch.manual_seed(0)
    model = Decoding(Lm().lm, texts(2)).eval()
    ids = texts(BATCH, seed=3)
    steps = [(ids[:, place : place + 1], torch.tensor(place)) for place in range(ids.shape[1])]
    with torch.no_grad():
        model(*steps[-1])
        program = made(model, (steps[-1], {}), tmp_path, crews, **degrees)
        for step in steps:
            assert apart(program(*step), model(*step)) < 1e-4
    program.close()


def test_what_was_pruned_is_split_like_the_whole(tmp_path: Path, crews: Crews) -> None:
    model, example = cases()["decoder"]
    setting = Pruning(target="*", structure="neuron", ratio=0.3)
    effect = Pruning.effect((setting,), Pruning.units(model, example))
    settled = Pruning.settle(effect, {"parallelism": {"tensor": 3}})
    assert [one["width"] for one in effect["neuron"].values()] == [88]
    assert [one["width"] for one in settled["neuron"].values()] == [90], "a multiple of the degree, not less than asked"
    Pruning.apply(effect, model, context(example, []))
    program = made(model, example, tmp_path, crews, **TENSOR)
    with torch.no_grad():
        assert apart(program(*example[0]), model(*example[0])) < 1e-4
    held = load_shapes(tmp_path / "shard-0")
    assert (44, 64) in held and (64, 44) in held, "half of the 88 features are on each rank"
    program.close()


def load_shapes(folder: Path) -> set[tuple[int, ...]]:
    from autogreen.engines import exported

    return {tuple(leaf.shape) for leaf in exported.load(folder, "cpu").state_dict().values()}


@needs_int8
@pytest.mark.parametrize("degrees", [PIPELINE, TENSOR], ids=["pipeline", "tensor"])
def test_shards_and_stages_are_quantized_where_they_are(degrees: dict[str, int], tmp_path: Path, crews: Crews) -> None:
    """Each rank calibrates its own; the ranges of what is summed are those of the whole."""
    torch.manual_seed(0)
    model, example = Mlp().eval(), ((torch.randn(BATCH, 32),), {})
    effect = {f"layers.{number}": "w8a8_static" for number in range(4)}
    batches = [torch.randn(16, 32) for _ in range(4)]
    program = made(
        model, example, tmp_path, crews, {"quantization": effect}, engine="inductor", batches=batches, **degrees
    )
    with torch.no_grad():
        assert 0 < apart(program(*example[0]), model(*example[0])) < 0.1
    ran = program.trace(example)
    assert {kernel.precision for kernel in ran.kernels} == {"int8"}
    assert ran.macs["int8"] == BATCH * sum(layer.weight.numel() for layer in model.layers)  # type: ignore[union-attr]
    assert 0 < (ran.communication or 0) < 1
    program.close()


@needs_int8
def test_a_shard_that_cannot_be_made_leaves_no_rank_behind(tmp_path: Path) -> None:
    before, crews = ranks(), Crews()
    nothing_to_calibrate_on = {"quantization": {"layers.0": "w8a8_static"}}
    with pytest.raises(RefusedError, match="calibration split gave no batch"):
        made(Mlp().eval(), ((torch.randn(BATCH, 32),), {}), tmp_path, crews, nothing_to_calibrate_on, **TENSOR)
    assert len(ranks()) == len(before) + 2, "they wait for the next policy"
    crews.close()
    assert ranks() == before


def test_stages_hand_on_what_lies_in_another_order(tmp_path: Path, crews: Crews) -> None:
    """A value that a stage has transposed is sent as it reads, not as it lies."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(5, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).transpose(1, 2)).transpose(1, 2)

    torch.manual_seed(0)
    model, x = Turned().eval(), torch.randn(2, 5, 6)
    graph = torch.export.export(model, (x,)).module()
    values, _ = stages._timed(graph, ((x,), {}))  # type: ignore[arg-type]
    turned = next(node for node in values if "transpose" in str(node.target))
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]  # type: ignore[union-attr]
    place = nodes.index(turned) + 1
    stage = stages._stage(
        graph,  # type: ignore[arg-type]
        stages._fixed(graph),  # type: ignore[arg-type]
        nodes[:place],
        [node for node in values if node.op == "placeholder"],
        [turned],
        values,
    )
    (found,) = stage.module(x)
    assert not values[turned].is_contiguous() and found.is_contiguous() and torch.equal(found, values[turned])


def test_a_rank_that_dies_takes_the_others_along_at_once(tmp_path: Path) -> None:
    model, example = cases()["decoder"]
    crews = Crews()
    program = made(model, example, tmp_path, crews, **TENSOR)
    call = program.calling(example)
    (crew,) = program._crews  # type: ignore[attr-defined]
    first, second = crew.pids
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EvaluationError, match=r"rank 1 of 2 died \(signal SIGKILL"):
        call()
    assert time.monotonic() - began < 10 and not psutil.pid_exists(first) and not psutil.pid_exists(second)
    program.close()
    new = crews.hire(("cpu", "cpu"))
    assert new is not crew, "the next policy gets a new one"
    new.close()


def test_replicas_answer_requests_side_by_side(tmp_path: Path, crews: Crews) -> None:
    """Behind one queue both are at work at once, and what they answer is measured."""
    from autogreen.measure import measure
    from autogreen.measurement import Protocol
    from autogreen.meters import choose
    from autogreen.queueing import Load, Replicated

    model, example = cases()["network"]
    program = made(model, example, tmp_path, crews, **DATA)
    call = program.calling(example)
    assert isinstance(call, Replicated)
    first, second = call.replicas
    first.start(1)
    second.start(1)
    until = time.monotonic() + 10
    waiting = {first, second}
    while waiting and time.monotonic() < until:
        call.wait(1.0)
        waiting -= {one for one in waiting if one.done()}
    assert not waiting
    protocol = Protocol(warmup_s=0.1, window_s=0.2, min_windows=2, max_windows=2, preheat_s=0, foreign_limit=99)
    load = Load(rate_per_s=100, p95_s=0.5, batch=BATCH, batch_delay_s=0.01)
    found = measure(call, items=1, load=load, meter=choose("cpu"), protocol=protocol)
    assert found.served is not None and found.served.stable and found.served.requests > 50
    assert found.served.p50_s.mean >= found.served.batch_s, "no answer comes before a batch is done"
    program.close()


def test_a_call_keeps_its_ranks(tmp_path: Path, crews: Crews) -> None:
    import gc

    model, example = cases()["network"]
    call = made(model, example, tmp_path, crews, **DATA).calling(example)
    gc.collect()
    call()
    call._program.close()  # type: ignore[attr-defined]


def test_a_rank_that_hangs_is_told_and_stopped() -> None:
    crew = Crew(("cpu",), limit_s=60.0)
    crew.ask("rest")  # it is up
    os.kill(crew.pids[0], signal.SIGSTOP)
    crew.limit_s = 0.5
    with pytest.raises(EvaluationError, match=r"rank 0 did not answer 'rest' within 0 s"):
        crew.ask("rest")
    assert not psutil.pid_exists(crew.pids[0])


def test_ranks_die_with_whoever_started_them(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from autogreen.ranks.crew import Crew\nimport os, signal\n"
        "if __name__ == '__main__':\n"
        "    crew = Crew(('cpu',)); crew.ask('rest'); print(*crew.pids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    (pid,) = map(int, told.stdout.split())
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)


def test_splits_are_disjoint_and_their_shards_add_up() -> None:
    """By hand, without processes: what each rank's share computes sums to the whole."""
    torch.manual_seed(0)
    model, x = Mlp(), torch.randn(BATCH, 32)
    found = shards.splits(model.eval(), ((x,), {}))
    assert [split.name for split in found] == ["layers.0", "layers.2"]
    first, second = nn.Sequential(*model.layers[:2]), nn.Sequential(*model.layers[2:])
    with torch.no_grad():
        for pair, name in ((first, "layers.0"), (second, "layers.2")):
            given = torch.randn(3, 32)
            sums = []
            for rank in range(2):
                mine = copy.deepcopy(model)
                shards.shard(mine, found, rank, 2)
                place = int(name[-1])
                sums.append(mine.layers[place + 1](torch.relu(mine.layers[place](given))))  # type: ignore[operator]
            wanted = pair[1](torch.relu(pair[0](given)))
            assert apart(sum(sums), wanted) < 1e-5  # type: ignore[arg-type]


def test_stages_are_balanced_as_an_exhaustive_search_would() -> None:
    from itertools import combinations

    torch.manual_seed(0)
    costs = torch.rand(9).tolist()
    receiving = {place: float(cost) for place, cost in zip(range(1, 9), torch.rand(8) / 4, strict=True) if place != 4}

    def slowest(bounds: tuple[int, ...]) -> float:
        ends = (0, *bounds, len(costs))
        return max(sum(costs[start:end]) + receiving.get(start, 0.0) for start, end in itertools.pairwise(ends))

    for count in (2, 3, 4):
        best = min(combinations(receiving, count - 1), key=slowest)
        found = stages._balanced(costs, receiving, count)
        assert found is not None and slowest(tuple(found[1:-1])) == pytest.approx(slowest(best))
    assert stages._balanced(costs, receiving, 9) is None


def test_the_processor_time_of_ranks_is_the_policy_s_own() -> None:
    from autogreen.meters.processor import own_busy_s

    crew = Crew(("cpu",))
    crew.ask("rest")
    before = own_busy_s()
    process = psutil.Process(crew.pids[0])
    assert before >= process.cpu_times().user > 0.5, "importing took that long"
    crew.close()
    assert own_busy_s() >= before, "and what was counted while it ran is not lost with it"
