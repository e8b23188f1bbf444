"""Strengths from which on zero is a fixed point: against closed forms and other solvers."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.optimize import brentq
from sklearn.linear_model._base import _preprocess_data
from sklearn.linear_model._coordinate_descent import _alpha_grid
from torch import Tensor, nn, optim

from regkit import InputError, Regularizer
from regkit.optim.fused_optimizers import ProxSGD
from regkit.penalties import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    ElasticNet,
    GroupL0,
    GroupLasso,
    GroupMCP,
    LHalf,
    LogSum,
    Nuclear,
    SparseGroupLasso,
    WeightPenalty,
)
from regkit.regularizer.bound_penalty import BoundPenalty, bind
from regkit.selection.critical import critical, smallest
from regkit.selection.layers import head_bound, layer_bounds, step_bound

YAMLS = sorted((Path(__file__).parents[2] / "configs" / "penalty").glob("*.yaml"))
G = torch.tensor(np.random.default_rng(3).normal(size=(5, 7)) * 0.1, dtype=torch.float32)


def term_of(model: nn.Module, penalty: WeightPenalty) -> BoundPenalty:
    return bind(model, "it", penalty, example=None)


def sparse_group(ratio: float) -> float:
    """Return where || soft(g, lam r) || = lam (1 - r) sqrt(n), of the group where that is last."""

    def excess(lam: float, g: np.ndarray) -> float:
        thin = np.maximum(np.abs(g) - lam * ratio, 0)
        return float(np.linalg.norm(thin) - lam * (1 - ratio) * math.sqrt(len(g)))

    roots = [brentq(excess, 0, 10, args=(g,), xtol=1e-14) for g in G.double().numpy()]
    return float(np.max(roots))


CLOSED: list[tuple[WeightPenalty, float]] = [
    (L1(3.0), float(G.abs().max())),
    (ElasticNet(0.2, l1_ratio=0.3), float(G.abs().max()) / 0.3),
    (GroupLasso(1.0), float(G.norm(dim=1).max()) / math.sqrt(7)),
    (GroupLasso(1.0, groups="in_channel"), float(G.norm(dim=0).max()) / math.sqrt(5)),
    (SparseGroupLasso(1.0, l1_ratio=0.4), sparse_group(0.4)),
    (Nuclear(1.0), float(np.linalg.norm(G.double().numpy(), 2))),
    (MCP(1.0), float(G.abs().max())),
    (SCAD(1.0), float(G.abs().max())),
    (LogSum(1.0), float(G.abs().max())),
    (GroupMCP(1.0), float(G.norm(dim=1).max()) / math.sqrt(7)),
]


@pytest.mark.parametrize(("penalty", "expected"), CLOSED, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_closed_forms(penalty: WeightPenalty, expected: float, scale: float):
    model = nn.Linear(7, 5)
    found = critical(term_of(model, penalty), {model.weight: G * scale})
    assert found == pytest.approx(expected * scale, rel=3e-6)


def test_the_neediest_layer_decides_and_factors_count():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(7, 5))
    gradients = {model[0].weight: G, model[1].weight: 2 * G}
    most = float(G.abs().max())
    assert critical(term_of(model, L1(1.0)), gradients) == pytest.approx(2 * most, rel=1e-5)
    weak = L1(0.1, lam_scale={"0": 0.25, "1": 4.0})
    assert critical(term_of(model, weak), gradients) == pytest.approx(4 * most, rel=1e-5)
    off = L1(0.1, lam_scale={"1": 0.0})
    assert critical(term_of(model, off), gradients) == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_zero_is_the_best_weight_nearby_from_there_on(path: Path):
    """<g, w> + value(w) >= 0 for all small w from the critical strength on, and not below it."""
    config = OmegaConf.create({"lam": 1.0, "penalty": OmegaConf.load(path)})
    options = config.penalty.get(path.stem)
    penalty = instantiate(options, _convert_="all") if options is not None else None
    if not isinstance(penalty, WeightPenalty) or penalty.layout not in ("entries", "filter"):
        return
    model = nn.Linear(7, 5)
    bound = term_of(model, penalty)
    try:
        lam = critical(bound, {model.weight: G})
    except InputError:
        assert not penalty.sparsifies or not penalty.convex
        return
    small = G.double() / 1e4
    rivals = -small * torch.rand(400, 5, 7, dtype=torch.float64) ** 3
    rivals *= torch.rand_like(rivals) < 0.3

    def gain(w: Tensor, strength: float) -> float:
        return float((G * w).sum() + penalty.scaled(strength).value(w))

    assert min(gain(w, lam * 1.001) for w in rivals) >= 0
    below = penalty.scaled(lam * 0.99).prox(-small, 1e-4)
    assert below.any()
    assert gain(below, lam * 0.99) < 0


@pytest.mark.parametrize("penalty", [L0(1.0), LHalf(1.0), GroupL0(1.0), L2(1.0)])
def test_what_has_no_critical_strength_says_so(penalty: WeightPenalty):
    model = nn.Linear(7, 5)
    with pytest.raises(InputError, match=r"[gG]ive lam as a number"):
        critical(term_of(model, penalty), {model.weight: G})
    with pytest.raises(InputError, match="not finite"):
        critical(term_of(model, L1(1.0)), {model.weight: G * math.inf})


def test_no_gradient_asks_for_no_strength():
    model = nn.Linear(7, 5)
    assert critical(term_of(model, L1(1.0)), {model.weight: G * 0}) == 0


def test_in_a_metric_every_entry_has_its_own_threshold():
    step = torch.rand(5, 7, dtype=torch.float64) + 0.1
    rows = G.double()
    assert smallest(L1(1.0), rows, step) == pytest.approx(
        float((rows.abs() / step).max()), rel=3e-6
    )
    lengths = (rows / step).norm(dim=1) / math.sqrt(7)
    assert smallest(GroupLasso(1.0), rows, step) == pytest.approx(float(lengths.max()), rel=3e-6)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_the_head_of_a_regression_has_the_top_of_sklearns_grid(ratio: float):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 12)) + 0.7
    y = x[:, :3].sum(1) + rng.normal(size=90) + 5
    centred, target, *_ = _preprocess_data(x, y, fit_intercept=True)
    expected = _alpha_grid(centred, target, l1_ratio=ratio, fit_intercept=False, n_alphas=2)[0]

    model = nn.Linear(12, 1).double()
    data = torch.tensor(x), torch.tensor(y)[:, None]
    batches = list(zip(*(part.split(40) for part in data), strict=True))
    bound = term_of(model, ElasticNet(1.0, l1_ratio=ratio))
    found = head_bound(model, bound, batches, lambda s, t: (s - t).square().mean() / 2)
    assert found.kind == "exact"
    assert found.lam == pytest.approx(expected, rel=1e-6)


def classes() -> tuple[Tensor, Tensor]:
    x = torch.randn(50, 6)
    return x + 1, torch.cat([x[:40, :3].argmax(1), torch.full((10,), 1)])


def test_the_head_of_a_classifier_has_its_bias_at_the_shares():
    x, y = classes()
    shares = np.bincount(y, minlength=4) / 50  # the last class has no video
    gradient = (shares - np.eye(4)[y]).T @ x.double().numpy() / 50
    batches = [(x, y)]
    plain = nn.Sequential(nn.Dropout(0.9), nn.Linear(6, 4))
    found = head_bound(plain, term_of(plain, L1(1.0)), batches)
    assert found.kind == "exact"
    assert found.lam == pytest.approx(np.abs(gradient).max(), rel=1e-4)
    assert plain.training
    no_bias = nn.Linear(6, 4, bias=False)
    even = np.abs((0.25 - np.eye(4)[y]).T @ x.double().numpy() / 50).max()
    found = head_bound(no_bias, term_of(no_bias, L1(1.0)), batches)
    assert found.lam == pytest.approx(even, rel=1e-5)
    # A penalised bias is zero with the weights.
    charged = nn.Linear(6, 4)
    found = head_bound(charged, term_of(charged, L1(1.0, params=("*weight", "*bias"))), batches)
    assert found.lam == pytest.approx(even, rel=1e-5)


@pytest.mark.parametrize(("factor", "dead"), [(1.05, True), (0.9, False)])
def test_training_a_head_ends_at_zero_from_the_exact_bound_on(factor: float, dead: bool):
    x, y = classes()
    model = nn.Linear(6, 3)
    bound = head_bound(model, term_of(model, GroupLasso(1.0)), [(x, y)])
    assert bound.lam is not None
    optimizer = ProxSGD(model.parameters(), lr=0.5, momentum=0.8)
    Regularizer(model, GroupLasso(bound.lam * factor)).attach(optimizer)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert bool((model.weight == 0).all()) == dead


def test_a_head_is_exact_only_where_nothing_else_trains():
    x, y = classes()
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    head = term_of(model, L1(1.0, params="2"))
    assert head_bound(model, head, [(x, y)]).kind == "per layer"
    model[0].requires_grad_(False)
    assert head_bound(model, head, [(x, y)]).kind == "exact"
    model[0].requires_grad_(True)
    with pytest.raises(InputError, match="does not act on '2'"):
        head_bound(model, term_of(model, L1(1.0, params="0")), [(x, y)])
    with pytest.raises(InputError, match="no batches"):
        head_bound(model, head, [])
    odd = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    with pytest.raises(InputError, match="scores of Sequential are not"):
        head_bound(odd, term_of(odd, L1(1.0)), [(x, y)])


def test_each_layer_is_set_to_zero_by_itself():
    x, y = classes()
    model = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
    )
    before = copy.deepcopy(model.state_dict())
    bounds = layer_bounds(model, term_of(model, L1(1.0)), list(zip(x.split(20), y.split(20))))  # noqa: B905

    assert [b.of for b in bounds] == ["0.weight", "4.weight"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    for bound in bounds:
        other = copy.deepcopy(model).eval()
        weight = other.get_parameter(bound.of)
        nn.init.zeros_(weight)
        nn.functional.cross_entropy(other(x), y).backward()
        assert weight.grad is not None
        assert bound.lam == pytest.approx(weight.grad.abs().max().item(), rel=1e-4)
    with pytest.raises(InputError, match="again and again"):
        layer_bounds(model, term_of(model, L1(1.0)), iter([(x, y)]))


OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "prox_sgd": lambda p: ProxSGD(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "penalty", [L1(0.3), GroupLasso(2.0, params=["0", "2"]), Nuclear(1.0, params=["0", "2"])]
)
def test_the_first_step_makes_all_zero_from_its_bound_on(name: str, penalty: WeightPenalty):
    x, y = classes()
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    before = copy.deepcopy(model.state_dict())
    bound = step_bound(model, term_of(model, penalty), OPTIMIZERS[name], [(x, y)])
    assert bound.lam is not None
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())

    for factor, dead in ((1.0001, True), (0.999, False)):
        copied = copy.deepcopy(model)
        optimizer = OPTIMIZERS[name](copied.parameters())
        strength = bound.lam * factor / penalty.lam
        Regularizer(copied, penalty.scaled(strength)).attach(optimizer)
        nn.functional.cross_entropy(copied(x), y).backward()
        optimizer.step()
        assert dead != bool(copied[0].weight.any() or copied[2].weight.any())


def test_the_first_step_of_sgd_and_adam_in_closed_form():
    x, y = classes()
    model = nn.Linear(6, 3)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model.weight)
    w = model.weight.detach()
    sgd = step_bound(model, term_of(model, L1(1.0)), lambda p: optim.SGD(p, lr=0.1), [(x, y)])
    assert sgd.lam == pytest.approx(float((w - 0.1 * g).abs().max() / 0.1), rel=2e-4)
    adam = step_bound(model, term_of(model, L1(1.0)), lambda p: optim.Adam(p, lr=0.01), [(x, y)])
    expected = ((w - 0.01 * g.sign()).abs() * (g.abs() + 1e-8) / 0.01).max()
    assert adam.lam == pytest.approx(float(expected), rel=1e-3)
    with pytest.raises(InputError, match="no strength of L2"):
        step_bound(model, term_of(model, L2(1.0)), lambda p: optim.SGD(p, lr=0.1), [(x, y)])
