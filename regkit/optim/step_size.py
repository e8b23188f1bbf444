"""How far an optimizer moves along a constant gradient: the step that its prox is taken with.

An optimizer that moves each coordinate by `step_i` times a gradient that stays constant minimises
F only if the prox that follows is taken with that very `step_i`: the learning rate for plain SGD,
lr / (1 - momentum) for heavy ball, lr / (sqrt(v_hat) + eps) for Adam. This file alone knows
optimizers: to add one, add its entry to `STEP_SIZES`, and to `AVERAGES` where it keeps an average
of its gradients.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn, optim

from regkit.optim.dual_averaging import RAMDA, RMDA
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD

Group = dict[str, Any]
Number = float | Tensor
# Where it is divided by a number that may be zero: far below any gradient.
TINY = 1e-30


@dataclass(eq=False)
class Pace:
    """What parameters share that have always moved together: it changes from step to step.

    gain: what their momentum buffers make of a constant unit gradient, at the move at hand.
    is_first: the buffers are still empty. count: how often they have been moved, with this time.
    last_gain: of the move before; None where it is not known. num_moves: that are finished.
    """

    gain: float = 1.0
    is_first: bool = False
    count: int = 1
    last_gain: float | None = None
    num_moves: int = 0

    def start(self, gain: float, is_first: bool) -> None:
        """Say what the move at hand is; until it is finished this may be said again."""
        self.gain, self.is_first, self.count = gain, is_first, self.num_moves + 1

    def finish(self, has_momentum: bool) -> None:
        """Note that the move has been made."""
        self.num_moves += 1
        self.last_gain = self.gain if has_momentum else None


@dataclass(frozen=True, eq=False)
class Move:
    """What an optimizer has done to a parameter, or is about to do.

    group: its settings. state: what it keeps for the parameter.
    pace: of the parameter, and of others that move as it does.
    before: where the parameter was, if that was kept.
    """

    parameter: nn.Parameter
    group: Group
    state: Group
    pace: Pace = field(default_factory=Pace)
    before: Tensor | None = None

    @property
    def gain(self) -> float:
        """What its momentum buffer makes of a constant unit gradient."""
        return self.pace.gain

    @property
    def is_first(self) -> bool:
        """Say whether the momentum buffer is still empty."""
        return self.pace.is_first

    @property
    def count(self) -> int:
        """How often the parameter has been moved, this time included."""
        return self.pace.count


Moves = Mapping[nn.Parameter, Move]


@dataclass(frozen=True, eq=False)
class StepSize:
    """The step of one parameter, entry by entry: rate / denominator.

    With `second`, the denominator is sqrt(second - mean^2) / sqrt(1 - beta2^count) + eps; with
    `scale`, |scale| + eps; with `inverse`, one over that tensor; with none of them, 1.

    rate: a number, or a 0-d tensor on the device of the weights.
    second, mean, scale: keys of what the optimizer keeps for the parameter.
    count: number of steps taken, a 0-d tensor; None where nothing is left to correct.
    inverse: of the parameter's shape.
    varies: other parameters of the group may read other state.
    """

    rate: Number
    second: str | None = None
    count: Tensor | None = None
    beta2: float = 0.0
    eps: float = 0.0
    mean: str | None = None
    scale: str | None = None
    inverse: Tensor | None = None
    varies: bool = False

    @property
    def kernels_know(self) -> bool:
        """Say whether kernels compute it: they know the rate, and Adam's denominator."""
        others = self.mean is not None or self.scale is not None or self.inverse is not None
        return not others and not self.varies

    @property
    def log_beta2(self) -> float:
        """Natural logarithm of the decay that `count` corrects for; -inf for none."""
        has_decay = self.count is not None and self.beta2 > 0
        return math.log(self.beta2) if has_decay else -math.inf

    @property
    def keys(self) -> tuple[str | None, ...]:
        """What it reads of the optimizer's state."""
        return self.second, self.mean, self.scale

    def evaluate(self, state: Callable[[str], Tensor], lay: Callable[[Tensor], Tensor]) -> Number:
        """Return the step: a number, or a tensor as the two functions give them.

        state: returns what the optimizer keeps, by its key; it is not written to.
        lay: returns `inverse` laid out likewise.
        """
        if self.inverse is not None:
            return self.rate * lay(self.inverse)
        if self.scale is not None:
            return self.rate / (state(self.scale).abs() + self.eps)
        if self.second is None:
            return self.rate
        second = state(self.second)
        if self.mean is not None:
            second = second - state(self.mean).square()
        # In place from here on: every pass over all weights that is saved is seen on a CPU.
        denominator = second.sqrt()
        if self.count is not None:
            count = self.count.item() if self.count.device.type == "cpu" else self.count
            denominator.div_((1 - self.beta2**count) ** 0.5)
        return denominator.add_(self.eps).reciprocal_().mul_(self.rate)


StepSizeOf = Callable[[Move], StepSize]


