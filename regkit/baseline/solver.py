"""Sparse logistic regression: the minimiser at one strength after the other, by proximal steps."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.optim.fused_optimizers import ProxSGD
from regkit.optim.schedule import Schedule
from regkit.penalties import L1
from regkit.regularizer.bound_penalty import bind
from regkit.regularizer.regularizer import Regularizer
from regkit.selection.layers import head_bound

TOLERANCE = 1e-3  # of the optimality conditions, in units of lam
MOST_STEPS = 100_000  # at one strength; a few hundred to a few thousand are usual

Inputs = Float64[Tensor, "videos features"]
Labels = Int64[Tensor, " videos"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was fitted at a strength.

    residual: by how much the optimality conditions are missed at most, in units of lam.
    """

    weight: Float64[Tensor, "classes features"]
    bias: Float64[Tensor, " classes"]
    residual: float = math.inf

    @property
    def live(self) -> Bool[Tensor, " features"]:
        """Say which features any class uses."""
        return (self.weight != 0).any(0)

    def probabilities(self, x: Inputs) -> Float64[Tensor, "videos classes"]:
        """Return the probability of each class."""
        return (x @ self.weight.T + self.bias).softmax(1)


def lam_max(x: Inputs, y: Labels, num_classes: int) -> float:
    """Return the strength from which on all weights are zero.

    Raises: InputError when there is none: no feature says anything.
    """
    model = nn.Linear(x.shape[1], num_classes, dtype=x.dtype)
    found = head_bound(model, bind(model, "l1", L1(1.0, params="weight")), [(x, y)]).lam
    if not found:
        raise InputError("hog found no feature that differs between videos. Look at the videos.")
    return found


def fit(lam: float | int, x: Inputs, y: Labels, num_classes: int, start: Fitted | None) -> Fitted:
    """Minimise  mean cross-entropy + lam ||weight||_1,  from what another strength gave.

    Only features in use take part, and those that violate the optimality conditions, which join
    until none is left.

    Raises: InputError when it does not converge.
    """
    fitted = _nothing(y, num_classes, x.shape[1]) if start is None else start
    used = fitted.live | _violating(lam, x, y, fitted)
    while used.any():
        fitted = _minimised(lam, x, y, used, fitted)
        missed = ~used & _violating(lam, x, y, fitted)
        if not missed.any():
            break
        used = used | missed
    slopes, _ = _slopes(x, y, fitted.weight, fitted.bias)
    return Fitted(fitted.weight, fitted.bias, _residual(lam, slopes, fitted.weight))


def _nothing(y: Labels, num_classes: int, num_features: int) -> Fitted:
    # Half a video of a class that has none: its constant would be minus infinity.
    shares = y.bincount(minlength=num_classes).double().clamp(min=0.5) / len(y)
    weight = torch.zeros(num_classes, num_features, dtype=torch.float64)
    return Fitted(weight, shares.log() - shares.log().mean())


def _slopes(x: Inputs, y: Labels, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    wrong = (x @ weight.T + bias).softmax(1)
    wrong[torch.arange(len(y)), y] -= 1
    wrong /= len(y)
    return wrong.T @ x, wrong.sum(0)


def _violating(lam: float | int, x: Inputs, y: Labels, fitted: Fitted) -> Tensor:
    slopes, _ = _slopes(x, y, fitted.weight, fitted.bias)
    return slopes.abs().amax(0) > lam * (1 + TOLERANCE)


def _residual(lam: float | int, slopes: Tensor, weight: Tensor) -> float:
    alive = (slopes + lam * weight.sign()).abs()
    dead = (slopes.abs() - lam).clamp(min=0)
    return float(torch.where(weight != 0, alive, dead).max()) / lam


@torch.no_grad()
def _minimised(lam: float | int, x: Inputs, y: Labels, used: Tensor, start: Fitted) -> Fitted:
    """Take accelerated proximal steps until one moves by next to nothing.

    The momentum is forgotten where it points uphill.

    Source: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009), section 4; O'Donoghue and Candes,
    Found. Comput. Math. 15 (2015), equation 13.
    """
    x = x[:, used]
    model = nn.Linear(x.shape[1], len(start.bias), dtype=x.dtype)
    parameters = [model.weight, model.bias]
    step = 1 / _curvature(x)
    optimizer = ProxSGD(parameters, lr=step)
    # Gradients are of all videos: there is no noise to wake a zero.
    schedule = Schedule(holds_zeros=False)
    reg = Regularizer(model, L1(lam), schedule=schedule).attach(optimizer)
    now = [start.weight[:, used], start.bias]
    ahead, momentum = now, 1.0
    for _ in range(MOST_STEPS):
        last = now
        for p, value, slope in zip(parameters, ahead, _slopes(x, y, *ahead), strict=True):
            p.copy_(value)
            p.grad = slope
        optimizer.step()
        now = [p.detach().clone() for p in parameters]
        moves = [a - b for a, b in zip(ahead, now, strict=True)]
        if max(float(move.abs().max()) for move in moves) <= TOLERANCE / 2 * step * lam:
            reg.detach()
            weight = torch.zeros_like(start.weight)
            weight[:, used] = now[0]
            return Fitted(weight, now[1])
        shifts = [a - b for a, b in zip(now, last, strict=True)]
        if sum(float((m * s).sum()) for m, s in zip(moves, shifts, strict=True)) > 0:
            momentum = 1.0
        before, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        share = (before - 1) / momentum
        ahead = [a + share * shift for a, shift in zip(now, shifts, strict=True)]
    raise InputError(
        f"hog: the fit at lam={lam:g} has not converged in {MOST_STEPS} steps. Give a larger "
        "--lam-min-ratio."
    )


def _curvature(x: Inputs) -> float:
    """Bound the largest curvature of the mean cross-entropy, the constant included.

    lambda_max(X' X) / (2 n),   X with a column of ones

    Source: Boehning, Ann. Inst. Stat. Math. 44 (1992), 197-200.
    """
    wide = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    gram = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    return float(torch.linalg.eigvalsh(gram)[-1]) / (2 * len(x))
