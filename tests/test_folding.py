"""Folding batch norms keeps the function, whoever else reads what a convolution makes."""

from typing import Any

import pytest
import torch
from nets import (
    Concatenated,
    Depthwise,
    InPlace,
    Plain,
    Position,
    PreActivation,
    ReadTwice,
    Residual,
    Returned,
    SharedConv,
    SharedRelu,
    TwoNorms,
    images,
    settled,
)
from torch import nn

from autogreen.techniques.quantization.folding import ScaleShift, fold_batch_norm
from autogreen.techniques.trace import tensors

FOLDED = {  # batch norms that vanish into a convolution, and those that stay as scale and shift
    Plain: (2, 0),
    Residual: (3, 0),
    Depthwise: (3, 0),
    Concatenated: (3, 0),
    Position: (1, 0),
    SharedConv: (0, 1),
    TwoNorms: (0, 2),
    SharedRelu: (2, 0),
    ReadTwice: (0, 1),
    InPlace: (0, 1),
    Returned: (0, 1),
    PreActivation: (0, 1),
}


@pytest.mark.parametrize("make", FOLDED, ids=lambda make: make.__name__)
def test_folding_keeps_the_function(make: Any) -> None:
    torch.manual_seed(0)
    model = settled(make())
    with torch.no_grad():
        before = tensors(model(images(8, seed=5)))
        fold_batch_norm(model, ((images(2),), {}))
        after = tensors(model(images(8, seed=5)))
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(nn.Identity), kinds.count(ScaleShift)) == FOLDED[make]
    assert nn.BatchNorm2d not in kinds
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_batch_norm_without_running_statistics_or_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    bare = settled(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 3)))
    for net in (model, bare):
        with torch.no_grad():
            before = net(images())
            fold_batch_norm(net, ((images(),), {}))
            torch.testing.assert_close(net(images()), before, rtol=1e-5, atol=1e-5)
    assert isinstance(model[1], nn.BatchNorm2d)  # it looks at the batch: nothing fixed to fold
