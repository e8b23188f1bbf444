"""A search that is kept in a file: what was tried, what came of it, what to try next."""

import importlib.util
import json
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from regkit.errors import InputError
from regkit.sweeps.search_space import Number, Space

if TYPE_CHECKING:  # optuna is an extra, and takes half a second to import
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.log"  # in the folder of the sweep
SAMPLERS = ("tpe", "nsga2", "random")


def require_optuna() -> None:
    """Say what to install when it is not there.

    Raises: InputError.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError(
            "hydra/sweeper=optuna needs a package that is not installed: pip install optuna, or "
            "this one with its extra, regkit[sweep]."
        )


def open_study(
    folder: Path, space: Space, fixed: list[str], objectives: Mapping[str, str]
) -> "Study":
    """Begin a study in a folder, or go on with the one that is there.

    Raises: InputError when that one asks for something else.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import StudyDirection

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = JournalFileBackend(str(folder / JOURNAL))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="sweep",
        directions=[StudyDirection[way.upper()] for way in objectives.values()],
        load_if_exists=True,
    )
    asked = {
        "space": {key: asdict(dimension) for key, dimension in space.items()},
        "fixed": sorted(fixed),
        "objectives": dict(objectives),
    }
    asked = json.loads(json.dumps(asked))
    held = study.user_attrs.get("asked", asked)
    if held != asked:
        changed = [
            f"{key}: {held[key]} became {asked[key]}" for key in asked if held[key] != asked[key]
        ]
        raise InputError(
            f"{folder} holds a search that asks for something else; repeat its options, or give "
            f"another hydra.sweep.dir. {'; '.join(changed)}"
        )
    study.set_user_attr("asked", asked)
    return study


def distributions(space: Space) -> "dict[str, BaseDistribution]":
    """Return a space in optuna's terms."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, BaseDistribution] = {}
    for key, part in space.items():
        if not isinstance(part, Number):
            found[key] = CategoricalDistribution(part.words)
        elif part.whole:
            found[key] = IntDistribution(
                int(part.low), int(part.high), part.log, int(part.step or 1)
            )
        else:
            found[key] = FloatDistribution(part.low, part.high, part.log, part.step)
    return found


def make_sampler(name: str, seed: int, number: int, num_trials: int) -> "BaseSampler":
    """Make the sampler of one trial: the same, whether the search was stopped before or not.

    number: of the trial.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    own = random.Random(f"{seed} {number}").randrange(2**32)
    if name == "random":
        return RandomSampler(seed=own)
    if name == "nsga2":  # its usual 50 a generation would leave a short search no second one
        return NSGAIISampler(population_size=min(50, max(4, num_trials // 5)), seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=own, multivariate=True, constant_liar=True)


def drawn_trials(study: "Study", space: Space) -> "list[FrozenTrial]":
    """Return the trials in their order; not one whose values were still being drawn at a kill."""
    from optuna.trial import TrialState

    drawn = []
    for trial in study.trials:
        if trial.params.keys() == space.keys():
            drawn.append(trial)
        elif not trial.state.is_finished():
            study.tell(trial.number, state=TrialState.FAIL)
    return drawn


def tell(study: "Study", trial: "FrozenTrial", values: list[float] | None) -> None:
    """Tell the study what a trial reached; None when it failed."""
    from optuna.trial import TrialState

    study.tell(trial.number, values, TrialState.COMPLETE if values else TrialState.FAIL)
