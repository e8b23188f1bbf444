"""RMDA and RAMDA against the formulas of their papers, written out in loops, and scikit-learn."""

import copy
import io
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet as SkElasticNet
from sklearn.linear_model import Lasso as SkLasso
from torch import Tensor, nn

from regkit import InputError, Regularizer
from regkit.optim.dual_averaging import RAMDA, RMDA
from regkit.optim.step_size import step_size_of
from regkit.penalties import L1, ElasticNet, GroupLasso, WeightPenalty

BOTH = pytest.mark.parametrize("make", [RMDA, RAMDA])
Prox = Callable[[list[float], list[float]], list[float]]


def soft(lam: float) -> Prox:
    """Solve min_x lam |x| + d (x - z)^2 / 2 in every coordinate."""

    def prox(z: list[float], d: list[float]) -> list[float]:
        return [math.copysign(max(abs(a) - lam / b, 0.0), a) for a, b in zip(z, d, strict=True)]

    return prox


def ball(lam: float) -> Prox:
    """Solve min_x lam ||x|| + sum d (x - z)^2 / 2 by bisection for the length s of x.

    Stationarity: d (x - z) + lam x / s = 0, so x = z d s / (d s + lam), and ||x(s)|| = s.
    """

    def prox(z: list[float], d: list[float]) -> list[float]:
        def at(s: float) -> list[float]:
            return [a * b * s / (b * s + lam) for a, b in zip(z, d, strict=True)]

        if math.hypot(*(a * b for a, b in zip(z, d, strict=True))) <= lam:
            return [0.0 for _ in z]
        low, high = 0.0, math.hypot(*z)
        for _ in range(200):
            s = (low + high) / 2
            low, high = (s, high) if math.hypot(*at(s)) > s else (low, s)
        return at(low)

    return prox


class Textbook:
    """The algorithms of the papers for one vector, as they are printed."""

    def __init__(self, p: list[float], prox: Callable[[float], Prox], **options: Any) -> None:
        self.p, self.prox, self.o = list(p), prox, options
        self.lr, self.eps, self.taken = options["lr"], options.get("eps", 0.0), 0
        self.begin()

    def begin(self) -> None:
        self.t, self.alpha, self.p0 = 0, 0.0, list(self.p)
        self.V, self.U = [0.0 for _ in self.p], [0.0 for _ in self.p]

    def step(self, grad: list[float]) -> None:
        if self.taken in self.o["stages"]:
            self.begin()
            self.lr *= self.o["stage_decay"]
            self.eps *= self.o["stage_decay"]
        self.taken += 1
        self.t += 1
        s = self.lr * math.sqrt(self.t)
        self.alpha += s
        self.V = [v + s * g for v, g in zip(self.V, grad, strict=True)]
        self.U = [u + s * g * g for u, g in zip(self.U, grad, strict=True)]
        if "eps" in self.o:
            d = [u ** (1 / 3) + self.eps for u in self.U]
            z = [a - v / b for a, v, b in zip(self.p0, self.V, d, strict=True)]
            new = self.prox(self.alpha)(z, d)
        else:
            z = [a - v / math.sqrt(self.t) for a, v in zip(self.p0, self.V, strict=True)]
            new = self.prox(self.alpha / math.sqrt(self.t))(z, [1.0 for _ in z])
        c = self.o["averaging"]
        if self.taken > max(self.o["stages"], default=0):
            c = min(c * math.sqrt(self.t), 1.0)
        self.p = [(1 - c) * a + c * b for a, b in zip(self.p, new, strict=True)]


SETTINGS = {
    "rmda": (RMDA, {"lr": 0.05, "averaging": 0.3, "stages": (7, 15), "stage_decay": 0.5}),
    "rmda one stage": (RMDA, {"lr": 0.05, "averaging": 0.3, "stages": (), "stage_decay": 0.5}),
    "ramda": (RAMDA, {"lr": 0.02, "averaging": 0.3, "stages": (7, 15), "stage_decay": 0.5,
                      "eps": 1e-2}),
    "ramda c=1": (RAMDA, {"lr": 0.02, "averaging": 1.0, "stages": (9,), "stage_decay": 0.1,
                          "eps": 1e-6}),
}  # fmt: skip


