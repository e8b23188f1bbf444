"""What is left of a net's weights: colours and taps of its first layer, channels of the others."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import SubFigure
from torch import Tensor, nn

from regkit.lightning.monitors.canvas import percent, short_names, tint
from regkit.lightning.monitors.pictures import first_filters
from regkit.lightning.monitors.survivors import measure
from regkit.palette import BLUE, FAINT, INK, PALE
from regkit.structure.selectors import weights

AXES = {"channels": 1, "taps": 2, "rows": 3, "columns": 4}
_RECURRENT = re.compile(r"(.*)weight_(ih|hh)(_l\d+(?:_reverse)?|)")
MOST_LAYERS = 24
ROW_INCHES = 0.24
LEAST_INCHES = 2.6
MOST_NUMBERED = 8  # cells side by side


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


def weights_inches(survived: Survived) -> float:
    """Return the height that it takes."""
    return max(LEAST_INCHES, 1.2 + ROW_INCHES * min(len(survived.layers), MOST_LAYERS))


def draw_weights(figure: SubFigure, survived: Survived, shrunk: bool) -> None:
    """Draw the first layer's colours, taps and places at the left, all layers at the right."""
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.6))
    left, right = parts
    if survived.first is not None:
        _draw_first(left, survived.first, weights_inches(survived))
    if survived.layers:
        _draw_layers(right, survived.layers, shrunk)


def _draw_first(figure: SubFigure, first: First, inches: float) -> None:
    """Draw the length of the weights by colour and tap, and by place; white is exactly zero."""
    heights = LEAST_INCHES, inches - LEAST_INCHES + 0.01
    grid = figure.add_gridspec(2, 2, height_ratios=heights)  # cells stay small beside many layers
    axes: list[Any] = [figure.add_subplot(grid[0, column]) for column in range(2)]
    title = f"Squared weights of {first.name}, by colour and place"
    figure.suptitle(title, fontsize=9, color=INK, parse_math=False)
    num_channels, num_taps = first.weight.shape[1:3]
    by_tap = first.norm("channels", "taps")
    names = ["red", "green", "blue"] if num_channels == 3 else list(map(str, range(num_channels)))
    _cells(axes[0], by_tap)
    axes[0].set_yticks(range(num_channels), names, fontsize=8)
    axes[0].set_xticks(range(num_taps), _offsets(num_taps), fontsize=8)
    axes[0].set_xlabel("frame" if num_taps > 1 else "", fontsize=8.5, color=INK)
    _cells(axes[1], first.norm("rows", "columns"))
    axes[1].set_xticks([])
    axes[1].set_yticks([])
    axes[1].set_xlabel("place in the kernel", fontsize=8.5, color=INK)


def _offsets(num_taps: int) -> list[str]:
    middle = (num_taps - 1) // 2
    if num_taps == 1:
        return ["one frame"]
    return [f"{tap - middle:+d}" if tap != middle else "now" for tap in range(num_taps)]


def _cells(axes: Any, norms: Float[np.ndarray, "rows columns"]) -> None:
    """Draw shares of the squared weights."""
    energy = np.square(norms)
    shares = energy / (energy.sum() or 1.0)
    axes.imshow(tint(shares), interpolation="nearest")
    if max(shares.shape) <= MOST_NUMBERED - 3:
        for row, column in np.ndindex(*shares.shape):
            _share(axes, column, row, float(shares[row, column]))
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(FAINT)


def _share(axes: Any, x: float | int, y: int, share: float) -> None:
    colour = "white" if share > 0.2 else INK
    axes.text(x, y, percent(share), ha="center", va="center", fontsize=7, color=colour)


def _draw_layers(figure: SubFigure, layers: list[Layer], shrunk: bool) -> None:
    """Draw a row a layer: the live share as a bar, and how its weights lie over time."""
    shown = layers[:MOST_LAYERS]
    temporal = any(layer.taps.size > 1 for layer in shown)
    axes: Any = figure.subplots()
    for row, layer in enumerate(shown):
        axes.barh(row, 1, color=PALE, height=0.62)
        axes.barh(row, layer.live / layer.num, color=BLUE, height=0.62)
        what = " units" if layer.recurrent else ""
        text = f"{layer.live} of {layer.num}{what}"
        axes.text(1.02, row, text, va="center", fontsize=8, color=INK)
        if layer.taps.size > 1:
            _profile(axes, row, layer)
    axes.set_xlim(0, 2.3 if temporal else 1.5)
    axes.set_ylim(len(shown) - 0.4, -1.1)
    axes.set_yticks(
        range(len(shown)),
        short_names([layer.name for layer in shown]),
        fontsize=8,
        parse_math=False,
    )
    axes.set_xticks([])
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    already = " (dead ones are cut out)" if shrunk else ""
    axes.text(0, -0.75, f"live channels{already}", fontsize=8.5, color=INK)
    if temporal:
        axes.text(1.5, -0.75, "weights by time step", fontsize=8.5, color=INK)
    axes.set_title("What is left of each layer", loc="left", fontsize=9, color=INK)
    note = "cells: shares of the squared weights; white: all zero"
    if len(shown) < len(layers):
        note += f"; {len(layers) - len(shown)} more in explanation.json"
    axes.set_xlabel(note, fontsize=8, color=INK, loc="left")


def _profile(axes: Any, row: int, layer: Layer) -> None:
    """Draw the share of the squared weights at each time step."""
    left, width = 1.5, 0.75
    energy = np.square(layer.tap_norms)
    shares = energy / (energy.sum() or 1.0)
    extent = (left, left + width, row + 0.36, row - 0.36)
    axes.imshow(tint(shares[None]), extent=extent, aspect="auto", interpolation="nearest")
    for tap, share in enumerate(shares if len(shares) <= MOST_NUMBERED else ()):
        _share(axes, left + width * (tap + 0.5) / len(shares), row, float(share))
