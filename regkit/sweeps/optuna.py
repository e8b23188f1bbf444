"""OptunaSweeper: a search for Hydra that weighs accuracy against density."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra.plugins.sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from regkit.errors import InputError
from regkit.palette import BLUE, GREY, ORANGE
from regkit.selection.pareto import front
from regkit.sweeps import search
from regkit.sweeps.job import ending_in_one_line
from regkit.sweeps.launch import job_folder, launch
from regkit.sweeps.report.write import write_report
from regkit.sweeps.search import Choice, Space
from regkit.sweeps.sweep_summary import conclude
from regkit.training.config import run_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_WAYS = ("maximize", "minimize")
PICTURE = "front.png"
_UNITS = {"density": "density: share of weights that are not zero", "val_accuracy": "val accuracy"}


@dataclass(frozen=True)
class Trial:
    """One combination to try; without values before, and when its job failed."""

    number: int
    name: str
    words: list[str]
    folder: Path
    values: tuple[float, ...] | None = None
    pruned: bool = False

    def failure(self) -> str:
        """Return the first line of what the job left."""
        path = self.folder / "failed.txt"
        if path.is_file():
            return path.read_text().partition("\n")[0]
        if (self.folder / "summary.json").is_file():
            return "its summary.json has no number for an objective"
        return "its process was lost (killed, or the memory was full)"


class OptunaSweeper(hydra.plugins.sweeper.Sweeper):
    """Try one combination of options after another, each chosen by what earlier ones reached.

    Options are searched as `regkit.sweeps.search` reads them. What was tried is kept in the
    folder of the sweep: one that was stopped goes on there, first with the trials that were
    running. A job that fails counts as a trial. In the end the runs that no other beats in every
    objective are told, and a report is written.

    num_trials: all in all, those before a restart among them.
    num_jobs: trials that are chosen and launched together; -1: one a core.
    objectives: keys of a run's summary.json, each to maximize or to minimize.
    sampler: tpe, nsga2 or random.
    params: searched or set without being asked for.
    """

    config: Any

    def __init__(
        self,
        num_trials: int = 30,
        num_jobs: int = 1,
        objectives: Mapping[str, str] | None = None,
        sampler: str = "tpe",
        seed: int = 0,
        params: Mapping[str, str] | None = None,
    ) -> None:
        self.num_trials = num_trials
        self.num_jobs = num_jobs if num_jobs != -1 else os.cpu_count() or 1
        self.objectives = dict(objectives or {"val_accuracy": "maximize", "density": "minimize"})
        self.sampler = sampler
        self.seed = seed
        self.params = dict(params or {})
        self._jobs: dict[int, Trial] = {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: Callable[[Any], Any], config: Any
    ) -> None:
        """Take what Hydra gives, and make the launcher."""
        self.hydra_context = self._context = hydra_context
        self.config = config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search; a mistake in its options ends the program with one line."""
        with ending_in_one_line(self.config):
            self._check()
            self._search(arguments)

    def _check(self) -> None:
        search.require_optuna()
        for name, count in (("num_trials", self.num_trials), ("num_jobs", self.num_jobs)):
            if count < 1:
                raise InputError(f"hydra.sweeper.{name}={count} was given; give 1 or more.")
        if self.sampler not in search.SAMPLERS:
            raise InputError(
                f"hydra.sweeper.sampler={self.sampler} was given; "
                f"there are: {', '.join(search.SAMPLERS)}."
            )
        for key, way in self.objectives.items():
            if way not in _WAYS:
                raise InputError(
                    f"hydra.sweeper.objectives.{key}={way}; give {' or '.join(_WAYS)}."
                )
            if key.startswith("test"):
                raise InputError(
                    f"hydra.sweeper.objectives has {key}; what the test videos say must not choose "
                    "the run that they judge. Give val_accuracy, val_loss, density, ..."
                )

    def _search(self, arguments: Sequence[str]) -> None:
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        space, fixed = search.split(parser.parse_overrides(words))
        if any(word.startswith("name=") for word in fixed):
            raise InputError(
                "name=... was given in a search, whose runs are named by what they try."
            )
        self.validate_batch_is_legal(_corners(space, fixed))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = search.open_study(folder, space, fixed, self.objectives)
        while running := self._ask(study, space):
            self._run(study, [(trial, self._job(i, trial, space, fixed)) for i, trial in running])
        self._conclude(folder, study, space, fixed)

    def _ask(self, study: "Study", space: Space) -> "list[tuple[int, FrozenTrial]]":
        """Return the trials to run now: those that were stopped, and new ones to fill up."""
        drawn = search.distributions(space)
        known = search.drawn_trials(study, space)
        running = [(i, trial) for i, trial in enumerate(known) if not trial.state.is_finished()]
        number = len(known)
        while number < self.num_trials and (not running or number % self.num_jobs):
            study.sampler = search.make_sampler(self.sampler, self.seed, number, self.num_trials)
            asked = study.ask(drawn)
            running.append((number, study.trials[asked.number]))
            number += 1
        return running

    def _job(self, number: int, trial: "FrozenTrial", space: Space, fixed: list[str]) -> Trial:
        if number in self._jobs:
            return self._jobs[number]
        own = [f"{key}={part.word(trial.params[key])}" for key, part in space.items()]
        config = self._context.config_loader.load_sweep_config(self.config, [*fixed, *own])
        strength = OmegaConf.select(config, "strength") or {}
        config.name = run_name(config.penalty, config.lam, own, strength)
        words = [*fixed, *own, f"name='{config.name}'"]
        self._jobs[number] = Trial(number, config.name, words, job_folder(config, number))
        return self._jobs[number]

    def _run(self, study: "Study", trials: "Sequence[tuple[FrozenTrial, Trial]]") -> None:
        """Launch what is not done, once where two trials are the same, and tell the study."""
        fresh = {job.folder: job for _, job in reversed(trials) if not _summary(job.folder)}
        for stretch in _stretches(sorted(fresh.values(), key=lambda job: job.number)):
            words, folders = [job.words for job in stretch], [job.folder for job in stretch]
            launch(self._launcher, words, stretch[0].number, folders)
        for trial, job in trials:
            search.tell(study, trial, self._values(_summary(job.folder)))

    def _values(self, summary: Mapping[str, Any]) -> list[float] | None:
        """Return what a run reached; None when it did not come so far, or reached no number."""
        if missing := [key for key in self.objectives if summary and key not in summary]:
            raise InputError(
                f"hydra.sweeper.objectives has {missing[0]}, which a summary.json has not; "
                f"there are: {', '.join(summary)}."
            )
        values = [summary.get(key) for key in self.objectives]
        numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        return numbers if len(numbers) == len(values) else None

    def _conclude(self, folder: Path, study: "Study", space: Space, fixed: list[str]) -> None:
        trials = []
        for number, trial in enumerate(search.drawn_trials(study, space)):
            job = self._job(number, trial, space, fixed)
            values = tuple(trial.values) if trial.values else None
            pruned = bool(_summary(job.folder).get("pruned"))
            trials.append(replace(job, values=values, pruned=pruned))
        conclude_search(folder, trials, self.objectives)
        print(f"\nreport: {write_report([folder])}\ncurves: tensorboard --logdir '{folder}'")
        if failed := [trial for trial in trials if trial.values is None]:
            lines = [f"  {trial.name}: {trial.failure()}" for trial in failed]
            head = f"regkit: {len(failed)} of {len(trials)} trials failed; the others are done."
            sys.exit("\n".join([head, *lines]))


def _corners(space: Space, fixed: list[str]) -> list[list[str]]:
    """Return jobs in which each word of each choice comes up, to see whether Hydra takes them."""
    words = {
        key: part.words if isinstance(part, Choice) else (part.word(part.low),)
        for key, part in space.items()
    }
    return [
        [*fixed, *(f"{key}={ws[min(i, len(ws) - 1)]}" for key, ws in words.items())]
        for i in range(max(map(len, words.values())))
    ]


def _stretches(jobs: Sequence[Trial]) -> list[list[Trial]]:
    """Divide jobs where their numbers leave a gap: a launcher numbers what it launches itself."""
    stretches = [[job] for job in jobs[:1]]
    for before, job in pairwise(jobs):
        if job.number == before.number + 1:
            stretches[-1].append(job)
        else:
            stretches.append([job])
    return stretches


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


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
    axes = figure.add_subplot()
    done = [trial for trial in trials if trial.values]
    kinds = {
        "pruned": ([t for t in done if t.pruned], "x", ORANGE),
        "trial": ([t for t in done if not t.pruned and t not in best], "o", GREY),
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
    others = [trial.values[1] for trial in trials if trial.values]
    if min(others) > 0 and max(others) > 20 * min(others):
        axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
