"""Threshold operators of concave penalties: small entries become zero, large ones stay as they are.

Every operator here returns the global minimiser at every step, entry by entry: where the step
exceeds what keeps the problem convex, it jumps. `step` is >= 0, a number or a tensor that
broadcasts to `v`; step 0 changes nothing. NaN stays NaN.
"""

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.steps import as_tensor

# A slope that stands for a jump: two floats differ by so much that, times this, the difference
# exceeds both. Maximum and minimum of lines spare a `where` on the values, whose branch a CPU
# cannot foresee.
STEEP = 1e30


def hard_threshold(
    v: Float[Tensor, "*shape"], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """Set entries of size up to `threshold` to zero and leave the others.

    argmin_x  (x - v)^2 / 2  +  threshold^2 / 2 [x != 0]

    threshold: >= 0, broadcasts to `v`.
    """
    size = v.abs()
    return _below(size, _line(size, as_tensor(threshold, v), STEEP), v)


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
    size = v.abs()
    zero = lam * torch.minimum(step, step.sqrt() * sqrt(gamma))
    return _below(size, _line(size, zero, _slope(step / gamma)), v)


def scad_threshold(
    v: Float[Tensor, "*shape"], step: float | Float[Tensor, "..."], lam: float, a: float
) -> Float[Tensor, "*shape"]:
    """Soft-threshold small entries, leave those from a * lam on, linear in between.

    argmin_x  (x - v)^2 / (2 step)  +  SCAD(x)

    The line starts at lam, for v = (1 + step) lam. From step = a - 1 on it is a jump: soft
    threshold up to where it costs as much as staying. That is at lam (a + 1 + step) / 2, or, where
    the soft threshold is still zero there (step > a + 1), at lam sqrt(step (a + 1)).
    Source: Fan and Li, JASA 96 (2001), 1348-1360, equation 2.8 (step 1).
    """
    step = as_tensor(step, v)
    size = v.abs()
    convex = step < a - 1
    jump = torch.where(step < a + 1, (a + 1 + step) * (lam / 2), step.sqrt() * (sqrt(a + 1) * lam))
    start = torch.where(convex, (1 + step) * lam, jump)
    line = (size - start).mul_(_slope(step / (a - 1))).add_(convex, alpha=lam)
    soft = _line(size, step * lam, 1.0)
    return _below(size, torch.maximum(soft, line, out=soft), v)


def log_sum_threshold(
    v: Float[Tensor, "*shape"], step: float | Float[Tensor, "..."], lam: float, eps: float
) -> Float[Tensor, "*shape"]:
    """Shrink every entry by step * lam / (1 + |x| / eps), the small ones to zero.

    argmin_x  (x - v)^2 / (2 step)  +  lam eps log(1 + |x| / eps)

    The larger root of (x - |v|)(x + eps) + step lam eps = 0 against zero; which of the two costs
    less is a question only where step lam > eps.
    Source: Gong et al., ICML 2013 (GIST), section 2.2; Prater-Bennette, Shen and Tripp,
    Journal of Scientific Computing 90 (2022), section 3.
    """
    threshold = as_tensor(step, v) * lam
    size = v.abs()
    bend = 2 * sqrt(eps) * threshold.sqrt()
    root = (size + eps - bend).clamp_min(0.0).sqrt() * (size + eps + bend).sqrt()
    # Two forms of the same root, each without cancellation on its side of eps.
    x = torch.where(
        size < eps,
        2 * eps * (size - threshold) / ((eps - size).clamp_min(0.0) + root),
        (size - eps) / 2 + root / 2,
    )
    x = x.clamp_min(0.0)
    excess = x * (x / 2 - size) + threshold * eps * torch.log1p(x / eps)
    zero = (threshold > eps) & ((size + eps < bend) | (excess >= 0))
    return torch.where(threshold > 0, torch.where(zero, 0.0, x).copysign(v), v)


def half_threshold(
    v: Float[Tensor, "*shape"], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """Set entries of size up to 3/2 threshold^(2/3) to zero and shrink the others.

    argmin_x  (x - v)^2 / 2  +  threshold |x|^(1/2)

    The largest root of a cubic, in trigonometric form.
    threshold: >= 0, broadcasts to `v`.
    Source: Xu, Chang, Xu and Zhang, IEEE TNNLS 23 (2012), 1013-1027, equations 12 and 13.
    """
    threshold = as_tensor(threshold, v)
    size = v.abs()
    limit = 1.5 * threshold.pow(2 / 3)
    ratio = (limit / size.clamp_min(torch.finfo(v.dtype).tiny)).clamp_max(1.0)
    angle = torch.acos(ratio * ratio.sqrt() / sqrt(2))
    shrunk = size * (2 / 3) * (1 + torch.cos(2 * pi / 3 - 2 / 3 * angle))
    kept = torch.minimum(_line(size, limit, STEEP), shrunk)
    return torch.where(threshold > 0, kept.copysign(v), v)


def _line(size: Tensor, start: Tensor, slope: float | Tensor) -> Tensor:
    """Return 0 up to `start`, rising by `slope` from there on."""
    return (size - start).mul_(slope).clamp_min_(0.0)


def _below(size: Tensor, line: Tensor, v: Tensor) -> Tensor:
    """Return `line` where it is below `size`, else `size`, with the signs of v; `line` is lost."""
    return torch.minimum(line, size, out=line).copysign_(v)


def _slope(share: Tensor) -> Tensor:
    """Return the slope of the linear part: step over what makes the problem concave -> slope."""
    return (1 - share).clamp_min_(1 / STEEP).reciprocal_()
