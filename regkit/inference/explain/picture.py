"""The picture of an explanation, on one page."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure

from regkit.inference.explain.explanation import COLOURS, Explanation
from regkit.inference.explain.survived import draw_weights, weights_inches
from regkit.lightning.monitors.canvas import make_figure
from regkit.palette import BLUE, FAINT, INK, QUIET, RED

SIGNED = LinearSegmentedColormap.from_list("signed", [RED, "#FFFFFF", BLUE])  # against, for
WIDTH = 10.0  # inches
LONGEST_NAME = 45  # letters of a class in the title
MOST_FRAMES = 16  # of the strip
LEAST_ROOM = 0.05  # nats, the least height of an axis: noise is drawn as nothing
FILLED = {
    "freeze": "the frame before stays",
    "mean": "the clip's mean picture instead",
    "flat": "the clip's mean colour instead",
}
DROP = "lost log-odds, nats"


def draw(explanation: Explanation) -> Figure:
    """Draw the strip of frames and the curve, places, colours, order, and the weights below."""
    inches = 4.3, 3.2, weights_inches(explanation.survived)
    figure = make_figure(WIDTH, sum(inches))
    parts: Any = figure.subfigures(3, 1, height_ratios=inches)
    top, middle, bottom = parts
    _draw_time(top, explanation)
    left, right = middle.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_places(left, explanation)
    _draw_others(right, explanation)
    draw_weights(bottom, explanation.survived, explanation.held.shrunk)
    return figure


def _title(explanation: Explanation) -> str:
    e, evidence = explanation, explanation.evidence
    names = [shorten(name, LONGEST_NAME, placeholder=" …") for name in e.classes]
    title = f"What carried “{names[evidence.target]}” (p = {evidence.probability():.1%})"
    if evidence.target != e.predicted:
        share = float(evidence.probabilities.max())
        title += f"; predicted: “{names[e.predicted]}” (p = {share:.1%})"
    return title


def _draw_time(figure: SubFigure, explanation: Explanation) -> None:
    """Draw frames side by side, and below each what the class loses around it."""
    num_frames = explanation.film.pixels.shape[1]
    shown = min(num_frames, MOST_FRAMES)
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3.4))
    strip, curve = axes
    frames = explanation.film.pixels.permute(1, 2, 3, 0).numpy()
    every = num_frames / shown
    for number in range(shown):
        frame = frames[int((number + 0.5) * every)]
        left = number * every
        strip.imshow(frame, extent=(left + 0.03 * every, left + 0.97 * every, 0, 1), aspect="auto")
    strip.set_ylim(-0.06, 1.2)
    strip.axis("off")
    name = Path(explanation.film.video.path).name
    title = _title(explanation)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, color=INK, parse_math=False)
    strip.set_title(name, loc="left", fontsize=8.5, color=INK, parse_math=False)
    _draw_curve(curve, explanation)
    evidence = explanation.evidence
    for number, start in enumerate(evidence.strongest, start=1):
        ends = start, start + evidence.span
        strip.plot(ends, [1.08] * 2, color=BLUE, linewidth=3, solid_capstyle="butt")
        curve.axvspan(*ends, color=BLUE, alpha=0.10, linewidth=0)
        curve.annotate(
            str(number),
            (start + evidence.span / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            fontweight="bold",
            color=BLUE,
        )
    curve.set_xlim(0, num_frames)
    places = [int((number + 0.5) * every) for number in range(shown)]
    labels = [f"{explanation.film.times_s[place]:.2f}" for place in places]
    curve.set_xticks([(number + 0.5) * every for number in range(shown)], labels, fontsize=8)
    curve.set_xlabel("time of the frame in the film, s", fontsize=9, color=INK)


def _draw_curve(axes: Any, explanation: Explanation) -> None:
    evidence = explanation.evidence
    drops, span = evidence.spans, evidence.span
    centres = np.arange(len(drops)) + span / 2
    curves = _scaled(explanation)
    for number, curve in enumerate(curves):
        label = "untrained nets, scaled" if number == 0 else None
        axes.plot(centres, curve, color=QUIET, linewidth=0.9, label=label)
    axes.bar(centres, drops, width=0.6, color=[BLUE if d > 0 else RED for d in drops])
    axes.axhline(0, color=INK, linewidth=0.8)
    values = np.concatenate([[0.0], drops, *curves])
    room = max(float(np.ptp(values)), LEAST_ROOM)
    axes.set_ylim(values.min() - 0.05 * room, values.max() + 0.2 * room)
    axes.set_ylabel(DROP, fontsize=9, color=INK)
    frames = "1 frame" if span == 1 else f"{span} frames"
    axes.set_title(
        f"Without {frames} around that time ({FILLED[explanation.questions.fill]}); "
        "blue: they spoke for the class, orange: against",
        loc="left",
        fontsize=9,
        color=INK,
    )
    if curves:
        anchor = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "borderaxespad": 0}
        axes.legend(fontsize=8, frameon=False, **anchor)
    _plain(axes)


def _scaled(explanation: Explanation) -> list[Float[np.ndarray, " starts"]]:
    """Return the curves of untrained nets at the height of the trained one's: shapes compare."""
    if explanation.untrained is None:
        return []
    height = float(np.abs(explanation.evidence.spans).max())
    curves = [np.array(curve) for curve in explanation.untrained.spans]
    return [curve * (height / (np.abs(curve).max() or 1.0)) for curve in curves]


