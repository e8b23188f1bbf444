"""The proxes that kernels know, by name: what each does to weights, and what it adds to F.

A formula is a function of a few coefficients; kernels have a body of their own for each, and the
one here is what they are held against.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regkit.ops.concave import (
    half_threshold,
    hard_threshold,
    log_sum_threshold,
    mcp_threshold,
    scad_threshold,
)
from regkit.ops.secular import shrink_rows
from regkit.ops.threshold import soft_threshold

# s0, s1, s2, c0, c1: the first three grow with the strength, the others do not.
Coefficients = tuple[float, float, float, float, float]
NUM_COEFFICIENTS = 5


@dataclass(frozen=True)
class Formula:
    """A prox and its value, by coefficients.

    prox: (weights, step, coefficients) -> weights; of rows (groups, size) where `grouped`.
    value: (weights, coefficients) -> what each entry (each row) adds to F.
    decoupled: the step is the learning rate itself, whatever the metric.
    """

    prox: Callable[[Tensor, float | Tensor, Coefficients], Tensor]
    value: Callable[[Tensor, Coefficients], Tensor]
    grouped: bool = False
    decoupled: bool = False


def _elastic(v: Tensor, step: float | Tensor, c: Coefficients) -> Tensor:
    return soft_threshold(v, step * c[0]) / (1 + step * c[1])


def _elastic_value(w: Tensor, c: Coefficients) -> Tensor:
    return c[0] * w.abs() + c[1] / 2 * w.square()


def _mcp_value(w: Tensor, c: Coefficients) -> Tensor:
    size = w.abs().clamp_max(c[3] * c[0])
    return size * (c[0] - size / (2 * c[3]))


def _scad_value(w: Tensor, c: Coefficients) -> Tensor:
    size, end = w.abs(), c[3] * c[0]
    bend = (size.clamp(c[0], end) - c[0]) / max(end - c[0], torch.finfo(w.dtype).tiny)
    return c[0] * size.clamp_max(c[0]) + c[0] * (end - c[0]) * bend * (1 - bend / 2)


def _box(v: Tensor, step: float | Tensor, c: Coefficients) -> Tensor:
    inside = v.clamp(c[3], c[4])
    return torch.where(torch.as_tensor(step, device=v.device) > 0, inside, v)


def _shrink(v: Tensor, step: float | Tensor, c: Coefficients) -> Tensor:
    thinned = soft_threshold(v, step * c[0]) if c[0] > 0 else v
    if c[2] > 0:
        divisor = 1 + step * c[2]
        return shrink_rows(thinned / divisor, step / divisor, c[1])
    return shrink_rows(thinned, step, c[1])


def _shrink_value(w: Tensor, c: Coefficients) -> Tensor:
    length = torch.linalg.vector_norm(w, dim=1)
    return c[0] * w.abs().sum(1) + c[1] * length + c[2] / 2 * length.square()


FORMULAS: dict[str, Formula] = {
    # soft(v, step s0) / (1 + step s1):  s0 |w| + s1/2 w^2
    "elastic": Formula(_elastic, _elastic_value),
    # v (1 - lr c0): decoupled weight decay
    "decay": Formula(lambda v, lr, c: v * (1 - lr * c[3]), lambda w, c: 0.0 * w, decoupled=True),
    # lam s0, gamma c0; lam s0, a c0
    "mcp": Formula(lambda v, t, c: mcp_threshold(v, t, c[0], c[3]), _mcp_value),
    "scad": Formula(lambda v, t, c: scad_threshold(v, t, c[0], c[3]), _scad_value),
    # s0 for every w that is not 0
    "hard": Formula(
        lambda v, t, c: hard_threshold(v, (2 * c[0] * t) ** 0.5), lambda w, c: c[0] * (w != 0).to(w)
    ),
    # s0 |w|^(1/2)
    "half": Formula(
        lambda v, t, c: half_threshold(v, c[0] * t), lambda w, c: c[0] * w.abs().sqrt()
    ),
    # s0 c0 log(1 + |w| / c0)
    "log_sum": Formula(
        lambda v, t, c: log_sum_threshold(v, t, c[0], c[3]),
        lambda w, c: c[0] * c[3] * torch.log1p(w.abs() / c[3]),
    ),
    # c0 <= w <= c1, where the step is not 0
    "box": Formula(_box, lambda w, c: 0.0 * w),
    # of rows: s0 ||w||_1 + s1 ||w|| + s2/2 ||w||^2
    "shrink": Formula(_shrink, _shrink_value, grouped=True),
}
