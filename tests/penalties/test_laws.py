"""Laws that every penalty keeps. The folder configs/penalty is the list of penalties."""

from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import torch
from hypothesis import given
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
pairs_of_numbers = st.tuples(st.floats(-4, 4), st.floats(-4, 4))
units = st.lists(
    st.one_of(st.floats(-4, 4), st.sampled_from([0.0, 1.0, -1.0])), min_size=1, max_size=6
)


def make(name: str, lam: float, **options: Any) -> Penalty:
    config = OmegaConf.merge({"lam": lam}, OmegaConf.load(CONFIGS / f"{name}.yaml"))
    return hydra.utils.instantiate(OmegaConf.select(config, name), _convert_="all", **options)


def of_kind(kind: type) -> list[str]:
    return [name for name in PLUGS if isinstance(make(name, 1.0), kind)]


def in_objective() -> list[str]:
    return [n for n in of_kind(WeightPenalty) if not make(n, 1.0).decoupled]  # type: ignore[attr-defined]


def objective(penalty: WeightPenalty, x: Tensor, v: Tensor, step: Tensor | float) -> float:
    return float(((x - v) ** 2 / (2 * step)).sum() + penalty.value(x))


@pytest.mark.parametrize("name", in_objective())
@given(lam=lams, step=steps, units=units, data=st.data())
def test_prox_beats_all_rivals(name: str, lam: float, step: float, units: list[float], data: Any):
    """By the definition: a dense grid around, every coordinate by itself and all together."""
    penalty = make(name, lam)
    assert isinstance(penalty, WeightPenalty)
    v = torch.tensor(units, dtype=torch.float64) * step * lam
    spread = data.draw(st.lists(st.floats(0.1, 10), min_size=len(v), max_size=len(v)))
    diagonal = step * torch.tensor(spread, dtype=torch.float64)
    for s in (step, diagonal):
        x = penalty.prox(v, s)
        best = objective(penalty, x, v, s)
        scale = float(v.abs().max()) + 1e-12
        slack = 1e-9 * (abs(best) + 1)
        assert best <= objective(penalty, torch.zeros_like(v), v, s) + slack
        assert best <= objective(penalty, v, v, s) + slack
        for shift in torch.linspace(-1.5, 1.5, 21, dtype=torch.float64) * scale:
            assert best <= objective(penalty, x + shift, v, s) + slack
            for i in range(len(v)):
                rival = x.clone()
                rival[i] += shift
                assert best <= objective(penalty, rival, v, s) + slack


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
@given(step=steps, units=units)
def test_no_strength_or_no_step_changes_nothing(name: str, step: float, units: list[float]):
    v = torch.tensor(units)
    weak, strong = make(name, 0.0), make(name, 3.0)
    assert isinstance(weak, WeightPenalty)
    assert isinstance(strong, WeightPenalty)
    assert torch.equal(weak.prox(v, step), v)
    assert torch.equal(strong.prox(v, 0.0), v)
    assert torch.equal(strong.prox(v, torch.zeros_like(v)), v)
    assert float(weak.value(v)) == 0.0


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_zero_stays_zero_and_finite(name: str, dtype: torch.dtype):
    penalty = make(name, 2.0)
    assert isinstance(penalty, WeightPenalty)
    zeros = torch.zeros(3, 4, dtype=dtype)
    for step in (0.1, torch.tensor(0.1, dtype=dtype), torch.full_like(zeros, 1e30)):
        assert torch.equal(penalty.prox(zeros, step), zeros)
    assert float(penalty.value(zeros)) == 0.0
    assert penalty.prox(torch.zeros(0), 0.1).shape == (0,)
    assert penalty.prox(torch.ones(()), 0.1).shape == ()


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
def test_nan_is_not_hidden(name: str):
    penalty = make(name, 2.0)
    assert isinstance(penalty, WeightPenalty)
    assert penalty.prox(torch.tensor([float("nan"), 1.0]), 0.1)[0].isnan()


@pytest.mark.parametrize("name", of_kind(WeightPenalty))
@given(
    step=steps,
    lam=st.floats(1e-3, 0.1),
    pairs=st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=6),
)
def test_convex_prox_brings_no_two_points_further_apart(
    name: str, step: float, lam: float, pairs: list[tuple[float, float]]
):
    penalty = make(name, lam)
    assert isinstance(penalty, WeightPenalty)
    a, b = torch.tensor(pairs, dtype=torch.float64).T
    distance = (penalty.prox(a, step) - penalty.prox(b, step)).norm()
    assert distance <= (a - b).norm() * (1 + 1e-12)


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
