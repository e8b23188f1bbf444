"""What a search found: the trials that no other beats, as lines and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regkit.palette import BLUE, GREY, ORANGE
from regkit.selection.pareto import front
from regkit.sweeps.sweep_summary import conclude

PICTURE = "front.png"
_UNITS = {"density": "density: share of weights that are not zero", "val_accuracy": "val accuracy"}


@dataclass(frozen=True)
class Trial:
    """One combination that was tried; without values when its job failed."""

    number: int
    name: str
    words: list[str]
    folder: Path
    values: tuple[float, ...] | None
    pruned: bool = False

    def failure(self) -> str:
        """Return the first line of what the job left."""
        path = self.folder / "failed.txt"
        if path.is_file():
            return path.read_text().partition("\n")[0]
        if (self.folder / "summary.json").is_file():
            return "its summary.json has no number for an objective"
        return "its process was lost (killed, or the memory was full)"


def conclude_search(folder: Path, trials: Sequence[Trial], objectives: Mapping[str, str]) -> None:
    """Leave and print the front. A pruned run is none of it: it was not trained to the end."""
    done = [trial for trial in trials if trial.values is not None and not trial.pruned]
    ways = list(objectives.values())
    best = [done[place] for place in front([trial.values or () for trial in done], ways)]
    failed = sum(trial.values is None for trial in trials)
    pruned = len(trials) - len(done) - failed
    told = f"{len(trials)} trials: {len(done)} trained to the end"
    told += f", {pruned} pruned" * bool(pruned) + f", {failed} failed" * bool(failed)
    lines = [f"{told}. Not beaten in {' and '.join(objectives)}:" if best else f"{told}."]
    for trial in best:
        numbers = (f"{k} {v:.4g}" for k, v in zip(objectives, trial.values or (), strict=True))
        lines.append("  ".join([*numbers, trial.name]))
    pictures = []
    if len(objectives) == 2 and best:
        _draw(folder / PICTURE, trials, best, objectives)
        pictures = [PICTURE]
    conclude(
        folder,
        title="Search: " + ", ".join(f"{key} {way}d" for key, way in objectives.items()),
        lines=lines,
        pictures=pictures,
        chosen=best[0].name if len(objectives) == 1 and best else None,
        front=[_told(trial, objectives) for trial in best],
        trials=len(trials),
        failed=failed,
        pruned=pruned,
    )


def _told(trial: Trial, objectives: Mapping[str, str]) -> dict[str, object]:
    values = dict(zip(objectives, trial.values or (), strict=True))
    return {"name": trial.name, "number": trial.number, "overrides": trial.words, **values}


def _draw(
    path: Path, trials: Sequence[Trial], best: Sequence[Trial], objectives: Mapping[str, str]
) -> None:
    """Draw the second objective along x and the first along y."""
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    kinds = {
        "pruned": ([t for t in trials if t.values and t.pruned], "x", ORANGE),
        "trial": ([t for t in trials if t.values and not t.pruned and t not in best], "o", GREY),
    }
    for label, (some, marker, colour) in kinds.items():
        if some:
            ys, xs = zip(*(t.values or () for t in some), strict=True)
            axes.scatter(xs, ys, 28, colour, marker=marker, label=label, linewidths=1.2)
    ys, xs = zip(*(t.values or () for t in best), strict=True)
    axes.plot(xs, ys, "o-", color=BLUE, lw=1.4, ms=6, label="not beaten", zorder=3)
    accuracy, other = objectives
    axes.set_xlabel(f"{_UNITS.get(other, other)} ({objectives[other]})")
    axes.set_ylabel(f"{_UNITS.get(accuracy, accuracy)} ({objectives[accuracy]})")
    if min(t.values[1] for t in trials if t.values) > 0 and _wide(trials):
        axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _wide(trials: Sequence[Trial]) -> bool:
    xs = [trial.values[1] for trial in trials if trial.values]
    return max(xs) > 20 * min(xs)
