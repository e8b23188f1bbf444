"""The density of each layer over training: its record, and a heat map of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from regkit.lightning.monitors.canvas import (
    add_shades,
    make_figure,
    percent,
    short_names,
    tint,
)
from regkit.palette import FAINT, INK, RED
from regkit.structure.distributed import all_reduce_counts, local

ROW_INCHES = 0.24
TALLEST_INCHES = 30.0
MOST_TICKS = 12


@dataclass
class History:
    """The density of each layer at the end of each epoch, as a checkpoint keeps it.

    shares: a row an epoch, a number a layer: the share of its weights that are not zero, NaN where
        some are NaN or infinite.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)

    def add(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        """Record the layers at the end of an epoch (a collective); other layers start anew."""
        found = shares(tensors)
        if self.names != list(found):
            self.names, self.epochs, self.shares = list(found), [], []
            self.sizes = [tensor.numel() for tensor in tensors.values()]
        if epoch in self.epochs:  # done again, from a checkpoint within it
            place = self.epochs.index(epoch)
            del self.epochs[place], self.shares[place]
        self.epochs.append(epoch)
        self.shares.append(list(found.values()))


@torch.no_grad()
def shares(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of non-zero entries of each tensor, NaN where some are not finite.

    A collective where ranks share a tensor. Waits for the GPU once.
    """
    if not tensors:
        return {}
    parts = [local(t) for t in tensors.values()]
    counts = torch.stack([torch.stack([(p != 0).sum(), (~p.isfinite()).sum()]) for p in parts])
    totals = all_reduce_counts(counts, list(tensors.values())).tolist()
    return {
        name: float("nan") if bad else nonzero / max(tensors[name].numel(), 1)
        for name, (nonzero, bad) in zip(tensors, totals, strict=True)
    }


def draw(history: History) -> Figure:
    """Draw a row a layer, in the order of the net, and a column an epoch."""
    shown = np.array(history.shares, dtype=np.float64).T
    sizes = np.array(history.sizes, dtype=np.float64)
    total = (sizes @ shown) / max(sizes.sum(), 1)
    num_layers, num_epochs = shown.shape
    row_inches = min(ROW_INCHES, TALLEST_INCHES / num_layers)
    figure = make_figure(9.0, row_inches * (num_layers + 1.5) + 1.7)
    axes: Any = figure.subplots()
    edge = num_epochs - 0.5
    places = [*range(num_layers), num_layers + 0.5]
    _image(axes, shown, (-0.5, edge, num_layers - 0.5, -0.5))
    _image(axes, total[None], (-0.5, edge, num_layers + 1.0, num_layers + 0.0))
    axes.set_xlim(-0.5, edge)
    axes.set_ylim(num_layers + 1, -0.5)
    size = min(8.5, 60 * row_inches)
    axes.set_yticks(places, [*short_names(history.names), "all layers"], fontsize=size)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    _name_epochs(axes, history.epochs)
    ends = [*shown[:, -1], total[-1]]
    for place, share, count in zip(places, ends, [*sizes, sizes.sum()], strict=True):
        axes.annotate(
            f"{percent(share)} of {count:,.0f}" + ("  dead" if share == 0 else ""),
            (edge, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
            color=RED if np.isnan(share) else INK,
            annotation_clip=False,
        )
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(FAINT)
    axes.set_title("Density of each layer over training", loc="left", fontsize=12, color=INK)
    axes.set_title("at the end: share of weights", loc="right", fontsize=8.5, color=INK)
    note = "share of weights that are not zero (white: none)"
    if np.isnan(shown).any():
        epoch = history.epochs[int(np.isnan(shown).any(0).argmax())] + 1
        note += f"; orange: NaN or infinite weights, training diverged in epoch {epoch}"
    add_shades(figure, axes, note)
    return figure


def _image(axes: Any, shares: Float[np.ndarray, "rows columns"], extent: tuple[float, ...]) -> None:
    axes.imshow(tint(shares), extent=extent, aspect="auto", interpolation="nearest")


def _name_epochs(axes: Any, epochs: Sequence[int]) -> None:
    """Write the numbers of some epochs, counted from 1, the last among them."""
    every = -(-len(epochs) // MOST_TICKS)
    places = list(range(len(epochs) - 1, -1, -every))
    axes.set_xticks(places, [epochs[place] + 1 for place in places], fontsize=8.5)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