def gradients(*shape: int) -> Iterator[Tensor]:
    """Draw gradients of unequal scale, around a constant."""
    scale = torch.logspace(-2, 0.5, shape[-1], dtype=torch.float64)
    while True:
        yield (torch.randn(*shape, dtype=torch.float64) + 0.5) * scale


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_each_step_is_that_of_the_paper(setting: str, lam: float):
    make, options = SETTINGS[setting]
    model = nn.ModuleList([nn.Linear(6, 1, bias=False), nn.Linear(5, 1, bias=False)]).double()
    a, b = (layer.weight for layer in model)
    other = {**options, "lr": options["lr"] * 3}
    optimizer = make([{"params": [a]}, {"params": [b], "lr": other["lr"]}], **options)
    Regularizer(model, L1(lam)).attach(optimizer)
    books = [
        Textbook(p.tolist()[0], lambda w: soft(lam * w), **o) for p, o in ((a, options), (b, other))
    ]
    zeros = 0
    for _, grads in zip(range(40), zip(gradients(1, 6), gradients(1, 5), strict=True)):  # noqa: B905
        for p, grad, book in zip((a, b), grads, books, strict=True):
            p.grad = grad
            book.step(grad.tolist()[0])
        optimizer.step()
        for p, book in zip((a, b), books, strict=True):
            np.testing.assert_allclose(p.detach().numpy()[0], book.p, rtol=1e-9, atol=1e-12)
        zeros = int((a == 0).sum() + (b == 0).sum())
    assert (zeros > 0) == (lam > 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_step_is_that_of_the_paper_for_groups(setting: str):
    """The textbook takes a filter at a time, with lam sqrt(4) for its four weights."""
    make, options = SETTINGS[setting]
    model = nn.Linear(4, 3, bias=False).double()
    nn.init.constant_(model.weight[0].detach(), 0.01)
    optimizer = make(model.parameters(), **options)
    Regularizer(model, GroupLasso(0.2)).attach(optimizer)
    books = [Textbook(row, lambda w: ball(0.4 * w), **options) for row in model.weight.tolist()]
    seen = set()
    for _, grad in zip(range(40), gradients(3, 4)):  # noqa: B905
        model.weight.grad = grad * torch.tensor([[0.05], [1.0], [2.0]], dtype=torch.float64)
        for book, row in zip(books, model.weight.grad.tolist(), strict=True):
            book.step(row)
        optimizer.step()
        weight = model.weight.detach()
        expected = torch.tensor([book.p for book in books], dtype=torch.float64)
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-9)
        seen.add(int((weight == 0).all(1).sum()))
    assert seen - {0, 3}


@BOTH
def test_restart_by_hand_is_an_announced_stage(make: Any):
    runs = []
    for stages, by_hand in (((4, 9), False), ((), True)):
        torch.manual_seed(1)
        p = nn.Parameter(torch.ones(5, dtype=torch.float64))
        # Weight 1 in all stages: which of them is the last does not matter.
        optimizer = make([p], lr=0.03, averaging=1.0, stages=stages)
        for t, grad in zip(range(14), gradients(5), strict=False):
            if by_hand and t in (0, 4, 9):
                optimizer.restart()
                optimizer.restart()
            p.grad = grad
            optimizer.step()
        runs.append(p)
    assert torch.equal(runs[0], runs[1])


