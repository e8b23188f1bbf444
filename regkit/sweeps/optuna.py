"""OptunaSweeper: a search for Hydra that weighs accuracy against density."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra.plugins.sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import OmegaConf

from regkit.errors import InputError
from regkit.sweeps import search_study as studies
from regkit.sweeps.job import ending_in_one_line
from regkit.sweeps.launch import LockedTask, job_folder, launch
from regkit.sweeps.report.write import write_report
from regkit.sweeps.search_space import Choice, Space, split
from regkit.sweeps.search_trials import Trial, conclude_search
from regkit.training.config import run_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_WAYS = ("maximize", "minimize")


@dataclass(frozen=True)
class _Job:
    """What is run for a trial."""

    number: int
    words: list[str]
    folder: Path
    name: str


class OptunaSweeper(hydra.plugins.sweeper.Sweeper):
    """Try one combination of options after another, each chosen by what earlier ones reached.

    Options are searched as `regkit.sweeps.search_space` reads them. What was tried is kept in the
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
        self._jobs: dict[int, _Job] = {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: Callable[[Any], Any], config: Any
    ) -> None:
        """Take what Hydra gives, and make the launcher."""
        self.hydra_context = self._context = hydra_context
        self.config = config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=LockedTask(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search; a mistake in its options ends the program with one line."""
        with ending_in_one_line(self.config):
            self._check()
            self._search(arguments)

    def _check(self) -> None:
        studies.require_optuna()
        for name, count in (("num_trials", self.num_trials), ("num_jobs", self.num_jobs)):
            if count < 1:
                raise InputError(f"hydra.sweeper.{name}={count} was given; give 1 or more.")
        if self.sampler not in studies.SAMPLERS:
            raise InputError(
                f"hydra.sweeper.sampler={self.sampler} was given; "
                f"there are: {', '.join(studies.SAMPLERS)}."
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
        space, fixed = split(parser.parse_overrides(words))
        if any(word.startswith("name=") for word in fixed):
            raise InputError(
                "name=... was given in a search, whose runs are named by what they try."
            )
        self.validate_batch_is_legal(_corners(space, fixed))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = studies.open_study(folder, space, fixed, self.objectives)
        while running := self._ask(study, space):
            self._run(study, [(trial, self._job(i, trial, space, fixed)) for i, trial in running])
        self._conclude(folder, study, space, fixed)

    def _ask(self, study: "Study", space: Space) -> "list[tuple[int, FrozenTrial]]":
        """Return the trials to run now: those that were stopped, and new ones to fill up."""
        drawn = studies.distributions(space)
        known = studies.drawn_trials(study, space)
        running = [(i, trial) for i, trial in enumerate(known) if not trial.state.is_finished()]
        number = len(known)
        while number < self.num_trials and (not running or number % self.num_jobs):
            study.sampler = studies.make_sampler(self.sampler, self.seed, number, self.num_trials)
            asked = study.ask(drawn)
            running.append((number, study.trials[asked.number]))
            number += 1
        return running

    def _job(self, number: int, trial: "FrozenTrial", space: Space, fixed: list[str]) -> _Job:
        if number in self._jobs:
            return self._jobs[number]
        own = [f"{key}={part.word(trial.params[key])}" for key, part in space.items()]
        config = self._context.config_loader.load_sweep_config(self.config, [*fixed, *own])
        strength = OmegaConf.select(config, "strength") or {}
        config.name = run_name(config.penalty, config.lam, own, strength)
        words = [*fixed, *own, f"name='{config.name}'"]
        self._jobs[number] = _Job(number, words, job_folder(config, number), config.name)
        return self._jobs[number]

    def _run(self, study: "Study", trials: "Sequence[tuple[FrozenTrial, _Job]]") -> None:
        """Launch what is not done, once where two trials are the same, and tell the study."""
        fresh = {job.folder: job for _, job in reversed(trials) if not _summary(job.folder)}
        for stretch in _stretches(sorted(fresh.values(), key=lambda job: job.number)):
            launch(
                self._launcher,
                [job.words for job in stretch],
                stretch[0].number,
                [job.folder for job in stretch],
            )
        for trial, job in trials:
            values = self._values(_summary(job.folder))
            studies.tell(study, trial, values)

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
        for number, trial in enumerate(studies.drawn_trials(study, space)):
            job = self._job(number, trial, space, fixed)
            values = tuple(trial.values) if trial.values else None
            pruned = bool(_summary(job.folder).get("pruned"))
            trials.append(Trial(number, job.name, job.words, job.folder, values, pruned))
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


def _stretches(jobs: Sequence[_Job]) -> list[list[_Job]]:
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