def _draw_places(figure: SubFigure, explanation: Explanation) -> None:
    """Lay the drop of each cell over the middle frame."""
    drops = explanation.evidence.places
    pixels = explanation.film.pixels
    grey = pixels[:, pixels.shape[1] // 2].mean(0).numpy()
    height, width = grey.shape
    axes: Any = figure.subplots()
    axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
    limit = max(float(np.abs(drops).max()), LEAST_ROOM)
    norm = Normalize(-limit, limit)
    colours = SIGNED(norm(drops))
    colours[..., 3] = 0.15 + 0.6 * np.abs(drops) / limit
    axes.imshow(colours, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
    if len(drops) <= 8:
        _number(axes, drops, (height, width))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
    how = {"freeze": "each cell standing still"}.get(explanation.questions.fill)
    axes.set_title(
        f"With {how}" if how else "Without each cell of the picture", fontsize=9, color=INK
    )
    axes.set_xlabel(f"{DROP}, over the middle frame", fontsize=9, color=INK)


def _number(axes: Any, drops: Float[np.ndarray, "rows columns"], sides: tuple[int, int]) -> None:
    for place in np.ndindex(*drops.shape):
        y, x = (
            (at + 0.5) * side / num - 0.5
            for at, side, num in zip(place, sides, drops.shape, strict=True)
        )
        text = axes.text(
            x, y, _signed(float(drops[place])), ha="center", va="center", fontsize=8, color=INK
        )
        text.set_bbox({"facecolor": "white", "alpha": 0.65, "linewidth": 0, "pad": 1})


def _draw_others(figure: SubFigure, explanation: Explanation) -> None:
    """Draw bars of what else was taken away, on one scale."""
    evidence = explanation.evidence
    order = evidence.order
    drops = {f"{name} is flat": d for name, d in zip(COLOURS, evidence.channels, strict=True)}
    drops |= {
        "played backwards": order.reversed,
        f"frames shuffled\n(mean of {len(order.shuffled)})": order.shuffled_mean,
        "standing still\n(middle frame)": order.still,
    }
    axes: Any = figure.subplots()
    places = [0, 1, 2, 3.6, 4.6, 5.6]
    values = [float(value) for value in drops.values()]
    axes.barh(places, values, color=[BLUE if v > 0 else RED for v in values], height=0.7)
    axes.plot(
        order.shuffled,
        [places[4]] * len(order.shuffled),
        linestyle="",
        marker="|",
        markersize=9,
        color=INK,
    )
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = min(0.0, *values, *order.shuffled), max(0.0, *values, *order.shuffled)
    room = max(high - low, LEAST_ROOM)
    axes.set_xlim(low - 0.05 * room, high + 0.25 * room)
    for place, value in zip(places, values, strict=True):
        end = max(value, 0.0, *(order.shuffled if place == places[4] else ()))
        axes.text(end + 0.02 * room, place, _signed(value), va="center", fontsize=8, color=INK)
    axes.set_yticks(places, list(drops), fontsize=8.5)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlabel(DROP, fontsize=9, color=INK)
    axes.set_title("Colours, order and motion", loc="left", fontsize=9, color=INK)
    _plain(axes)


def _signed(drop: float) -> str:
    return f"{drop:+.2f}" if abs(drop) >= 0.005 else "0"


def _plain(axes: Any) -> None:
    axes.tick_params(length=0, colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
