"""Threshold operators of concave penalties: small entries become zero, large ones stay as they are.

Every operator here returns the global minimiser at every step, entry by entry: where the step
exceeds what keeps the problem convex, it jumps. `step` is >= 0, a number or a tensor that
broadcasts to `v`; step 0 changes nothing. NaN stays NaN.
"""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.broadcast import as_tensor
from regkit.ops.workspace import workspace

# A slope that stands for a jump: two floats differ by so much that, times this, the difference
# exceeds both. Maximum and minimum of lines spare a `where` on the values, whose branch a CPU
# cannot foresee.
STEEP = 1e30

# Where `half_threshold` starts to look for its root: the fit 1 + c1 q + ... + c4 q^4 of least
# maximum error up to HALF_END, 5e-5; one Newton step makes that 6e-9, two 8e-16.
HALF_START = (-0.49491819, -0.52930979, 0.88090704, -4.97618476)
HALF_STEPS = {torch.float64: 2}
HALF_END = 0.5 * 1.5**-1.5


def hard_threshold(
    v: Float[Tensor, "*shape"], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """Set entries of size up to `threshold` to zero and leave the others.

    argmin_x  (x - v)^2 / 2  +  threshold^2 / 2 [x != 0]

    threshold: >= 0, broadcasts to `v`.
    """
    return _within(v, v.abs().sub_(as_tensor(threshold, v)).mul_(STEEP))


def mcp_threshold(
    v: Float[Tensor, "*shape"], step: float | Float[Tensor, "..."], lam: float, gamma: float
) -> Float[Tensor, "*shape"]:
    """Zero up to step * lam, untouched from gamma * lam on, linear in between (firm threshold).

    argmin_x  (x - v)^2 / (2 step)  +  lam |x| - x^2 / (2 gamma),  constant from gamma lam on

    From step = gamma on the problem is concave up to there, and the line a jump: hard threshold at
    lam sqrt(step gamma), which is below step lam from there on and above it before.
    Source: Zhang, Annals of Statistics 38 (2010), 894-942, equation 2.6 (penalty); Gao and Bruce,
    Statistica Sinica 7 (1997), 855-874 (firm threshold).
    """
    step = as_tensor(step, v)
    zero, share = workspace(step, 2)
    torch.sqrt(step, out=zero).mul_(sqrt(gamma))
    torch.minimum(zero, step, out=zero).mul_(lam)
    torch.div(step, gamma, out=share)
    return _within(v, v.abs().sub_(zero).div_(_flatness(share)))


def scad_threshold(
    v: Float[Tensor, "*shape"], step: float | Float[Tensor, "..."], lam: float, a: float
) -> Float[Tensor, "*shape"]:
    """Soft-threshold small entries, leave those from a * lam on, linear in between.

    argmin_x  (x - v)^2 / (2 step)  +  SCAD(x)

    The line starts at lam, for v = (1 + step) lam. From step = a - 1 on it is a jump: soft
    threshold up to where it costs as much as staying. That is at lam (a + 1 + step) / 2, or, where
    the soft threshold is still zero there (step > a + 1), at lam sqrt(step (a + 1)). In its own
    range each of the three is the least, the last one with a step of at least a + 1.
    Source: Fan and Li, JASA 96 (2001), 1348-1360, equation 2.8 (step 1).
    """
    step = as_tensor(step, v)
    start, other = workspace(step, 2)
    torch.clamp_min(step, a + 1, out=start).sqrt_().mul_(sqrt(a + 1))
    torch.minimum(start, torch.add(step, 1, out=other), out=start)
    torch.minimum(start, torch.add(step, a + 1, out=other).div_(2), out=start).mul_(lam)
    line = v.abs()
    soft = line - step * lam
    line.sub_(start).div_(_flatness(torch.div(step, a - 1, out=other)))
    line.add_(torch.lt(step, a - 1, out=other), alpha=lam)
    return _within(v, torch.maximum(line, soft, out=line))


def log_sum_threshold(
    v: Float[Tensor, "*shape"], step: float | Float[Tensor, "..."], lam: float, eps: float
) -> Float[Tensor, "*shape"]:
    """Shrink every entry by step * lam / (1 + |x| / eps), the small ones to zero.

    argmin_x  (x - v)^2 / (2 step)  +  lam eps log(1 + |x| / eps)

    The larger root of (x - |v|)(x + eps) + step lam eps = 0 against zero, which costs less where
    |v| <= x/2 + step lam log(1 + |x| / eps) / (|x| / eps); so it does where there is no root.
    Source: Gong et al., ICML 2013 (GIST), section 2.2; Prater-Bennette, Shen and Tripp,
    Journal of Scientific Computing 90 (2022), section 3.
    """
    info = torch.finfo(v.dtype)
    step = as_tensor(step, v)
    threshold, bend = workspace(step, 2)
    size, root, x = workspace(v, 3)
    torch.abs(v, out=size)
    torch.mul(step, lam, out=threshold)
    # |v| - x, the smaller root of a quadratic: without cancellation, and 0 where the step is.
    torch.sqrt(threshold, out=bend).mul_(2 * sqrt(eps))
    torch.sub(size, bend, out=root).add_(eps).clamp_min_(0.0)
    root.mul_(torch.add(size, bend, out=x).add_(eps)).sqrt_().add_(size).add_(eps)
    torch.div(threshold, root, out=root).mul_(2 * eps)
    torch.sub(size, root, out=x).clamp_min_(0.0)
    share = torch.div(x, eps, out=root).clamp_(info.tiny, info.max)
    start = torch.log1p(share).div_(share).mul_(threshold).add_(x, alpha=0.5)
    torch.sub(size, start, out=start).mul_(STEEP)
    return _within(v, torch.minimum(start, x, out=start))


def half_threshold(
    v: Float[Tensor, "*shape"], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """Set entries of size up to 3/2 threshold^(2/3) to zero and shrink the others.

    argmin_x  (x - v)^2 / 2  +  threshold |x|^(1/2)

    x = |v| y^2 with the largest root of y^3 - y + q = 0, q = threshold |v|^(-3/2) / 2, by Newton
    steps: it is a simple one, between sqrt(2/3) and 1, up to the q from which on x is zero.
    threshold: >= 0, broadcasts to `v`.
    Source: Xu, Chang, Xu and Zhang, IEEE TNNLS 23 (2012), 1013-1027, equations 12 and 13.
    """
    q, y, slope = workspace(v, 3)
    torch.abs(v, out=y).clamp_min_(torch.finfo(v.dtype).tiny)
    torch.div(as_tensor(threshold, v), y, out=q).div_(y.sqrt_()).mul_(0.5)
    # Beyond its end any number will do that is as tame.
    q.clamp_max_(HALF_END + 1e-3)
    y.zero_()
    for coefficient in (*HALF_START[::-1], 1.0):
        y.mul_(q).add_(coefficient)
    for _ in range(HALF_STEPS.get(v.dtype, 1)):
        torch.pow(y, 3, out=slope).mul_(2).sub_(q)
        y.square_().mul_(3).sub_(1)
        torch.div(slope, y, out=y)
    q.neg_().add_(HALF_END).mul_(STEEP).clamp_min_(0.0)
    torch.minimum(y, q, out=y)
    return v * y.square_()


def _within(v: Tensor, bound: Tensor) -> Tensor:
    """Clip v to a size of `bound`, to 0 where that is negative; `bound` is lost."""
    x = torch.minimum(v, bound.clamp_min_(0.0))
    return torch.maximum(x, bound.neg_(), out=x)


def _flatness(share: Tensor) -> Tensor:
    """Return 1 / slope of the linear part for step over what makes it a jump; in place."""
    return share.neg_().add_(1.0).clamp_min_(1 / STEEP)
