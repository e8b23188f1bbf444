"""What survives in each layer: input channels, filters, time taps and places in the kernel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regkit.lightning.monitors.canvas import (
    add_shades,
    ink_on,
    make_figure,
    percent,
    short_names,
    tint,
)
from regkit.palette import FAINT, INK, RED
from regkit.structure.distributed import full_tensor
from regkit.structure.groups import view_of
from regkit.structure.selectors import Entry, select_parameters

MOST_LAYERS = 100
MOST_IN_ORDER = 4  # channels up to which they are drawn in their order: colours
MOST_TAPS = 8  # with a number each
ROW_INCHES = 0.40
# Left edge and width of each column, in inches.
INPUTS, FILTERS, TAPS, KERNEL = (0.0, 2.3), (3.1, 2.3), (6.2, 1.7), (8.1, 1.5)
MARGIN = 0.5


@dataclass(frozen=True, eq=False)
class Layer:
    """Shares of the weights of one layer that are not zero.

    inputs, filters: by input channel and by output channel (or column and unit).
    kernel: by place in time and space, over all channels; one place where it is no convolution.
    diverged: whether weights are NaN or infinite.
    """

    name: str
    inputs: Float[np.ndarray, " inputs"]
    filters: Float[np.ndarray, " filters"]
    kernel: Float[np.ndarray, "taps height width"]
    diverged: bool

    @property
    def taps(self) -> Float[np.ndarray, " taps"]:
        """Return the share by time tap."""
        return self.kernel.mean((1, 2))


@torch.no_grad()
def measure(model: nn.Module, chosen: Mapping[str, Tensor]) -> list[Layer]:
    """Count what is left of the chosen weights by channel, tap and place.

    A collective where ranks share a tensor. Waits for the GPU once.
    """
    entries = [
        replace(e, parameter=chosen[e.name])  # under FSDP2 a module may hold another copy just now
        for e in select_parameters(model)
        if e.name in chosen and e.parameter.ndim > 1
    ]
    counted = [parts for e in entries if (parts := _counted(e)) is not None]
    if not counted:
        return []
    numbers = torch.cat([p.flatten() for _, *parts in counted for p in parts]).cpu().numpy()
    layers = []
    for name, *parts in counted:
        arrays = []
        for part in parts:
            arrays.append(numbers[: part.numel()].reshape(part.shape))
            numbers = numbers[part.numel() :]
        inputs, filters, kernel, bad = arrays
        layers.append(Layer(name, inputs, filters, kernel, bool(bad)))
    return layers


def _counted(entry: Entry) -> tuple[Any, ...] | None:
    """Return the shares of one layer, still on its device; None where it has no channels."""
    whole = full_tensor(entry.parameter.detach())
    nonzero = (whole != 0).float()
    views = view_of(entry, "in_channel"), view_of(entry, "filter")
    if any(isinstance(view, str) for view in views):
        return None
    inputs, filters = (view.rows(nonzero).mean(1) for view in views if not isinstance(view, str))
    kernel = nonzero.mean().view(1, 1, 1)
    if isinstance(entry.module, _ConvNd):
        kernel = nonzero.mean((0, 1))
        kernel = kernel[(None,) * (3 - kernel.ndim)]
    return entry.name, inputs, filters, kernel, (~whole.isfinite()).any().float()


def draw(layers: Sequence[Layer]) -> Figure:
    """Draw a row a layer, in the order of the net."""
    shown = layers[:MOST_LAYERS]
    titles = {INPUTS: "input channels", FILTERS: "output filters"}
    if any(layer.kernel.size > 1 for layer in shown):
        titles |= {TAPS: "time taps", KERNEL: "kernel, tap by tap"}
    right = sum(max(titles)) + MARGIN
    figure = make_figure(right + 2.6, ROW_INCHES * (len(shown) + 1) + 1.5)
    axes: Any = figure.subplots()
    axes.set_xlim(-0.05, right)
    axes.set_ylim(len(shown), -0.75)
    for row, layer in enumerate(shown):
        _strip(axes, row, INPUTS, layer.inputs)
        _strip(axes, row, FILTERS, layer.filters)
        _taps(axes, row, layer)
        _kernel(axes, row, layer)
    for (left, _), title in titles.items():
        axes.text(left, -0.3, title, fontsize=9, color=INK, fontweight="bold")
    axes.set_yticks(
        np.arange(len(shown)) + 0.4, short_names([x.name for x in layers])[:MOST_LAYERS]
    )
    axes.set_xticks([])
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    for text, layer in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_parse_math(False)
        text.set_color(RED if layer.diverged else INK)
    axes.spines[:].set_visible(False)
    axes.set_title("What survives in each layer", loc="left", fontsize=12, color=INK, pad=10)
    add_shades(figure, axes, _note(layers, len(shown)))
    return figure


def _note(layers: Sequence[Layer], num_shown: int) -> str:
    notes = [
        "share of weights that are not zero (white: none)",
        f"more than {MOST_IN_ORDER} channels stand densest first",
    ]
    if num_shown < len(layers):
        notes.append(f"{len(layers) - num_shown} more layers are not shown")
    if any(layer.diverged for layer in layers):
        notes.append("orange names: NaN or infinite weights, training diverged")
    return "; ".join(notes)


def _strip(
    axes: Any, row: int, place: tuple[float, float], shares: Float[np.ndarray, " channels"]
) -> None:
    """Draw channels side by side, and say how many are alive."""
    left, width = place
    if len(shares) > MOST_IN_ORDER:
        shares = np.sort(shares)[::-1]
    _image(axes, shares[None], (left, left + width, row + 0.8, float(row)))
    for at in range(1, len(shares) if len(shares) <= MOST_IN_ORDER else 0):
        axes.plot([left + width * at / len(shares)] * 2, [row, row + 0.8], color=FAINT, lw=0.8)
    live = int((shares > 0).sum())
    text = f"{live} of {len(shares)}" if live < len(shares) else f"all {live}"
    axes.text(left + width + 0.05, row + 0.4, text, va="center", fontsize=8, color=INK)


def _taps(axes: Any, row: int, layer: Layer) -> None:
    taps = layer.taps
    if len(taps) < 2:
        return
    left, width = TAPS
    _image(axes, taps[None], (left, left + width, row + 0.8, float(row)))
    for at, share in enumerate(taps if len(taps) <= MOST_TAPS else ()):
        axes.text(
            left + width * (at + 0.5) / len(taps),
            row + 0.4,
            percent(float(share)),
            ha="center",
            va="center",
            fontsize=8 if len(taps) < 6 else 6,
            color=ink_on(float(share)),
        )


def _kernel(axes: Any, row: int, layer: Layer) -> None:
    """Draw the places in space of every tap, one tap beside the other."""
    num_taps, height, width = layer.kernel.shape
    if height * width < 2:
        return
    # An inch is an inch across, ROW_INCHES of one down: places come out square.
    tall = 0.8
    wide = tall * ROW_INCHES * width / height
    gap = 0.1 * wide
    squeeze = min(1.0, KERNEL[1] / (num_taps * (wide + gap)))
    for tap in range(num_taps):
        left = KERNEL[0] + tap * (wide + gap) * squeeze
        extent = (left, left + wide * squeeze, row + tall, float(row))
        _image(axes, layer.kernel[tap], extent)


def _image(
    axes: Any,
    shares: Float[np.ndarray, "rows columns"],
    extent: tuple[float, float, float, float],
) -> None:
    left, right, bottom, top = extent
    axes.imshow(tint(shares), extent=extent, aspect="auto", interpolation="nearest")
    frame = Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=FAINT, linewidth=0.8
    )
    axes.add_patch(frame)