def momentum_gain(group: Group, before: float | None) -> float:
    """Return what the momentum buffer makes of a constant unit gradient, one step later.

    before: None at the first step, when torch fills the buffer with the gradient itself.
    """
    mu = group.get("momentum", 0.0)
    return 1.0 if before is None else mu * before + 1 - group.get("dampening", 0.0)


def momentum_gain_at_rest(group: Group) -> float:
    """Return what `momentum_gain` tends to."""
    return (1 - group.get("dampening", 0.0)) / (1 - group.get("momentum", 0.0))


def _sgd(move: Move) -> StepSize:
    mu = move.group["momentum"]
    if mu == 0:
        return StepSize(move.group["lr"])
    return StepSize(
        move.group["lr"] * (1 + mu * move.gain if move.group["nesterov"] else move.gain)
    )


def _adam(move: Move) -> StepSize:
    second = "max_exp_avg_sq" if move.group["amsgrad"] else "exp_avg_sq"
    beta2 = float(move.group["betas"][1])
    return StepSize(move.group["lr"], second, move.state["step"], beta2, move.group["eps"])


def _nadam(move: Move) -> StepSize:
    beta1, beta2 = move.group["betas"]
    t, product = _number(move.state["step"]), _number(move.state["mu_product"])
    mu, mu_next = (
        beta1 * (1 - 0.5 * 0.96 ** (k * move.group["momentum_decay"])) for k in (t, t + 1)
    )
    reach = (1 - mu) / (1 - product) + mu_next * (1 - beta1**t) / (1 - product * mu_next)
    # The correction of the second moment, multiplied through.
    root = (1 - beta2**t) ** 0.5
    return StepSize(move.group["lr"] * reach * root, "exp_avg_sq", eps=move.group["eps"] * root)


def _radam(move: Move) -> StepSize:
    beta2, t = move.group["betas"][1], _number(move.state["step"])
    correction = 1 - beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / correction
    if rho <= 5:  # not rectified yet: the optimizer moves by lr m_hat
        return StepSize(move.group["lr"], varies=True)
    taming = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho) * correction
    rate = move.group["lr"] * taming**0.5
    return StepSize(rate, "exp_avg_sq", eps=move.group["eps"], varies=True)


def _rmsprop(move: Move) -> StepSize:
    rate = move.group["lr"] * (move.gain if move.group["momentum"] > 0 else 1.0)
    mean = "grad_avg" if move.group["centered"] else None
    return StepSize(rate, "square_avg", eps=move.group["eps"], mean=mean)


def _adagrad(move: Move) -> StepSize:
    rate = move.group["lr"] / (1 + (_number(move.state["step"]) - 1) * move.group["lr_decay"])
    return StepSize(rate, "sum", eps=move.group["eps"])


def _adamax(move: Move) -> StepSize:
    return StepSize(move.group["lr"], scale="exp_inf")


def _rmda(move: Move) -> StepSize:
    return StepSize(move.state["alpha"] / move.state["step"] ** 0.5)


def _ramda(move: Move) -> StepSize:
    return StepSize(move.state["alpha"], scale="scale")


def _lion(move: Move) -> StepSize:
    """Move by lr times a sign: lr / |m| along an averaged gradient m (Chen et al., 2023).

    The average begins at zero, which is corrected for.
    """
    if "exp_avg" not in move.state:
        _warn_of_a_strange_lion()
        return learning_rate(move)
    correction = 1 - move.group["betas"][1] ** move.count
    return StepSize(move.group["lr"] * correction, scale="exp_avg", eps=TINY)


def _muon(move: Move) -> StepSize:
    """Move by a matrix O of which the averaged gradient M = U S V' gives the directions, U V'.

    Entry by entry that is |move| / |M|: where F is stationary and signs of O and M agree, nothing
    moves. Source: Jordan et al., Muon (2024).
    """
    assert move.before is not None
    grad, buffer, group = move.parameter.grad, move.state["momentum_buffer"], move.group
    mean = buffer if grad is None or not group["nesterov"] else grad.lerp(buffer, group["momentum"])
    correction = 1 - group["momentum"] ** (move.count + bool(group["nesterov"]))
    moved = move.before * (1 - group["lr"] * group["weight_decay"]) - move.parameter.detach()
    return StepSize(correction, inverse=moved.abs() / (mean.abs() + TINY))


def _adafactor(move: Move) -> StepSize:
    """Move by alpha / sqrt(v) with a v of rank one, shortened where the whole move is long.

    Source: Shazeer and Stern, ICML 2018, algorithm 4, as torch.optim.Adafactor has it.
    """
    group, state, p = move.group, move.state, move.parameter.detach()
    eps1, eps2 = group["eps"]
    eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
    if "variance" in state:
        variance = state["variance"].clone()
    else:
        rows = state["row_var"]
        variance = rows @ state["col_var"] / rows.mean(dim=-2, keepdim=True).clamp(min=eps1)
    inverse = variance.clamp_(min=eps1 * eps1).rsqrt_()
    rho = min(float(group["lr"]), float(state["step"]) ** -0.5)
    rate = _rms(p if move.before is None else move.before).clamp(min=eps2) * rho
    if move.parameter.grad is not None:
        rate = rate / (_rms(move.parameter.grad * inverse) / group["d"]).clamp(min=1.0)
    return StepSize(rate, inverse=inverse)


