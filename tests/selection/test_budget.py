"""The strength at which the weights as they are cost what knowing nothing costs."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from torch import nn

from regkit import InputError, Regularizer
from regkit.models.tiny3d import Tiny3D
from regkit.penalties import (
    L1,
    L2,
    MCP,
    Box,
    GroupLasso,
    NMSparsity,
    TemporalSmoothness,
    WeightDecay,
    WeightPenalty,
)
from regkit.selection.bounds import Bound, Bounds, budget, zero_loss

YAMLS = sorted((Path(__file__).parents[2] / "configs" / "penalty").glob("*.yaml"))
YAMLS = [path for path in YAMLS if path.stem != "none"]
CLIP = torch.linspace(-1, 1, 2 * 3 * 4 * 8 * 8).sin().view(2, 3, 4, 8, 8)


def penalty_of(path: Path, lam: float):
    config = OmegaConf.create({"lam": lam, "penalty": OmegaConf.load(path)})
    return instantiate(config.penalty[path.stem], _convert_="all")


def net() -> Tiny3D:
    return Tiny3D(num_classes=3, channels=(2, 3))


def test_homogeneous_penalties_have_closed_forms():
    model = nn.Linear(3, 2)
    w = model.weight.detach().double().numpy()
    loss = math.log(6)
    assert budget(Regularizer(model, L1(1.0)), loss) == pytest.approx(loss / abs(w).sum())
    assert budget(Regularizer(model, L2(7.0)), loss) == pytest.approx(2 * loss / (w**2).sum())
    lengths = math.sqrt(3) * np.linalg.norm(w, axis=1).sum()
    assert budget(Regularizer(model, GroupLasso(1.0)), loss) == pytest.approx(loss / lengths)


def test_a_penalty_that_bends_is_searched_for():
    model = nn.Linear(3, 2)
    w = model.weight.detach().double().abs().numpy().ravel()
    lam = budget(Regularizer(model, MCP(1.0, gamma=3.0)), 0.05)
    flat = w >= 3 * lam
    assert 0 < flat.sum() < flat.size  # both branches
    value = np.where(flat, 1.5 * lam**2, lam * w - w**2 / 6).sum()
    assert value == pytest.approx(0.05, rel=1e-5)


def test_penalties_that_share_a_strength_share_the_budget():
    model = nn.Linear(3, 2)
    alone = [budget(Regularizer(model, p), 1.0) for p in (L1(1.0), L2(1.0))]
    both = Regularizer(model, [L1(2.0), L2(3.0), Box(1.0, low=-9.0, high=9.0)])
    assert budget(both, 1.0) == pytest.approx(1 / sum(1 / lam for lam in alone), rel=1e-5)
    assert budget(both, 1.0, names=["l2", "box"]) == pytest.approx(alone[1], rel=1e-5)


def test_factors_count():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    expected = 1 / (5 * model[0].weight.abs().sum() + model[1].weight.abs().sum()).item()
    reg = Regularizer(model, L1(1.0, lam_scale={"0": 5.0}))
    assert budget(reg, 1.0) == pytest.approx(expected, rel=1e-5)


def test_activations_are_seen_and_the_model_is_left_as_it_was():
    model = net().eval()
    before = copy.deepcopy(model.state_dict())
    seed = torch.random.get_rng_state()
    reg = Regularizer(model, TemporalSmoothness(4.0))
    lam = budget(reg, 1.0, clip=CLIP)

    assert not model.training
    assert reg.modules_not_run() == ["temporal"]
    assert torch.equal(seed, torch.random.get_rng_state())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    # Over height and width first, then from frame to frame.
    frames = model.train().features(CLIP).mean((3, 4))
    change = frames.diff(dim=2).square().mean().item()
    assert lam == pytest.approx(1 / change, rel=1e-5)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_at_the_budget_the_weights_cost_what_nothing_costs(path: Path):
    model = net()
    penalty = penalty_of(path, 0.3)
    reg = Regularizer(model, penalty, example=CLIP)
    if isinstance(penalty, WeightPenalty) and (penalty.constraint or penalty.decoupled):
        with pytest.raises(InputError, match=r"Give (its )?lam as a number"):
            budget(reg, 1.1)
        return
    lam = budget(reg, 1.1, clip=CLIP)
    reg = Regularizer(model, penalty_of(path, lam), example=CLIP)
    model(CLIP)
    cost = float(reg.value() + sum(term.detach() for term in reg.activation_terms().values()))
    assert cost == pytest.approx(1.1, rel=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_minimisers_keep_within_the_budget(share: float):
    """Every minimiser has psi(w*) <= zero_loss / lam; where the problem is convex it is found."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    y[:25] = x[:25, :3].argmax(1)
    loss = zero_loss(torch.tensor(y))
    lam = share * 0.3
    fitted = LogisticRegression(
        l1_ratio=1.0, solver="saga", C=1 / (60 * lam), tol=1e-8, max_iter=20000
    ).fit(x, y)
    psi = np.abs(fitted.coef_).sum()
    assert psi <= loss / lam
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(fitted.coef_))
    if psi > 0:
        assert budget(Regularizer(model, L1(1.0)), loss) >= lam


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_minimisers_of_one_weight_keep_within_the_budget(path: Path):
    """By trying all of them, so that penalties that are not convex are seen too."""
    penalty = penalty_of(path, 0.05)
    if not isinstance(penalty, WeightPenalty):
        return
    weights = torch.linspace(-12, 12, 4001)
    losses = nn.functional.softplus(-weights).add(nn.functional.softplus(weights * 0.5)) / 2
    values = torch.stack([penalty.value(w.view(1, 1)) for w in weights])
    best = (losses + values).argmin()
    assert values[best] <= math.log(2)


def test_knowing_nothing_costs_the_entropy_of_the_classes():
    labels = torch.tensor([0, 0, 0, 2, 2, 5])
    assert zero_loss(labels) == pytest.approx(entropy([3, 2, 1]))
    assert zero_loss(6) == pytest.approx(math.log(6))
    for wrong in (1, torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(InputError, match="give"):
            zero_loss(wrong)


@pytest.mark.parametrize(
    ("penalties", "options", "said"),
    [
        ([Box(1.0)], {}, "Give lam as a number"),
        ([NMSparsity(1.0)], {}, "Give lam as a number"),
        ([L1(1.0), WeightDecay(1.0)], {}, "'weight_decay' is no part"),
        ([L1(0.0)], {}, "lam=0"),
        ([L1(1.0)], {"names": ["l2"]}, "there are l1"),
        ([TemporalSmoothness(1.0)], {}, "give clip="),
        ([L1(1.0, params="head")], {}, "sets no scale"),
    ],
)
def test_what_has_no_scale_is_refused(penalties: list, options: dict, said: str):
    model = net()
    nn.init.zeros_(model.head[1].weight)
    with pytest.raises(InputError, match=said):
        budget(Regularizer(model, penalties, example=CLIP), 1.0, **options)
    with pytest.raises(InputError, match="zero_loss"):
        budget(Regularizer(model, L1(1.0)), 0)


def test_bounds_print_as_a_table_strongest_first():
    bounds = Bounds(
        [
            Bound("budget", "l1", 2e-3, "costs more"),
            Bound("per layer", "head.weight", None, "no such strength"),
            Bound("exact", "0.weight", 0.0123, "zero"),
        ]
    )
    lines = str(bounds).splitlines()
    assert [line.split()[0] for line in lines] == ["lam", "0.0123", "0.002", "-"]
    assert lines[1].index("exact") == lines[2].index("budget")
    assert bounds.lam == 0.0123
