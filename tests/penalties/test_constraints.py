"""Box, N:M, top k and rank: projections, against every support and against the definition."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from regkit.errors import InputError
from regkit.penalties import L1, Box, MaxRank, NMSparsity, TopK


def project_by_trying(v: np.ndarray, step: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return the nearest vector in the metric 1/step, over every support of every block."""
    out = v.copy()
    for start in range(0, len(v) - m + 1, m):
        block = slice(start, start + m)
        best, least = None, np.inf
        for support in combinations(range(m), n):
            x = np.where(np.isin(np.arange(m), support), v[block], 0.0)
            cost = ((x - v[block]) ** 2 / step[block]).sum()
            if cost < least:
                best, least = x, cost
        assert best is not None
        out[block] = best
    return out


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8), (4, 4), (1, 1)])
@pytest.mark.parametrize("size", [1, 3, 4, 8, 9, 18])
def test_n_m_is_the_nearest_in_the_metric(n: int, m: int, size: int):
    v = torch.randn(20, size, dtype=torch.float64)
    step = 10 ** (6 * torch.rand(20, size, dtype=torch.float64) - 3)
    for s in (step, step[:, :1], step[0, 0], 0.3):
        x = NMSparsity(1.0, n=n, m=m).prox(v, s)
        steps = torch.as_tensor(s, dtype=torch.float64).expand_as(v)
        for row in range(len(v)):
            expected = project_by_trying(v[row].numpy(), steps[row].numpy(), n, m)
            np.testing.assert_array_equal(x[row].numpy(), expected)
        assert float(NMSparsity(1.0, n=n, m=m).value(x)) == 0.0


def test_n_m_takes_the_metric_not_the_size():
    v = torch.tensor([[3.0, 2.0, 1.0, 0.5]])
    assert NMSparsity(1.0).prox(v, 1.0).tolist() == [[3.0, 2.0, 0.0, 0.0]]
    step = torch.tensor([[100.0, 1.0, 0.01, 0.01]])
    assert NMSparsity(1.0).prox(v, step).tolist() == [[0.0, 0.0, 1.0, 0.5]]


def test_n_m_keeps_the_first_of_equals():
    v = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 2.0, -2.0, 2.0, 5.0]])
    assert NMSparsity(1.0).prox(v, 0.1).tolist() == [[1.0, -1.0, 0, 0, 0, 2.0, -2.0, 0, 5.0]]


def test_n_m_counts_stiff_entries_first_and_leaves_them():
    v = torch.tensor([[0.1, 5.0, 4.0, 3.0]])
    assert NMSparsity(1.0).prox(v, torch.tensor([[0.0, 1.0, 1.0, 1.0]])).tolist() == [
        [v[0, 0], 5, 0, 0]
    ]
    # A stiff zero takes nobody's place; three stiff entries all stay.
    v = torch.tensor([[0.0, 5.0, 4.0, 3.0]])
    assert NMSparsity(1.0).prox(v, torch.tensor([[0.0, 1.0, 1.0, 1.0]])).tolist() == [[0, 5, 4, 0]]
    assert NMSparsity(1.0).prox(v, torch.tensor([[0.0, 0.0, 0.0, 0.0]])).tolist() == v.tolist()
    v = torch.tensor([[1.0, 5.0, 4.0, 3.0]])
    assert NMSparsity(1.0).prox(v, torch.tensor([[0.0, 1.0, 0.0, 0.0]])).tolist() == [[1, 0, 4, 3]]


