"""The bodies of the ops in plain torch, tensor by tensor: what every kernel is held against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from regkit.ops.formulas import FORMULAS, NUM_COEFFICIENTS, Coefficients, Formula
from regkit.ops.kernel_args import LIBRARY, GroupAxis, KernelArgs, Param


def reference_entries(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    maxes: list[Tensor],
    counts: list[Tensor],
    which: list[int],
    rules: Tensor,
    numbers: list[Tensor] | None,
    skip: Tensor | None,
    scale: Tensor | None,
    tally: Tensor | None,
    update: str,
    metric: str,
    formulas: list[str],
) -> None:
    """Be the body of `regkit::sweep_entries` on any device, tensor by tensor."""
    work = KernelArgs(weights, which, seconds, counts, maxes, firsts, grads)
    if skip is not None and bool(skip != 0):
        return
    for place, weight in enumerate(weights):
        rule = rules[which[place]].tolist()
        x = _updated(work, place, rule, update, scale)
        step = _step(work, place, rule, metric)
        for formula, c in _chain(formulas, rule):
            x = formula.prox(x, rule[Param.LR] if formula.decoupled else step, c)
        weight.copy_(x)
        if tally is not None:
            value = sum(formula.value(x, c).sum() for formula, c in _chain(formulas, rule))
            tally[place] = torch.stack([(x != 0).sum(), x.new_zeros(()), torch.as_tensor(value)])


def reference_groups(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    maxes: list[Tensor],
    counts: list[Tensor],
    which: list[int],
    rules: Tensor,
    geometry: Tensor,
    numbers: list[Tensor] | None,
    skip: Tensor | None,
    scale: Tensor | None,
    tally: Tensor | None,
    update: str,
    metric: str,
    formulas: list[str],
) -> None:
    """Be the body of `regkit::sweep_groups` on any device, bundle by bundle."""
    work = KernelArgs(weights, which, seconds, counts, maxes, firsts, grads)
    if skip is not None and bool(skip != 0):
        return
    for row, bundle in enumerate(geometry[:, GroupAxis.BUNDLE].unique().tolist()):
        pieces = geometry[geometry[:, GroupAxis.BUNDLE] == bundle].tolist()
        xs, steps = [], []
        for piece in pieces:
            place = piece[GroupAxis.WEIGHT]
            rule = rules[which[place]].tolist()
            x = _updated(work, place, rule, update, scale)
            step = torch.as_tensor(_step(work, place, rule, metric)).to(x).expand_as(x).clone()
            for tensor, rows in ((_like(weights[place], step), steps), (x, xs)):
                rows.append(_seen(tensor, piece).reshape(_num_groups(piece), -1))
        rows, step = torch.cat(xs, 1), torch.cat(steps, 1)
        if metric == "flat" and bool((step == step[0, 0]).all()):
            step = float(step[0, 0])
        rule = rules[which[pieces[0][GroupAxis.WEIGHT]]].tolist()
        ((formula, c),) = _chain(formulas, rule)
        rows = formula.prox(rows, step, c)
        for piece, part in zip(pieces, rows.split([x.shape[1] for x in xs], 1), strict=True):
            seen = _seen(weights[piece[GroupAxis.WEIGHT]], piece)
            seen.copy_(part.reshape(seen.shape))
        if tally is not None:
            live, value = (rows != 0).any(1).sum(), formula.value(rows, c).sum()
            tally[row] = torch.stack([(rows != 0).sum(), live, value])


def _like(weight: Tensor, values: Tensor) -> Tensor:
    """Lay values out in memory as the weight."""
    return torch.empty_like(weight, dtype=values.dtype).copy_(values)


def _seen(tensor: Tensor, piece: list[int]) -> Tensor:
    """Return (groups in two axes, entries in three), a view."""
    sizes = [
        piece[a]
        for a in (
            GroupAxis.COUNT1,
            GroupAxis.COUNT2,
            GroupAxis.SIZE1,
            GroupAxis.SIZE2,
            GroupAxis.SIZE3,
        )
    ]
    steps = [
        piece[a]
        for a in (
            GroupAxis.STRIDE1,
            GroupAxis.STRIDE2,
            GroupAxis.STEP1,
            GroupAxis.STEP2,
            GroupAxis.STEP3,
        )
    ]
    return tensor.as_strided(sizes, steps, tensor.storage_offset() + piece[GroupAxis.OFFSET])


def _num_groups(piece: list[int]) -> int:
    return piece[GroupAxis.COUNT1] * piece[GroupAxis.COUNT2]


def _chain(formulas: Sequence[str], rule: list[float]) -> list[tuple[Formula, Coefficients]]:
    found = []
    for k, name in enumerate(formulas):
        begin = Param.FIRST + k * NUM_COEFFICIENTS
        s0, s1, s2, c0, c1 = rule[begin : begin + NUM_COEFFICIENTS]
        found.append((FORMULAS[name], (s0, s1, s2, c0, c1)))
    return found


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _updated(
    work: KernelArgs, place: int, rule: list[float], update: str, scale: Tensor | None
) -> Tensor:
    """Return the weight as the optimizer moves it; its states are advanced."""
    x = _like(work.weights[place], _wide(work.weights[place]))
    if update == "none":
        return x
    g = _wide(work.grads[place]) / (1.0 if scale is None else scale.reshape(()))
    if update == "sgd":
        g = g + rule[Param.DECAY] * x
        if not work.firsts:
            return x.sub_(rule[Param.LR] * g)
        first = work.firsts[place]
        buffer = (1 - rule[Param.REST1]) * _wide(first) + rule[Param.REST2] * g
        first.copy_(buffer)
        ahead = g + (1 - rule[Param.REST1]) * buffer if rule[Param.NESTEROV] else buffer
        return x.sub_(rule[Param.LR] * ahead)
    first = work.firsts[place]
    first.lerp_(g.to(first.dtype), rule[Param.REST1])
    second = work.seconds[place]
    second.lerp_(g.square().to(second.dtype), rule[Param.REST2])
    if work.maxes:
        torch.maximum(work.maxes[place], second, out=work.maxes[place])
    correction = -torch.expm1(work.counts[place].double() * rule[Param.LOG_BETA1])
    move = rule[Param.LR] / correction.to(x.dtype) * _wide(first) / _scale_of(work, place, rule)
    return x.mul_(1 - rule[Param.LR] * rule[Param.DECAY]).sub_(move)


def _scale_of(work: KernelArgs, place: int, rule: list[float]) -> Tensor:
    second = _wide((work.maxes or work.seconds)[place])
    correction = 1.0
    if work.counts:
        correction = -torch.expm1(work.counts[place].double() * rule[Param.LOG_BETA2]).to(second)
    return second.sqrt() / correction**0.5 + rule[Param.EPS]


def _step(work: KernelArgs, place: int, rule: list[float], metric: str) -> float | Tensor:
    return rule[Param.RATE] if metric == "flat" else rule[Param.RATE] / _scale_of(work, place, rule)


LIBRARY.impl("sweep_entries", reference_entries, "CompositeExplicitAutograd")
LIBRARY.impl("sweep_groups", reference_groups, "CompositeExplicitAutograd")
