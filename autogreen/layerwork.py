"""LayerWork: what one layer is and does in one call of a policy's program, and its share of the time."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from autogreen.engines import Product

if TYPE_CHECKING:
    from autogreen.techniques.trace import Layer


class LayerWork(NamedTuple):
    """Of a convolution or linear layer in one call. A study holds one a layer a trial, so it is a tuple: short in JSON,
    quick to read back.

    width: output channels or features, after pruning. macs: multiply-accumulates of all its runs, for the whole batch.
    time_share: of the call's time in a profile, from 0 to 1; None where the profile does not show the layer alone.
    """

    width: int
    macs: int
    time_share: float | None = None


def by_layer(
    layers: Mapping[str, "Layer"],
    kernels: Mapping[str, str],
    products: Sequence[Product],
    shares: Sequence[float] | None,
) -> dict[str, LayerWork]:
    """The work of each layer.

    Layers of one size that run in one kernel are told apart by the order in which they run, where each of them has one
    product; otherwise they share its time equally.

    Args:
        layers: of the model before it was lowered. kernels: of each, as `check_kernels` found it.
        products: of one call. shares: of the call's time, one for each product, or None.
    """
    alike: dict[tuple[str, int], list[str]] = {}
    for name in sorted(layers, key=lambda name: layers[name].place):
        alike.setdefault((kernels[name], layers[name].macs), []).append(name)
    found: dict[tuple[str, int], list[float]] = {}
    for product, share in zip(products, shares or (), strict=shares is not None):
        found.setdefault((f"{product.name} ({product.precision})", product.macs), []).append(share)
    times: dict[str, float] = {}
    for kind in alike.keys() & found.keys():
        names, ran = alike[kind], found[kind]
        if all(layers[name].calls == 1 for name in names) and len(names) == len(ran):
            times |= zip(names, ran, strict=True)
        else:
            times |= {name: layers[name].calls * statistics.fmean(ran) for name in names}
    return {
        name: LayerWork(
            width=layer.width,
            macs=layer.calls * layer.macs,
            time_share=times.get(name),
        )
        for name, layer in layers.items()
    }
