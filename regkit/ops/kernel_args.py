"""What a kernel works on: weights, the rules that they share, and where their groups lie."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regkit.ops.formulas import NUM_COEFFICIENTS

UPDATES = ("none", "sgd", "adamw")
# How far the optimizer moves along a constant gradient. flat: RATE; root: RATE / (sqrt(second) /
# sqrt(1 - beta2^count) + EPS).
METRICS = ("flat", "root")
MOST_FORMULAS = 2


class Param(enum.IntEnum):
    """Columns of a table of rules: numbers that many weights share.

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
    of the bundle is group g of each. WEIGHT: place in the list of weights. Group g begins at
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
# What the number of entries of a piece is the product of.
SIZES = (GroupAxis.COUNT1, GroupAxis.COUNT2, GroupAxis.SIZE1, GroupAxis.SIZE2, GroupAxis.SIZE3)


@dataclass(frozen=True, eq=False)
class KernelArgs:
    """Weights and what an optimizer keeps for them, all dense and with equal strides in one place.

    which: row of the rules for each weight.
    seconds: second moments (root metric, adamw); maxes: their maxima (amsgrad), which the metric
        then reads; counts: number of steps taken, 0-d float32, this one included; grads, firsts:
        for an update only.
    geometry: (pieces, NUM_AXES) on the CPU; None for entries.
    """

    weights: Sequence[Tensor]
    which: Sequence[int]
    seconds: Sequence[Tensor] = ()
    counts: Sequence[Tensor] = ()
    maxes: Sequence[Tensor] = ()
    firsts: Sequence[Tensor] = ()
    grads: Sequence[Tensor] = ()
    geometry: Tensor | None = None

    def lists(self) -> tuple[list[Tensor], ...]:
        """Return the lists of tensors, in the order of the ops."""
        lists = (self.weights, self.grads, self.firsts, self.seconds, self.maxes, self.counts)
        return tuple(map(list, lists))


@dataclass(frozen=True, eq=False)
class LaunchTable:
    """What a kernel reads: addresses and lengths, as it wants them.

    owners: for each row of the tally, the weight (entries) or the bundle (groups) it belongs to.
    """

    numbers: Sequence[Tensor]
    owners: Tensor


LIBRARY = torch.library.Library("regkit", "DEF")
_LISTS = (
    "Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] firsts, Tensor(c!)[] seconds, "
    "Tensor(d!)[] maxes, Tensor[] counts, int[] which, Tensor rules, "
)
_REST = (
    "Tensor[]? numbers, Tensor? skip, Tensor? scale, Tensor(e!)? tally, str update, str metric, "
    "str[] formulas) -> ()"
)
LIBRARY.define(f"sweep_entries({_LISTS}{_REST}")
LIBRARY.define(f"sweep_groups({_LISTS}Tensor geometry, {_REST}")
