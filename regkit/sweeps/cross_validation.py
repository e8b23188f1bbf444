"""Cross-validation: what the folds of a sweep say about the candidates, and which one to take."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from regkit.errors import InputError
from regkit.lightning.monitors.canvas import SHADES
from regkit.palette import GREY, INK, QUIET, SERIES
from regkit.selection.choose import RULES, Choice, choose
from regkit.selection.stability import Stability
from regkit.sweeps.report.style import look
from regkit.sweeps.sweep_summary import conclude
from regkit.training.config import short
from regkit.training.runs import Run, find_runs, group_norms

MEASURES = {"loss": "val_loss", "accuracy": "val_accuracy"}
FOLD = "data.cv_fold"
_ASIDE = (FOLD, "name", "seed")
# Groups that a panel is as high as, at least and at most, for layers of 3 and of 2048 to be seen.
PANEL_ROWS = (10, 60)
HEIGHT_IN = (3.0, 11.0)  # of the figure; the page of a paper
LABEL_IN = 0.32  # of a layer's two lines, for which a figure of many layers grows longer
WIDTH_IN = 6.4


@dataclass(frozen=True, eq=False)
class Folds:
    """The runs of a cross-validation, by candidate (words but fold, seed and name) and fold."""

    candidates: Sequence[tuple[str, ...]]
    runs: Mapping[tuple[tuple[str, ...], int], Sequence[Run]]
    num_folds: int

    def table(self, key: str) -> Float[np.ndarray, "folds candidates"]:
        """Return means over seeds of a number of the summaries; NaN where no run has it."""
        filled = np.full((self.num_folds, len(self.candidates)), np.nan)
        for column, candidate in enumerate(self.candidates):
            for fold in range(self.num_folds):
                runs = self.runs.get((candidate, fold + 1), ())
                values = [run.summary[key] for run in runs if run.summary.get(key) is not None]
                if values:
                    filled[fold, column] = np.mean(values)
        return filled

    def one(self, candidate: tuple[str, ...]) -> Run:
        """Return any run of a candidate."""
        return next(runs[0] for (own, _), runs in self.runs.items() if own == candidate)

    @property
    def lams(self) -> list[float]:
        """Return the strength of each candidate."""
        return [self.one(words).summary["lam"] for words in self.candidates]

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """List what candidates are beside their strengths."""
        return list(dict.fromkeys(map(_other, self.candidates)))


def gather(folder: Path, num_folds: int) -> Folds:
    """Read the runs of a sweep over folds.

    Raises: InputError when none is done.
    """
    runs: dict[tuple[tuple[str, ...], int], list[Run]] = {}
    for run in find_runs([folder]):
        fold = next((w.partition("=")[2] for w in run.overrides if w.startswith(f"{FOLD}=")), "0")
        if run.status == "done" and int(fold) > 0:
            words = tuple(w for w in run.overrides if w.partition("=")[0] not in _ASIDE)
            runs.setdefault((words, int(fold)), []).append(run)
    candidates = list(dict.fromkeys(words for words, _ in runs))
    if not candidates:
        raise InputError(f"{folder} holds no fold that is done; nothing can be chosen.")
    found = Folds(candidates, runs, num_folds)
    # By strength, so that curves can be drawn and folds of one grid follow each other.
    candidates.sort(key=lambda words: (_other(words), found.one(words).summary["lam"]))
    return found


def cross_validate(folder: Path, options: Any, num_folds: int) -> list[str]:
    """Choose among the candidates of a sweep, leave the grounds in its folder, and say them.

    Returns the words of the chosen candidate.
    Raises: InputError when an option is unknown or too few folds are done.
    """
    folds = gather(folder, num_folds)
    key = MEASURES[options.measure]
    errors = folds.table(key)
    errors = 1 - errors if options.measure == "accuracy" else errors
    densities = [float(d) for d in np.nanmean(folds.table("density"), axis=0)]
    choice = choose(
        errors,
        folds.lams,
        densities=densities if len(folds.settings) > 1 else None,
        weights=_weights(folds),
        rule=options.rule,
    )
    chosen = folds.candidates[choice.chosen]
    pictures = [_draw(folder, folds, errors, choice, options.measure)]
    pictures += _draw_stability(folder, folds, folds.lams[choice.chosen])
    conclude(
        folder,
        title=f"Cross-validation over {num_folds} folds of groups, by {options.measure}",
        lines=[f"{_label(folds.one(chosen))} is chosen.", *choice.why],
        pictures=pictures,
        chosen=_label(folds.one(chosen)),
        candidates=[_label(folds.one(words)) for words in folds.candidates],
        means=choice.means,
        standard_errors=choice.errors,
        densities=densities,
    )
    return list(chosen)


def check_cv(options: Any, num_folds: int | None) -> None:
    """Refuse options that are unknown.

    Raises: InputError.
    """
    if options.measure not in MEASURES:
        raise InputError(f"cv.measure={options.measure} was given; it is one of {[*MEASURES]}.")
    if options.rule not in RULES:
        raise InputError(f"cv.rule={options.rule} was given; it is one of {list(RULES)}.")
    if num_folds is None or num_folds < 2:
        raise InputError(f"data.cv_folds={num_folds} was given; give 2 or more.")


def _weights(folds: Folds) -> list[float]:
    """Return how many videos each fold is judged on; those that are not done count nothing."""
    table = folds.table("num_val")
    known = np.where(np.isnan(table).all(1, keepdims=True), 1.0, table)
    return np.nanmean(known, axis=1).tolist()


def _other(words: Sequence[str]) -> tuple[str, ...]:
    """Return what a candidate is beside its strength."""
    return tuple(word for word in words if not word.startswith("lam="))


def _label(run: Run) -> str:
    return re.sub(r" (cv_fold|seed)=\S+", "", run.name)


def _draw(
    folder: Path,
    folds: Folds,
    errors: Float[np.ndarray, "folds candidates"],
    choice: Choice,
    measure: str,
) -> str:
    """Draw errors and densities against the strength, a line for each setting beside it."""
    lams, densities = np.array(folds.lams), folds.table("density")
    several = len(folds.settings) > 1
    with look():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, setting in enumerate(folds.settings):
            of = [i for i, words in enumerate(folds.candidates) if _other(words) == setting]
            colour = SERIES[number % len(SERIES)]
            label = re.sub(r" lam=\S+", "", _label(folds.one(folds.candidates[of[0]])))
            judged = [i for i in of if choice.means[i] is not None]
            means = [choice.means[i] for i in judged]
            spread = [choice.errors[i] or 0.0 for i in judged]
            left.plot(lams[of], errors[:, of].T, color=colour, alpha=0.25, linewidth=0.7)
            style = {"color": colour, "marker": "o", "capsize": 2, "label": label}
            left.errorbar(lams[judged], means, spread, **style)
            right.plot(lams[of], densities[:, of].T, color=colour, alpha=0.25, linewidth=0.7)
            right.plot(lams[of], np.nanmean(densities[:, of], axis=0), color=colour, marker="o")
        left.axhline(choice.limit, color=QUIET, linestyle=":", linewidth=0.9)
        for axes in (left, right):
            if (lams > 0).all():
                axes.set_xscale("log")
            axes.set_xlabel("lam")
            axes.axvline(lams[choice.best], color=GREY, linestyle="--", linewidth=0.8)
            axes.axvline(lams[choice.chosen], color=INK, linewidth=0.9)
        name = "loss" if measure == "loss" else "share of videos mistaken"
        left.set_ylabel(f"validation {name}, mean over folds")
        right.set_ylabel("density")
        right.set_ylim(0, 1.02)
        left.set_title("solid: chosen; dashed: best; dotted: one standard error above", fontsize=8)
        if several:
            left.legend()
        figure.savefig(folder / "cv.png", dpi=200)
    return "cv.png"


def _draw_stability(folder: Path, folds: Folds, lam: float) -> list[str]:
    """Draw in how many folds each filter survives, where one grid of strengths was run in full."""
    places = [[(c, fold + 1) for c in folds.candidates] for fold in range(folds.num_folds)]
    complete = all(place in folds.runs for row in places for place in row)
    if len(folds.settings) > 1 or len(folds.candidates) < 2 or not complete:
        return []
    norms = [[group_norms(folds.runs[place][0]) for place in row] for row in places]
    if not all(norms[0][0].keys() == one.keys() and one for row in norms for one in row):
        return []
    alive = {
        name: np.array([[one[name] > 0 for one in row] for row in norms]) for name in norms[0][0]
    }
    draw(Stability(folds.lams, alive), chosen=lam).savefig(folder / "stability.png", dpi=200)
    return ["stability.png"]


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
    axes = figure.subplots(len(shares), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, share) in zip(axes, shares.items(), strict=True):
        seen = share[order].T
        seen = seen[np.argsort(-seen.sum(1), kind="stable")]
        panel.imshow(seen, aspect="auto", vmin=0, vmax=1, cmap=SHADES, interpolation="nearest")
        panel.set_yticks([])
        label = f"{name}\n{share.shape[1]} groups"
        panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        if chosen is not None:
            panel.axvline(lams.index(chosen), color=INK, linewidth=1.5, linestyle="--")
    every = max(len(lams) // 10, 1)
    shown = [short(lam) for lam in lams[::every]]
    axes[-1].set_xticks(range(0, len(lams), every), shown, rotation=45, ha="right")
    axes[-1].set_xlabel("strength lam" + ("" if chosen is None else f" (dashed: {short(chosen)})"))
    label = f"share of {stability.num_folds} folds where it survives"
    figure.colorbar(axes[-1].images[0], ax=list(axes), aspect=4 * height, label=label)
    return figure
