"""What a search varies, in Hydra's words, and the study that is kept of it in a file."""

import importlib.util
import json
import math
import random
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from regkit.errors import InputError

_DECADES = 2  # that the ends of an interval of positive numbers lie apart to be searched by its log
_DIGITS = 4  # that are told of a drawn number: names and commands stay short
if TYPE_CHECKING:  # optuna is an extra, and takes half a second to import
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.log"  # in the folder of the sweep
SAMPLERS = ("tpe", "nsga2", "random")


@dataclass(frozen=True)
class Number:
    """A number between two ends, both among it. Whole, by steps, or by its logarithm."""

    low: float | int
    high: float | int
    step: float | int | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Say whether it is an integer."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def word(self, value: float | int) -> str:
        """Write a drawn value, as precisely as the interval is wide."""
        if self.whole or self.step is not None:
            return str(value)
        largest = max(abs(self.low), abs(self.high))
        narrow = math.ceil(math.log10(largest / (self.high - self.low)))
        digits = _DIGITS if self.log else _DIGITS + max(0, narrow)
        return repr(min(max(float(f"{value:.{digits}g}"), self.low), self.high))


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    words: tuple[str, ...]

    def word(self, value: str) -> str:
        """Write a drawn value."""
        return value


Space = Mapping[str, Number | Choice]


def split(overrides: Iterable[Override]) -> tuple[dict[str, Number | Choice], list[str]]:
    """Divide overrides into what is searched, by key, and words that all jobs share.

    Raises: InputError when nothing is searched, or an interval is empty.
    """
    space: dict[str, Number | Choice] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = _dimension(override)
        elif override.is_delete():
            fixed[key] = str(override.input_line)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not space:
        raise InputError(
            "A search was asked for, and nothing to search; give lam='interval(1e-5,1e-2)' or "
            "penalty=l1,group_lasso."
        )
    return space, list(fixed.values())


def _dimension(override: Override) -> Number | Choice:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _interval(str(override.input_line), sweep)
    if isinstance(sweep, RangeSweep) and len(values := sorted(sweep.range())) > 1:
        return Number(values[0], values[-1], step=abs(sweep.step))
    return Choice(tuple(override.sweep_string_iterator()))


def _interval(line: str, sweep: IntervalSweep) -> Number:
    low: Any = sweep.start
    high: Any = sweep.end
    if not low < high:
        raise InputError(f"{line} is empty; give interval(low,high) with low < high.")
    if not sweep.tags <= {"log", "linear"}:
        raise InputError(f"{line} has the tags {sorted(sweep.tags)}; give log, linear or none.")
    if "log" in sweep.tags and low <= 0:
        raise InputError(f"{line} has no logarithm at its lower end; give a number > 0.")
    far = low > 0 and high >= low * 10**_DECADES and "linear" not in sweep.tags
    return Number(low, high, log="log" in sweep.tags or far)


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
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(part: Number | Choice) -> "BaseDistribution":
        if isinstance(part, Choice):
            return CategoricalDistribution(part.words)
        if part.whole:
            return IntDistribution(int(part.low), int(part.high), part.log, int(part.step or 1))
        return FloatDistribution(part.low, part.high, part.log, part.step)

    return {key: distribution(part) for key, part in space.items()}


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
