"""How far an optimizer moves along a constant gradient: the step that its prox is taken with.

An optimizer that moves each coordinate by `step_i` times a gradient that stays constant minimises
F only if the prox that follows is taken with that very `step_i`: the learning rate for plain SGD,
lr / (1 - momentum) for heavy ball, lr / (sqrt(v_hat) + eps) for Adam.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim

from regkit.optim.batch import Batch, Step
from regkit.optim.dual_averaging import RAMDA, RMDA
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD

Group = dict[str, Any]
Metric = Callable[[Group, Batch], Step]


@dataclass(frozen=True)
class Form:
    """A metric as kernels take it: rate, or rate / (sqrt(second) / sqrt(1 - beta2^count) + eps).

    second, count: keys of the optimizer's state; None for `second` means the rate alone, for
        `count` that there is no correction.
    """

    rate: float | Tensor
    second: str | None = None
    count: str | None = None
    log_beta2: float = -math.inf
    eps: float = 0.0


def momentum_after(group: Group, before: float | None) -> float:
    """Advance the answer of the momentum buffer to a constant unit gradient by one step.

    before: None at the first step, when torch fills the buffer with the gradient itself.
    """
    mu = group.get("momentum", 0.0)
    return 1.0 if before is None else mu * before + 1 - group.get("dampening", 0.0)


def momentum_at_rest(group: Group) -> float:
    """Return what `momentum_after` tends to."""
    return (1 - group.get("dampening", 0.0)) / (1 - group.get("momentum", 0.0))


def euclidean(group: Group, batch: Batch) -> Step:
    """Return the learning rate: the step of an optimizer that is not known better."""
    return group["lr"]


def metric_of(optimizer: optim.Optimizer) -> Metric | None:
    """Return the metric of this optimizer, None where it is not known.

    A subclass has the metric of its parent unless it changes `step`.
    """
    known = _known(optimizer)
    return None if known is None else METRICS[known]


def form_of(optimizer: optim.Optimizer) -> Callable[[Group, float], Form] | None:
    """Return the metric by group and answer of the momentum buffer, where kernels take it."""
    known = _known(optimizer)
    return None if known is None else FORMS.get(known)


def _known(optimizer: optim.Optimizer) -> type[optim.Optimizer] | None:
    own = inspect.unwrap(type(optimizer).step)
    for known in METRICS:
        if isinstance(optimizer, known) and own is inspect.unwrap(known.step):
            return known
    return None


def _sgd(group: Group, batch: Batch) -> Step:
    return _sgd_rate(group, batch.momentum)


def _sgd_rate(group: Group, reach: Step) -> Step:
    mu = group["momentum"]
    if mu == 0:
        return group["lr"]
    return group["lr"] * (1 + mu * reach if group["nesterov"] else reach)


def _sgd_form(group: Group, reach: float) -> Form:
    return Form(_sgd_rate(group, reach))


def _adam(group: Group, batch: Batch) -> Step:
    second = batch.flat("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    correction = 1 - group["betas"][1] ** batch.scalar("step")
    # In place from here on: every pass over all weights that is saved is seen on a CPU.
    scale = second.sqrt().div_(correction**0.5).add_(group["eps"])
    return scale.reciprocal_().mul_(group["lr"])


def _adam_form(group: Group, reach: float) -> Form:
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    beta2 = float(group["betas"][1])
    log_beta2 = math.log(beta2) if beta2 > 0 else -math.inf
    return Form(group["lr"], second, "step", log_beta2, group["eps"])


def _nadam(group: Group, batch: Batch) -> Step:
    beta1, beta2 = group["betas"]
    t, product = batch.scalar("step"), batch.scalar("mu_product")
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (k * group["momentum_decay"])) for k in (t, t + 1))
    reach = (1 - mu) / (1 - product) + mu_next * (1 - beta1**t) / (1 - product * mu_next)
    scale = batch.flat("exp_avg_sq").sqrt() / (1 - beta2**t) ** 0.5 + group["eps"]
    return group["lr"] * reach / scale


def _radam(group: Group, batch: Batch) -> Step:
    beta2, t = group["betas"][1], batch.scalar("step")
    correction = 1 - beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / correction
    taming = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho) * correction
    second = batch.flat("exp_avg_sq")
    # Without rectification (rho <= 5) the optimizer moves by lr m_hat.
    if not isinstance(rho, Tensor):
        return (
            group["lr"] * taming**0.5 / (second.sqrt() + group["eps"]) if rho > 5 else group["lr"]
        )
    adaptive = group["lr"] * taming.clamp_min(0).sqrt() / (second.sqrt() + group["eps"])
    return torch.where(rho > 5, adaptive, group["lr"])


def _rmsprop(group: Group, batch: Batch) -> Step:
    mean_square = batch.flat("square_avg")
    if group["centered"]:
        mean_square = mean_square - batch.flat("grad_avg").square()
    reach = batch.momentum if group["momentum"] > 0 else 1.0
    return group["lr"] * reach / (mean_square.sqrt() + group["eps"])


def _adagrad(group: Group, batch: Batch) -> Step:
    rate = group["lr"] / (1 + (batch.scalar("step") - 1) * group["lr_decay"])
    return rate / (batch.flat("sum").sqrt() + group["eps"])


def _adamax(group: Group, batch: Batch) -> Step:
    return group["lr"] / batch.flat("exp_inf")


def _rmda(group: Group, batch: Batch) -> Step:
    return batch.scalar("alpha") / batch.scalar("step") ** 0.5


def _ramda(group: Group, batch: Batch) -> Step:
    return batch.scalar("alpha") / batch.flat("scale")


METRICS: dict[type[optim.Optimizer], Metric] = {
    optim.SGD: _sgd,
    optim.Adam: _adam,
    optim.AdamW: _adam,
    optim.NAdam: _nadam,
    optim.RAdam: _radam,
    optim.RMSprop: _rmsprop,
    optim.Adagrad: _adagrad,
    optim.Adamax: _adamax,
    ProxSGD: _sgd,
    ProxAdamW: _adam,
    RMDA: _rmda,
    RAMDA: _ramda,
}

FORMS: dict[type[optim.Optimizer], Callable[[Group, float], Form]] = {
    optim.SGD: _sgd_form,
    optim.Adam: _adam_form,
    optim.AdamW: _adam_form,
    ProxSGD: _sgd_form,
    ProxAdamW: _adam_form,
}
