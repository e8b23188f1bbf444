"""The one equation behind every group norm: shrink rows in a diagonal metric."""

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.broadcast import as_tensor
from regkit.ops.concave import mcp_threshold
from regkit.ops.workspace import workspace

# Evaluations of the secular equation. The worst error found in double precision over metric spreads
# of 1e8, relative to the row's norm, is 7e-5 after three, then 5e-6, 2e-8, 5e-12, 6e-16.
EVALUATIONS = {torch.float32: 4, torch.float64: 7}
# The same beyond the convex range, where fewer bounds hold.
FOLDED_EVALUATIONS = {torch.float32: 6, torch.float64: 9}
# A bracket wider than this is halved (in logarithms); in a narrower one the model is trusted.
WIDE = 4.0
# A lower bound below this share of the upper one says nothing yet.
LEAST_SHARE = 0.03
# Rows shorter than this are laid side by side, so that sums run along the long axis.
SHORT = 64


def shrink_rows(
    z: Float[Tensor, "groups size"],
    step: float | Float[Tensor, "..."],
    tau: float | Float[Tensor, "..."],
) -> Float[Tensor, "groups size"]:
    """Shrink every row towards zero in the metric 1/step; short rows become exactly zero.

    argmin_x  sum_i (x_i - z_i)^2 / (2 step_i)  +  tau ||x||        in every row
        = z_i s / (s + tau step_i),   s = ||x||,     and 0 where ||z / step|| <= tau

    step: >= 0, broadcasts to `z`; an entry with step 0 keeps its value, bit for bit.
    tau: >= 0; a number, or one a row (groups, 1).
    Accuracy in float32, metric spreads up to 1e8: ||error|| <= 1e-5 ||z||; a row that is alive by
    less than rounding is put to zero. A row with NaN or infinity becomes NaN.
    Source: the secular equation of trust regions, Conn, Gould and Toint (2000), section 7.3; its
        bounds by quadrature, Golub and Meurant, Matrices, Moments and Quadrature (2010), ch. 6.
    """
    if z.numel() == 0:
        return z.clone()
    rows = z.to(torch.promote_types(z.dtype, torch.float32))
    if _is_constant_in_rows(step):
        length, scaled = _length(rows)
        factor = 1 - step * tau / _above_zero(length)
        factor = torch.where(factor <= 8 * torch.finfo(rows.dtype).eps, 0.0, factor)
        return torch.mul(rows, factor, out=scaled).to(z.dtype)
    step = as_tensor(step, rows).expand(z.shape)
    tau = as_tensor(tau, rows).expand(len(z), 1)
    return _metric_shrunk(rows, step, tau, 0.0).to(z.dtype)


def fold_rows(
    z: Float[Tensor, "groups size"],
    step: float | Float[Tensor, "..."],
    tau: float,
    gamma: float,
) -> Float[Tensor, "groups size"]:
    """Shrink short rows, leave long ones: the prox of MCP of a row's length, in the metric 1/step.

    argmin_x  sum_i (x_i - z_i)^2 / (2 step_i)  +  P(||x||)        in every row, globally,
    P(s) = tau s - s^2 / (2 gamma) up to s = gamma tau, constant from there on

    Every stationary point is 0, z where ||z|| >= gamma tau, or x_i = z_i / (1 + mu step_i) with
    ||x|| = tau / (mu + 1/gamma), mu > 0. Times mu + 1/gamma, ||x|| falls in mu, then rises: its
    derivative, times a positive factor, is sum_i z_i^2 / step_i^2 (1/step_i - 1/gamma)
    ((mu + 1/gamma) / (mu + 1/step_i))^3, in which every term rises. So one crossing goes up, and
    only that one is a minimum: three candidates, and their objectives decide. No bound on `step`.

    step: >= 0, broadcasts to `z`; an entry with step 0 keeps its value, bit for bit.
    """
    if z.numel() == 0:
        return z.clone()
    rows = z.to(torch.promote_types(z.dtype, torch.float32))
    if _is_constant_in_rows(step):
        length, scaled = _length(rows)
        factor = mcp_threshold(length, step, tau, gamma) / _above_zero(length)
        return torch.mul(rows, factor, out=scaled).to(z.dtype)
    step = as_tensor(step, rows).expand(z.shape)
    taus = as_tensor(tau, rows).expand(len(z), 1)
    return _metric_shrunk(rows, step, taus, 1 / gamma).to(z.dtype)


def _is_constant_in_rows(step: float | Tensor) -> bool:
    return not isinstance(step, Tensor) or step.ndim == 0 or step.shape[-1] == 1


