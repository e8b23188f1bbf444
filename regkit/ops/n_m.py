"""Which entries may differ from zero."""

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.broadcast import as_tensor
from regkit.ops.workspace import workspace


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
    cost, bound = workspace(blocks, 2)
    torch.sqrt(step[:, :whole].unflatten(1, (-1, m)), out=bound)
    # The root of the cost neither overflows nor underflows. 0 / sqrt(0) is NaN: it stays, and takes
    # nobody's place, for it compares with none.
    torch.abs(blocks, out=cost).div_(bound)
    # More than there can be before an entry: one of step 0 stays.
    bound.eq_(0).mul_(m)
    # One contiguous tensor for each place in a block.
    bound += _places_left(cost.movedim(-1, 0).contiguous(), n).movedim(0, -1)
    # 0 stays 0, and anything above becomes infinite.
    largest = torch.finfo(v.dtype).max
    bound.clamp_min_(0).mul_(largest).mul_(largest)
    x = v.clone(memory_format=torch.contiguous_format)
    kept = x[:, :whole].unflatten(1, (-1, m))
    torch.minimum(kept, bound, out=kept)
    torch.maximum(kept, bound.neg_(), out=kept)
    return x


def _places_left(cost: Float[Tensor, "m rows blocks"], n: int) -> Float[Tensor, "m rows blocks"]:
    """Return n less how many of the block come before each: the dearer ones, the first of equals.

    Comparisons write numbers: a CPU is slow to convert truth values.
    """
    left = torch.full_like(cost, n)
    before = torch.empty_like(cost[0])
    for j, one in enumerate(cost):
        for i, other in enumerate(cost):
            if i != j:
                left[i].sub_((torch.gt if i < j else torch.ge)(one, other, out=before))
    return left
