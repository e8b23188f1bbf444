"""What the pictures share: colours, names, and the way to a file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from regkit.files import replacing
from regkit.palette import INK, RED

DPI = 110
LONGEST_NAME = 34  # letters
# From pale yellow to dark violet, darker by the share in print too. White is left for zero.
SHADES = ListedColormap(colormaps["viridis_r"](np.linspace(0.03, 1, 256)))
# The root, so that 1 % and 4 % differ as much as 81 % and 100 % do.
SHARES = PowerNorm(0.5, vmin=0, vmax=1)


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches.

    The object interface, not pyplot: no window system, no state shared with the user's figures.
    """
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tint(shares: Float[np.ndarray, "*cells"], unknown: str = RED) -> Float[np.ndarray, "*cells 4"]:
    """Return the colour of each share: white where it is exactly 0, `unknown` where it is NaN."""
    colours = SHADES(SHARES(np.nan_to_num(shares)).filled(0.0))
    colours[shares == 0] = 1
    colours[np.isnan(shares)] = rgba(unknown)
    return colours


def rgba(colour: str) -> list[float]:
    """Return "#rrggbb" as four numbers."""
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] + [1.0]


def ink_on(share: float) -> str:
    """Return the colour of text that is read on the tint of a share."""
    return "white" if share > 0.2 else INK


def percent(share: float) -> str:
    """Write a share in few letters, and 0 % or 100 % only where it is exactly that."""
    if np.isnan(share):
        return "NaN"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if share >= 0.995:
        return ">99%"
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"


def add_shades(figure: Figure, axes: Any, label: str) -> None:
    """Put the scale of shares below the axes."""
    bar = figure.colorbar(
        ScalarMappable(SHARES, SHADES),
        ax=axes,
        location="bottom",
        shrink=0.4,
        aspect=30,
        ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1],
    )
    bar.ax.set_xticklabels(["0", "1%", "5%", "10%", "25%", "50%", "75%", "100%"], fontsize=8)
    bar.set_label(label, fontsize=8.5, color=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]: a Spine, which the stubs do not say


def short_names(names: Sequence[str]) -> list[str]:
    """Strip from parameter names what all begin with and a last ".weight"; bound their length."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(len(p) > same + 1 and p[: same + 1] == parts[0][: same + 1] for p in parts):
        same += 1
    same = 0 if len(parts) < 2 else same
    return [_bounded(".".join(p[same:]).removesuffix(".weight")) for p in parts]


def pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture of a figure."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():
        # A name in letters that matplotlib's font lacks is shown as boxes: no news every epoch.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_png(picture: UInt8[np.ndarray, "height width 3"], path: Path) -> None:
    """Put a picture where the old one is at once: whoever looks sees one or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        Image.fromarray(picture).save(draft)


def _bounded(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