def _above_zero(length: Tensor) -> Tensor:
    return length.clamp_min(torch.finfo(length.dtype).tiny)


def _metric_shrunk(rows: Tensor, step: Tensor, tau: Tensor, concavity: float) -> Tensor:
    """Divide every row by 1 + step * its multiplier, or by infinity where it dies."""
    if rows.shape[1] < SHORT < len(rows):
        across = (rows.t().contiguous(), step.t().contiguous(), tau.t())
        mu, dead = (found.t() for found in _multiplier(*across, concavity, dim=0))
    else:
        mu, dead = _multiplier(rows, step, tau, concavity, dim=1)
    # max^2 is infinite after all but a zero, so a dead row is divided by 1 where the step is 0, and
    # by infinity elsewhere.
    much = torch.full_like(mu, torch.finfo(rows.dtype).max)
    divisor = step * torch.where(dead, much, mu)
    divisor.mul_(torch.where(dead, much, 1.0)).add_(1.0)
    return torch.div(rows, divisor, out=divisor)


def _length(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return every row's norm, whatever its scale, and a tensor to write to."""
    largest = _largest(rows, dim=1)
    scaled = rows / largest
    return torch.linalg.vector_norm(scaled, dim=1, keepdim=True) * largest, scaled


def _multiplier(
    rows: Tensor, step: Tensor, tau: Tensor, concavity: float, dim: int
) -> tuple[Tensor, Tensor]:
    """Return mu of every row, x_i = z_i / (1 + mu step_i), and where the row dies instead.

    Unknown is s = ||x||, a root of F(s) = sum z_i^2 / (s + mu s step_i)^2 = 1, where mu is
    tau / s - concavity; s and tau are kept in units of the row's largest entry. The entries of a
    row lie along `dim`.
    """
    info = torch.finfo(rows.dtype)
    z, r, u = workspace(rows, 3)
    largest = _largest(rows, dim)
    torch.div(rows, largest, out=z)
    tau = (tau / largest).clamp_max_(info.max)
    # Below eps^2 a threshold moves no entry; it only has to be no division by zero.
    torch.mul(step, tau, out=u).add_(info.eps**2)
    norm = torch.square(z, out=r).sum(dim, keepdim=True).sqrt_()
    between = r.div_(u).sum(dim, keepdim=True)
    inverse = r.div_(u).sum(dim, keepdim=True).sqrt_()
    s, upper = _start(norm, inverse, between)
    if concavity > 0:
        s, upper = _start_folded(s, norm, inverse, tau / concavity)
    lower = torch.zeros_like(s)
    dead = inverse <= 1 + 8 * info.eps
    for _ in range((FOLDED_EVALUATIONS if concavity > 0 else EVALUATIONS)[rows.dtype]):
        torch.mul(step, _mu(tau, s, concavity), out=u).add_(1.0)
        unit = s * s
        m0 = torch.div(z, u, out=r).square_().sum(dim, keepdim=True).div_(unit)
        m1 = r.div_(u).sum(dim, keepdim=True).div_(unit)
        m2 = r.div_(u).sum(dim, keepdim=True).div_(unit)
        if concavity > 0:
            s, lower, upper = _closer_folded(s, lower, upper, (m0, m1, m2), s * concavity / tau)
        else:
            s, lower, upper = _closer(s, lower, upper, (m0, m1, m2))
        # On a CPU it costs nothing to ask whether every bracket has closed, mostly after one or
        # two evaluations: s cannot leave it. On a GPU it would mean to wait for it.
        if rows.device.type == "cpu" and _have_closed(lower, upper, dead):
            break
    mu = _mu(tau, s, concavity)
    if concavity > 0:
        torch.mul(step, mu, out=u).add_(1.0)
        torch.div(z, u, out=r).square_()
        length = r.sum(dim, keepdim=True).sqrt_()
        pull = mu.square() * r.mul_(step).sum(dim, keepdim=True)
        cap = tau / concavity
        rise = concavity * (cap - length).clamp_min(0.0).square()
        whole = (norm >= cap) & torch.where(dead, between > cap, pull >= rise)
        dead, mu = dead & ~whole, torch.where(whole, 0.0, mu)
    return mu, dead


def _have_closed(lower: Tensor, upper: Tensor, dead: Tensor) -> bool:
    return bool(((upper - lower <= 4 * torch.finfo(lower.dtype).eps * lower) | dead).all())


def _mu(tau: Tensor, s: Tensor, concavity: float) -> Tensor:
    return (tau / s).sub_(concavity).clamp_(0.0, torch.finfo(s.dtype).max)


def _largest(rows: Tensor, dim: int) -> Tensor:
    largest = torch.maximum(rows.amax(dim, keepdim=True), rows.amin(dim, keepdim=True).neg_())
    return largest.clamp_min_(torch.finfo(rows.dtype).tiny)


def _start(norm: Tensor, inverse: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """Guess the root from ||z||, ||z / c|| and sum z^2 / c; return it with an upper bound.

    1 / sqrt(F) is concave, 1 / ||z/c|| at 0 and s / ||z|| far out: their sum bounds it from below,
    and meets it where c is constant. The guess is the p-norm of the two, p from the area under F.
    """
    eps = torch.finfo(norm.dtype).eps
    power = 1 - (between / (norm * inverse)).clamp_max_(1.0).log_()
    share = torch.expm1(-inverse.log() / power).neg_().clamp_min_(0.0)
    upper = (norm - norm / inverse).clamp_min_(eps / 8)
    return torch.minimum(norm * share**power, upper).clamp_min_(eps / 8), upper


def _closer(
    s: Tensor, lower: Tensor, upper: Tensor, moments: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Narrow the bracket and move s within it, by the moments of (z / (s + c))^2 over s / (s + c).

    Three quadrature rules, which bound F from one side each: one node (below), nodes at both ends
    (above), a node beside c = infinity (above to the right of s, below to the left).
    """
    tiny = torch.finfo(s.dtype).tiny
    m0 = moments[0]
    m1, m2 = (moment.clamp_min_(tiny) for moment in moments[1:])
    poles = torch.stack((m0 / m1, m1 / m2, torch.ones_like(s)))
    low, near, high = _root_of_model(s, poles, m0, m1).unbind()
    lower = torch.maximum(lower, low).maximum(torch.minimum(s, near))
    upper = torch.minimum(upper, high).minimum(torch.maximum(s, near)).maximum(lower)
    return _between(near.maximum(lower).minimum(upper), lower, upper), lower, upper


def _between(near: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return `near`, or the middle of a wide bracket."""
    middle = torch.maximum(lower, LEAST_SHARE * upper).mul_(upper).sqrt_()
    wide = torch.gt(upper, WIDE * lower, out=torch.empty_like(upper))
    return torch.lerp(near, middle, wide)


def _start_folded(s: Tensor, norm: Tensor, inverse: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    """Start from the chord of 1 / sqrt(F), which is concave, between 0 and `cap`, if it hits 1."""
    end = cap / norm
    chord = cap * (1 - 1 / inverse) / (end - 1 / inverse)
    upper = torch.where(end > 1, chord, cap).clamp_min(torch.finfo(s.dtype).eps / 8)
    return torch.where(end > 1, upper, torch.minimum(s, upper)), upper


def _closer_folded(
    s: Tensor,
    lower: Tensor,
    upper: Tensor,
    moments: tuple[Tensor, Tensor, Tensor],
    share: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `_closer` where F need not fall: only the tangent of 1 / sqrt(F) is a bound.

    share: s over the length from which on rows are left alone.
    """
    info = torch.finfo(s.dtype)
    m0, m1, m2 = moments
    rest = (1 - share).clamp_min(info.eps)
    slope = (m1 - share * m0) / rest
    bend = ((m2 - 2 * share * m1 + share.square() * m0) / rest.square()).clamp_min(info.tiny)
    falls = slope > 0
    slope = slope.clamp_min(info.tiny)
    left = (m0 > 1) & falls
    lower = torch.where(
        falls, torch.maximum(lower, _root_of_model(s, m0 / slope, m0, slope)), lower
    )
    lower = torch.minimum(torch.where(left, torch.maximum(lower, s), lower), upper)
    upper = torch.where(left, upper, torch.maximum(torch.minimum(upper, s), lower))
    middle = (torch.maximum(lower, LEAST_SHARE * upper) * upper).sqrt_()
    near = torch.clamp(_root_of_model(s, (slope / bend).clamp_max(1e6), m0, slope), lower, upper)
    return torch.where(falls & (upper <= WIDE * lower), near, middle), lower, upper


def _root_of_model(s: Tensor, pole: Tensor, m0: Tensor, m1: Tensor) -> Tensor:
    """Solve a / (x / s - 1 + pole)^2 + b = 1, value and slope at x = s being those of F."""
    excess = m0 - 1
    ratio = excess / (pole * m1).sub_(excess).clamp_min_(1e-12)
    return torch.addcdiv(s, pole * ratio * s, (ratio + 1).sqrt_().add_(1))