def test_n_m_ranks_numbers_whose_squares_leave_the_range():
    tiny = torch.tensor([[1e-30, 4e-30, 2e-30, 3e-30]])
    assert torch.equal(NMSparsity(1.0).prox(tiny, 1e3), tiny * torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    huge = torch.tensor([[1e30, 4e30, 2e30, 3e30]])
    assert torch.equal(
        NMSparsity(1.0).prox(huge, 1e-3), huge * torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    )


def test_n_m_hides_no_nan():
    v = torch.tensor([[1.0, float("nan"), 3.0, 2.0, 1.0, 2.0, 3.0, 4.0]])
    x = NMSparsity(1.0).prox(v, torch.ones_like(v))
    assert x[0, 1].isnan()
    assert x[0, 4:].tolist() == [0, 0, 3, 4]


def test_n_m_agrees_after_l1():
    """L1 may go first: the pair is then the nearest for the sum of both."""
    v = torch.randn(50, 4, dtype=torch.float64)
    step = 10 ** (2 * torch.rand(50, 4, dtype=torch.float64) - 1)
    x = NMSparsity(1.0).prox(L1(0.5).prox(v, step), step)

    def cost(y: Tensor) -> Tensor:
        return ((y - v) ** 2 / (2 * step) + 0.5 * y.abs()).sum(1)

    for support in combinations(range(4), 2):
        mask = torch.tensor([float(i in support) for i in range(4)])
        rival = torch.sign(v) * (v.abs() - 0.5 * step).clamp_min(0) * mask
        assert (cost(x) <= cost(rival) + 1e-12).all()


def test_n_m_value_and_options():
    rows = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
    assert float(NMSparsity(1.0).value(rows)) == 0.0
    assert float(NMSparsity(1.0, n=1).value(rows)) == float("inf")
    assert float(NMSparsity(0.0, n=1).value(rows)) == 0.0
    assert torch.equal(NMSparsity(0.0, n=1).prox(rows, 1.0), rows)
    assert NMSparsity(1.0).prox(torch.zeros(0, 4), 1.0).shape == (0, 4)
    assert NMSparsity(1.0).prox(torch.zeros(4, 0), 1.0).shape == (4, 0)
    for n, m in ((0, 4), (5, 4), (-1, 4), (1, 0)):
        with pytest.raises(InputError, match=r"NMSparsity got n=.*1 <= n <= m"):
            NMSparsity(1.0, n=n, m=m)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, None), (None, 0.5), (-0.25, 2.0)])
def test_box_is_the_nearest_inside(low: float | None, high: float | None):
    v = torch.randn(200, dtype=torch.float64) * 2
    step = torch.rand(200, dtype=torch.float64) + 0.1
    box = Box(1.0, low=low, high=high)
    x = box.prox(v, step)
    grid = torch.linspace(-8, 8, 6401, dtype=torch.float64)
    inside = [y for y in grid if (low is None or y >= low) and (high is None or y <= high)]
    distance = (v[:, None] - torch.stack(inside)).abs()
    assert ((x - v).abs() <= distance.min(1).values).all()
    assert float(box.value(x)) == 0.0
    assert float(box.value(v)) == float("inf")


def test_box_in_float32_ends_where_its_value_is_zero():
    box = Box(1.0, low=-0.1, high=0.3)
    assert float(box.value(box.prox(torch.linspace(-1, 1, 11), 0.1))) == 0.0


def test_box_acts_where_there_is_a_step():
    v = torch.tensor([3.0, -3.0, float("nan"), 0.5])
    box = Box(1.0)
    assert box.prox(v, torch.tensor([0.0, 1e-30, 1.0, 1.0]))[[0, 1, 3]].tolist() == [3, -1, 0.5]
    assert box.prox(v, 1.0)[2].isnan()
    assert torch.equal(box.prox(v[:2], 0.0), v[:2])
    assert torch.equal(Box(0.0).prox(v[:2], 1.0), v[:2])
    assert float(Box(0.0).value(v[:2])) == 0.0
    assert float(box.value(v[2])) == float("inf")


def test_a_cone_lets_others_follow():
    assert Box(1.0, low=0.0, high=None).composes
    assert Box(1.0, low=None, high=0.0).composes
    assert Box(1.0, low=None, high=None).composes
    assert not Box(1.0).composes
    assert not Box(1.0, low=-1.0, high=None).composes
    assert not Box(1.0, low=0.0, high=1.0).composes


def test_non_negative_l1_by_the_definition():
    box, l1 = Box(1.0, low=0.0, high=None), L1(0.5)
    v = torch.randn(50, dtype=torch.float64)
    step = torch.rand(50, dtype=torch.float64) + 0.1
    x = l1.prox(box.prox(v, step), step)
    grid = torch.linspace(0, 4, 4001, dtype=torch.float64)[:, None]
    cost = (grid - v) ** 2 / (2 * step) + 0.5 * grid
    assert ((x - v) ** 2 / (2 * step) + 0.5 * x <= cost.min(0).values + 1e-12).all()
    assert (x >= 0).all()


def test_box_options():
    for low, high in ((0.1, 1.0), (-1.0, -0.1), (float("nan"), 1.0), (-1.0, float("inf"))):
        with pytest.raises(InputError, match=r"Box got (low|high)=.*zeros have to stay allowed"):
            Box(1.0, low=low, high=high)


