"""The picture of a stability: in how many folds each group survives, along the strengths."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regkit.errors import InputError
from regkit.lightning.monitors.canvas import SHADES
from regkit.palette import INK
from regkit.selection.stability import Stability

# Groups that a panel is as high as, at least and at most, for layers of 3 and of 2048 to be seen.
PANEL_ROWS = (10, 60)
HEIGHT_IN = (3.0, 11.0)  # of the figure; the page of a paper
LABEL_IN = 0.32  # of a layer's two lines, for which a figure of many layers grows longer
WIDTH_IN = 6.4


def draw(stability: Stability, chosen: float | int | None = None) -> Figure:
    """Draw the share of folds in which each group survives against the strength, layer by layer.

    A line of the picture is a group, those that survive longest on top.

    chosen: a strength that is marked, one of `stability.lams`.
    Raises: InputError when it is none of them.
    """
    if chosen is not None and chosen not in stability.lams:
        raise InputError(
            f"draw got chosen={chosen:g}; it is one of "
            f"{', '.join(f'{lam:g}' for lam in stability.lams)}."
        )
    shares = stability.shares()
    order = np.argsort(np.asarray(stability.lams))
    lams = [stability.lams[place] for place in order]
    heights = [int(np.clip(s.shape[1], *PANEL_ROWS)) for s in shares.values()]
    height = float(np.clip(0.045 * sum(heights) + 0.25 * len(heights) + 1.2, *HEIGHT_IN))
    height = max(height, LABEL_IN * len(heights) + 1.2)
    figure = Figure((WIDTH_IN, height), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shares), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    image = None
    for panel, (name, share) in zip(axes, shares.items(), strict=True):
        seen = share[order].T
        seen = seen[np.argsort(-seen.sum(1), kind="stable")]
        image = panel.imshow(
            seen, aspect="auto", vmin=0, vmax=1, cmap=SHADES, interpolation="nearest"
        )
        panel.set_yticks([])
        panel.set_ylabel(
            f"{name}\n{share.shape[1]} groups", rotation=0, ha="right", va="center", fontsize=8
        )
        if chosen is not None:
            panel.axvline(lams.index(chosen), color=INK, linewidth=1.5, linestyle="--")
    every = max(len(lams) // 10, 1)
    axes[-1].set_xticks(
        range(0, len(lams), every), [_short(lam) for lam in lams[::every]], rotation=45, ha="right"
    )
    axes[-1].set_xlabel("strength lam" + ("" if chosen is None else f" (dashed: {_short(chosen)})"))
    assert image is not None
    figure.colorbar(
        image,
        ax=list(axes),
        aspect=4 * height,
        label=f"share of {stability.num_folds} folds where it survives",
    )
    return figure


def _short(lam: float | int) -> str:
    """Write a strength as the names of runs do: 1e-4."""
    return f"{lam:g}" if lam >= 0.01 else f"{lam:.1e}".replace(".0e", "e").replace("e-0", "e-")
