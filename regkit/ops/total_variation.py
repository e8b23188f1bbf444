"""Neighbours drawn together along the last axis: exactly, in a diagonal metric, row by row.

In both, `step` is >= 0 and broadcasts to `v`; an entry of step 0 stays where it is and still draws
its neighbours. Columns are worked through one after the other, for all rows at once: the number of
operations depends on the shape alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.broadcast import as_tensor
from regkit.ops.workspace import workspace


def fuse(
    v: Float[Tensor, "rows size"], step: float | Float[Tensor, "..."]
) -> Float[Tensor, "rows size"]:
    """Make neighbours equal where their difference does not pay.

    argmin_x  sum_t (x_t - v_t)^2 / (2 step_t)  +  sum_t |x_t+1 - x_t|

    Let F_t(x) be the least cost of entries 1 to t with x_t = x. Its slope is
    F_t' = (x - v_t)/step_t + clip(F_t-1', -1, 1), and the minimiser runs backwards: x_t is x_t+1,
    clipped to where F_t' is -1 and +1. Those roots need no search: the root of a minimum of
    increasing functions is the maximum of their roots, and the clip is a minimum of a maximum.
    Source: Johnson, JCGS 22 (2013), 246-260, section 2 (the recursion); the closed form of its
    roots follows as said.
    """
    if v.shape[-1] < 2:
        return v
    values, steps, means, spans = workspace(v.t(), 4)
    _columns(v, out=values)
    _columns(as_tensor(step, v).expand_as(v), out=steps)
    low, high, edge = workspace(values[0], 3)
    for t in range(len(values) - 1, -1, -1):
        _runs(values, steps, t, means, spans, edge)
        # No later entry looks at the value here: its solution takes the place.
        x = values[t]
        if t == len(values) - 1:
            _root(means, spans, t, 0, x, edge)
            continue
        _root(means, spans, t, -1, low, edge)
        _root(means, spans, t, 1, high, edge)
        torch.maximum(values[t + 1], low, out=x)
        torch.minimum(x, high, out=x)
    return _rows(values)


def smooth(
    v: Float[Tensor, "rows size"], step: float | Float[Tensor, "..."]
) -> Float[Tensor, "rows size"]:
    """Draw neighbours towards each other in proportion to their difference.

    argmin_x  sum_t (x_t - v_t)^2 / (2 step_t)  +  1/2 sum_t (x_t+1 - x_t)^2

    Elimination in a tridiagonal system, x_t = pull_t x_t+1 + rest_t, with 1 - pull_t carried
    along, which would cancel at large steps.
    """
    if v.shape[-1] < 2:
        return v
    x, pulls = workspace(v.t(), 2)
    _columns(v, out=x)
    _columns(as_tensor(step, v).expand_as(v), out=pulls)
    slack, stiff = workspace(x[0], 2)
    slack.zero_()
    for t, (rest, pull) in enumerate(zip(x, pulls, strict=True)):
        own = slack.mul_(pull).add_(1)
        # The last one has no neighbour to come.
        torch.add(own, pull, out=stiff) if t < len(x) - 1 else stiff.copy_(own)
        slack = own.div_(stiff)
        pull.div_(stiff)
        rest.div_(stiff)
        if t > 0:
            rest.addcmul_(pull, x[t - 1])
    for t in range(len(x) - 2, -1, -1):
        x[t].addcmul_(pulls[t], x[t + 1])
    return _rows(x)


def _columns(v: Float[Tensor, "rows size"], out: Float[Tensor, "size rows"]) -> None:
    """Copy v so that each column lies in one piece.

    Column by column, there and back: a CPU is slow to transpose a matrix as narrow as that.
    """
    torch.stack(v.unbind(-1), out=out)


def _rows(columns: Float[Tensor, "size rows"]) -> Float[Tensor, "rows size"]:
    rows = columns.new_empty(columns.shape[::-1])
    for target, column in zip(rows.unbind(-1), columns, strict=True):
        target.copy_(column)
    return rows


def _runs(
    values: Tensor, steps: Tensor, end: int, means: Tensor, spans: Tensor, share: Tensor
) -> None:
    """Write mean and span of every run that ends at `end`, by where it starts; `share` is lost.

    The mean is weighted by 1/step, the span is 1 / (sum of 1/step).
    """
    means[end].copy_(values[end])
    spans[end].copy_(steps[end])
    tiny = torch.finfo(values.dtype).tiny
    for t in range(end - 1, -1, -1):
        torch.add(spans[t + 1], steps[t], out=share).clamp_min_(tiny)
        torch.div(spans[t + 1], share, out=share)
        torch.lerp(means[t + 1], values[t], share, out=means[t])
        torch.mul(steps[t], share, out=spans[t])


def _root(means: Tensor, spans: Tensor, end: int, slope: int, x: Tensor, edge: Tensor) -> None:
    """Write where F' of entry `end` equals `slope`; `edge` is lost."""
    torch.add(means[0], spans[0], alpha=slope, out=x)
    for mean, span in zip(means[1 : end + 1], spans[1 : end + 1], strict=True):
        torch.maximum(x, torch.add(mean, span, alpha=slope - 1, out=edge), out=x)
        torch.minimum(x, torch.add(mean, span, alpha=slope + 1, out=edge), out=x)