@cache  # it is asked for at every step
def _warn_of_a_strange_lion() -> None:
    warn_of_unknown("a Lion that keeps no exp_avg")


STEP_SIZES: dict[type[optim.Optimizer], StepSizeOf] = {
    optim.SGD: _sgd,
    optim.Adam: _adam,
    optim.AdamW: _adam,
    optim.NAdam: _nadam,
    optim.RAdam: _radam,
    optim.RMSprop: _rmsprop,
    optim.Adagrad: _adagrad,
    optim.Adamax: _adamax,
    optim.Adafactor: _adafactor,
    optim.Muon: _muon,
    ProxSGD: _sgd,
    ProxAdamW: _adam,
    RMDA: _rmda,
    RAMDA: _ramda,
}
# Optimizers of other packages, by the name of their class.
FOREIGN_STEP_SIZES: dict[str, StepSizeOf] = {"Lion": _lion}


@dataclass(frozen=True, eq=False)
class GradientAverage:
    """What an optimizer keeps that is, times a scale, an average of gradients.

    key: of its state; None where it keeps none, and the gradient itself is meant.
    scale: a number, or a 0-d tensor. span: steps that the average goes back.
    decay, count: of an average that began at zero so many steps ago.
    """

    key: str | None = None
    scale: Number = 1.0
    span: float = 1.0
    decay: float = 0.0
    count: Number = math.inf

    def full_scale(self) -> Number:
        """Return the scale, corrected for a beginning at zero; on a GPU that takes launches."""
        return self.scale / (1 - self.decay**self.count)


AverageOf = Callable[[Move], GradientAverage]


def gradient(move: Move) -> GradientAverage:
    """Return the gradient itself."""
    return GradientAverage()


def _momentum(move: Move) -> GradientAverage:
    mu = move.group["momentum"]
    if mu == 0:
        return GradientAverage()
    return GradientAverage("momentum_buffer", 1 / move.gain, 1 / (1 - mu))


def _decayed(key: str, beta: float, count: Number) -> GradientAverage:
    """Return an average that begins at zero, which is corrected for."""
    return GradientAverage(key, 1.0, 1 / (1 - beta), beta, count)


def _first_moment(move: Move) -> GradientAverage:
    return _decayed("exp_avg", float(move.group["betas"][0]), _number(move.state["step"]))


def _lions_average(move: Move) -> GradientAverage:
    if "exp_avg" not in move.state:
        return GradientAverage()
    return _decayed("exp_avg", float(move.group["betas"][1]), float(move.count))


def _muons_average(move: Move) -> GradientAverage:
    return _decayed("momentum_buffer", float(move.group["momentum"]), float(move.count))


# What averages of gradients an optimizer keeps, by its step size; no entry: none. None: its iterate
# is the prox of an average of all gradients, so that noise does not wake its zeros.
AVERAGES: dict[StepSizeOf, AverageOf | None] = {
    _sgd: _momentum,
    **dict.fromkeys((_adam, _nadam, _radam, _adamax), _first_moment),
    _lion: _lions_average,
    _muon: _muons_average,
    **dict.fromkeys((_rmda, _ramda)),
}
# Those whose step is read off the move itself, so that the weights before it have to be kept.
SEEN_BY_THEIR_MOVE = (_muon,)


def step_size_of(optimizer: optim.Optimizer) -> StepSizeOf | None:
    """Return the step size of this optimizer; None where it is not known.

    A subclass has that of its parent unless it changes `step`.
    """
    own = inspect.unwrap(type(optimizer).step)
    for known, step_size in STEP_SIZES.items():
        if isinstance(optimizer, known) and own is inspect.unwrap(known.step):
            return step_size
    return FOREIGN_STEP_SIZES.get(type(optimizer).__name__)


def warn_of_unknown(who: str) -> None:
    """Warn that the prox of an optimizer is taken with its plain learning rate."""
    warnings.warn(
        f"regkit does not know how far {who} moves along a gradient: the prox is taken with its "
        "learning rate as the step, so training converges to something else than the minimiser of "
        "the stated objective where this optimizer rescales or averages gradients; and where it "
        "evaluates averaged weights (schedule-free), zeros are none there. Known: "
        f"{known_optimizers()}.",
        stacklevel=4,
    )


def learning_rate(move: Move) -> StepSize:
    """Return the learning rate: the step of an optimizer that is not known better."""
    return StepSize(move.group["lr"])


def _number(value: Any) -> Any:
    """Read what the host holds; what a GPU holds stays there."""
    if isinstance(value, Tensor):
        return value.item() if value.device.type == "cpu" else value
    return float(value)


def known_optimizers() -> str:
    """Return their names, for a message."""
    return ", ".join([*(known.__name__ for known in STEP_SIZES), *FOREIGN_STEP_SIZES])


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor) / max(tensor.numel(), 1) ** 0.5
