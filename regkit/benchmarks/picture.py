"""Bars of ratios with whiskers, as the pictures of all measurements draw them."""

from typing import Any

from regkit.palette import FAINT, INK
from regkit.timing import Quartiles


def bar(axes: Any, at: float, ratio: Quartiles, colour: str, text: str, end: float) -> None:
    """Draw a bar with whiskers, and a text behind its end."""
    axes.barh(at, ratio.median, height=0.77, color=colour)
    spread = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
    axes.errorbar(ratio.median, at, xerr=spread, color=INK, elinewidth=1, capsize=2.5)
    axes.annotate(
        text,
        (end, at),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )


def finish(axes: Any, places: list[float], names: list[str], last: float) -> None:
    """Name the bars, whose last stands at a place, and mark the ratio of one."""
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(places, names)
    axes.set_ylim(last + 0.65, -0.65)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