def top_by_trying(v: np.ndarray, step: np.ndarray, k: int) -> np.ndarray:
    """Return the nearest matrix of at most k rows in the metric 1/step, over every choice."""
    choices = [np.isin(np.arange(len(v)), rows) for rows in combinations(range(len(v)), k)]
    costs = [((v / np.sqrt(step))[~kept] ** 2).sum() for kept in choices]
    return v * choices[int(np.argmin(costs))][:, None]


@pytest.mark.parametrize(
    ("groups", "keep", "k"), [(5, 0.4, 2), (6, 0.5, 3), (7, 0.3, 2), (4, 0.1, 1)]
)
def test_top_k_is_the_nearest_in_the_metric(groups: int, keep: float, k: int):
    penalty = TopK(1.0, keep=keep)
    assert penalty.most(groups) == k
    for _ in range(20):
        v = torch.randn(groups, 3, dtype=torch.float64)
        step = 10 ** (4 * torch.rand(groups, 3, dtype=torch.float64) - 2)
        for s in (step, step[:, :1], step[0, 0], 0.3):
            steps = torch.as_tensor(s, dtype=torch.float64).expand_as(v).numpy()
            x = penalty.prox(v, s)
            np.testing.assert_array_equal(x.numpy(), top_by_trying(v.numpy(), steps, k))
            assert float(penalty.value(x)) == 0.0
            assert float(penalty.value(v)) == float("inf")


def test_top_k_ranks_tiny_and_huge_weights():
    for size, step in ((1e-38, 0.1), (1e30, 1e-12)):
        v = size * torch.tensor([[1.0], [3.0], [2.0], [0.1]]).expand(4, 3)
        x = TopK(1.0, keep=0.5).prox(v, step)
        assert torch.equal(x, v * torch.tensor([[0.0], [1.0], [1.0], [0.0]]))


def test_top_k_keeps_so_many_of_equals_and_what_cannot_move():
    assert int(TopK(1.0, keep=0.5).prox(torch.ones(6, 2), 0.1).any(1).sum()) == 3
    v, step = torch.arange(6.0, 0.0, -1.0)[:, None].expand(6, 2), torch.ones(6, 2)
    step[4, 1] = 0.0
    x = TopK(1.0, keep=0.2).prox(v, step)
    assert x.any(1).tolist() == [False, False, False, False, True, False]


def test_a_ramp_lets_groups_and_ranks_fall_to_the_budget():
    """At strength s, 1 - s (1 - keep) of the groups stay; of the ranks, s of the excess goes."""
    top, rank = TopK(1.0, keep=0.2), MaxRank(1.0, rank=2)
    assert [top.scaled(s).most(10) for s in (0.0, 0.25, 0.5, 1.0, 2.0)] == [10, 8, 6, 2, 2]
    assert [rank.scaled(s).most(10) for s in (0.0, 0.25, 0.5, 1.0, 2.0)] == [10, 8, 6, 2, 2]
    assert TopK(0.0, keep=0.2).most(10) == MaxRank(0.0, rank=2).most(10) == 10


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (3, 40)])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_max_rank_is_the_truncated_svd(shape: tuple[int, int], rank: int, dtype: torch.dtype):
    v = torch.randn(shape, dtype=dtype)
    u, s, vt = np.linalg.svd(v.double().numpy(), full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
    penalty = MaxRank(0.3, rank=rank)
    for step in (0.7, torch.tensor(0.7)):
        x = penalty.prox(v, step)
        assert x.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(x.numpy(), expected, atol=tolerance)
        assert np.linalg.matrix_rank(x.double().numpy(), tol=1e-5 * s[0]) == rank
        assert float(penalty.value(x)) == 0.0
        assert float(penalty.value(v)) == (0.0 if rank == min(shape) else float("inf"))
        assert torch.equal(penalty.prox(x, step), x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TopK(1.0, keep=1.5), "TopK got keep=1.5"),
        (lambda: TopK(1.0, tightness=-1.0), "TopK got tightness=-1"),
        (lambda: MaxRank(1.0, rank=0), "MaxRank got rank=0; rank is a whole number >= 1"),
        (lambda: MaxRank(1.0, tightness=2.0), "MaxRank got tightness=2"),
    ],
)
def test_budgets_that_are_none_are_refused(make: Callable[[], object], said: str):
    with pytest.raises(InputError, match=said):
        make()
