"""RegularizerCallback: penalties for any LightningModule, unchanged."""

import copy
import logging
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.schedule import Schedule
from regkit.optim.support_report import SupportReport
from regkit.optim.target import TargetResult, missed
from regkit.pruning.density import density, sized_density
from regkit.regularizer.bound_penalty import Penalties, named
from regkit.regularizer.regularizer import Regularizer

log = logging.getLogger(__name__)


class RegularizerCallback(pl.Callback):
    """Train any LightningModule on F = loss + the sum of its penalties.

        L.Trainer(callbacks=[RegularizerCallback([L1(lam=1e-4), TemporalSmoothness(lam=1e-2)])])

    Weight penalties act right after each real step of every optimizer. The gradients of activation
    penalties join those of the loss whenever it is differentiated (under manual optimization: at
    each `manual_backward`), so accumulation, AMP and DDP scale them as they scale the loss, whose
    value stays the module's own. Gradient clipping sees their gradients, and none of the weight
    penalties.

    How far training is, a schedule learns from the trainer: from epochs, steps or time, whichever
    ends it, whatever the optimizers do in between. A second `fit` of the same module goes on where
    the first one was. When training ends with a target density that is missed, or before a phase
    that was asked for, a warning says so.

    Writes `Regularizer.summary()` to the log "regkit.lightning.callback" when `fit` starts.

    Logs, every `log_every_n_steps` steps and with the same names for every penalty:
    objective/total, objective/loss, penalty/<name>, lam/<name>, density/total, density/live_groups,
    density/sized (the weights above a thousandth of their layer's root mean square),
    density_layer/<parameter>; support/flips, support/jaccard and support/should_wake (see
    `regkit.optim.support_report`); speed/steps_per_s and speed/prox_share (host time,
    without loading); where layers have strengths of their own lam_layer/<name>/<layer>; for group
    penalties groups/<name>, the share of its groups that is not zero; objective/kkt, the length of
    the shortest subgradient of F at a logged step, from its batch.

    penalties: one, several, or several by name.
    example: what the module is called with, where groups are found by tracing it; default: its
        `example_input_array`.
    schedule: how strong weight penalties are in the course of training. With `num_steps`, progress
        is counted in steps, and the trainer is not asked.
    Raises: InputError at the start of `fit`, as `Regularizer` does; under DeepSpeed and FSDP1,
        which train flat copies of the weights; when no optimizer holds a penalised parameter; and
        after the first batch when a penalised module did not run.
    """

    def __init__(
        self,
        penalties: Penalties,
        *,
        example: Any = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.penalties = named(penalties)
        self.example = example
        self.schedule = schedule or Schedule()
        self.regularizer: Regularizer | None = None
        # When training has ended: of each optimizer, and of all.
        self.target_results: list[TargetResult] = []
        self.support_report: SupportReport | None = None
        self._saved: dict[str, Any] | None = None
        self._batches_in_epoch: int | None = None
        self._steps_in_batch = self._step_at_start = 0
        self._loss: Tensor | None = None
        self._kkt: Tensor | None = None
        self._checked = self._concluded = False
        self._began = 0.0
        self._busy_s = 0.0
        self._num_batches = 0
        self._logged_step = -1

    def __getstate__(self) -> dict[str, Any]:
        """Return a callback that has not been used: a copy begins anew."""
        return {**vars(self), "regularizer": None, "_loss": None, "_kkt": None}

    @property
    def state_key(self) -> str:
        """Name under which a checkpoint keeps this callback."""
        chosen = (
            f"{name}:{getattr(p, 'params', None) or getattr(p, 'module', None) or ''}"
            for name, p in self.penalties.items()
        )
        return f"{type(self).__name__}[{','.join(chosen)}]"

    def state_dict(self) -> dict[str, Any]:
        """Return the regularizer's state, how long an epoch is, and what the last batch came to."""
        if self.regularizer is None:
            return {}
        last = {"loss": self._loss, "terms": self.regularizer.last_activation_terms}
        return {
            **self.regularizer.state_dict(),
            "batches_in_epoch": self._batches_in_epoch,
            "last_batch": {**last, "logged_step": self._logged_step},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until `fit` has made the regularizer."""
        self._saved = state_dict or None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what is penalised."""
        carried = self._state_of(pl_module)
        self._release()
        self._checked, self._logged_step, self.target_results = False, -1, []
        self._concluded = False
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
            raise InputError(
                f"RegularizerCallback got {type(trainer.strategy).__name__}, which trains flat "
                "copies of the weights that have lost their names and shapes. Use DDPStrategy, or "
                "FSDP2 by ModelParallelStrategy."
            )
        self.regularizer = Regularizer(
            pl_module,
            self.penalties,
            example=self.example,
            schedule=self.schedule,
        )
        if trainer.is_global_zero:
            log.info("\n%s", self.regularizer.summary())
        if carried is not None:
            self.regularizer.load_state_dict(carried)
            self._batches_in_epoch = carried.get("batches_in_epoch", self._batches_in_epoch)
            last = carried.get("last_batch", {"loss": None, "terms": {}, "logged_step": -1})
            self._loss, self._logged_step = last["loss"], last["logged_step"]
            self.regularizer.last_activation_terms.update(last["terms"])
        if not pl_module.automatic_optimization:
            ManualBackward.of(pl_module).callbacks.append(self)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hang the proximal step on the optimizers, each of which steps its own parameters."""
        reg = self._bound()
        if self.schedule.depends_on_progress and self.schedule.num_steps is None:
            _check_end(trainer)
            reg.set_progress(0.0)
        penalised = set(reg.penalised())
        # What is frozen may be given to any of them later.
        waiting = any(not p.requires_grad for p in penalised)
        attached = False
        for optimizer in trainer.optimizers:
            held = {p for group in optimizer.param_groups for p in group["params"]}
            if penalised and (waiting or held & penalised):
                reg.attach(optimizer)
                attached = True
        if penalised and not attached:
            raise InputError(
                "RegularizerCallback found no penalised parameter in any optimizer of "
                f"{type(pl_module).__name__}. Give configure_optimizers these parameters, or "
                "penalise others with `params`."
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
        """Start the clock, and say how far training will be after this batch."""
        self._began = time.perf_counter()
        self._step_at_start = trainer.global_step
        if self.schedule.num_steps is None:
            self._bound().set_progress(self._progress(trainer, batch_idx))

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Let the gradients of the activation penalties join those of the loss.

        What is added to the loss is zero, with their gradient. Lightning's own tensor is changed,
        not the module's; under manual optimization that would be one, see `ManualBackward`.
        """
        if not pl_module.automatic_optimization:
            return
        unit = _unit(trainer, loss)
        self._loss = loss.detach() / unit
        terms = self._bound().activation_terms()
        if terms:
            total = torch.stack(list(terms.values())).sum() * unit
            loss.add_((total - total.detach()).to(loss.dtype).reshape(loss.shape))

    def with_penalties(self, loss: Tensor) -> Tensor:
        """Return a loss, before it is scaled, with the activation penalties since the last one."""
        self._loss = loss.detach()
        terms = self._bound().activation_terms()
        return loss + torch.stack(list(terms.values())).sum() if terms else loss

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
        if not pl_module.automatic_optimization:
            self._steps_in_batch = trainer.global_step - self._step_at_start
        self._num_batches += 1
        if not self._checked and (silent := self._bound().modules_not_run()):
            raise InputError(
                f"Penalty {silent[0]!r} saw no training pass of its module in the first batch. "
                "Name a module that runs in training_step. If it does and the model ran compiled "
                "before, call torch.compiler.reset() before fit."
            )
        self._checked = True
        every = _log_interval(trainer)
        step = trainer.global_step
        if every > 0 and step % every == 0 and step != self._logged_step:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the state that the checkpoint of this epoch holds."""
        self._batches_in_epoch = trainer.fit_loop.batch_idx + 1
        if trainer.global_step != self._logged_step:
            self._log(trainer, pl_module)

    def conclude(self) -> None:
        """Measure what training has come to: `target_results` and `support_report`."""
        reg = self._bound()
        self.target_results = reg.target_results()
        self.support_report = reg.support_report()
        self._concluded = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of what was asked for and is not there."""
        reg = self._bound()
        if not self._concluded:
            self.conclude()
        progress = reg.progress.value or 0.0
        said = self.schedule.num_steps is not None and progress >= 1.0  # by the step itself
        if not trainer.is_global_zero or said:
            return
        found = [missed(result) for result in self.target_results if not result.is_met]
        if self.schedule.depends_on_progress and (left := self.schedule.unfinished(progress)):
            found.append(
                f"Training ended at {progress:.0%} of its length, before {' and '.join(left)}: "
                "what its schedule asks for has not been done. Train on (a second fit goes on "
                "where this one was), or give these a smaller share."
            )
        if found:
            warnings.warn(" ".join(found), stacklevel=2)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module and its optimizers as they were."""
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module and its optimizers as they were."""
        self._release()

    def _release(self) -> None:
        if self.regularizer is not None:
            self.regularizer.detach()
            ManualBackward.release(self.regularizer.model, self)

    def _state_of(self, pl_module: pl.LightningModule) -> dict[str, Any] | None:
        """Return what a checkpoint, or an earlier fit of the same module, has left."""
        saved, self._saved = self._saved, None
        if saved is None and self.regularizer is not None and self.regularizer.model is pl_module:
            saved = self.regularizer.state_dict()
        return saved

    def _bound(self) -> Regularizer:
        assert self.regularizer is not None, "fit has not started"
        return self.regularizer

    def _progress(self, trainer: pl.Trainer, batch_idx: int) -> float:
        """Return the share of training that is done after a batch, by whatever ends it."""
        shares = [0.0]
        if trainer.max_steps > 0:
            # A batch may make several steps: as many as the one before.
            shares.append((trainer.global_step + max(self._steps_in_batch, 1)) / trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches = trainer.num_training_batches
            if math.isinf(batches):
                # Known once an epoch has ended.
                batches = self._batches_in_epoch or math.inf
            done = trainer.current_epoch + min((batch_idx + 1) / max(batches, 1), 1.0)
            shares.append(done / trainer.max_epochs)
        timer = _timer(trainer)
        if timer is not None:
            passed, left = timer.time_elapsed("train"), timer.time_remaining("train")
            shares.append(passed / max(passed + (left or 0.0), 1e-9))
        return max(shares)

    @torch.no_grad()
    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reg = self._bound()
        self._logged_step = trainer.global_step
        left = density(reg.counted_parameters())
        values = {**reg.values(), **reg.last_activation_terms}
        metrics: dict[str, Any] = {f"penalty/{name}": v for name, v in values.items()}
        metrics |= {f"lam/{name}": lam for name, lam in reg.current_lams().items()}
        metrics |= {f"lam_layer/{name}": lam for name, lam in reg.current_layer_lams().items()}
        for name, (live, count) in reg.live_groups().items():
            metrics[f"groups/{name}"] = live / max(count, 1)
        if self._kkt is not None:
            metrics["objective/kkt"] = self._kkt
            self._kkt = None
        metrics |= {f"density_layer/{name}": share for name, share in left.layers.items()}
        metrics |= {"density/total": left.total, "density/live_groups": left.live_groups}
        metrics["density/sized"] = sized_density(reg.counted_parameters())
        if (support := reg.support_report()) is not None:
            metrics |= {f"support/{name}": share for name, share in support._asdict().items()}
        if self._loss is not None:
            metrics["objective/loss"] = self._loss
            metrics["objective/total"] = sum(values.values(), start=self._loss)
        if self._busy_s > 0:
            metrics["speed/steps_per_s"] = self._num_batches / self._busy_s
            metrics["speed/prox_share"] = reg.prox_seconds() / self._busy_s
        numbers = _read(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        pl_module.log("density", left.total, prog_bar=True, logger=False)


class ManualBackward:
    """Stand for `manual_backward` of a module while it is trained, and add the penalties.

    One for all callbacks; it goes with the last of them, in whatever order they leave. A copy of
    the module, or what is pickled of it, gets the plain method of its own.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.module = module
        self.plain = module.manual_backward
        self.is_own = "manual_backward" in vars(module)
        self.callbacks: list[RegularizerCallback] = []

    @classmethod
    def of(cls, module: pl.LightningModule) -> "ManualBackward":
        """Return the one that stands on a module; it is put there if there is none."""
        found = vars(module).get("manual_backward")
        if not isinstance(found, cls):
            found = cls(module)
            vars(module)["manual_backward"] = found
        return found

    @classmethod
    def release(cls, module: Any, callback: RegularizerCallback) -> None:
        """Take a callback off, and the stand-in with the last one."""
        found = vars(module).get("manual_backward")
        if not isinstance(found, cls) or callback not in found.callbacks:
            return
        found.callbacks.remove(callback)
        if not found.callbacks:
            del vars(module)["manual_backward"]
            if found.is_own:
                vars(module)["manual_backward"] = found.plain

    def __call__(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the loss with the penalties of all callbacks."""
        for callback in self.callbacks:
            loss = callback.with_penalties(loss)
        self.plain(loss, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.module))
        plain = copy.deepcopy(self.plain, memo)
        return plain if copied is None or self.is_own else MethodType(plain.__func__, copied)

    def __reduce__(self) -> tuple[Any, ...]:
        # While the module is put together again it has no attribute but its class's.
        return getattr, (self.module, "manual_backward")


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


def _unit(trainer: pl.Trainer, loss: Tensor) -> Tensor:
    """Return what Lightning has multiplied the loss by: one over accumulation, a scaler's scale."""
    unit = loss.new_ones(()) / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return unit if scaler is None else scaler.scale(unit)


def _timer(trainer: pl.Trainer) -> Timer | None:
    """Return what ends training by time, if anything does."""
    timers = (c for c in getattr(trainer, "callbacks") if isinstance(c, Timer))  # noqa: B009
    return next((t for t in timers if t.time_remaining("train") is not None), None)


def _check_end(trainer: pl.Trainer) -> None:
    """Refuse a training whose progress cannot be told."""
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    endless = epochs < 0 and trainer.max_steps < 0
    unknown = epochs == 1 and trainer.max_steps < 0 and math.isinf(trainer.num_training_batches)
    if (endless or unknown) and _timer(trainer) is None:
        why = "the trainer has no end" if endless else "the one epoch has no known length"
        raise InputError(
            f"RegularizerCallback got a schedule that depends on progress, and {why}. Set "
            "max_epochs, max_steps or max_time, or give Schedule(num_steps=...)."
        )
