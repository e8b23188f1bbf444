"""What watches a run: checkpoints, curves, pictures, and when it is stopped."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import DictConfig

from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.divergence import DivergenceMonitor
from regkit.lightning.monitors.pictures import Pictures
from regkit.lightning.predictions import Predictions
from regkit.lightning.stop_dominated import StopDominated
from regkit.pruning.density import density
from regkit.selection.one_error import share_error
from regkit.training.config import make

Kind = TypeVar("Kind", bound=pl.Callback)

# A loss of accuracy that is this many standard errors is no noise.
ERRORS = 2.0
# Right guesses of which there have to be so many, for one to know.
FEW = 5
# A net that is denser by less than this counts as the same.
DENSER = 0.05


def callbacks(
    config: DictConfig, folder: Path, regularize: RegularizerCallback, validated: bool
) -> list[pl.Callback]:
    """Make what the configuration asks for.

    validated: whether there are videos for it.
    Raises: InputError when one of `callbacks` is none of Lightning's.
    """
    made: list[pl.Callback] = [
        LearningRateMonitor("step"),
        Predictions(folder),
        Pictures(folder, config.pictures_every_n_epochs),
        DivergenceMonitor(
            lambda: _density(regularize), config.on_divergence, config.save_every_n_steps
        ),
    ]
    if validated:
        made.append(CostOfZeros(lambda: _density(regularize)))
    if config.stop_dominated is not None:
        made.append(StopDominated(folder, lambda: _density(regularize)))
    return made + [_own(str(name), options) for name, options in config.callbacks.items()]


def cost_of_zeros(trainer: pl.Trainer, num_videos: int) -> dict[str, Any]:
    """Return what zeros have cost in validation accuracy and its noise, where that was seen."""
    watch = _of(trainer, CostOfZeros)
    found = None if watch is None else watch.cost(num_videos)
    if found is None:
        return {}
    known = {"zeros_cost": found.accuracy, "zeros_cost_noise": found.noise}
    return known | {"zeros_cost_is_noise": found.is_noise}


def was_pruned(trainer: pl.Trainer) -> bool:
    """Say whether the run was stopped because others left it behind."""
    watch = _of(trainer, StopDominated)
    return watch is not None and watch.pruned


def _of(trainer: pl.Trainer, kind: type[Kind]) -> Kind | None:
    every: list[Any] = getattr(trainer, "callbacks")  # noqa: B009  # unseen by type checkers
    return next((one for one in every if isinstance(one, kind)), None)


def _own(name: str, options: DictConfig) -> pl.Callback:
    made = make(options)
    if not isinstance(made, pl.Callback):
        raise InputError(
            f"callbacks.{name} makes a {type(made).__name__}; a callback inherits from "
            "lightning.pytorch.Callback."
        )
    return made


def _density(regularize: RegularizerCallback) -> float:
    assert regularize.regularizer is not None
    return density(regularize.regularizer.counted_parameters()).total


class Cost(NamedTuple):
    """What was lost in accuracy, and the standard error of that difference."""

    accuracy: float
    noise: float

    @property
    def is_noise(self) -> bool:
        """Say whether it may be none."""
        return self.accuracy <= ERRORS * self.noise


def cost_of(before: float, after: float, num_videos: int) -> Cost:
    """Compare two shares of right answers, as if of unlike videos."""
    errors = (share_error(share, max(num_videos, 1)) for share in (before, after))
    return Cost(before - after, math.hypot(*errors))


class CostOfZeros(pl.Callback):
    """Keep density and accuracy of every validation, and say at the end what zeros have cost.

    density: measures it now, in [0, 1]; a collective.
    """

    def __init__(self, density: Callable[[], float]) -> None:
        self._density = density
        self._seen: list[tuple[float, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was seen."""
        self._seen = [(density, accuracy) for density, accuracy in state_dict["seen"]]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep one validation."""
        accuracy = trainer.callback_metrics.get("val/acc")
        if accuracy is not None and not trainer.sanity_checking:
            self._seen.append((self._density(), float(accuracy)))

    def cost(self, num_videos: int) -> Cost | None:
        """Return what the zeros have cost in accuracy; warn where it is more than noise.

        The best accuracy of a denser net in this very run, less that of the end.

        num_videos: that were validated on.
        Returns: None where nothing was denser before.
        """
        if not self._seen or num_videos < 1:
            return None
        density, accuracy = self._seen[-1]
        denser = [(acc, before) for before, acc in self._seen if before > density + DENSER]
        if not denser:
            return None
        best, before = max(denser)
        cost = cost_of(best, accuracy, num_videos)
        if not cost.is_noise:
            warnings.warn(
                f"What was zeroed has cost more than noise: val/acc was {best:.3f} at density "
                f"{before:.2f} and is {accuracy:.3f} at {density:.2f} (standard error of the "
                f"difference, {num_videos} videos: {cost.noise:.3f}). Ask for more density or less "
                "lam, train longer after the zeros are found (strength.debias), or take "
                "penalty=mcp for weights, group_l0 for channels.",
                stacklevel=2,
            )
        return cost


def warn_of_chance(accuracy: float, num_classes: int, num_videos: int) -> None:
    """Warn where a trained net does no better than one that guesses."""
    chance = 1 / num_classes
    enough = num_videos * chance >= FEW
    if enough and accuracy <= chance + ERRORS * share_error(chance, num_videos):
        warnings.warn(
            f"Nothing was learnt: the accuracy is {accuracy:.3f} on {num_videos} videos, and "
            f"guessing among {num_classes} classes reaches {chance:.3f}. Look at the clips "
            "(regkit prepare), train longer, or try another optimizer.lr or less lam.",
            stacklevel=2,
        )


def warn_of_a_cut(whole: float, shrunk: float, num_videos: int) -> None:
    """Warn where a net that was cut out is worse than the whole one by more than noise."""
    cost = cost_of(whole, shrunk, num_videos)
    if not cost.is_noise:
        warnings.warn(
            f"What was cut out has cost more than noise: test accuracy {whole:.3f} before, "
            f"{shrunk:.3f} after (standard error of the difference: {cost.noise:.3f}).",
            stacklevel=2,
        )
