"""What a kernel works on: weights, the parameters that they share, and where their groups lie."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regkit.ops.formula import NUM_COEFFICIENTS

UPDATES = ("none", "sgd", "adamw")
# How far the optimizer moves along a constant gradient. scalar: RATE; adaptive: RATE /
# (sqrt(exp_avg_sq) / sqrt(1 - beta2^step_count) + EPS).
METRICS = ("scalar", "adaptive")
MOST_FORMULAS = 2


class Param(enum.IntEnum):
    """Columns of a table of parameters: numbers that many weights share.

    RATE: numerator of the metric; LR: learning rate. LOG_BETA1, LOG_BETA2: natural logarithms of
    the decay rates, -inf for none; REST1, REST2: 1 - beta (SGD: REST1 is 1 - momentum, REST2 is
    1 - dampening); DECAY: decoupled (adamw) or coupled (sgd) weight decay; NESTEROV: 0 or 1.
    FIRST + k * NUM_COEFFICIENTS: where the coefficients of the k-th formula begin.
    """

    RATE = 0
    LR = 1
    EPS = 2
    LOG_BETA1 = 3
    LOG_BETA2 = 4
    REST1 = 5
    REST2 = 6
    DECAY = 7
    NESTEROV = 8
    FIRST = 9


NUM_PARAMS = Param.FIRST + MOST_FORMULAS * NUM_COEFFICIENTS


class GroupAxis(enum.IntEnum):
    """Columns of a table of geometry: a row says where one weight holds its part of some groups.

    BUNDLE: rows of the table with the same number belong together, one after the other: group g
    of the group set is group g of each. WEIGHT: place in the list of weights. Group g begins at
    element OFFSET + (g // COUNT2) * STRIDE1 + (g % COUNT2) * STRIDE2 of that weight's memory, and
    there are COUNT1 * COUNT2; its entries lie along three axes (SIZE, STEP).
    """

    BUNDLE = 0
    WEIGHT = 1
    OFFSET = 2
    COUNT1 = 3
    STRIDE1 = 4
    COUNT2 = 5
    STRIDE2 = 6
    SIZE1 = 7
    STEP1 = 8
    SIZE2 = 9
    STEP2 = 10
    SIZE3 = 11
    STEP3 = 12


NUM_AXES = len(GroupAxis)
# What the number of entries of a piece is the product of, and how far apart they are.
SIZES = (GroupAxis.COUNT1, GroupAxis.COUNT2, GroupAxis.SIZE1, GroupAxis.SIZE2, GroupAxis.SIZE3)
STRIDES = (GroupAxis.STRIDE1, GroupAxis.STRIDE2, GroupAxis.STEP1, GroupAxis.STEP2, GroupAxis.STEP3)


@dataclass(frozen=True, eq=False)
class KernelArgs:
    """Weights and what an optimizer keeps for them, all dense and with equal strides in one place.

    param_row: row of the parameters for each weight.
    exp_avg_sqs: second moments (adaptive metric, adamw); max_exp_avg_sqs: their maxima (amsgrad),
        which the metric then reads; step_counts: number of steps taken, 0-d float32, this one
        included; exp_avgs: first moments or momentum buffers; grads and exp_avgs: for an update
        only.
    geometry: (pieces, NUM_AXES) on the CPU; None for entries.
    gates: bytes as `regkit.ops.gate` has them, of all entries of each weight, in its strides; or
        with a geometry of the groups of each group_set. Empty: every zero may wake.
    """

    weights: Sequence[Tensor]
    param_row: Sequence[int]
    exp_avg_sqs: Sequence[Tensor] = ()
    step_counts: Sequence[Tensor] = ()
    max_exp_avg_sqs: Sequence[Tensor] = ()
    exp_avgs: Sequence[Tensor] = ()
    grads: Sequence[Tensor] = ()
    geometry: Tensor | None = None
    gates: Sequence[Tensor] = ()


@dataclass(frozen=True, eq=False)
class LaunchTable:
    """What a kernel reads: addresses and lengths, as it wants them."""

    table: Sequence[Tensor]


def are_like(tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Say whether there are none, or all have the strides of their weight.

    Strides of axes of size 1 do not matter.
    """
    return not tensors or all(map(is_like, tensors, weights))


def is_like(tensor: Tensor, weight: Tensor) -> bool:
    """Say whether a tensor has the shape and the strides of a weight, where they matter."""
    if tensor.layout != torch.strided or tensor.shape != weight.shape:
        return False
    own, others = tensor.stride(), weight.stride()
    return own == others or all(
        a == b or n == 1 for a, b, n in zip(own, others, weight.shape, strict=True)
    )
