"""Regularize: penalties for any LightningModule, unchanged."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.regularizer import Regularizer
from regkit.sparsity.measure import density
from regkit.strength import check_strength
from regkit.terms import Penalties, named

log = logging.getLogger(__name__)


class Regularize(pl.Callback):
    """Train any LightningModule on F = loss + the sum of its penalties.

        L.Trainer(callbacks=[Regularize([L1(lam=1e-4), TemporalSmoothness(lam=1e-2)])])

    Weight penalties act right after each real step of every optimizer. Activation penalties are
    added to what `training_step` returns (under manual optimization: to what `manual_backward` is
    given, each time), so accumulation, AMP and DDP scale them as they scale the loss. Gradient
    clipping sees their gradients, and none of the weight penalties.

    Writes `Regularizer.summary()` to the log "regkit.callback" when `fit` starts.

    Logs, every `log_every_n_steps` steps and with the same names for every penalty:
    objective/total, objective/loss, penalty/<name>, lam/<name>, density/total, density/live_groups,
    density_layer/<parameter>, speed/steps_per_s and speed/prox_share (host time, without loading);
    where layers have strengths of their own lam_layer/<name>/<layer>; for group penalties
    groups/<name>, the share of its groups that is not zero; objective/kkt, the length of the
    shortest subgradient of F at a logged step, from its batch.

    penalties: one, several, or several by name.
    example: what the module is called with, where groups are found by tracing it; default: its
        `example_input_array`.
    strength: ramp, ramp_until, target_density, layerwise, freeze_support of
        `regkit.strength.Strength`; and num_steps, which the trainer gives otherwise.
    Raises: InputError at the start of `fit`, as `Regularizer` does; under DeepSpeed and FSDP1,
        which train flat copies of the weights; when no optimizer holds a penalised parameter; and
        after the first batch when a penalised module did not run.
    """

    def __init__(
        self,
        penalties: Penalties,
        *,
        example: Any = None,
        num_steps: int | None = None,
        **strength: Any,
    ) -> None:
        check_strength(**strength)
        self.penalties = named(penalties)
        self.example = example
        self.num_steps = num_steps
        self.strength = strength
        self.regularizer: Regularizer | None = None
        self._saved: dict[str, Any] | None = None
        self._undo: list[Callable[[], None]] = []
        self._loss: Tensor | None = None
        self._kkt: Tensor | None = None
        self._checked = False
        self._began = 0.0
        self._busy_s = 0.0
        self._num_batches = 0
        self._logged_step = -1

    @property
    def state_key(self) -> str:
        """Name under which a checkpoint keeps this callback."""
        return f"{type(self).__name__}[{','.join(self.penalties)}]"

    def state_dict(self) -> dict[str, Any]:
        """Return the regularizer's state."""
        return {} if self.regularizer is None else self.regularizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until `fit` has made the regularizer."""
        self._saved = state_dict or None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what is penalised and hook into the loss."""
        self._release()
        self._checked, self._logged_step = False, -1
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
            raise InputError(
                f"Regularize got {type(trainer.strategy).__name__}, which trains flat copies of "
                "the weights that have lost their names and shapes. Use DDPStrategy, or FSDP2 by "
                "ModelParallelStrategy."
            )
        self.regularizer = Regularizer(
            pl_module,
            self.penalties,
            example=self.example,
            num_steps=self.num_steps,
            **self.strength,
        )
        self._undo.append(self.regularizer.detach)
        if trainer.is_global_zero:
            log.info("\n%s", self.regularizer.summary())
        if self._saved is not None:
            self.regularizer.load_state_dict(self._saved)
            self._saved = None
        if pl_module.automatic_optimization:
            self._wrap(pl_module, "training_step", self._with_penalty)
        else:
            self._wrap(pl_module, "manual_backward", self._before_backward)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hang the proximal step on the optimizers, each of which steps its own parameters."""
        reg = self._bound()
        if reg.strength is not None and self.num_steps is None:
            reg.strength.num_steps = _num_steps(trainer)
        penalised = set(reg.penalised())
        for optimizer in trainer.optimizers:
            held = {p for group in optimizer.param_groups for p in group["params"]}
            if held & penalised:
                reg.attach(optimizer)
                penalised -= held
        if penalised and penalised == set(reg.penalised()):
            raise InputError(
                "Regularize found no penalised parameter in any optimizer of "
                f"{type(pl_module).__name__}. Give configure_optimizers these parameters, or "
                "penalise others with `on`."
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure stationarity where weights and gradients belong together, if it is logged."""
        every = _log_interval(trainer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if every > 0 and (trainer.global_step + 1) % every == 0 and not scaled:
            self._kkt = self._bound().kkt_residual()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Check once that every penalised module ran; log at the logging interval."""
        self._busy_s += time.perf_counter() - self._began
        self._num_batches += 1
        if not self._checked and (silent := self._bound().silent()):
            raise InputError(
                f"Penalty {silent[0]!r} saw no training pass of its module in the first batch. "
                "Name a module that runs in training_step, and compile the model before fit or "
                "not at all."
            )
        self._checked = True
        every = _log_interval(trainer)
        step = trainer.global_step
        if every > 0 and step % every == 0 and step != self._logged_step:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the state that the checkpoint of this epoch holds."""
        if trainer.global_step != self._logged_step:
            self._log(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module and its optimizers as they were."""
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module and its optimizers as they were."""
        self._release()

    def _release(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _bound(self) -> Regularizer:
        assert self.regularizer is not None, "fit has not started"
        return self.regularizer

    def _wrap(self, module: pl.LightningModule, name: str, wrapper: Callable[..., Any]) -> None:
        """Put `wrapper(original, *args)` before a method of this very instance."""
        original = getattr(module, name)
        was_own = name in vars(module)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        def undo() -> None:
            if was_own:
                setattr(module, name, original)
            else:
                delattr(module, name)

        setattr(module, name, wrapped)
        self._undo.append(undo)

    def _with_penalty(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        loss = result.get("loss") if isinstance(result, Mapping) else result
        terms = self._bound().activation_terms()
        if not isinstance(loss, Tensor):
            return result
        self._loss = loss.detach()
        if not terms:
            return result
        total = loss + torch.stack(list(terms.values())).sum()
        return {**result, "loss": total} if isinstance(result, Mapping) else total

    def _before_backward(
        self, original: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        self._loss = loss.detach()
        terms = self._bound().activation_terms()
        if terms:
            loss = loss + torch.stack(list(terms.values())).sum()
        return original(loss, *args, **kwargs)

    @torch.no_grad()
    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reg = self._bound()
        self._logged_step = trainer.global_step
        left = density(reg.chosen())
        values = {**reg.values(), **reg.latest}
        metrics: dict[str, Any] = {f"penalty/{name}": v for name, v in values.items()}
        metrics |= {f"lam/{name}": lam for name, lam in reg.lams().items()}
        metrics |= {f"lam_layer/{name}": lam for name, lam in reg.layer_lams().items()}
        for name, (live, count) in reg.live_groups().items():
            metrics[f"groups/{name}"] = live / max(count, 1)
        if self._kkt is not None:
            metrics["objective/kkt"] = self._kkt
            self._kkt = None
        metrics |= {f"density_layer/{name}": share for name, share in left.layers.items()}
        metrics |= {"density/total": left.total, "density/live_groups": left.live_groups}
        if self._loss is not None:
            metrics["objective/loss"] = self._loss
            metrics["objective/total"] = sum(values.values(), start=self._loss)
        if self._busy_s > 0:
            metrics["speed/steps_per_s"] = self._num_batches / self._busy_s
            metrics["speed/prox_share"] = reg.seconds() / self._busy_s
        numbers = _read(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        pl_module.log("density", left.total, prog_bar=True, logger=False)


def _read(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Read numbers and tensors, those on one device together: that waits for it once."""
    on_device: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            on_device[value.device][name] = value.double()
    read = {name: float(v) for name, v in metrics.items() if not isinstance(v, Tensor)}
    for tensors in on_device.values():
        read |= dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return read


def _log_interval(trainer: pl.Trainer) -> int:
    # The trainer gets this attribute from its logger connector, unseen by type checkers.
    return getattr(trainer, "log_every_n_steps")  # noqa: B009


def _num_steps(trainer: pl.Trainer) -> int:
    """Return the number of optimizer steps of the whole training.

    Not before training starts: asked earlier, the trainer makes its loaders before it continues
    from a checkpoint.
    """
    total = trainer.estimated_stepping_batches
    if total == float("inf"):
        raise InputError(
            "Regularize got a strength that changes over training, and the trainer has no end. "
            "Set max_epochs or max_steps, or give num_steps."
        )
    return int(total)
