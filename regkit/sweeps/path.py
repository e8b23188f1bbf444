"""A regularization path: one model along a grid of strengths, each point from the one before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import DictConfig, OmegaConf, open_dict

from regkit.errors import InputError
from regkit.palette import INK, SERIES
from regkit.selection.one_error import share_error, within_one_error
from regkit.sweeps.report.choose import ROUNDING
from regkit.sweeps.report.style import look
from regkit.sweeps.report.write import write_report
from regkit.sweeps.sweep_summary import conclude
from regkit.training.config import short
from regkit.training.fit import fit
from regkit.training.resolve_lam import grid
from regkit.training.runs import find_runs, group_norms

DIRECTIONS = ("increasing", "decreasing")
MOST_LINES = 400  # filters drawn; of more, evenly chosen ones
MOST_LAYERS = 8  # with a colour of their own in the legend


def follow(config: DictConfig, folder: Path) -> list[dict[str, Any]]:
    """Train along the grid, and return the summaries of its points.

    The first point is trained in full; each further one begins with the weights of the last, at
    `path.lr_scale` of the learning rate, for `path.epochs`. Each is a run of its own in
    `folder`/lam=..., and one that is done is not repeated.

    Increasing strengths, from dense to sparse, by default: what a strong penalty has taken from a
    deep net seldom comes back under a weaker one. On videos that need most of their weights the
    way down kept the accuracy of the strongest point (Lemhadri, Ruan, Abraham and Tibshirani,
    LassoNet, JMLR 2021, section 3, go up for that reason).

    Raises: InputError when an option is out of range.
    """
    _check(config)
    lams = sorted(grid(config), reverse=config.path.direction == "decreasing")
    summaries, before = [], None
    for lam in lams:
        place = folder / f"lam={short(lam)}"
        summaries.append(fit(_point(config, lam, before, place), place))
        before = place / "checkpoints" / "last.ckpt"
    _conclude(folder, lams, summaries)
    return summaries


def _conclude(folder: Path, lams: Sequence[float], points: Sequence[dict[str, Any]]) -> None:
    """Choose a point, and leave the grounds and the picture in the folder of the path."""
    debiased = points[0].get("debiased_val_accuracy") is not None
    key = "debiased_val_accuracy" if debiased else "val_accuracy"
    known = [point for point in points if point.get(key) is not None]
    total = sum(point["train_s"] + point.get("debias_s", 0.0) for point in points)
    lines = [
        f"{len(points)} points from lam={short(min(lams))} to {short(max(lams))} in {total:.0f} s."
    ]
    chosen = None
    if known:
        errors = [share_error(point[key], point["num_val"]) for point in known]
        sizes = [(point["density"], -point["lam"]) for point in known]
        found = within_one_error([-point[key] for point in known], errors, sizes, ROUNDING)
        best, error, chosen = known[found.best], errors[found.best], known[found.chosen]
        lines += [
            f"Best on the {best['num_val']} validation videos{' after debiasing' * debiased}: "
            f"lam={short(best['lam'])}, accuracy {best[key]:.3f} (standard error {error:.3f}).",
            f"Sparsest within one standard error: lam={short(chosen['lam'])}, accuracy "
            f"{chosen[key]:.3f}, density {chosen['density']:.3f}.",
        ]
    conclude(
        folder,
        title=f"Path along {len(points)} strengths, each from the one before",
        lines=lines,
        pictures=[_draw(folder, points, None if chosen is None else chosen["lam"])],
        chosen=None if chosen is None else chosen["name"],
        seconds=total,
    )
    print(f"report: {write_report([folder])}", flush=True)


def _check(config: DictConfig) -> None:
    path = config.path
    if path.direction not in DIRECTIONS:
        raise InputError(
            f"path.direction={path.direction} was given; it is {' or '.join(DIRECTIONS)}."
        )
    if path.epochs < 1:
        raise InputError(f"path.epochs={path.epochs} was given; it is 1 or more.")
    if not 0 < path.lr_scale <= 1:
        raise InputError(f"path.lr_scale={path.lr_scale} was given; it is above 0, at most 1.")
    if config.ckpt_path is not None:
        raise InputError("ckpt_path was given to a path; give resume=<its folder>.")


def _point(config: DictConfig, lam: float, before: Path | None, folder: Path) -> DictConfig:
    """Return the configuration of one point, and leave it in its folder as Hydra does."""
    point = config.copy()
    with open_dict(point):
        point.lam, point.path = lam, None
        point.name = f"{'+'.join(config.penalty)} lam={short(lam)}"
        if before is not None:
            point.warm_start = str(before)
            point.trainer.max_epochs = config.path.epochs
            point.optimizer.lr = config.path.lr_scale * config.optimizer.lr
    kept = folder / "config"
    kept.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(point, kept / "config.yaml", resolve=True)
    words = [w for w in HydraConfig.get().overrides.task if not w.startswith("lam=")]
    OmegaConf.save(OmegaConf.create([*words, f"lam={short(lam)}"]), kept / "overrides.yaml")
    return point


def _draw(folder: Path, points: Sequence[Mapping[str, Any]], chosen: float | None) -> str:
    points = sorted(points, key=lambda point: point["lam"])
    lams = np.array([point["lam"] for point in points])
    with look():
        figure = Figure(figsize=(7.2, 7.0), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
        _draw_lengths(top, lams, _lengths(folder, lams))
        _draw_accuracy(middle, lams, points)
        _draw_left(bottom, lams, points)
        for axes in (top, middle, bottom):
            axes.set_xscale("log")
            if chosen is not None:
                axes.axvline(chosen, color=INK, linewidth=0.9)
        if chosen is not None:
            top.set_title(f"line: lam={short(chosen)}, the sparsest within one standard error")
        bottom.set_xlabel("lam")
        figure.savefig(folder / "path.png", dpi=200)
    return "path.png"


def _lengths(
    folder: Path, lams: Float[np.ndarray, " lams"]
) -> dict[str, Float[np.ndarray, "lams rows"]]:
    """Return by layer the length of each filter at each strength."""
    by_lam = {run.summary["lam"]: group_norms(run) for run in find_runs([folder]) if run.summary}
    names = list(by_lam[lams[0]])
    return {name: np.stack([by_lam[lam][name] for lam in lams]) for name in names}


def _draw_lengths(
    axes: Axes, lams: np.ndarray, lengths: Mapping[str, Float[np.ndarray, "lams rows"]]
) -> None:
    every = -(-sum(rows.shape[1] for rows in lengths.values()) // MOST_LINES)
    handles = []
    for number, (name, rows) in enumerate(lengths.items()):
        colour = SERIES[number % len(SERIES)]
        # Relative to the mean of the layer at the smallest strength: layers differ in size.
        scaled = rows[:, ::every] / max(float(rows[0].mean()), 1e-12)
        axes.plot(lams, scaled, color=colour, linewidth=0.5, alpha=0.6)
        if number < MOST_LAYERS:
            short_name = name.removeprefix("net.").removesuffix(".weight")
            alive = int((rows[-1] > 0).sum())
            handles.append(
                Line2D([], [], color=colour, label=f"{short_name} ({alive} of {rows.shape[1]})")
            )
    axes.set_ylabel("length of each filter,\nrelative to its layer's mean at first")
    axes.set_ylim(bottom=0)
    axes.legend(handles=handles, title="layer (alive at the end)", fontsize=7, ncols=2)


def _draw_accuracy(axes: Axes, lams: np.ndarray, points: Sequence[Mapping[str, Any]]) -> None:
    kinds = {
        "val_accuracy": ("validation", SERIES[0], "--"),
        "debiased_val_accuracy": ("validation, debiased", SERIES[0], "-"),
        "test_accuracy": ("test", SERIES[1], "--"),
        "debiased_accuracy": ("test, debiased", SERIES[1], "-"),
    }
    for key, (label, colour, line) in kinds.items():
        values = [point[key] for point in points if point.get(key) is not None]
        if len(values) == len(lams):
            axes.plot(lams, values, line, color=colour, marker="o", markersize=3, label=label)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, ncols=2)


def _draw_left(axes: Axes, lams: np.ndarray, points: Sequence[Mapping[str, Any]]) -> None:
    density = [point["density"] for point in points]
    rows = [point["live_groups"] / max(point["num_groups"], 1) for point in points]
    axes.plot(lams, density, color=SERIES[2], marker="o", markersize=3, label="weights")
    axes.plot(lams, rows, color=SERIES[3], marker="s", markersize=3, label="filters and units")
    axes.set_ylabel("share that is not zero")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7)
