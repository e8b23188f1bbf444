"""The learned filters of the first convolution, tap by tap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure

from regkit.lightning.monitors.canvas import make_figure, rgba
from regkit.palette import INK, PALE, RED

MOST_FILTERS = 64
MOST_CHANNELS = 4
FILTERS_A_BLOCK = 16
WIDEST_BLOCKS = 48  # cells side by side, of all blocks of filters
CELL_INCHES = 0.42
CELL_PIXELS, GAP_PIXELS, CHANNEL_GAP_PIXELS = 84, 8, 24
# Exactly zero; the middle of the colours, white, is a small weight.

Filters = Float[np.ndarray, "filters channels taps height width"]


def draw(weight: Filters, name: str) -> Figure:
    """Draw a row a filter, live ones first, the longest on top; a column an input channel and tap.

    Colours are scaled to the largest weight of each filter.

    weight: of a 2-D convolution with one tap. Not all filters are drawn if they are many, nor all
        input channels: those with the longest weights.
    """
    length = np.sqrt(np.square(weight.astype(np.float64)).sum((1, 2, 3, 4)))
    bad = ~np.isfinite(length)
    # Stable, so that dead ones keep their order; those with NaN are news and stand on top.
    order = np.argsort(-np.where(bad, np.inf, length), kind="stable")[:MOST_FILTERS]
    channels = _channels(weight)
    sheet = weight[order][:, channels]
    labels = [f"{i}{' dead' if length[i] == 0 else ''}" for i in order]
    num_blocks = _num_blocks(*sheet.shape[:3])
    per_block = -(-len(order) // num_blocks)
    num_cells = sheet.shape[1] * sheet.shape[2]
    width = max(5.5, num_blocks * (num_cells + 1) * CELL_INCHES + 0.8)
    figure = make_figure(width, per_block * CELL_INCHES + 1.6)
    all_axes: Any = figure.subplots(1, num_blocks, squeeze=False)[0]
    for block, axes in enumerate(all_axes):
        part = slice(block * per_block, (block + 1) * per_block)
        _block(axes, sheet[part], labels[part], per_block)
        _name_columns(axes, sheet, channels, weight.shape[1])
    _title(figure, name, weight, length, len(order), len(channels))
    return figure


def _channels(weight: Filters) -> list[int]:
    """Return the input channels to draw: the longest, in their order."""
    lengths = np.nan_to_num(np.abs(weight)).sum((0, 2, 3, 4))
    return sorted(np.argsort(-lengths, kind="stable")[:MOST_CHANNELS].tolist())


def _num_blocks(num_filters: int, num_channels: int, num_taps: int) -> int:
    fit = max(1, WIDEST_BLOCKS // (num_channels * num_taps + 1))
    return min(fit, -(-num_filters // FILTERS_A_BLOCK))


def _block(axes: Any, sheet: Filters, labels: Sequence[str], num_rows: int) -> None:
    """Draw some filters below each other, as one picture: a cell is a filter's channel and tap."""
    num_filters, num_channels, num_taps, *_ = sheet.shape
    tall = CELL_PIXELS + GAP_PIXELS
    wide = num_channels * num_taps * tall + (num_channels - 1) * CHANNEL_GAP_PIXELS
    picture = np.ones((num_rows * tall, wide, 4))
    for row, kernel in enumerate(sheet):
        colours = _colours(kernel)
        for channel, tap in np.ndindex(num_channels, num_taps):
            left = _left(channel, tap, num_taps)
            inside = (slice(row * tall, row * tall + CELL_PIXELS), slice(left, left + CELL_PIXELS))
            picture[inside] = _enlarged(colours[channel, tap])
    axes.imshow(picture, interpolation="nearest")
    axes.set_yticks(np.arange(num_filters) * tall + CELL_PIXELS / 2, labels, fontsize=7.5)
    axes.tick_params(length=0, colors=INK, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def _left(channel: int, tap: int, num_taps: int) -> int:
    """Return where a column begins, in pixels of the block's picture."""
    cells = channel * num_taps + tap
    return cells * (CELL_PIXELS + GAP_PIXELS) + channel * CHANNEL_GAP_PIXELS


def _enlarged(cell: Float[np.ndarray, "height width 4"]) -> Float[np.ndarray, "tall wide 4"]:
    """Repeat the weights of a cell until it is CELL_PIXELS a side."""
    rows, columns = (np.arange(CELL_PIXELS) * size // CELL_PIXELS for size in cell.shape[:2])
    return cell[rows][:, columns]


def _colours(kernel: Float[np.ndarray, "channels taps height width"]) -> np.ndarray:
    """Return the colours of one filter's weights."""
    finite = np.nan_to_num(kernel, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float64)
    scale = np.abs(finite).max() or 1.0
    colours = colormaps["PuOr_r"](0.5 + 0.5 * finite / scale)
    colours[kernel == 0] = rgba(PALE)
    colours[~np.isfinite(kernel)] = rgba("#000000")
    return colours


def _name_columns(axes: Any, sheet: Filters, channels: Sequence[int], num_inputs: int) -> None:
    """Write above each column its input channel and its tap in time."""
    num_taps = sheet.shape[2]
    names = "RGB" if num_inputs == 3 else [f"in {c}" for c in range(num_inputs)]
    centre = (num_taps - 1) // 2
    places, labels = [], []
    for at, channel in enumerate(channels):
        for tap in range(num_taps):
            places.append(_left(at, tap, num_taps) + CELL_PIXELS / 2)
            offset = f"{tap - centre:+d}" if tap != centre else "t"
            labels.append(names[channel] if num_taps == 1 else f"{names[channel]}\n{offset}")
    axes.set_xticks(places, labels, fontsize=7.5, color=INK)


def _title(
    figure: Figure,
    name: str,
    weight: Filters,
    length: Float[np.ndarray, " filters"],
    num_shown: int,
    num_channels: int,
) -> None:
    num_filters, num_inputs, num_taps = weight.shape[:3]
    bad = int((~np.isfinite(length)).sum())
    state = f"{int((length != 0).sum())} of {num_filters} live"
    if bad:
        state = f"{bad} of {num_filters} with NaN or infinity, diverged"
    title, colour = f"Filters of {name}: {state}", RED if bad else INK
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=colour, parse_math=False)
    columns = "input channel, time tap" if num_taps > 1 else "input channel"
    notes = [f"rows: filters by number, longest first; columns: {columns}"]
    if num_shown < num_filters:
        notes.append(f"{num_filters - num_shown} shorter filters are not shown")
    if num_channels < num_inputs:
        notes.append(f"{num_inputs - num_channels} weaker input channels are not shown")
    notes.append("orange +, violet -, to the scale of each filter; grey: exactly zero")
    if bad:
        notes.append("black: NaN or infinity")
    figure.supxlabel("\n".join(notes), x=0.02, ha="left", fontsize=8, color=INK)
