"""What is left of a net's weights: colours and taps of its first layer, channels of the others."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from regkit.lightning.monitors.pictures import first_filters
from regkit.lightning.monitors.survivors import measure
from regkit.structure.selectors import weights

AXES = {"channels": 1, "taps": 2, "rows": 3, "columns": 4}
_RECURRENT = re.compile(r"(.*)weight_(ih|hh)(_l\d+(?:_reverse)?|)")


@dataclass(frozen=True, eq=False)
class First:
    """The first convolution, which reads the clip; `weight` as that of a 3-D one."""

    name: str
    weight: Float[np.ndarray, "filters channels taps rows columns"]

    def live(self, *kept: str) -> Float[np.ndarray, "*places"]:
        """Return the share of weights that are not zero, by the axes that are kept."""
        return (self.weight != 0).mean(self._others(kept))

    def norm(self, *kept: str) -> Float[np.ndarray, "*places"]:
        """Return the Euclidean length of the weights, by the axes that are kept."""
        return np.sqrt(np.square(self.weight.astype(np.float64)).sum(self._others(kept)))

    def _others(self, kept: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(set(range(5)) - {AXES[name] for name in kept})


@dataclass(frozen=True, eq=False)
class Layer:
    """What is left of one layer.

    live, num: output channels, or hidden units of a recurrent layer, with a weight that is not
        zero; and all of them.
    taps: share of weights that are not zero at each time step of a 3-D kernel; else empty.
    tap_norms: Euclidean length of the weights there.
    """

    name: str
    live: int
    num: int
    recurrent: bool
    taps: Float[np.ndarray, " taps"]
    tap_norms: Float[np.ndarray, " taps"]


@dataclass(frozen=True, eq=False)
class Survived:
    """The weights that are left; no `first` in a net without convolutions."""

    first: First | None
    layers: list[Layer]


def survived(net: nn.Module) -> Survived:
    """Look at the weights of a net; no data is needed."""
    chosen: dict[str, Tensor] = dict(weights(net))
    found = first_filters(net, chosen)
    first = None if found is None else First(found[1], found[0])
    return Survived(first, _layers(net, chosen))


@torch.no_grad()
def _layers(net: nn.Module, chosen: Mapping[str, Tensor]) -> list[Layer]:
    """List the layers; a hidden unit lives where it reads the layer below, or the time before."""
    alive: dict[str, Float[np.ndarray, " filters"]] = {}
    kernels: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    recurrent = set()
    for layer in measure(net, chosen):
        name = layer.name.removesuffix(".weight")
        if match := _RECURRENT.fullmatch(layer.name):
            name = f"{match[1]}units{match[3]}"
            recurrent.add(name)
        alive[name] = np.maximum(alive.get(name, 0), layer.filters)
        weight = chosen[layer.name]
        if weight.ndim == 5:
            norms = weight.detach().double().movedim(2, 0).flatten(1).norm(dim=1)
            kernels[name] = (layer.taps, norms.cpu().numpy())
    none = np.zeros(0)
    return [
        Layer(
            name,
            int((shares > 0).sum()),
            len(shares),
            name in recurrent,
            *kernels.get(name, (none, none)),
        )
        for name, shares in alive.items()
    ]
