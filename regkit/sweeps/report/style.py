"""How the pictures look: one colour a penalty, one marker for what else differs."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from regkit.palette import FAINT, GREY, INK, QUIET, SERIES
from regkit.sweeps.report.choose import Choice
from regkit.sweeps.report.table import Configuration, Spread, Table, value
from regkit.training.config import short

MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
WIDTH = 7.2  # inches, the text of a page in two columns
MOST_ENTRIES = 18  # of a legend
RC = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,  # letters stay letters, as publishers ask
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of the report.

    name: of its files.
    caption: what is seen, and what was left out.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True, eq=False)
class Scene:
    """What all pictures show: the rows, and which of them were chosen."""

    table: Table
    choices: Sequence[Choice]
    measure: str

    @property
    def penalties(self) -> list[str]:
        """List the penalties, in the order of the table."""
        return list(dict.fromkeys(row.penalty for row in self.table.rows))

    @property
    def others(self) -> list[tuple[str, ...]]:
        """List the ways in which rows differ beside penalty and strength."""
        return list(dict.fromkeys(self.table.settings(row) for row in self.table.rows))

    def colour(self, penalty: str) -> str:
        """Return the colour of a penalty."""
        coloured = [name for name in self.penalties if name != "none"]
        return QUIET if penalty == "none" else SERIES[coloured.index(penalty) % len(SERIES)]

    def other(self, row: Configuration) -> int:
        """Return which of the ways a row is."""
        return self.others.index(self.table.settings(row))

    def marker(self, row: Configuration) -> str:
        """Return the marker of a row."""
        return MARKERS[self.other(row)] if len(self.others) <= len(MARKERS) else MARKERS[0]

    def line(self, row: Configuration) -> str:
        """Return the line style of a row."""
        return LINES[self.other(row) % len(LINES)]

    def short_name(self, row: Configuration) -> str:
        """Name a row in few letters: by its strength and, where others have that, its number."""
        number = f"row {self.table.rows.index(row) + 1}" if len(self.others) > 1 else ""
        return " ".join(filter(None, [short(row.lam), number]))

    @property
    def series(self) -> dict[tuple[str, tuple[str, ...]], list[Configuration]]:
        """Group rows that differ in their strength alone."""
        found: dict[tuple[str, tuple[str, ...]], list[Configuration]] = {}
        for row in self.table.rows:
            found.setdefault((row.penalty, self.table.settings(row)), []).append(row)
        return found


def look() -> AbstractContextManager[None]:
    """Return the look to draw and to save under, whatever the user's own settings are."""
    settings: Any = {**matplotlib.rcParamsDefault, **RC}
    settings.pop("backend")
    return matplotlib.rc_context(settings)


def tint(colour: str, depth: float) -> str:
    """Return a shade of a colour: 0 pale, 0.6 itself, 1 nearly black."""
    red, green, blue = to_rgb(colour)
    if depth < 0.6:
        share = 0.35 + 0.65 * depth / 0.6
        return to_hex((1 - share * (1 - red), 1 - share * (1 - green), 1 - share * (1 - blue)))
    share = 1 - 0.65 * (depth - 0.6) / 0.4
    return to_hex((red * share, green * share, blue * share))


def dots(axes: Any, scene: Scene, rows: Iterable[Configuration], x: str, y: str) -> None:
    """Draw each run as a small dot, and each row as its mean with standard deviations."""
    for row in rows:
        colour, marker = scene.colour(row.penalty), scene.marker(row)
        pairs = [(value(run, x), value(run, y)) for run in row.runs]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(known) > 1:
            style = {"marker": marker, "markeredgewidth": 0, "linestyle": "", "alpha": 0.45}
            axes.plot(*zip(*known, strict=True), color=colour, markersize=2.8, **style)
        if (at := place(row, x, y)) is not None:
            axes.errorbar(
                *at,
                xerr=_deviation(row.spread(x)) if x != "lam" else None,
                yerr=_deviation(row.spread(y)),
                **{"color": colour, "marker": marker, "markersize": 5.5, "elinewidth": 0.8},
                ecolor=tint(colour, 0.35),
                **{"markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3},
            )


def ring(axes: Any, scene: Scene, rows: Sequence[Configuration], x: str, y: str) -> None:
    """Put a ring around what was chosen, where it is among these rows."""
    for choice in scene.choices:
        at = place(choice.chosen, x, y)
        if at is not None and choice.chosen in rows:
            style = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "zorder": 4}
            axes.plot(*at, color=INK, markeredgewidth=1.1, linestyle="", **style)


def place(row: Configuration, x: str, y: str) -> tuple[float, float] | None:
    """Return where a row lies; None where it lies nowhere."""
    across, up = row.mean(x), row.mean(y)
    if across is None or up is None or not (math.isfinite(across) and math.isfinite(up)):
        return None
    return across, up


def entries(scene: Scene, ringed: bool = True) -> list[Any]:
    """Return the entries of a legend: colours, markers, the ring."""

    def entry(label: str, **style: Any) -> Any:
        return Line2D([], [], linestyle="", label=label, markersize=5.5, **style)

    found = [entry(name, marker="o", color=scene.colour(name)) for name in scene.penalties]
    if len(scene.others) > len(MARKERS):
        found.append(entry(f"{len(scene.others)} settings, see the table", color=GREY))
    elif len(scene.others) > 1:
        found += [
            entry(" ".join(other), marker=marker, color=GREY)
            for other, marker in zip(scene.others, MARKERS, strict=False)
        ]
    if ringed and scene.choices:
        ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "color": INK}
        found.append(Line2D([], [], linestyle="", label="chosen", markersize=9, **ring))
    return found[:MOST_ENTRIES]


def legend(figure: Figure, scene: Scene, more: Sequence[Any] = ()) -> None:
    """Put the legend below the panels; more than two lines of it make the figure higher."""
    handles = [*entries(scene), *more]
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(110 / (longest + 6))))
    lines = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, lines - 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def spans_decades(shares: Sequence[float]) -> bool:
    """Say whether shares ask for a log axis; a zero among them has no place on one."""
    low, high = min(shares, default=1.0), max(shares, default=1.0)
    return low > 0 and high / low > 10


def plain(number: float, _: int) -> str:
    """Write a tick of a log axis as 0.01."""
    return f"{number:g}"


def _deviation(spread: Spread | None) -> float | None:
    return None if spread is None else spread.deviation
