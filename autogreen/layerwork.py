"""LayerWork: what one layer is and does in one call of a policy's program, and its share of the time."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autogreen.engines import Product

if TYPE_CHECKING:
    from autogreen.techniques.trace import Layer


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """Of a convolution or linear layer in one call.

    width: output channels or features, after pruning. macs: multiply-accumulates of all its runs, for the whole batch.
    time_share: of the call's time in a profile, from 0 to 1; None where the profile does not show the layer alone.
    """

    width: int
    macs: int
    time_share: float | None = None

    def to_json(self) -> list[float | None]:
        """Short, because a study keeps one a layer a trial."""
        return [self.width, self.macs, self.time_share]

    @classmethod
    def from_json(cls, data: Sequence[float | None]) -> "LayerWork":
        width, macs, share = data
        assert width is not None and macs is not None, "only the share may be unknown"
        return cls(width=int(width), macs=int(macs), time_share=share)


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
