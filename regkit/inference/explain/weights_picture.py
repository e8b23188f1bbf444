"""The lower part of the page: what the first layer reads, and what is left of each layer."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import SubFigure

from regkit.inference.explain.survived import First, Layer, Survived
from regkit.lightning.monitors.canvas import percent, short_names, tint
from regkit.palette import BLUE, FAINT, INK, PALE

MOST_LAYERS = 24
ROW_INCHES = 0.24
LEAST_INCHES = 2.6
MOST_NUMBERED = 8  # cells side by side


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
    axes.set_yticks(range(len(shown)), _names(shown), fontsize=8, parse_math=False)
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


def _names(layers: list[Layer]) -> list[str]:
    return short_names([layer.name for layer in layers])


def _profile(axes: Any, row: int, layer: Layer) -> None:
    """Draw the share of the squared weights at each time step."""
    left, width = 1.5, 0.75
    energy = np.square(layer.tap_norms)
    shares = energy / (energy.sum() or 1.0)
    extent = (left, left + width, row + 0.36, row - 0.36)
    axes.imshow(tint(shares[None]), extent=extent, aspect="auto", interpolation="nearest")
    for tap, share in enumerate(shares if len(shares) <= MOST_NUMBERED else ()):
        _share(axes, left + width * (tap + 0.5) / len(shares), row, float(share))