def problem() -> tuple[Tensor, Tensor]:
    """Make correlated inputs of unequal scale, a sparse truth and noise."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(120, 30)) + 0.5 * rng.normal(size=(120, 1))
    x *= np.exp(rng.uniform(-0.7, 0.7, size=30))
    truth = np.zeros(30)
    truth[:8] = rng.normal(size=8)
    y = x @ truth + 0.3 * rng.normal(size=120)
    return torch.from_numpy(x), torch.from_numpy(y)


def fit(make: Any, penalty: WeightPenalty, num_steps: int) -> np.ndarray:
    x, y = problem()
    model = nn.Linear(30, 1, bias=False).double()
    optimizer = make(model.parameters())
    Regularizer(model, penalty).attach(optimizer)
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((model(x).squeeze(1) - y) ** 2).mean().div(2).backward()
        optimizer.step()
    return model.weight.detach().numpy()[0]


STAGES = range(60, 600, 60)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: RMDA(p, lr=0.05, averaging=0.3, stages=STAGES, stage_decay=1.0),
        lambda p: RAMDA(p, lr=0.05, averaging=0.3, stages=STAGES, stage_decay=0.3),
        lambda p: RAMDA(p, lr=3e-3, averaging=0.3, stages=STAGES, stage_decay=1.0),
    ],
    ids=["rmda", "ramda", "ramda no decay"],
)
@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, l1_ratio=0.7)], ids=["l1", "en"])
def test_reaches_the_optimum_and_support_of_scikit_learn(make: Any, penalty: WeightPenalty):
    x, y = problem()
    options = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}
    oracle = SkLasso(0.1, **options)
    if isinstance(penalty, ElasticNet):
        oracle = SkElasticNet(0.1, l1_ratio=0.7, **options)
    best = oracle.fit(x.numpy(), y.numpy()).coef_

    def objective(w: np.ndarray) -> float:
        v = torch.from_numpy(w)
        return float(((x @ v - y) ** 2).mean() / 2 + penalty.value(v))

    w = fit(make, penalty, 600)
    assert 0 < (best != 0).sum() < 30
    assert abs(objective(w) / objective(best) - 1) <= 1e-12
    assert ((w != 0) == (best != 0)).all()


@BOTH
def test_averages_are_dense_and_the_end_is_sparse(make: Any):
    """With c = 0.2 the weight is 1 from step 25 of the last stage on."""
    seen = []
    for num_steps in (39, 64, 65):
        w = fit(lambda p: make(p, lr=0.02, averaging=0.2, stages=(40,)), L1(0.5), num_steps)
        seen.append(int((w == 0).sum()))
    assert seen[0] == seen[1] == 0
    assert seen[2] > 0


def trained(make: Any, **options: Any) -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Conv3d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))
    return model, make(model.parameters(), **options)


def train(model: nn.Module, optimizer: Any, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(4, 2, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("penalised", [True, False])
@pytest.mark.filterwarnings("ignore:Penalised weights are stored in torch.bfloat16")
def test_resumes_bit_for_bit(make: Any, dtype: torch.dtype, penalised: bool):
    """Within a stage, with a stage that was begun by hand and one that is still to come."""
    model, optimizer = trained(make, stages=(3, 8))
    model.to(dtype)
    reg = Regularizer(model, L1(1e-2 if penalised else 0.0))
    reg.attach(optimizer)
    train(model, optimizer, range(5))
    optimizer.restart()
    train(model, optimizer, range(5, 7))
    saved = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), reg.state_dict()], saved)
    train(model, optimizer, range(7, 12))
    again, resumed = trained(make)
    again.to(dtype)
    new_reg = Regularizer(again, L1(1e-2 if penalised else 0.0))
    new_reg.attach(resumed)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    for thing, state in zip((again, resumed, new_reg), states, strict=True):
        thing.load_state_dict(state)
    train(again, resumed, range(7, 12))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@BOTH
def test_a_copy_goes_its_own_way(make: Any):
    model, optimizer = trained(make, stages=(3,))
    Regularizer(model, L1(1e-2)).attach(optimizer)
    train(model, optimizer, range(2))
    both = copy.deepcopy([model, optimizer])
    assert both[1].proximal_step is None
    Regularizer(both[0], L1(1e-2)).attach(both[1])
    train(model, optimizer, range(2, 6))
    train(both[0], both[1], range(2, 6))
    for p, q in zip(model.parameters(), both[0].parameters(), strict=True):
        assert torch.equal(p, q)
        assert p is not q


@BOTH
def test_half_precision_sums_in_single(make: Any):
    """A thousand steps of a hundredth each are lost in bfloat16, which has 8 bits."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.full((3,), 1.0, dtype=dtype))
        optimizer = make([p], lr=1e-3, averaging=0.01, stages=(1000,))
        for _ in range(1000):
            p.grad = torch.full((3,), 0.25, dtype=dtype)
            optimizer.step()
        assert {t.dtype for t in optimizer.state[p].values() if isinstance(t, Tensor)} == {
            torch.float32
        }
        results.append(p.detach().float())
    torch.testing.assert_close(results[1], results[0], rtol=2**-8, atol=0)
    assert (results[0] < 0.9).all()


@BOTH
def test_a_parameter_without_gradient_stands_still_and_comes_later(make: Any):
    model = nn.ModuleList([nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)])
    a, b = (layer.weight for layer in model)
    optimizer = make(model.parameters(), lr=0.1, averaging=1.0, stages=(3,), stage_decay=0.5)
    Regularizer(model, L1(1e-3)).attach(optimizer)
    before = b.detach().clone()
    for _ in range(4):
        a.grad = torch.ones_like(a)
        optimizer.step()
    assert torch.equal(b, before)
    assert b not in optimizer.state
    b.grad, a.grad = torch.ones_like(b), None
    at = a.detach().clone()
    optimizer.step()
    assert torch.equal(a, at)
    if make is RMDA:  # the first step of the second stage: half the rate
        torch.testing.assert_close(b, before - 0.05 - 0.05e-3 * (before - 0.05).sign())
    assert optimizer.state[b]["step"] == 1


