"""Choose how many dead channels to cut: latency does not always fall with the width.

Kernels work on blocks of channels. A width that fills no block may be slower than the next one that
does (r3d_18 on a CPU: 80 of 128 channels are slower than 128).
"""

from typing import Any

from torch import nn

from regkit.pruning.latency import latency
from regkit.pruning.remove import first
from regkit.structure.removal import Dead, remove_channels
from regkit.structure.replica import replica

BLOCKS = (1, 4, 8, 16, 32, 64)
LEAST_GAIN = 0.05  # of the time, for which dead channels stay; less is lost in the noise

Cuts = dict[str, int]  # how many dead channels go, by the set


def fastest(model: nn.Module, dead: Dead, example: Any) -> Dead:
    """Return the dead channels to cut so that the model runs fastest on the example.

    Widths at and above the number of live channels are measured: the multiples of 1, 4, ..., 64,
    first the same for all sets, then set by set, those with the most dead channels first.

    model: a replica with all channels. Several dozens of models are measured, side by side.
    """
    most = {c.name: int(mask.sum()) for c, mask in dead}
    plans = {f"multiples of {block}": _rounded(dead, block) for block in BLOCKS}
    best = _best(model, dead, plans | {"all": dict.fromkeys(most, 0)}, example)
    alone = [c.name for c, _ in dead if c.together is None and most[c.name]]
    for name in sorted(alone, key=lambda name: -most[name]):
        counts = {_rounded(dead, block)[name] for block in BLOCKS} | {0}
        others = {str(n): best | {name: n} for n in sorted(counts)}
        best = _best(model, dead, {"best": best} | others, example)
    return _chosen(dead, best)


def _best(model: nn.Module, dead: Dead, plans: dict[str, Cuts], example: Any) -> Cuts:
    """Return the plan that cuts most of those that are as fast as the fastest, up to noise."""
    distinct: dict[tuple[int, ...], str] = {}
    for name, plan in plans.items():
        distinct.setdefault(tuple(plan.values()), name)
    if len(distinct) == 1:
        return next(iter(plans.values()))
    models = {name: _cut(model, _chosen(dead, plans[name])) for name in distinct.values()}
    times = {name: found.median for name, found in latency(models, example, 2.0).items()}
    allowed = min(times.values()) / (1 - LEAST_GAIN)
    quick = [plans[name] for name, time in times.items() if time <= allowed]
    return max(quick, key=lambda plan: sum(plan.values()))


def _rounded(dead: Dead, block: int) -> Cuts:
    """Return how many go where a multiple of `block` stays, or all."""
    return {c.name: max(0, len(mask) - -(-int((~mask).sum()) // block) * block) for c, mask in dead}


def _chosen(dead: Dead, cuts: Cuts) -> Dead:
    return [(c, first(mask, cuts[c.name])) for c, mask in dead]


def _cut(model: nn.Module, dead: Dead) -> nn.Module:
    smaller = replica(model)
    remove_channels(smaller, dead)
    return smaller
