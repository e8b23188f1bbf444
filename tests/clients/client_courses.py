"""What a training did, and whether that is what its schedule asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_nets import EVERY, IDLE, LAM, LR, density_of
from torch import Tensor

from regkit import Regularizer, RegularizerCallback, Schedule


@dataclass
class Course:
    """What a training did: after each batch the weights of each optimizer, and the strength.

    length: number of batches of the (first) training.
    """

    length: int
    weights: list[list[list[Tensor]]] = field(default_factory=list)
    lams: list[float] = field(default_factory=list)
    results: Sequence[Any] = ()
    warned: list[str] = field(default_factory=list)

    def look(self, module: Any, reg: Regularizer) -> None:
        self.weights.append([[p.detach().clone() for p in held] for held in module.trained()])
        self.lams.append(reg.current_lams()["l1"])

    def last_before(self, share: float) -> int:
        """Return the last batch whose end does not lie beyond this share of training."""
        return max(i for i in range(len(self.lams)) if (i + 1) / self.length <= share)

    def densities(self) -> list[float]:
        return [density_of(held) for held in self.weights[-1]]

    def strengths(self, which: int) -> list[tuple[int, float]]:
        """Return the batches at which an optimizer stepped, and how strong its penalty was."""
        idle = [held[which][0][:, 0] for held in self.weights]
        others = [held[which][0][:, 1:] for held in self.weights]
        return [
            (i, float((idle[i - 1] - idle[i]).mean()) / LR)
            for i in range(1, len(idle))
            if not torch.equal(others[i], others[i - 1])
        ]


class Look(pl.Callback):
    """Keeps the course; stands behind the callback that it looks at."""

    def __init__(self, course: Course, regularize: RegularizerCallback) -> None:
        self.course, self.regularize = course, regularize

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.regularize.regularizer is not None
        self.course.look(pl_module, self.regularize.regularizer)


def assert_target(course: Course) -> None:
    """Weights can be zeroed one by one, so that nothing excuses a miss."""
    densities = course.densities()
    assert densities == pytest.approx([0.3] * len(densities), abs=0.02)
    assert course.warned == []
    assert [r.reached for r in course.results] == pytest.approx(densities)
    assert all(r.is_met for r in course.results)


def assert_ramp(course: Course) -> None:
    """By hand: a cubic rise over the first half, at the progress before the step."""
    first = course.strengths(0)[0][0]
    assert all(a <= b for a, b in zip(course.lams[first:], course.lams[first + 1 :], strict=False))
    assert course.lams[-1] == LAM
    stride = (EVERY + 1) / course.length
    for which in range(len(course.weights[-1])):
        steps = course.strengths(which)
        assert steps[-1][1] == pytest.approx(LAM, rel=0.01)
        for i, strength in steps:
            share = (i + 1) / course.length
            low, high = (LAM * (1 - (1 - min(max(s, 0.0) / 0.5, 1.0)) ** 3)
                         for s in (share - stride, share))  # fmt: skip
            assert low * 0.99 - 1e-5 <= strength <= high * 1.01 + 1e-5


def assert_debiased(course: Course) -> None:
    assert course.lams[-1] == 0.0
    begin = course.last_before(0.8)
    stride = EVERY + 1
    for which, then in enumerate(course.weights[begin]):
        assert_zeros_stay([held[which] for held in course.weights[begin:]])
        seen = dict(course.strengths(which))
        assert all(s == pytest.approx(LAM, rel=0.01) for i, s in seen.items() if i <= begin)
        late = [s for i, s in seen.items() if i > begin + stride]
        assert late
        assert late == [0.0] * len(late)
        for before, after in zip(then, course.weights[-1][which], strict=True):
            alive = before != 0
            alive[:, 0] &= before[:, 0] != IDLE
            assert not torch.equal(before[alive], after[alive])


def assert_settled(course: Course) -> None:
    assert course.lams[-1] == LAM
    begin = course.last_before(0.8)
    for which in range(len(course.weights[-1])):
        assert_zeros_stay([held[which] for held in course.weights[begin:]])
        steps = course.strengths(which)
        assert steps[-1][1] == pytest.approx(LAM, rel=0.01)


def assert_zeros_stay(held: Sequence[Sequence[Tensor]]) -> None:
    for before, after in pairwise(held):
        for p, q in zip(before, after, strict=True):
            assert 0 < int((p == 0).sum()) < p.numel()
            assert not ((p == 0) & (q != 0)).any()


ASKED: dict[str, tuple[Schedule, Callable[[Course], None]]] = {
    "target": (Schedule(target_density=0.3), assert_target),
    "ramp": (Schedule(ramp="cubic", ramp_until=0.5), assert_ramp),
    "debias": (Schedule(debias=0.8), assert_debiased),
    "settle": (Schedule(settle=0.8), assert_settled),
}
