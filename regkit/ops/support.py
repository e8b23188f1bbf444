"""Which entries may differ from zero."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regkit.ops.steps import as_tensor


def keep_n_of_m(
    v: Float[Tensor, "rows size"], step: float | Float[Tensor, "..."], n: int, m: int
) -> Float[Tensor, "rows size"]:
    """Keep the n entries of each m consecutive ones that are dearest to lose; the others are zero.

    argmin_x  sum_i (x_i - v_i)^2 / (2 step_i),  at most n of each m entries of x not zero

    Losing entry i costs v_i^2 / (2 step_i); among equals the first stays. Entries of step 0 stay
    whatever they are and are counted first. What is left over at the end of a row stays dense.
    step: >= 0, broadcasts to `v`.
    """
    whole = v.shape[1] - v.shape[1] % m
    if whole == 0:
        return v
    step = as_tensor(step, v).expand_as(v)
    blocks = v[:, :whole].unflatten(1, (-1, m))
    steps = step[:, :whole].unflatten(1, (-1, m))
    # The root of the cost neither overflows nor underflows. 0 / sqrt(0) is NaN: it stays, and takes
    # nobody's place, for it compares with none.
    cost = blocks.abs() / steps.sqrt()
    kept = torch.where((_rank(cost) < n) | (steps == 0), blocks, 0.0).flatten(1)
    return torch.cat([kept, v[:, whole:]], dim=1)


def _rank(cost: Float[Tensor, "rows blocks m"]) -> Int[Tensor, "rows blocks m"]:
    """Return how many entries of the block come before each, the dearest and the first ones."""
    rank = torch.zeros_like(cost, dtype=torch.int32)
    for j in range(cost.shape[-1]):
        one = cost[..., j : j + 1]
        rank[..., :j] += one > cost[..., :j]
        rank[..., j + 1 :] += one >= cost[..., j + 1 :]
    return rank
