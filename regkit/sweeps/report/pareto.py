"""Pictures of accuracy against size: what a sparser net costs."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from regkit.palette import INK
from regkit.selection.pareto import front
from regkit.sweeps.report.style import (
    WIDTH,
    Picture,
    Scene,
    dots,
    legend,
    place,
    plain,
    ring,
    spans_decades,
)
from regkit.sweeps.report.table import Configuration

FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.0, "alpha": 0.75, "zorder": 2}
PANELS = {"val_accuracy": "Validation", "test_accuracy": "Test"}
SIZES = {
    "density": "density (share of weights that are not zero)",
    "flops_share": "FLOPs that remain (share of all)",
}


def against_density(scene: Scene) -> Picture | None:
    """Draw accuracy against density."""
    return _against(
        scene,
        "density",
        "accuracy_density",
        "Accuracy against density",
    )


def against_flops(scene: Scene) -> Picture | None:
    """Draw accuracy against what is left to compute without dead channels."""
    return _against(
        scene,
        "flops_share",
        "accuracy_flops",
        "Accuracy against what is left to compute",
    )


def _against(scene: Scene, x: str, name: str, title: str) -> Picture | None:
    rows = scene.table.rows
    panels = [y for y in PANELS if any(place(row, x, y) is not None for row in rows)]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    for axes, y in zip(
        figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0],
        panels,
        strict=True,
    ):
        axes.set_title(PANELS[y], loc="left")
        axes.set_xlabel(SIZES[x])
        axes.label_outer()
        dots(axes, scene, rows, x, y)
        for group in scene.table.by_data.values():
            _steps(axes, group, x, y)
        ring(axes, scene, rows, x, y)
        if spans_decades([at[0] for row in rows if (at := place(row, x, y)) is not None]):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(plain)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        if y == panels[0]:
            axes.set_ylabel("accuracy")
    by_validation = "val_accuracy" in panels
    label = "Pareto front" + " (by validation)" * by_validation
    legend(figure, scene, [Line2D([], [], label=label, **FRONT)])
    return Picture(name, title, _caption(panels, x, scene.table.repeats), figure)


def _caption(panels: Sequence[str], x: str, repeats: str) -> str:
    if x != "density":
        return "As above, against what is left to compute when channels that are zero are cut out."
    text = (
        f"Small dots are runs, large ones means over {repeats} with standard deviations. The front "
        "joins the configurations than which none is both smaller and more accurate. "
    )
    if "val_accuracy" not in panels:
        return text + "Nothing was validated: the front is that of the test, and flatters."
    if "test_accuracy" not in panels:
        return text
    return text + (
        "On the right the same configurations are joined: those that validation picks, not those "
        "that happen to do best in the test, which would flatter them."
    )


def _steps(axes: Any, rows: Sequence[Configuration], x: str, y: str) -> None:
    """Join the front, that of validation wherever there is one."""
    by = "val_accuracy" if any(place(row, x, "val_accuracy") for row in rows) else y
    known = [(row, at) for row in rows if (at := place(row, x, by)) is not None]
    picked = [known[i][0] for i in front([at for _, at in known], ("minimize", "maximize"))]
    points = [at for row in picked if (at := place(row, x, y)) is not None]
    if points:
        # What a front reaches at a density is what its next sparser point reaches.
        axes.plot(*zip(*points, strict=True), drawstyle="steps-post" if by == y else None, **FRONT)
