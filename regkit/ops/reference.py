"""The passes in plain torch, tensor by tensor: what every kernel is held against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from regkit.ops.formula import NUM_COEFFICIENTS, Coefficients, Formula
from regkit.ops.gate import keep_zeros, recorded
from regkit.ops.kernel_args import SIZES, STRIDES, GroupAxis, KernelArgs, LaunchTable, Param


def prepare(
    args: KernelArgs, formulas: Sequence[Formula], metric: str, update: str = "none"
) -> LaunchTable | None:
    """Serve everything: there is nothing to lay down."""
    return LaunchTable(())


def refresh(table: LaunchTable, args: KernelArgs) -> LaunchTable | None:
    """Return the table, which holds no addresses."""
    return table


def run(
    args: KernelArgs,
    table: LaunchTable,
    params: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    update: str,
    metric: str,
    formulas: Sequence[Formula],
) -> None:
    """Make the pass over entries or groups, on any device."""
    if skip is not None and bool(skip != 0):
        return
    if args.geometry is None:
        _entries(args, params, scale, update, metric, formulas)
    else:
        _groups(args, args.geometry, params, scale, update, metric, formulas)


def _entries(
    args: KernelArgs,
    params: Tensor,
    scale: Tensor | None,
    update: str,
    metric: str,
    formulas: Sequence[Formula],
) -> None:
    for place, weight in enumerate(args.weights):
        param = params[args.param_row[place]].tolist()
        x = _updated(args, place, param, update, scale)
        step = _step(args, place, param, metric)
        for formula, coefficients in _chain(formulas, param):
            x = formula.prox(x, step, param[Param.LR], coefficients)
        if args.gates:
            gate = args.gates[place]
            weight.copy_(keep_zeros(x, gate))
            gate.copy_(recorded(gate, weight == 0))
        else:
            weight.copy_(x)


def _groups(
    args: KernelArgs,
    geometry: Tensor,
    params: Tensor,
    scale: Tensor | None,
    update: str,
    metric: str,
    formulas: Sequence[Formula],
) -> None:
    weights = args.weights
    for number, group_set in enumerate(geometry[:, GroupAxis.BUNDLE].unique().tolist()):
        pieces = geometry[geometry[:, GroupAxis.BUNDLE] == group_set].tolist()
        xs, steps = [], []
        for piece in pieces:
            place = piece[GroupAxis.WEIGHT]
            param = params[args.param_row[place]].tolist()
            x = _updated(args, place, param, update, scale)
            step = torch.as_tensor(
                _step(args, place, param, metric), dtype=x.dtype, device=x.device
            )
            step = step.expand_as(x).clone()
            for tensor, rows in ((_like(weights[place], step), steps), (x, xs)):
                rows.append(_seen(tensor, piece).reshape(_num_groups(piece), -1))
        rows, step = torch.cat(xs, 1), torch.cat(steps, 1)
        if metric == "scalar" and bool((step == step[0, 0]).all()):
            step = float(step[0, 0])
        param = params[args.param_row[pieces[0][GroupAxis.WEIGHT]]].tolist()
        ((formula, coefficients),) = _chain(formulas, param)
        rows = formula.prox(rows, step, param[Param.LR], coefficients)
        if args.gates:
            gate = args.gates[number]
            rows = keep_zeros(rows, gate)
            written = rows.to(weights[pieces[0][GroupAxis.WEIGHT]].dtype)
            gate.copy_(recorded(gate, (written == 0).all(1)))
        for piece, part in zip(pieces, rows.split([x.shape[1] for x in xs], 1), strict=True):
            seen = _seen(weights[piece[GroupAxis.WEIGHT]], piece)
            seen.copy_(part.reshape(seen.shape))


def _like(weight: Tensor, values: Tensor) -> Tensor:
    """Lay values out in memory as the weight."""
    return torch.empty_like(weight, dtype=values.dtype).copy_(values)


def _seen(tensor: Tensor, piece: list[int]) -> Tensor:
    """Return (groups in two axes, entries in three), a view."""
    sizes, steps = [piece[a] for a in SIZES], [piece[a] for a in STRIDES]
    return tensor.as_strided(sizes, steps, tensor.storage_offset() + piece[GroupAxis.OFFSET])


def _num_groups(piece: list[int]) -> int:
    return piece[GroupAxis.COUNT1] * piece[GroupAxis.COUNT2]


def _chain(formulas: Sequence[Formula], param: list[float]) -> list[tuple[Formula, Coefficients]]:
    begins = [Param.FIRST + k * NUM_COEFFICIENTS for k in range(len(formulas))]
    return [
        (formula, tuple(param[begin : begin + NUM_COEFFICIENTS]))
        for formula, begin in zip(formulas, begins, strict=True)
    ]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _updated(
    args: KernelArgs, place: int, param: list[float], update: str, scale: Tensor | None
) -> Tensor:
    """Return the weight as the optimizer moves it; its states are advanced."""
    x = _like(args.weights[place], _wide(args.weights[place]))
    if update == "none":
        return x
    g = _wide(args.grads[place]) / (1.0 if scale is None else scale.reshape(()))
    if update == "sgd":
        g = g + param[Param.DECAY] * x
        if not args.exp_avgs:
            return x.sub_(param[Param.LR] * g)
        first = args.exp_avgs[place]
        buffer = (1 - param[Param.REST1]) * _wide(first) + param[Param.REST2] * g
        first.copy_(buffer)
        ahead = g + (1 - param[Param.REST1]) * buffer if param[Param.NESTEROV] else buffer
        return x.sub_(param[Param.LR] * ahead)
    first = args.exp_avgs[place]
    first.lerp_(g.to(first.dtype), param[Param.REST1])
    second = args.exp_avg_sqs[place]
    second.lerp_(g.square().to(second.dtype), param[Param.REST2])
    if args.max_exp_avg_sqs:
        torch.maximum(args.max_exp_avg_sqs[place], second, out=args.max_exp_avg_sqs[place])
    correction = -torch.expm1(args.step_counts[place].double() * param[Param.LOG_BETA1])
    move = param[Param.LR] / correction.to(x.dtype) * _wide(first) / _scale_of(args, place, param)
    return x.mul_(1 - param[Param.LR] * param[Param.DECAY]).sub_(move)


def _scale_of(args: KernelArgs, place: int, param: list[float]) -> Tensor:
    second = _wide((args.max_exp_avg_sqs or args.exp_avg_sqs)[place])
    correction = 1.0
    if args.step_counts:
        correction = -torch.expm1(args.step_counts[place].double() * param[Param.LOG_BETA2]).to(
            second
        )
    return second.sqrt() / correction**0.5 + param[Param.EPS]


def _step(args: KernelArgs, place: int, param: list[float], metric: str) -> float | Tensor:
    return (
        param[Param.RATE]
        if metric == "scalar"
        else param[Param.RATE] / _scale_of(args, place, param)
    )
