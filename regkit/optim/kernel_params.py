"""The numbers that kernels read beside the weights: a row for all weights that share them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.ops.formula import NUM_COEFFICIENTS
from regkit.ops.kernel_args import NUM_PARAMS, Param
from regkit.optim.parts import Chain, Part
from regkit.optim.step_size import Move, Number, StepSize
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.distributed import local


@dataclass(frozen=True, eq=False)
class ParamRow:
    """What a row of numbers is made of.

    lead: a parameter that answers for all of the row.
    size: of a group; 1 for entries.
    folds: the number of steps is on the host and the weights are not, so that the kernel cannot
        correct for it.
    """

    lead: nn.Parameter
    chain: Chain
    size: int
    folds: bool


@dataclass(eq=False)
class ParamTable:
    """Rows so far, one for all weights that share it.

    layered: parts have strengths of their own.
    """

    moves: Mapping[nn.Parameter, Move]
    sizes: Mapping[nn.Parameter, StepSize]
    layered: bool
    rows: list[ParamRow] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def place(self, p: nn.Parameter, chain: Chain, size: int) -> int:
        """Return the row of a parameter; it is added where there is none."""
        move, step = self.moves[p], self.sizes[p]
        folds = step.count is not None and step.count.device != local(p).device
        count = step.count.item() if folds and step.count is not None else None
        rate = step.rate if not isinstance(step.rate, Tensor) else None
        who = tuple((part.penalty, part.key if self.layered else "") for part in chain)
        # Those that share a row go on together; without momentum it does not matter.
        pace = move.pace if move.group.get("momentum", 0.0) > 0 else None
        key = (id(move.group), who, size, pace, count, rate, step.eps)
        if key not in self._places:
            self._places[key] = len(self.rows)
            self.rows.append(ParamRow(p, chain, size, folds))
        return self._places[key]


def kernel_params(
    row: ParamRow,
    step: StepSize,
    move: Move,
    scale: Callable[[Part], WeightPenalty | None],
) -> list[float]:
    """Return the numbers of a row at one step, in the order of `Param`.

    step, move: of the row's lead.
    scale: gives the penalty of a part at its strength.
    """
    group, numbers = move.group, [0.0] * NUM_PARAMS
    rate, eps, log_beta2 = _number(step.rate), step.eps, step.log_beta2
    if row.folds and step.count is not None:
        # Multiplied through by the correction.
        correction = math.sqrt(-math.expm1(float(step.count) * log_beta2))
        rate, eps, log_beta2 = rate * correction, eps * correction, -math.inf
    numbers[Param.RATE], numbers[Param.LR], numbers[Param.EPS] = rate, _number(group["lr"]), eps
    numbers[Param.LOG_BETA2] = log_beta2
    numbers[Param.DECAY] = float(group.get("weight_decay", 0.0))
    numbers[Param.NESTEROV] = float(group.get("nesterov", False))
    if "betas" in group:
        beta1, beta2 = map(float, group["betas"])
        numbers[Param.REST1], numbers[Param.REST2] = 1 - beta1, 1 - beta2
        numbers[Param.LOG_BETA1] = math.log(beta1) if beta1 > 0 else -math.inf
    elif "dampening" in group:
        dampening = 0.0 if move.is_first else group["dampening"]
        numbers[Param.REST1], numbers[Param.REST2] = 1.0 - group["momentum"], 1.0 - dampening
    for k, part in enumerate(row.chain):
        penalty = scale(part)
        assert penalty is not None, "kernels are not planned for penalties that are off"
        begin, found = Param.FIRST + k * NUM_COEFFICIENTS, penalty.coefficients(row.size)
        numbers[begin : begin + len(found)] = found
    return numbers


def _number(value: Number) -> float:
    """Return a number; 1 for a tensor, which is multiplied in on the device."""
    return 1.0 if isinstance(value, Tensor) else float(value)


def on_device(
    device: torch.device, numbers: Sequence[Sequence[float]], old: Tensor | None
) -> Tensor:
    """Return the rows as kernels read them, on a GPU in the memory of the old ones.

    Raises: InputError while a CUDA graph is captured.
    """
    table = torch.tensor(numbers, dtype=torch.float64)
    if device.type == "cpu":
        return table
    if torch.cuda.is_current_stream_capturing():
        raise InputError(
            "A CUDA graph is being captured at a step with new rates or strengths: a replay would "
            "read them from freed memory. Take a step before, with the learning rate as a tensor, "
            "strengths that stay, and no momentum (under SGD the prox follows its build-up)."
        )
    if old is None:
        return sent(table.float(), device)
    return old.copy_(table.float().pin_memory(), non_blocking=True)


def sent(small: Tensor, device: torch.device) -> Tensor:
    """Return a small tensor on a device; the host does not wait for it."""
    if small.device == device:
        return small
    return (small.pin_memory() if small.device.type == "cpu" else small).to(
        device, non_blocking=True
    )
