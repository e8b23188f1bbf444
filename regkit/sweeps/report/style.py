"""How the pictures look: one colour a penalty, one marker for what else differs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from regkit.palette import FAINT, GREY, INK, QUIET, SERIES
from regkit.sweeps.report.choose import Choice
from regkit.sweeps.report.table import Configuration, Table
from regkit.training.config import short

MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
WIDTH = 7.2  # inches, the text of a page in two columns
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
