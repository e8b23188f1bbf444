"""Sweeper: a grid of jobs for Hydra that goes on, puts up with failures, and ends in a report."""

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import hydra.plugins.sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from regkit.errors import InputError
from regkit.sweeps.cross_validation import FOLD, check_cv, cross_validate
from regkit.sweeps.ensembles.summary import conclude as conclude_bagging
from regkit.sweeps.job import ending_in_one_line, quieten
from regkit.sweeps.launch import job_folder, launch, register_launches
from regkit.sweeps.optuna import OptunaSweeper
from regkit.sweeps.report.write import write_report
from regkit.sweeps.sweep_summary import add
from regkit.training.config import PATH, run_name, short
from regkit.training.resolve_lam import grid
from regkit.training.runs import find_runs

Job = list[str]
# Hydra takes a plugin only under this name, and finds by itself what lies in a package of it.
_PACKAGE = "hydra_plugins.regkit"


class Sweeper(hydra.plugins.sweeper.Sweeper):
    """Run every combination of the swept options, as Hydra's basic sweeper does, and more.

    lam=path stands for a grid of strengths, found for each combination of penalty and model. A job
    that fails leaves the others alone. In the end a report is written; what cross-validation or
    bagging find, where the configuration asks for it, comes first in it.

    max_batch_size: jobs that are launched together; None: all.
    params: swept without being asked for.
    """

    def __init__(
        self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None
    ) -> None:
        self.max_batch_size = max_batch_size
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives, and make the launcher."""
        self._loader = hydra_context.config_loader
        self._config = config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run all jobs; a mistake in the input ends the program with one line."""
        quieten()
        with ending_in_one_line(self._config):
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> list[JobReturn]:
        jobs = self.jobs(arguments)
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")
        common = set.intersection(*map(set, jobs))
        results = self._launch(jobs, 0)
        try:
            if again := self._conclude(folder, jobs):
                refit = self._named(again, {*common, *again[0]}, "refit ")
                results += self._launch(refit, len(jobs))
                jobs += refit
                _tell_refit(folder)
            page = write_report([folder])
            print(f"\nreport: {page}\ncurves: tensorboard --logdir '{folder}'", flush=True)
        finally:  # the failures may be why there is nothing to conclude
            _tell_failures(jobs, results)
        return results

    def jobs(self, arguments: Sequence[str]) -> list[Job]:
        """Return the words of each job, its name last."""
        parser = OverridesParser.create(config_loader=self._loader)
        known = [f"{key}={value}" for key, value in self.params.items()] + self._folds()
        combinations = product(*choices(parser.parse_overrides([*known, *arguments])))
        jobs = [job for combination in combinations for job in self._on_grid(list(combination))]
        return self._named(jobs, set.intersection(*map(set, jobs)))

    def _folds(self) -> list[str]:
        """Return the sweep over folds that cross-validation asks for."""
        if self._config.cv is None:
            return []
        num_folds = self._config.data.get("cv_folds")
        check_cv(self._config.cv, num_folds)
        return [f"{FOLD}={','.join(str(fold + 1) for fold in range(num_folds))}"]

    def _conclude(self, folder: Path, jobs: Sequence[Job]) -> list[Job]:
        """Leave what the runs say together; return the jobs that follow from it."""
        if self._config.bagging:
            conclude_bagging(folder)
        folds = {word for job in jobs for word in job if word.startswith(f"{FOLD}=")}
        if self._config.cv is None or len(folds) < 2:  # one fold alone, once more
            return []
        words = cross_validate(folder, self._config.cv, self._config.data.cv_folds)
        return [[*words, f"{FOLD}=0"]] if self._config.cv.refit else []

    def _on_grid(self, combination: Job) -> list[Job]:
        """Put the strengths of the grid in the place of lam=path."""
        if f"lam={PATH}" not in combination:
            return [combination]
        config = self._loader.load_sweep_config(self._config, combination)
        lams = map(short, grid(config)) if config.penalty else ["0"]
        return [
            [f"lam={lam}" if word == f"lam={PATH}" else word for word in combination]
            for lam in lams
        ]

    def _named(self, jobs: Sequence[Job], common: set[str], prefix: str = "") -> list[Job]:
        """Name each job by what tells it from the others; its folder has that name.

        Composes each of them too, so that what cannot be composed is told before any has begun.
        """
        named: dict[str, Job] = {}
        for job in jobs:
            config = self._loader.load_sweep_config(self._config, job)
            telling = [word for word in job if word not in common]
            own = run_name(config.penalty, config.lam, telling, config.strength)
            if own in named and not config.penalty:  # a strength of nothing
                continue
            alike = sum(name.rpartition(" (")[0] == own or name == own for name in named)
            own += f" ({alike + 1})" * (alike > 0)
            given = any(word.startswith("name=") for word in job)
            named[own] = job if given else [*job, f"name='{prefix}{own}'"]
        return list(named.values())

    def _launch(self, jobs: Sequence[Job], first: int) -> list[JobReturn]:
        size = self.max_batch_size or len(jobs)
        results: list[JobReturn] = []
        for start in range(0, len(jobs), size):
            batch = list(jobs[start : start + size])
            composed = [self._loader.load_sweep_config(self._config, job) for job in batch]
            numbers = range(first + start, first + start + len(batch))
            folders = [job_folder(c, n) for c, n in zip(composed, numbers, strict=True)]
            results += launch(self._launcher, batch, first + start, folders)
        return results


def choices(overrides: Sequence[Override]) -> list[Job]:
    """Return the words that each option is given in turn; later ones replace earlier ones."""
    words: dict[str, Job] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            words[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            words[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise InputError(
                f"{override.input_line} names no list of values; give them, as in lam=1e-4,1e-3, "
                "or take hydra/sweeper=optuna."
            )
    return list(words.values())


def _tell_refit(folder: Path) -> None:
    """Add to the conclusion what the refit reaches."""
    for run in find_runs([folder]):
        if run.status == "done" and f"{FOLD}=0" in run.overrides:
            accuracy, density = run.summary["test_accuracy"], run.summary["density"]
            line = f"Fitted again on all videos but the test's: test accuracy {accuracy:.3f}, "
            add(folder, [f"{line}density {density:.3f} ({run.name})."], refit=run.summary)


def _tell_failures(jobs: Sequence[Job], results: Sequence[JobReturn]) -> None:
    """End the program with the list of jobs that failed, if there are any."""
    failed = [
        f"  {' '.join(job)}: {' '.join(str(result._return_value).split())}"
        for job, result in zip(jobs, results, strict=True)
        if result.status != JobStatus.COMPLETED
    ]
    if failed:
        head = f"regkit: {len(failed)} of {len(jobs)} jobs failed; the others are done."
        sys.exit("\n".join([head, *failed]))


def register_sweepers() -> None:
    """Let `_target_: hydra_plugins.regkit.<class>` name a sweeper of this room."""
    for sweeper in (Sweeper, OptunaSweeper):
        Plugins.instance().class_name_to_class[f"{_PACKAGE}.{sweeper.__name__}"] = sweeper
    register_launches()
