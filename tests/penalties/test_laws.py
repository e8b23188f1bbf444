"""Laws that every penalty keeps. The folder configs/penalty is the list of penalties."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from regkit.errors import InputError
from regkit.penalties import ActivationPenalty, Penalty, WeightPenalty

CONFIGS = Path(__file__).parents[2] / "configs" / "penalty"
PLUGS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "none")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

lams = st.floats(1e-3, 10.0)
steps = st.floats(1e-3, 10.0)
# In units of step * lam, so that draws straddle the kinks.
units = st.one_of(st.floats(-4, 4), st.sampled_from([0.0, 1.0, -1.0]))
few = settings(max_examples=15)


@cache
def plug(name: str) -> Any:
    return OmegaConf.load(CONFIGS / f"{name}.yaml")


def make(name: str, lam: float, **options: Any) -> Penalty:
    config = OmegaConf.merge({"lam": lam}, plug(name))
    return hydra.utils.instantiate(OmegaConf.select(config, name), _convert_="all", **options)


def of_kind(kind: type) -> list[str]:
    return [name for name in PLUGS if isinstance(make(name, 1.0), kind)]


def weights(**traits: bool) -> list[str]:
    """Return the weight penalties with these traits."""
    found = [(name, make(name, 1.0)) for name in of_kind(WeightPenalty)]
    return [name for name, p in found if all(getattr(p, k) == v for k, v in traits.items())]


def weight(name: str, lam: float) -> WeightPenalty:
    penalty = make(name, lam)
    assert isinstance(penalty, WeightPenalty)
    return penalty


def drawn_rows(data: Any, scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    width, groups = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3))
    entries = data.draw(st.lists(units, min_size=width * groups, max_size=width * groups))
    return torch.tensor(entries, dtype=dtype).view(groups, width) * scale


def drawn_steps(data: Any, penalty: WeightPenalty, step: float, rows: Tensor) -> list[Any]:
    """Return the step as a number, and as a diagonal metric where the penalty takes one.

    Up to a thousand times the step: for concave penalties that is beyond what is convex.
    """
    if penalty.joint:
        return [step]
    entries = st.lists(st.floats(-3, 3), min_size=rows.numel(), max_size=rows.numel())
    spread = torch.tensor(data.draw(entries), dtype=rows.dtype).view_as(rows)
    return [step, step * 10**spread, step * 10 ** spread[:, :1]]


def objective(
    penalties: Sequence[WeightPenalty], x: Tensor, v: Tensor, step: Tensor | float
) -> float:
    return float(((x - v) ** 2 / (2 * step)).sum() + sum(p.value(x) for p in penalties))


def rivals(x: Tensor, v: Tensor) -> Iterator[Tensor]:
    """Yield what may be better: near and far, sparse, whole rows of zeros, one entry changed."""
    scale = float(v.abs().max()) + 1e-12
    noise = torch.Generator().manual_seed(0)
    yield from (torch.zeros_like(v), v, (x + v) / 2)
    for size in (1.0, 0.1, 1e-2, 1e-4):
        for _ in range(3):
            yield x + size * scale * torch.randn(v.shape, generator=noise, dtype=v.dtype)
            kept = torch.rand(v.shape, generator=noise) < 0.5
            yield torch.where(kept, x, 0.0)
            yield torch.where(kept, x, v)
            yield x * (1 + size * torch.randn(len(v), 1, generator=noise, dtype=v.dtype))
    for row in range(len(v)):
        for other in (torch.zeros_like(v[row]), v[row]):
            rival = x.clone()
            rival[row] = other
            yield rival
    shifts = torch.linspace(-1.5, 1.5, 7, dtype=v.dtype) * scale
    for i in range(v.numel()):
        for other in (*(x.flatten()[i] + shifts), v.flatten()[i], torch.zeros(())):
            rival = x.flatten().clone()
            rival[i] = other
            yield rival.view_as(x)


def assert_beats_all_rivals(
    penalties: Sequence[WeightPenalty], x: Tensor, v: Tensor, step: Tensor | float
) -> None:
    best = objective(penalties, x, v, step)
    assert best < float("inf")
    # A joint penalty knows its matrix by the Gram matrix: small singular values to half the digits.
    tolerance = TOLERANCE[v.dtype] ** (0.7 if any(p.joint for p in penalties) else 1.0)
    for rival in rivals(x, v):
        other = objective(penalties, rival, v, step)
        assert best <= other + tolerance * (abs(best) + abs(other) * 1e-3 + 1e-12), rival


@pytest.mark.parametrize("name", weights(decoupled=False))
@given(lam=lams, step=steps, data=st.data())
@few
def test_prox_beats_all_rivals(name: str, lam: float, step: float, data: Any):
    penalty = weight(name, lam)
    v = drawn_rows(data, step * lam)
    for s in drawn_steps(data, penalty, step, v):
        assert_beats_all_rivals([penalty], penalty.prox(v, s), v, s)


@pytest.mark.parametrize("first", weights(composes=True))
@pytest.mark.parametrize("second", weights(shrinks=True, joint=False, decoupled=False))
@given(lam=lams, share=st.floats(0.1, 2.0), step=steps, data=st.data())
@settings(max_examples=8)
def test_what_composes_may_be_followed_by_what_shrinks(
    first: str, second: str, lam: float, share: float, step: float, data: Any
):
    one, two = weight(first, lam * share), weight(second, lam)
    v = drawn_rows(data, step * lam)
    for s in drawn_steps(data, two, step, v):
        assert_beats_all_rivals([one, two], two.prox(one.prox(v, s), s), v, s)


@pytest.mark.parametrize("name", weights(convex=True, decoupled=False))
@given(lam=lams, step=steps, data=st.data())
@few
def test_convex_prox_is_firmly_nonexpansive_in_the_metric(
    name: str, lam: float, step: float, data: Any
):
    penalty = weight(name, lam)
    a = drawn_rows(data, step * lam)
    b = a.flip(0) + torch.randn(a.shape, dtype=a.dtype) * step * lam
    for s in drawn_steps(data, penalty, step, a):
        moved = penalty.prox(a, s) - penalty.prox(b, s)
        moved_length, length = (float((d * d / s).sum()) for d in (moved, a - b))
        slack = TOLERANCE[a.dtype] * (length + 1e-12)
        assert moved_length <= float((moved * (a - b) / s).sum()) + slack
        assert moved_length <= length + slack


@pytest.mark.parametrize("name", weights(convex=True, decoupled=False))
@given(lam=lams, step=steps, data=st.data())
@few
def test_single_precision_follows_double(name: str, lam: float, step: float, data: Any):
    penalty = weight(name, lam)
    v = drawn_rows(data, step * lam, torch.float32)
    for s in drawn_steps(data, penalty, step, v):
        exact = penalty.prox(v.double(), s.double() if isinstance(s, Tensor) else s)
        found = penalty.prox(v, s)
        assert found.dtype == v.dtype
        error = float((found.double() - exact).norm())
        assert error <= 2 * TOLERANCE[v.dtype] * float(v.double().norm()) + 1e-30


@pytest.mark.parametrize("name", weights(constraint=True))
@given(lam=lams, step=steps, data=st.data())
@few
def test_constraint_is_free_inside_and_forbids_the_outside(
    name: str, lam: float, step: float, data: Any
):
    penalty = weight(name, lam)
    v = drawn_rows(data, step * lam)
    inside = penalty.prox(v, step)
    assert float(penalty.value(inside)) == 0.0
    assert float(penalty.value(v)) == (0.0 if torch.equal(inside, v) else float("inf"))
    assert torch.equal(penalty.prox(inside, step), inside)


@pytest.mark.parametrize("name", weights(joint=False, ranks=False))
@given(lam=lams, step=steps, data=st.data())
@few
def test_groups_ignore_each_other(name: str, lam: float, step: float, data: Any):
    penalty = weight(name, lam)
    v = drawn_rows(data, step * lam)
    many = torch.cat([v, torch.randn(100, v.shape[1], dtype=v.dtype)])
    for s in drawn_steps(data, penalty, step, v):
        alone = penalty.prox(v, s)
        ones = torch.full((100, v.shape[1]), step, dtype=v.dtype)
        steps_of_many = torch.cat([s.expand_as(v), ones]) if isinstance(s, Tensor) else s
        among = penalty.prox(many, steps_of_many)[: len(v)]
        torch.testing.assert_close(among, alone, rtol=1e-9, atol=1e-12 * step * lam)


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
@given(step=steps, data=st.data())
@few
def test_no_strength_or_no_step_changes_nothing(name: str, step: float, data: Any):
    v = drawn_rows(data, 1.0, torch.float32)
    weak, strong = weight(name, 0.0), weight(name, 3.0)
    for s in drawn_steps(data, weak, step, v):
        assert torch.equal(weak.prox(v, s), v)
    assert float(weak.value(v)) == 0.0
    for none in (0.0, torch.zeros(())):
        assert torch.equal(strong.prox(v, none), v)
    if strong.joint:
        return
    for none in (torch.zeros_like(v), torch.zeros(len(v), 1)):
        assert torch.equal(strong.prox(v, none), v)
    still = torch.rand(v.shape) < 0.5
    moved = strong.prox(v, torch.where(still, 0.0, step))
    assert torch.equal(moved[still], v[still])


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_zero_stays_zero_and_finite(name: str, dtype: torch.dtype):
    penalty = weight(name, 2.0)
    zeros = torch.zeros(3, 4, dtype=dtype)
    taken = [0.1, torch.tensor(0.1, dtype=dtype), 1e30]
    if not penalty.joint:
        taken += [torch.full_like(zeros, 1e30), torch.full_like(zeros, 0.1), zeros]
    for step in taken:
        assert torch.equal(penalty.prox(zeros, step), zeros)
    assert float(penalty.value(zeros)) == 0.0
    shapes: list[tuple[int, ...]] = [(0, 4), (3, 0)]
    if penalty.layout == "entries":
        shapes += [(0,), (), (2, 3, 4)]
    for shape in shapes:
        empty = torch.zeros(shape, dtype=dtype)
        assert torch.equal(penalty.prox(empty, 0.1), empty)
        assert float(penalty.value(empty)) == 0.0
        if not penalty.joint:
            assert torch.equal(penalty.prox(empty, torch.full_like(empty, 0.1)), empty)


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e15])
def test_tiny_and_huge_weights_stay_finite(name: str, size: float):
    penalty = weight(name, 0.1)
    v = torch.randn(3, 4) * size
    for s in [0.1] if penalty.joint else [0.1, torch.rand(3, 4)]:
        x = penalty.prox(v, s)
        assert x.isfinite().all()
        assert x.norm() <= v.norm() * (1 + 1e-5)


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
def test_nan_is_not_hidden_and_does_not_spread(name: str):
    penalty = weight(name, 2.0)
    v = torch.randn(4, 4)
    v[1, 2] = float("nan")
    for s in [0.1] if penalty.joint else [0.1, torch.rand(4, 4)]:
        x = penalty.prox(v, s)
        assert x[1, 2].isnan()
        assert penalty.joint or x[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
def test_prox_leaves_what_it_is_given_alone(name: str):
    penalty = weight(name, 2.0)
    v, step = torch.randn(4, 4), torch.tensor(0.1) if weight(name, 1.0).joint else torch.rand(4, 4)
    before = v.clone(), step.clone()
    penalty.prox(v, step)
    penalty.value(v)
    assert torch.equal(v, before[0])
    assert torch.equal(step, before[1])


@pytest.mark.parametrize("name", PLUGS)
@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf")])
def test_strength_is_checked_at_the_door(name: str, lam: Any):
    kind = type(make(name, 1.0))
    with pytest.raises(InputError, match=rf"{kind.__name__} got lam=.*>= 0"):
        kind(lam=lam)


@pytest.mark.parametrize("name", PLUGS)
def test_penalties_are_values(name: str):
    """Equal options make equal penalties, that hash: the step batches by them."""
    assert make(name, 0.3) == make(name, 0.3)
    assert hash(make(name, 0.3)) == hash(make(name, 0.3))
    assert make(name, 0.3) != make(name, 0.4)


@pytest.mark.parametrize("name", of_kind(ActivationPenalty))
def test_activation_penalty_is_proportional_to_lam_and_differentiable(name: str):
    frames = torch.randn(2, 6, 3, requires_grad=True)
    one, two = make(name, 1.0), make(name, 2.0)
    assert isinstance(one, ActivationPenalty)
    assert isinstance(two, ActivationPenalty)
    torch.testing.assert_close(2 * one.value(frames), two.value(frames))
    one.value(frames).backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert frames.grad.abs().sum() > 0


WITH_KERNEL = [n for n in of_kind(WeightPenalty) if weight(n, 1.0).kernel is not None]


@pytest.mark.parametrize("name", WITH_KERNEL)
@given(st.data(), lams, steps)
@settings(few)
def test_the_formula_is_the_prox(name: str, data: Any, lam: float, step: float):
    """A prox rises in its entry: what it makes of a little more and a little less encloses it.

    So at a jump either side is right. The slack is one Newton step in the least exact of them.
    """
    penalty = weight(name, lam)
    v = drawn_rows(data, step * lam)
    formula, numbers = penalty.kernel, penalty.coefficients(v.shape[1])
    assert formula is not None
    assert formula.decoupled == penalty.decoupled
    assert formula.grouped == (penalty.layout != "entries")
    for taken in [step] if penalty.decoupled else drawn_steps(data, penalty, step, v):
        x = formula.prox(v, taken, step, numbers)
        if formula.grouped:
            torch.testing.assert_close(x, penalty.prox(v, taken), rtol=1e-9, atol=1e-12)
            continue
        near = torch.stack([penalty.prox(v * factor, taken) for factor in (1 - 1e-8, 1 + 1e-8)])
        slack = 2e-8 * v.abs()
        assert (near.amin(0) - slack <= x).all()
        assert (x <= near.amax(0) + slack).all()


@pytest.mark.parametrize("name", [n for n in WITH_KERNEL if weight(n, 1.0).layout == "entries"])
def test_the_formula_is_the_prox_on_a_grid(name: str):
    """Steps on each side of where a concave penalty jumps, entries on each side of the jump."""
    penalty = weight(name, 0.7)
    formula, numbers = penalty.kernel, penalty.coefficients(1)
    assert formula is not None
    v = torch.linspace(-20, 20, 8001, dtype=torch.float64)
    for step in (0.03, 1.0, 2.4, 2.6, 2.9, 3.3, 3.9, 4.5, 20.0):
        x = formula.prox(v, step, step, numbers)
        near = torch.stack([penalty.prox(v * factor, step) for factor in (1 - 1e-8, 1 + 1e-8)])
        assert (near.amin(0) - 2e-8 * v.abs() <= x).all()
        assert (x <= near.amax(0) + 2e-8 * v.abs()).all()


@pytest.mark.parametrize("name", WITH_KERNEL)
@given(step=steps, data=st.data())
@few
def test_the_formula_keeps_the_laws_of_kernels(name: str, step: float, data: Any):
    """No strength, whatever the step, or no step: no bit changes; NaN stays NaN."""
    v = drawn_rows(data, 1.0, torch.float32)
    formula = weight(name, 1.0).kernel
    assert formula is not None
    none, some = (weight(name, lam).coefficients(v.shape[1]) for lam in (0.0, 2.0))
    for taken in (step, torch.full_like(v, torch.inf)) if not formula.grouped else (step,):
        assert torch.equal(formula.prox(v, taken, step, none), v)
    assert torch.equal(formula.prox(v, torch.zeros_like(v), 0.0, some), v)
    v[0] = torch.nan
    assert formula.prox(v, step, step, some)[0].isnan().all()


def test_only_penalties_with_a_kernel_have_coefficients():
    for name in set(of_kind(WeightPenalty)) - set(WITH_KERNEL):
        with pytest.raises(NotImplementedError, match="no kernel"):
            weight(name, 1.0).coefficients(1)
