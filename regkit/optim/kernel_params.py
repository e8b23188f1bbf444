"""The numbers that kernels read beside the weights, a row for all weights that share them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.ops.formulas import NUM_COEFFICIENTS
from regkit.ops.kernel_args import NUM_PARAMS, Param
from regkit.optim.batch import local
from regkit.optim.metric import Form
from regkit.optim.plan import Chain, Group, Move

FormOf = Callable[[Group, float], Form]
Moves = Mapping[nn.Parameter, Move]


@dataclass(frozen=True, eq=False)
class Source:
    """What a row of rules is made of.

    lead: a parameter whose momentum answers for all.
    count: its number of steps, where that is on the host and the weights are not.
    fresh: its momentum buffer has seen no gradient yet.
    """

    group: Group
    lead: nn.Parameter
    chain: Chain
    size: int
    count: Tensor | None = None
    fresh: bool = False


@dataclass(eq=False)
class Rules:
    """Rows of rules, one for all weights that share it."""

    moves: Moves
    form: FormOf
    rows: dict[Any, int] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def row(self, p: nn.Parameter, chain: Chain, size: int) -> int:
        """Return the row of a parameter."""
        move = self.moves[p]
        form = self.form(move.group, move.momentum)
        count = move.state[form.count] if form.count is not None else None
        if count is not None and count.device == local(p).device:
            count = None
        number = None if count is None else float(count)
        key = (id(move.group), chain, size, move.momentum, number, move.fresh)
        if key not in self.rows:
            self.rows[key] = len(self.sources)
            self.sources.append(Source(move.group, p, chain, size, count, move.fresh))
        return self.rows[key]


def rule_of(source: Source, form: Form, strength: float) -> list[float]:
    """Return a row of rules."""
    group = source.group
    row = [0.0] * NUM_PARAMS
    rate, eps, log_beta2 = _number(form.rate), form.eps, form.log_beta2
    if source.count is not None:
        # Multiplied through by the correction, which the device cannot count.
        correction = math.sqrt(-math.expm1(float(source.count) * log_beta2))
        rate, eps, log_beta2 = rate * correction, eps * correction, -math.inf
    row[Param.RATE], row[Param.LR], row[Param.EPS] = rate, _number(group["lr"]), eps
    row[Param.DECAY] = float(group["weight_decay"])
    row[Param.NESTEROV] = float(group.get("nesterov", False))
    if "betas" in group:
        beta1, beta2 = map(float, group["betas"])
        row[Param.REST1], row[Param.REST2] = 1 - beta1, 1 - beta2
        row[Param.LOG_BETA1] = math.log(beta1) if beta1 > 0 else -math.inf
    else:
        dampening = 0.0 if source.fresh else group["dampening"]
        row[Param.REST1], row[Param.REST2] = 1.0 - group["momentum"], 1.0 - dampening
    row[Param.LOG_BETA2] = log_beta2
    for k, penalty in enumerate(source.chain):
        begin = Param.FIRST + k * NUM_COEFFICIENTS
        row[begin : begin + NUM_COEFFICIENTS] = penalty.at(strength).coefficients(source.size)
    return row


def _number(value: float | Tensor) -> float:
    """Return a number; 1 for a tensor, which is multiplied in on the device."""
    return 1.0 if isinstance(value, Tensor) else float(value)


def on_device(
    device: torch.device, numbers: Sequence[Sequence[float]], old: Tensor | None
) -> Tensor:
    """Return the rules as kernels read them, on a GPU in the memory of the old ones.

    Raises: InputError while a CUDA graph is captured.
    """
    rules = torch.tensor(numbers, dtype=torch.float64)
    if device.type == "cpu":
        return rules
    if torch.cuda.is_current_stream_capturing():
        raise InputError(
            "A CUDA graph is being captured at a step with new rules: a replay would read them "
            "from freed memory. Take a step before, with the learning rate as a tensor, strengths "
            "that stay, and no momentum (under SGD the prox follows its build-up)."
        )
    staged = rules.float().pin_memory()
    if old is None:
        return staged.to(device, non_blocking=True)
    return old.copy_(staged, non_blocking=True)
