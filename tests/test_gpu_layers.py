"""On an NVIDIA GPU: low-bit layers compute what their scheme says, by their own kernels, through every runtime."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autogreen.anatomy import survey
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.techniques import Target
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.layers import to_layers
from autogreen.techniques.quantization.schemes import SCHEMES, check_kernels, missing_kernel, road_of
from autogreen.techniques.trace import layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
]
ROWS = 32
# largest error of an output over the largest output: what the bits of each scheme allow, with room for accumulation
ALLOWED = {"fp16": 5e-3, "bf16": 1e-2, "fp8": 6e-2, "w8a8": 2.5e-2, "w8a8_static": 4e-2, "w8a16": 2e-2, "w4a16": 0.15}
GPU = [name for name in SCHEMES if name != "none"]


class Net(nn.Module):
    """[n, 256] -> [n, 512], a product with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(256, 1024)
        self.down = nn.Linear(1024, 512, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).relu())
        return y


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().cuda().to(torch.bfloat16).eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 256, generator=generator).cuda().to(torch.bfloat16)


def lowered(net: nn.Module, scheme: str, x: Tensor) -> nn.Module:
    import copy

    model = copy.deepcopy(net)
    with torch.no_grad():
        inner = net.up(x).relu()
    ends = {"up": (x.min(), x.max()), "down": (inner.min(), inner.max())}
    to_layers(
        model, dict.fromkeys(ends, scheme), {name: (low.float(), high.float()) for name, (low, high) in ends.items()}
    )
    return model


@pytest.mark.parametrize("scheme", GPU)
def test_a_scheme_stays_near_the_layers_it_replaces(net: nn.Module, x: Tensor, scheme: str) -> None:
    assert missing_kernel(scheme, device="cuda:0", engine="eager") is None
    with torch.no_grad():
        wanted, found = net.float()(x.float()), lowered(net.to(torch.bfloat16), scheme, x)(x)
    net.to(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - wanted).abs().max() / wanted.abs().max()) < ALLOWED[scheme]


@pytest.mark.parametrize("runtime", [(engine, graph) for engine in ("eager", "inductor") for graph in (False, True)])
@pytest.mark.parametrize("scheme", GPU)
def test_the_artifact_runs_the_kernel_that_the_table_names(
    net: nn.Module, x: Tensor, scheme: str, runtime: tuple[str, bool], tmp_path: Path
) -> None:
    engine, cuda_graph = runtime
    model = lowered(net, scheme, x)
    with torch.no_grad():
        wanted = model(x)
    ENGINES[engine].save(model, ((x,), {}), tmp_path)
    recipe = Recipe(engine=engine, batch=ROWS, threads=1, device="cuda:0", cuda_graph=cuda_graph)
    program = Program(tmp_path, recipe)
    for _ in range(2):
        found = program.run((x,), {}).clone()
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) / scale < 2e-2
    other = program(x.cpu()[:5] * 0.5)
    assert other.shape == (5, 512) and torch.isfinite(other).all()
    ran = program.trace(((x,), {})).products
    by_layer = check_kernels({"up": scheme, "down": scheme}, layers(net, ((x,), {})), ran, "cuda:0", engine)
    road = road_of(scheme, "cuda:0")
    assert road and all(kernel.startswith(road.kernels) for kernel in by_layer.values()), by_layer


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_a_graph_replays_with_new_inputs_and_mutated_buffers(engine: str, tmp_path: Path) -> None:
    class Counts(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("seen", torch.zeros(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x)
            y: Tensor = self.linear(x) + self.seen
            return y

    model = Counts().cuda().eval()
    x = torch.ones(4, 8, device="cuda")
    ENGINES[engine].save(model, ((x,), {}), tmp_path)
    recipe = Recipe(engine=engine, batch=4, threads=1, device="cuda:0", cuda_graph=True)
    program = Program(tmp_path, recipe)
    first = program.run((x,), {}).clone()
    second = program.run((2 * x,), {}).clone()
    step = model.linear(2 * x) - model.linear(x) + 2 * x
    torch.testing.assert_close(second - first, step, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused_by_name(net: nn.Module, x: Tensor) -> None:
    units: Any = survey(net, ((x[:1],), {}), ("quantization",)).units["quantization"]
    alone = Target(device="cuda:0", engine="inductor", batch=1)
    assert "wants 17 rows" in str(Quantization.refusal({"up": "w8a8"}, units, alone))
    assert Quantization.refusal({"up": "w8a8"}, units, Target(device="cuda:0", engine="inductor", batch=17)) is None
