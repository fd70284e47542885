"""Several GPUs for one policy: outputs as of one, joules of all, nothing left behind. Wants two GPUs of one model."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from quantizing import QUIET
from safetensors.torch import save_file
from test_ranks import apart, texts

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import EvaluationError
from autogreen.ranks import build, open_program
from autogreen.ranks.crew import Crews
from autogreen.tasks import Inputs

pytestmark = [
    *QUIET,
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two ranks want two GPUs"),
]
BATCH = 8


@pytest.fixture(scope="module")
def decoder() -> torch.nn.Module:
    from nets import Lm

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
    return Lm(layers=4, **sizes).eval().bfloat16().cuda()


def made(
    model: torch.nn.Module, folder: Path, cuda_graph: bool = False, example: Inputs | None = None, **degrees: int
) -> Program:
    from quantizing import context

    example = example or ((texts(BATCH).cuda(),), {})
    recipe = Recipe(engine="inductor", batch=BATCH, threads=1, device="cuda:0", cuda_graph=cuda_graph, **degrees)
    folder.mkdir(exist_ok=True)
    save_file({name: leaf.contiguous() for name, leaf in model.state_dict().items()}, folder / "weights.safetensors")
    if recipe.tensor * recipe.pipeline > 1:
        return build({}, model, context(example, [], device="cuda:0", engine="inductor"), recipe, folder, Crews())
    ENGINES["inductor"].save(model, example, folder)
    return open_program(folder, recipe)


@pytest.mark.parametrize(
    ("degrees", "cuda_graph"),
    [({"data": 2}, True), ({"tensor": 2}, False), ({"tensor": 2}, True), ({"pipeline": 2}, False)],
    ids=["data", "tensor", "tensor-graph", "pipeline"],
)
def test_two_gpus_compute_what_one_computes(
    decoder: torch.nn.Module, degrees: dict[str, int], cuda_graph: bool, tmp_path: Path
) -> None:
    program = made(decoder, tmp_path, cuda_graph, **degrees)
    inputs = texts(2 * BATCH - 3, seed=1)
    with torch.no_grad():
        wanted = decoder(inputs.cuda()).cpu()
    assert apart(program(inputs).float(), wanted.float()) < 0.05
    program.close()


def test_a_stage_scores_the_tokens_that_it_was_handed(decoder: torch.nn.Module, tmp_path: Path) -> None:
    """Token numbers cross a boundary, and index something on the other board."""
    from autogreen.tasks.decoding import Scoring

    scoring = Scoring(decoder.lm).eval()
    program = made(scoring, tmp_path, pipeline=2, micro_batch=2)
    inputs = texts(BATCH, seed=1)
    with torch.no_grad():
        wanted = scoring(inputs.cuda()).cpu()
    assert apart(program(inputs).float(), wanted.float()) < 0.05
    program.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_decoder_answers_token_by_token_on_two_gpus(
    decoder: torch.nn.Module, cuda_graph: bool, tmp_path: Path
) -> None:
    """Each board keeps the keys and values of its own heads, and a recorded graph writes them where the next reads."""
    from autogreen.tasks.decoding import Decoding

    model = Decoding(decoder.lm, texts(2)).eval().cuda()
    ids = texts(BATCH, seed=3)
    steps = [(ids[:, place : place + 1], torch.tensor(place)) for place in range(ids.shape[1])]
    on_board = [(step.cuda(), place.cuda()) for step, place in steps]
    with torch.no_grad():
        model(*on_board[-1])
        program = made(model, tmp_path, cuda_graph, (on_board[-1], {}), tensor=2)
        for step, there in zip(steps, on_board, strict=True):
            assert apart(program(*step).float(), model(*there).cpu().float()) < 0.05
    program.close()


def test_joules_are_those_of_both_boards(decoder: torch.nn.Module, tmp_path: Path) -> None:
    from autogreen.measure import measure
    from autogreen.measurement import Protocol
    from autogreen.meters import choose

    program = made(decoder, tmp_path, True, data=2)
    protocol = Protocol(warmup_s=1.0, window_s=1.0, min_windows=4, max_windows=4)
    call, example = program.calling(((texts(BATCH),), {})), BATCH
    both, one = (
        measure(call, items=2 * example, meter=choose(device), protocol=protocol)
        for device in ("cuda:0,cuda:1", "cuda:0")
    )
    assert 1.5 < both.energy_per_item_j.mean / one.energy_per_item_j.mean < 2.5
    program.close()


def test_a_dead_rank_frees_both_boards(decoder: torch.nn.Module, tmp_path: Path) -> None:
    program = made(decoder, tmp_path, tensor=2)
    call = program.calling(((texts(BATCH),), {}))
    free = [torch.cuda.mem_get_info(device)[0] for device in range(2)]
    (crew,) = program._crews  # type: ignore[attr-defined]
    os.kill(crew.pids[1], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EvaluationError, match=r"rank 1 of 2 died"):
        call()
    while any(torch.cuda.mem_get_info(device)[0] <= free[device] for device in range(2)):
        assert time.monotonic() - began < 10, "the boards' memory is free again"
        time.sleep(0.1)