@BOTH
def test_a_layer_that_is_pruned_whole_does_no_harm(make: Any):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    optimizer = make(model.parameters(), stages=(5,))
    Regularizer(model, L1(100.0)).attach(optimizer)
    for _ in range(110):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
    assert all((layer.weight == 0).all() for layer in model)
    assert all(p.isfinite().all() for p in model.parameters())
    assert "scale" not in optimizer.state[model[0].weight]


@BOTH
def test_rate_0_moves_nothing_and_schedulers_work(make: Any):
    model = nn.Linear(4, 1, bias=False)
    optimizer = make(model.parameters(), lr=0.05, averaging=0.5, stages=(2,))
    Regularizer(model, L1(0.1)).attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [0.0, 1.0, 1.0, 0.5][t % 4])
    for t in range(12):
        before = model.weight.detach().clone()
        model.weight.grad = torch.ones(1, 4)
        optimizer.step()
        assert torch.equal(before, model.weight) == (t % 4 == 0)
        scheduler.step()
    assert optimizer.param_groups[0]["initial_lr"] == 0.05
    assert optimizer.param_groups[0]["num_done"] == 12


@BOTH
def test_closure_and_alone(make: Any):
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make([p], lr=0.05)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.proximal_step is None
    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[0] == 5.0
    assert losses[-1] < 0.05
    assert optimizer.step() is None


@BOTH
def test_detached_it_is_as_before(make: Any):
    model, optimizer = trained(make)
    reg = Regularizer(model, L1(1.0))
    reg.attach(optimizer)
    assert optimizer.proximal_step is not None
    assert step_size_of(optimizer) is not None
    reg.detach()
    assert optimizer.proximal_step is None
    train(model, optimizer, range(2))
    assert all((p != 0).all() for p in model.parameters())


@BOTH
def test_mixed_types_memory_formats_and_empty_parameters(make: Any):
    torch.manual_seed(3)
    base = torch.randn(2, 3, 2, 2, 2)
    params = [
        nn.Parameter(base.clone()),
        nn.Parameter(base.to(memory_format=torch.channels_last_3d)),
        nn.Parameter(base.double()),
        nn.Parameter(torch.zeros(0, 4)),
    ]
    optimizer = make(params, stages=(2,))
    for _ in range(4):
        grad = torch.randn(2, 3, 2, 2, 2)
        for p in params[:3]:
            p.grad = grad.to(p.dtype)
        params[3].grad = torch.zeros(0, 4)
        optimizer.step()
    torch.testing.assert_close(params[1], params[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(params[2].float(), params[0], rtol=1e-4, atol=1e-5)


def test_a_group_that_comes_later_joins_the_stage():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RMDA([a], lr=0.1, averaging=1.0, stages=(2,), stage_decay=0.5)
    for _ in range(3):
        a.grad = torch.ones(2)
        optimizer.step()
    optimizer.add_param_group({"params": [b]})
    b.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(b.detach(), torch.full((2,), 0.95))
    assert [g["num_done"] for g in optimizer.param_groups] == [4, 4]


@BOTH
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -0.1}, "lr is a number >= 0"),
        ({"lr": float("nan")}, "lr is a number >= 0"),
        ({"averaging": 0.0}, r"averaging is a number in \(0, 1\]"),
        ({"averaging": 1.5}, r"averaging is a number in \(0, 1\]"),
        ({"stage_decay": 0.0}, r"stage_decay is a number in \(0, 1\]"),
        ({"stages": (0,)}, "give rising numbers of steps"),
        ({"stages": (5, 3)}, "give rising numbers of steps"),
        ({"stages": (5, 5)}, "give rising numbers of steps"),
        ({"stages": (1.5,)}, "give rising numbers of steps"),
        ({"stages": (0.5,)}, "no num_steps to take it of"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=f"{make.__name__} got .*{said}"):
        make([nn.Parameter(torch.ones(2))], **options)


def test_what_cannot_be_moved_is_refused():
    with pytest.raises(InputError, match=r"RAMDA got eps=0\.0; eps is a number > 0"):
        RAMDA([nn.Parameter(torch.ones(2))], eps=0.0)
    with pytest.raises(InputError, match="complex parameter"):
        RMDA([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = RMDA(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse=False"):
        optimizer.step()


def test_stages_may_be_shares_and_a_dense_end_is_warned_of():
    params = [nn.Parameter(torch.ones(2))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = RMDA(params, averaging=0.1, stages=(0.5, 300), num_steps=400)
    assert optimizer.param_groups[0]["stages"] == (200, 300)
    with pytest.warns(UserWarning, match="last stage has 99 steps.*only at step 100"):
        RMDA(params, averaging=0.1, stages=(301,), num_steps=400)
