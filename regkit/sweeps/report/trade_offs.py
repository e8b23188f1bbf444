"""Pictures of what strength and sparsity cost: accuracy against size, and both against lam."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from regkit.palette import GREY, INK
from regkit.selection.pareto import front
from regkit.sweeps.report.style import MARKERS, WIDTH, Picture, Scene, tint
from regkit.sweeps.report.table import Configuration, value
from regkit.training.config import short

FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.0, "alpha": 0.75, "zorder": 2}
ACCURACIES = {"val_accuracy": "Validation", "test_accuracy": "Test"}
DENSITIES = {"density": "Weights", "live_share": "Groups (filters, units)"}
MOST_NAMED = 6  # strengths, up to which each has a tick of its own
MOST_ENTRIES = 18  # of a legend
PLAIN = StrMethodFormatter("{x:g}")  # 0.01 on a log axis


def trade_offs(scene: Scene) -> Iterator[Picture]:
    """Draw what there is to draw: accuracy against density and FLOPs, then both against lam."""
    repeats = scene.table.repeats
    dots = f"Small dots are runs, large ones means over {repeats} with standard deviations."
    panels = [y for y in ACCURACIES if any(_place(r, "density", y) for r in scene.table.rows)]
    label = "density (share of weights that are not zero)"
    if (figure := _against(scene, "density", label)) is not None:
        caption = f"{dots} {_on_the_front(panels)}"
        yield Picture("accuracy_density", "Accuracy against density", caption, figure)
    if (figure := _against(scene, "flops_share", "FLOPs that remain (share of all)")) is not None:
        title = "Accuracy against what is left to compute"
        how = "when channels that are zero are cut out."
        yield Picture(
            "accuracy_flops", title, f"As above, against what is left to compute {how}", figure
        )
    if (figure := _panels(scene, DENSITIES, "share that is not zero")) is not None:
        yield Picture("density_lam", "Density against strength", dots, figure)
    if (figure := _panels(scene, ACCURACIES, "accuracy")) is not None:
        yield Picture("accuracy_lam", "Accuracy against strength", dots, figure)


def _against(scene: Scene, x: str, label: str) -> Figure | None:
    rows = scene.table.rows
    panels = [y for y in ACCURACIES if any(_place(row, x, y) for row in rows)]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, y in zip(grid, panels, strict=True):
        axes.set_title(ACCURACIES[y], loc="left")
        axes.set_xlabel(label)
        axes.label_outer()
        _dots(axes, scene, rows, x, y)
        for group in scene.table.by_data.values():
            _steps(axes, group, x, y)
        _ring(axes, scene, rows, x, y)
        if _spans_decades([at[0] for row in rows if (at := _place(row, x, y))]):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(PLAIN)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
    grid[0].set_ylabel("accuracy")
    name = "Pareto front" + " (by validation)" * ("val_accuracy" in panels)
    _legend(figure, scene, [Line2D([], [], label=name, **FRONT)])
    return figure


def _on_the_front(panels: Sequence[str]) -> str:
    text = "The front joins the configurations than which none is both smaller and more accurate. "
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
    by = "val_accuracy" if any(_place(row, x, "val_accuracy") for row in rows) else y
    known = [(row, at) for row in rows if (at := _place(row, x, by))]
    picked = [known[i][0] for i in front([at for _, at in known], ("minimize", "maximize"))]
    points = [at for row in picked if (at := _place(row, x, y))]
    if points:
        # What a front reaches at a density is what its next sparser point reaches.
        axes.plot(*zip(*points, strict=True), drawstyle="steps-post" if by == y else None, **FRONT)


def _panels(scene: Scene, titles: dict[str, str], label: str) -> Figure | None:
    """Draw a panel for each number; each is one of lam = 0, narrow, and one of the others."""
    rows = scene.table.rows
    zero = [row for row in rows if row.lam == 0]
    positive = [row for row in rows if row.lam > 0]
    shown = {y: title for y, title in titles.items() if any(_place(r, "lam", y) for r in rows)}
    if not shown or not positive:
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    parts = figure.subfigures(1, len(shown), squeeze=False)[0]
    for part, (y, title) in zip(parts, shown.items(), strict=True):
        ratios = [1, 9] if zero else [1]
        every = part.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
        if zero:
            _without(every[0], scene, zero, y)
        _with(every[-1], scene, y, bool(zero))
        every[-1].set_title(title, loc="left")
        every[0].set_ylabel(label)
    _legend(figure, scene)
    return figure


def _without(axes: Any, scene: Scene, rows: Sequence[Configuration], y: str) -> None:
    _dots(axes, scene, rows, "lam", y)
    _ring(axes, scene, rows, "lam", y)
    axes.set_xlim(-1, 1)
    axes.set_xticks([0], ["0"])
    axes.grid(visible=False, axis="x")


def _with(axes: Any, scene: Scene, y: str, apart: bool) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("strength lam")
    _ticks(axes, sorted({row.lam for row in scene.table.rows if row.lam > 0}))
    for rows in scene.series.values():
        _dots(axes, scene, [row for row in rows if row.lam > 0], "lam", y)
        found = [at for row in rows if row.lam > 0 and (at := _place(row, "lam", y))]
        if len(found) > 1:
            style = {"color": scene.colour(rows[0].penalty), "linestyle": scene.line(rows[0])}
            axes.plot(*zip(*found, strict=True), linewidth=1.1, alpha=0.8, **style)
    positive = [row for row in scene.table.rows if row.lam > 0]
    _ring(axes, scene, positive, "lam", y)
    found = [at[1] for row in positive if (at := _place(row, "lam", y))]
    if y in DENSITIES and _spans_decades(found):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PLAIN)
    if apart:
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)


def _ticks(axes: Any, lams: Sequence[float]) -> None:
    """Name the strengths themselves where there is room, else powers of ten."""
    roomy = all(high / low >= 2 for low, high in pairwise(lams))
    if len(lams) <= MOST_NAMED and roomy:
        axes.set_xticks(lams, [short(lam) for lam in lams])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(lambda lam, _: short(lam))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _dots(axes: Any, scene: Scene, rows: Iterable[Configuration], x: str, y: str) -> None:
    """Draw each run as a small dot, and each row as its mean with standard deviations."""
    alike: dict[tuple[Any, Any], list[Configuration]] = {}
    for row in rows:
        alike.setdefault((scene.colour(row.penalty), scene.marker(row)), []).append(row)
    for (colour, marker), some in alike.items():
        pairs = [(value(run, x), value(run, y)) for r in some if len(r.runs) > 1 for run in r.runs]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if known:
            style = {"marker": marker, "markeredgewidth": 0, "linestyle": "", "alpha": 0.45}
            axes.plot(*zip(*known, strict=True), color=colour, markersize=2.8, **style)
        if placed := [(row, at) for row in some if (at := _place(row, x, y)) is not None]:
            axes.errorbar(
                *zip(*(at for _, at in placed), strict=True),
                xerr=_deviations(placed, x) if x != "lam" else None,
                yerr=_deviations(placed, y),
                **{"color": colour, "marker": marker, "markersize": 5.5, "elinewidth": 0.8},
                **{"ecolor": tint(colour, 0.35), "linestyle": ""},
                **{"markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3},
            )


def _deviations(placed: Sequence[tuple[Configuration, Any]], key: str) -> list[float]:
    found = (_deviation(row, key) for row, _ in placed)
    return [math.nan if deviation is None else deviation for deviation in found]


def _ring(axes: Any, scene: Scene, rows: Sequence[Configuration], x: str, y: str) -> None:
    """Put a ring around what was chosen, where it is among these rows."""
    for choice in scene.choices:
        at = _place(choice.chosen, x, y)
        if at is not None and choice.chosen in rows:
            style = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "zorder": 4}
            axes.plot(*at, color=INK, markeredgewidth=1.1, linestyle="", **style)


def _place(row: Configuration, x: str, y: str) -> tuple[float, float] | None:
    """Return where a row lies; None where it lies nowhere."""
    across, up = row.mean(x), row.mean(y)
    if across is None or up is None or not (math.isfinite(across) and math.isfinite(up)):
        return None
    return across, up


def _entries(scene: Scene) -> list[Any]:
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
    if scene.choices:
        ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "color": INK}
        found.append(Line2D([], [], linestyle="", label="chosen", markersize=9, **ring))
    return found[:MOST_ENTRIES]


def _legend(figure: Figure, scene: Scene, more: Sequence[Any] = ()) -> None:
    """Put the legend below the panels; more than two lines of it make the figure higher."""
    handles = [*_entries(scene), *more]
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(110 / (longest + 6))))
    lines = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, lines - 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _spans_decades(shares: Sequence[float]) -> bool:
    """Say whether shares ask for a log axis; a zero among them has no place on one."""
    low, high = min(shares, default=1.0), max(shares, default=1.0)
    return low > 0 and high / low > 10


def _deviation(row: Configuration, key: str) -> float | None:
    spread = row.spread(key)
    return spread and spread.deviation
