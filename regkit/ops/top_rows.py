"""Which rows of a matrix may differ from zero."""

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.broadcast import as_tensor


def keep_top_rows(
    v: Float[Tensor, "rows size"], step: float | Float[Tensor, "..."], k: int
) -> Float[Tensor, "rows size"]:
    """Keep the k rows that are dearest to lose; the others are zero. Waits for no device.

    argmin_x  sum_i (x_i - v_i)^2 / (2 step_i),  at most k rows of x not zero

    Losing a row costs the sum of v_i^2 / (2 step_i). Entries of step 0 stay whatever they are, and
    their rows are counted first; NaN stays NaN.
    step: >= 0, broadcasts to `v`.
    """
    if k >= len(v) or v.numel() == 0:
        return v
    step = as_tensor(step, v).expand_as(v)
    fixed = step == 0
    # As roots, and relative to the largest, so that neither squares nor steps over- or underflow.
    cost = torch.where(fixed, 0.0, v.abs() / step.sqrt())
    info = torch.finfo(v.dtype)
    cost = cost / cost.nan_to_num(0.0).amax().clamp_min(info.tiny * info.eps)
    cost = torch.linalg.vector_norm(cost, dim=1)
    cost = cost.masked_fill((fixed & (v != 0)).any(1), torch.inf)
    top = torch.zeros_like(cost, dtype=torch.bool)
    top[cost.topk(k).indices] = True
    return torch.where(top[:, None] | fixed | v.isnan(), v, 0.0)
