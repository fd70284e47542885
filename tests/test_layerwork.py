"""What each layer is and does, and which share of a call it takes: by products that a profile really saw."""

from pathlib import Path

import pytest
import torch
from torch import nn

from autogreen.engines import Product, Program, Recipe, timing
from autogreen.engines.eager import Eager
from autogreen.evaluation import Evaluation
from autogreen.layerwork import LayerWork, by_layer
from autogreen.techniques.quantization.schemes import check_kernels
from autogreen.techniques.trace import layers
from autogreen.testing import scripted_evaluation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Net(nn.Module):
    """Two layers of one size, one large one, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.large = nn.Linear(64, 4096)
        self.back, self.twice = nn.Linear(4096, 64), nn.Linear(64, 32 + 32)
        self.last = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.last(self.twice(self.twice(self.back(torch.relu(self.large(x))))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, tuple[Product, ...], dict[str, LayerWork]]:
    torch.manual_seed(0)
    model, example, folder = Net().eval(), ((torch.randn(64, 64),), {}), tmp_path_factory.mktemp("net")
    Eager.save(model, example, folder)
    program = Program(folder, Recipe(engine="eager", batch=64, threads=1, device="cpu"))
    program.run(*example)
    ran, traced = program.trace(example).products, layers(model, example)
    shares = timing.shares(program, example, ran)
    assert shares is not None and len(shares) == len(ran) == 7
    return program, ran, by_layer(traced, check_kernels({}, traced, ran, "cpu"), ran, shares)


def test_shares_are_of_one_call_and_layers_of_one_size_share_equally_where_one_runs_twice(
    seen: tuple[Program, tuple[Product, ...], dict[str, LayerWork]],
) -> None:
    _, _, found = seen
    shares = {name: work.time_share for name, work in found.items()}
    assert all(share is not None and 0 < share < 1 for share in shares.values())
    assert 0 < sum(share or 0.0 for share in shares.values()) < 1
    assert shares["first"] == shares["second"] == pytest.approx((shares["twice"] or 0.0) / 2)
    assert found["large"] == LayerWork(width=4096, macs=64 * 64 * 4096, time_share=shares["large"])
    assert found["twice"].macs == 2 * found["first"].macs


def test_where_other_products_ran_nothing_is_told(
    seen: tuple[Program, tuple[Product, ...], dict[str, LayerWork]],
) -> None:
    program, ran, found = seen
    example = ((torch.randn(64, 64),), {})
    assert timing.shares(program, example, ran[1:]) is None
    assert timing.shares(program, example, (Product(name="other::mm", precision="int8", macs=1),)) is None
    assert timing.shares(program, example, ()) == ()
    model = Net()
    traced = layers(model, example)
    untold = by_layer(traced, dict.fromkeys(traced, "not seen alone"), ran, None)
    assert {work.time_share for work in untold.values()} == {None} and untold["large"].macs == found["large"].macs


def test_layers_of_one_size_are_told_apart_by_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.a = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))  # type: ignore[no-any-return]

    traced = layers(Backwards(), ((torch.zeros(2, 8),), {}))
    ran = 2 * (Product(name="aten::addmm", precision="float32", macs=128),)
    found = by_layer(traced, dict.fromkeys(traced, "aten::addmm (float32)"), ran, (0.2, 0.5))
    assert (found["a"].time_share, found["b"].time_share) == (0.2, 0.5)


def test_a_layer_that_no_product_shows_alone_has_no_time() -> None:
    model, example = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), ((torch.zeros(2, 8),), {})
    ran = (Product(name="aten::addmm", precision="float32", macs=128),)
    found = by_layer(layers(model, example), {"0": "aten::addmm (float32)", "1": "not seen alone"}, ran, (0.5,))
    assert found == {"0": LayerWork(width=8, macs=128, time_share=0.5), "1": LayerWork(width=4, macs=64)}


def test_an_evaluation_keeps_it_and_one_of_before_has_none(tmp_path: Path) -> None:
    work = {"a": LayerWork(width=8, macs=128, time_share=0.5), "b": LayerWork(width=4, macs=64)}
    evaluation = scripted_evaluation(0.01, 0.5)
    data = {**evaluation.to_json(), "layer_work": {name: list(one) for name, one in work.items()}}
    assert Evaluation.from_json(data).layer_work == work
    assert Evaluation.from_json(data).to_json() == data
    del data["layer_work"]
    assert Evaluation.from_json(data) == evaluation


@pytest.mark.gpu
def test_on_a_gpu_a_larger_product_takes_a_larger_share(tmp_path: Path) -> None:
    """The large layers do 1,000 times the work of the small ones; the stream's time tells, not that of the launches."""
    model = nn.Sequential(nn.Linear(64, 8192), nn.Linear(8192, 8192), nn.Linear(8192, 64)).cuda().eval()
    example = ((torch.randn(4096, 64, device="cuda"),), {})
    Eager.save(model, example, tmp_path)
    program = Program(tmp_path, Recipe(engine="eager", batch=4096, threads=1, device="cuda:0"))
    program.run(*example)
    shares = timing.shares(program, example, program.trace(example).products)
    assert shares is not None and len(shares) == 3
    assert shares[1] > 0.8 and 0.9 < sum(shares) <= 1.001
