"""Say once, and plainly, that a training has come to nothing, and what may help."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from regkit.errors import InputError

WAYS = ("stop", "warn")
_REMEDY = (
    "Try a tenth of optimizer.lr{}, trainer.gradient_clip_val=1, or trainer.precision=32-true if "
    "it is another."
)


class DivergedError(InputError):
    """A loss, a gradient or a weight is no finite number any more."""


class DivergenceMonitor(pl.Callback):
    """Stop at the first loss, gradient or weight that is not finite; warn when all weights died.

    A loss is looked at before it is differentiated, so the last checkpoint is sound. That would
    wait for a GPU at each step: there, as weights and gradients everywhere, it is looked at where
    curves are logged, before a checkpoint, and after each epoch.

    density: share of non-zero weights of what is penalised, in [0, 1]; a collective.
    way: "stop", or "warn" once and go on.
    every_n_steps: at which checkpoints are written too.
    Raises: DivergedError.
    """

    def __init__(
        self, density: Callable[[], float], way: str = "stop", every_n_steps: int | None = None
    ) -> None:
        if way not in WAYS:
            raise InputError(f"DivergenceMonitor got way={way!r}; give {' or '.join(WAYS)}.")
        self._density = density
        self._way = way
        self._every_n_steps = every_n_steps
        self._losses: Tensor | None = None  # their sum on the device, which NaN never leaves
        self._batch: Any = None
        self._told = self._told_dead = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, to look where a loss came from."""
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss, or keep it until it is looked at."""
        loss = loss.detach()
        if is_near(loss, trainer) and not math.isfinite(loss):
            self._tell(trainer, f"the loss was {float(loss)}{_unlike_a_clip(self._batch)}")
        if self._losses is None:
            self._losses = torch.zeros((), device=loss.device)
        self._losses.add_(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Look at losses and gradients; those that a loss scaler will pass over are left to it."""
        if not self._is_due(trainer, 1):
            return
        self._look_at_losses(trainer)
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            named = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
            self._look(trainer, "gradient", named)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the weights if it is time."""
        self._batch = None
        if self._is_due(trainer, 0):
            self._look(trainer, "weight", dict(pl_module.named_parameters()))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at them before the checkpoint of the epoch; warn of a dead net."""
        self._look_at_losses(trainer)
        self._look(trainer, "weight", dict(pl_module.named_parameters()))
        if not self._told_dead and self._density() == 0.0:
            self._told_dead = True
            warnings.warn(
                f"After epoch {trainer.current_epoch + 1} no penalised weight is left: density is "
                "0, and the net answers the same to every clip. Try a tenth of lam, or ask for "
                "what is to be left, as strength.target_density=0.1.",
                stacklevel=2,
            )

    def _is_due(self, trainer: pl.Trainer, ahead: int) -> bool:
        log_every = getattr(trainer, "log_every_n_steps")  # noqa: B009  # added by a connector
        steps = trainer.global_step + ahead
        return any(n and steps % n == 0 for n in (log_every, self._every_n_steps))

    def _look_at_losses(self, trainer: pl.Trainer) -> None:
        if self._losses is not None:
            losses, self._losses = float(self._losses), None
            if _anywhere(trainer, not math.isfinite(losses)):
                self._tell(trainer, "a loss since the last look was not finite")

    def _look(self, trainer: pl.Trainer, kind: str, named: Mapping[str, Tensor]) -> None:
        if self._told or not named:
            return
        largest = get_total_norm([t.detach() for t in named.values()], norm_type=math.inf)
        if _anywhere(trainer, not math.isfinite(largest)):
            name = next((n for n, t in named.items() if not t.isfinite().all()), "of another rank")
            self._tell(trainer, f"the {kind} {name} was not finite")

    def _tell(self, trainer: pl.Trainer, what: str) -> None:
        if self._told:
            return
        self._told = True
        rates = {group["lr"] for one in trainer.optimizers for group in one.param_groups}
        now = f" (now {max(rates):g})" if rates else ""
        text = (
            f"Training diverged at step {trainer.global_step + 1}, in epoch "
            f"{trainer.current_epoch + 1}: {what}. {_REMEDY.format(now)}"
        )
        if self._way == "stop":
            raise DivergedError(f"{text} on_divergence=warn goes on all the same.")
        warnings.warn(text, stacklevel=2)


def is_near(loss: Tensor, trainer: pl.Trainer) -> bool:
    """Say whether a loss can be read at once: nothing is waited for, nobody has to agree."""
    return trainer.world_size == 1 and loss.device.type == "cpu"


def _anywhere(trainer: pl.Trainer, here: bool) -> bool:
    if trainer.world_size == 1:
        return here
    return trainer.strategy.reduce_boolean_decision(here, all=False)


def _unlike_a_clip(batch: Any) -> str:
    """Say that the clips of a batch are to blame, if they are."""
    clip = batch.get("clip") if isinstance(batch, Mapping) else None
    if not isinstance(clip, Tensor) or bool(clip.isfinite().all()):
        return ""
    place = int((~clip.isfinite().flatten(1).all(1)).nonzero()[0])
    paths = batch.get("path", [])
    name = f" of {paths[place]}" if place < len(paths) else ""
    return f", for the clip{name} has values that are not finite: look at data.mean and data.std"
