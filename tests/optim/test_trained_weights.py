"""Targets, densities and strengths are of the weights that are trained, in plain PyTorch.

Densities are counted here by hand, from the weights that the test itself trains.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy, mse_loss

from regkit import InputError, Regularizer, Schedule
from regkit.penalties import L1, L2, GroupLasso, GroupMCP, WeightPenalty

NUM_STEPS = 40
Make = Callable[[Iterable[nn.Parameter]], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.02, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.0),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nets this small only make threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(num_outputs: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 20, generator=generator)
    teacher = torch.randn(20, num_outputs, generator=generator)
    teacher *= torch.rand(20, num_outputs, generator=generator) < 0.2
    return x, x @ teacher + 0.3 * torch.randn(64, num_outputs, generator=generator)


def three() -> nn.Sequential:
    """Return three layers of 400 weights each."""
    return nn.Sequential(
        nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)
    )


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def density_of(*weights: Tensor) -> float:
    return sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def train(
    model: nn.Module,
    optimizer: optim.Optimizer,
    num_steps: int = NUM_STEPS,
    before: Callable[[int], Any] = lambda step: None,
    after: Callable[[int], Any] = lambda step: None,
    set_to_none: bool = True,
) -> list[str]:
    """Train on two halves of the data by turns; return the warnings of regkit.

    before, after: called around the optimizer's step, with its number.
    """
    x, y = data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(num_steps):
            half = slice(32 * (step % 2), 32 * (step % 2) + 32)
            optimizer.zero_grad(set_to_none=set_to_none)
            (mse_loss(model(x[half]), y[half]) * 4).backward()
            before(step)
            optimizer.step()
            after(step)
    assert all(p.isfinite().all() for p in model.parameters())
    return [str(w.message) for w in caught]


def aimed(
    model: nn.Module,
    optimizer: optim.Optimizer,
    penalty: Any = None,
    num_steps: int = NUM_STEPS,
    target: float = 0.3,
    **options: Any,
) -> Regularizer:
    schedule = Schedule(target_density=target, num_steps=num_steps, **options)
    return Regularizer(model, penalty or L1(1e-3), schedule=schedule).attach(optimizer)


def assert_met_or_said(
    reg: Regularizer, warned: Sequence[str], held: Sequence[Tensor], layerwise: bool = False
) -> None:
    """The target is met, by all that it was asked of, or one warning says that it is not."""
    shares = [density_of(w) for w in held] if layerwise else [density_of(*held)]
    is_met = shares == pytest.approx([0.3] * len(shares), abs=0.01)
    assert len(warned) == (0 if is_met else 1)
    assert [result.is_met for result in reg.target_results()] == [is_met]


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_backbone_counts_nowhere(name: str, layerwise: bool):
    model = three()
    model[0].requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    optimizer = OPTIMIZERS[name](model.parameters())
    reg = aimed(model, optimizer, layerwise=layerwise)
    assert set(reg.counted_parameters()) == {"2.weight", "4.weight"}
    assert train(model, optimizer) == []
    assert torch.equal(model[0].weight, frozen)
    assert density_of(model[2].weight, model[4].weight) == pytest.approx(0.3, abs=0.01)
    if layerwise:
        assert density_of(model[2].weight) == pytest.approx(0.3, abs=0.01)
    (result,) = reg.target_results()
    assert result.is_met
    assert result.reached == pytest.approx(0.3, abs=0.01)
    assert set(reg.counted_parameters()) == {"2.weight", "4.weight"}
    lam = reg.current_lams()["l1"]
    assert lam < 100
    if not layerwise:
        value = lam * (model[2].weight.abs().sum() + model[4].weight.abs().sum())
        torch.testing.assert_close(reg.value(), value.detach())


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_no_optimizer_holds_counts_nowhere(name: str, layerwise: bool):
    model = three()
    left = model[0].weight.detach().clone()
    optimizer = OPTIMIZERS[name]([*model[2].parameters(), *model[4].parameters()])
    reg = aimed(model, optimizer, layerwise=layerwise)
    assert train(model, optimizer) == []
    assert torch.equal(model[0].weight, left)
    assert density_of(model[2].weight, model[4].weight) == pytest.approx(0.3, abs=0.01)
    assert set(reg.counted_parameters()) == {"2.weight", "4.weight"}


class LowRank(nn.Module):
    """What LoRA makes of a layer."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.lora_a = nn.Linear(num_inputs, 20, bias=False)
        self.lora_b = nn.Linear(20, num_outputs, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_b(self.lora_a(x))


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize(("name", "target"), [("sgd", 0.3), ("adamw", 0.5)])
def test_low_rank_updates_meet_the_target(name: str, target: float, layerwise: bool):
    model = nn.Sequential(LowRank(20, 20), nn.ReLU(), LowRank(20, 20))
    bases = [model[0].base.weight.detach().clone(), model[2].base.weight.detach().clone()]
    optimizer = OPTIMIZERS[name](trainable(model))
    reg = aimed(model, optimizer, target=target, layerwise=layerwise)
    assert train(model, optimizer) == []
    assert torch.equal(model[0].base.weight, bases[0])
    assert torch.equal(model[2].base.weight, bases[1])
    held = [p for layer in (model[0], model[2]) for p in (layer.lora_a.weight, layer.lora_b.weight)]
    assert density_of(*held) == pytest.approx(target, abs=0.01)
    for p in held if layerwise else ():
        assert density_of(p) == pytest.approx(target, abs=0.01)
    assert all(result.is_met for result in reg.target_results())


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factor_zero_is_as_if_on_had_left_the_layer_out(name: str, layerwise: bool):
    def run(penalty: WeightPenalty) -> tuple[nn.Sequential, Regularizer]:
        torch.manual_seed(0)
        model = three()
        optimizer = OPTIMIZERS[name](model.parameters())
        reg = aimed(model, optimizer, penalty, layerwise=layerwise)
        assert train(model, optimizer) == []
        return model, reg

    zero, reg = run(L1(1e-3, lam_scale={"0": 0.0}))
    out, other = run(L1(1e-3, params="!0"))
    for p, q in zip(zero.parameters(), out.parameters(), strict=True):
        assert torch.equal(p, q)
    assert density_of(zero[2].weight, zero[4].weight) == pytest.approx(0.3, abs=0.01)
    assert density_of(zero[0].weight) == 1.0
    assert set(reg.counted_parameters()) == set(other.counted_parameters())
    assert reg.current_lams() == other.current_lams()
    assert reg.target_results() == other.target_results()
    assert float(reg.value()) == float(other.value())


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "penalty", [L1(0.05), GroupLasso(0.05, groups="in_channel")], ids=["l1", "gl"]
)
def test_a_layer_that_is_frozen_in_the_middle_stays_as_it_is(
    penalty: WeightPenalty, set_to_none: bool
):
    """Its gradient may be left, and be zero: SGD then leaves it alone, and so must the step."""
    model, kept = three(), []
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    Regularizer(model, penalty).attach(optimizer)

    def freeze(step: int) -> None:
        if step == 10:
            model[0].requires_grad_(False)
            kept.append(model[0].weight.detach().clone())

    train(model, optimizer, 20, after=freeze, set_to_none=set_to_none)
    assert density_of(kept[0]) > 0
    assert torch.equal(model[0].weight, kept[0])


@pytest.mark.parametrize("when", [5, 15, 38])
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_target_holds_for_what_is_trained_in_the_end(layerwise: bool, when: int):
    """A layer is frozen on the way, before and within the last tenth."""
    model = three()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    aimed(model, optimizer, layerwise=layerwise)

    def freeze(step: int) -> None:
        if step == when:
            model[0].requires_grad_(False)

    assert train(model, optimizer, after=freeze) == []
    assert density_of(model[2].weight, model[4].weight) == pytest.approx(0.3, abs=0.01)
    for layer in (model[2], model[4]) if layerwise else ():
        assert density_of(layer.weight) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("when", [5, 15, 30, 38])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_layer_that_joins_counts_from_then_on(name: str, layerwise: bool, when: int):
    model = three()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS[name](trainable(model))
    reg = aimed(model, optimizer, layerwise=layerwise)

    def join(step: int) -> None:
        if step == when:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})

    warned = train(model, optimizer, after=join)
    held = [model[place].weight for place in (0, 2, 4)]
    if when < 36:
        assert warned == []
    assert_met_or_said(reg, warned, held, layerwise)


def test_two_optimizers_bring_their_weights_to_the_target_each():
    """One steps at every 4th step of the other; steps are counted for the other."""
    model = nn.ModuleList([three(), three()])
    with torch.no_grad():
        model[1][0].weight.mul_(5.0)
    often = optim.SGD(model[0].parameters(), lr=0.05)
    seldom = optim.SGD(model[1].parameters(), lr=0.05)
    reg = aimed(model, often).attach(seldom)
    x, y = data()

    def other(step: int) -> None:
        (mse_loss(model[1](x), y) * 4 / 4).backward()
        if step % 4 == 3:
            seldom.step()
            seldom.zero_grad()

    assert train(model[0], often, after=other) == []
    for net in model:
        found = density_of(*(net[place].weight for place in (0, 2, 4)))
        assert found == pytest.approx(0.3, abs=0.01)
    assert [result.is_met for result in reg.target_results()] == [True, True]


def test_the_second_optimizer_is_warned_of_too():
    """It stops early; the first goes on to the end, and is where it should be."""
    model = nn.ModuleList([three(), three()])
    whole = optim.SGD(model[0].parameters(), lr=0.05)
    half = optim.SGD(model[1].parameters(), lr=0.05)
    reg = aimed(model, whole).attach(half)
    x, y = data()

    def other(step: int) -> None:
        if step < NUM_STEPS // 8:
            half.zero_grad()
            (mse_loss(model[1](x), y) * 4).backward()
            half.step()

    warned = train(model[0], whole, before=other)
    assert [result.is_met for result in reg.target_results()] == [True, False]
    assert len(warned) == 1


PENALTIES: dict[str, Any] = {
    "entries": L1(1e-3),
    "inputs": GroupLasso(1e-3, groups="in_channel"),
    "filters": GroupLasso(1e-3, groups="filter", params=["0", "2"]),
    "entries and inputs": [L1(1e-3), GroupLasso(1e-3, groups="in_channel")],
    "entries and filters": [L1(1e-3), GroupLasso(1e-3, groups="filter", params=["0", "2", "4"])],
}


def told(model: nn.Module, penalty: Any, until: float, **options: Any) -> Regularizer:
    """Train up to a share of what was planned, the loop saying how far it is."""
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    reg = Regularizer(model, penalty, schedule=Schedule(target_density=0.3, **options))
    reg.set_progress(0.0)
    reg.attach(optimizer)
    num_steps = round(NUM_STEPS * until)
    train(model, optimizer, num_steps, lambda step: reg.set_progress((step + 1) / NUM_STEPS))
    return reg


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("kind", PENALTIES)
def test_what_ended_early_can_be_finished(kind: str, layerwise: bool):
    model = three()
    reg = told(model, PENALTIES[kind], 0.2, layerwise=layerwise)
    counted = list(reg.counted_parameters().values())
    (result,) = reg.target_results()
    assert not result.is_met
    assert result.target == 0.3
    assert "training ended at 20% of its length" in result.reason
    before = [p.detach().clone() for p in counted]
    assert density_of(*counted) > 0.4
    reached = reg.meet_target()
    # Groups of 20: one is 1/20 of a layer.
    assert reached == pytest.approx(0.3, abs=0.026)
    assert density_of(*counted) == pytest.approx(reached)
    for p, q in zip(before, counted, strict=True):
        assert torch.equal(q, p * (q != 0))
        assert not layerwise or density_of(q) == pytest.approx(0.3, abs=0.026)
    (result,) = reg.target_results()
    assert result.is_met or abs(result.reached - 0.3) > 0.015


def test_finishing_takes_the_smallest_and_nothing_of_what_is_frozen():
    model = three()
    model[0].requires_grad_(False)
    reg = told(model, L1(1e-3), 0.2)
    before = [model[place].weight.detach().clone() for place in (0, 2, 4)]
    cut = torch.cat([w.abs().flatten() for w in before[1:]]).sort(descending=True).values[239]
    assert reg.meet_target() == pytest.approx(0.3, abs=1e-3)
    assert torch.equal(model[0].weight, before[0])
    for place, w in zip((2, 4), before[1:], strict=True):
        assert torch.equal(model[place].weight, w * (w.abs() >= cut))


def test_finishing_needs_a_target():
    with pytest.raises(InputError, match="no target"):
        Regularizer(three(), L1(0.1)).meet_target()


def fifty() -> nn.Sequential:
    """Return 50 filters of 20 weights, and a head whose rows are no groups."""
    return nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 20))


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("kind", [GroupLasso, GroupMCP])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_filter_of_fifty_is_left(name: str, kind: type[Any], layerwise: bool):
    """At no step of training are there none: a dead net does not come back."""
    model, live = fifty(), []
    optimizer = OPTIMIZERS[name](model.parameters())
    reg = aimed(model, optimizer, kind(1e-3), target=0.02, layerwise=layerwise)

    def count(step: int) -> None:
        live.append(int((model[0].weight != 0).any(1).sum()))

    assert train(model, optimizer, after=count) == []
    assert min(live) >= 1
    assert live[-1] == 1
    assert reg.target_results()[0].is_met


@pytest.mark.parametrize("kind", [GroupLasso, GroupMCP])
def test_less_than_one_filter_is_said_not_done(kind: type[Any]):
    model = fifty()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    aimed(model, optimizer, kind(1e-3), target=0.005)
    warned = train(model, optimizer)
    assert int((model[0].weight != 0).any(1).sum()) == 1
    assert len(warned) == 1
    reg = told(fresh := fifty(), kind(1e-3), 0.2)
    reg.schedule = Schedule(target_density=0.005)
    reg.meet_target()
    assert int((fresh[0].weight != 0).any(1).sum()) == 1


@pytest.mark.parametrize("warm_up", [False, True], ids=["at once", "after a step of lr 0"])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("lam", [1e-30, 1e-12, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_strength_is_found_from_anywhere(name: str, lam: float, layerwise: bool, warm_up: bool):
    model = three()
    optimizer = OPTIMIZERS[name](model.parameters())
    lr, lowest = optimizer.param_groups[0]["lr"], []

    def rate(step: int) -> None:
        optimizer.param_groups[0]["lr"] = lr * min(step / 5, 1.0) if warm_up else lr

    def count(step: int) -> None:
        if step < NUM_STEPS // 4:
            lowest.append(density_of(*(model[place].weight for place in (0, 2, 4))))

    aimed(model, optimizer, L1(lam), layerwise=layerwise)
    assert train(model, optimizer, before=rate, after=count) == []
    held = [model[place].weight for place in (0, 2, 4)]
    assert density_of(*held) == pytest.approx(0.3, abs=0.01)
    for weight in held if layerwise else ():
        assert density_of(weight) == pytest.approx(0.3, abs=0.01)
    # On its way it has not killed what it was to keep.
    assert min(lowest) >= 0.25


@pytest.mark.parametrize("num_steps", [1, 2, 5, 12])
def test_few_steps_are_enough_or_said(num_steps: int):
    model = three()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    reg = aimed(model, optimizer, num_steps=num_steps)
    warned = train(model, optimizer, num_steps)
    assert_met_or_said(reg, warned, [model[place].weight for place in (0, 2, 4)])


@pytest.mark.parametrize("moving", [True, False], ids=["moved apart", "for ever"])
def test_equal_weights_are_brought_to_the_target_or_said(moving: bool):
    model = nn.Linear(20, 20)
    nn.init.constant_(model.weight, 0.1)
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    reg = aimed(model, optimizer)

    def still(step: int) -> None:
        if not moving:
            model.weight.grad = torch.zeros_like(model.weight)

    warned = train(model, optimizer, before=still)
    if moving:
        assert density_of(model.weight) == pytest.approx(0.3, abs=0.01)
        assert warned == []
    else:
        assert density_of(model.weight) in (0.0, 1.0)
        assert len(warned) == 1
        assert "weights are equal" in warned[0]
    assert reg.target_results()[0].is_met is moving


@pytest.mark.parametrize("option", ["settle", "debias"])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_target_is_met_where_zeros_stay_zero_too(name: str, layerwise: bool, option: str):
    model = three()
    optimizer = OPTIMIZERS[name](model.parameters())
    aimed(model, optimizer, layerwise=layerwise, **{option: 0.7})
    held, masks = [model[place].weight for place in (0, 2, 4)], []

    def look(step: int) -> None:
        if (step + 1) / NUM_STEPS >= 0.7:
            masks.append([w == 0 for w in held])

    assert train(model, optimizer, after=look) == []
    assert density_of(*held) == pytest.approx(0.3, abs=0.01)
    for before, after in pairwise(masks):
        assert all(bool((b | ~a).all()) for a, b in zip(before, after, strict=True))


class Classifier(nn.Module):
    """A body of two layers and a head with a row for each of six classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())
        self.head = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class HeadFirst(Classifier):
    """The same, written down the other way round."""

    def __init__(self) -> None:
        super().__init__()
        body = self.body
        del self.body
        self.body = body


class TwoHeads(Classifier):
    """Verbs and nouns."""

    def __init__(self) -> None:
        super().__init__()
        self.nouns = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) + self.nouns(self.body(x))


def classified(model: nn.Module, on: Sequence[str], example: bool = False) -> Any:
    """Train on clusters, with a target for groups by filter, layer by layer."""
    x, y = data(6)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    reg = Regularizer(
        model, GroupLasso(1e-3, params=on), example=x[:1] if example else None,
        schedule=Schedule(target_density=0.3, layerwise=True, num_steps=NUM_STEPS),
    ).attach(optimizer)  # fmt: skip
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        cross_entropy(model(x), y.argmax(1)).backward()
        optimizer.step()
    return reg


def rows(layer: nn.Linear) -> int:
    return int((layer.weight != 0).any(1).sum())


@pytest.mark.filterwarnings("ignore:target_density=0.3 was asked for")
def test_no_class_is_deleted_unless_the_head_is_named():
    model = Classifier()
    reg = classified(model, ())
    assert rows(model.head) == 6
    assert [rows(model.body[place]) for place in (0, 2)] == [6, 6]
    assert "classes; name it in `params`" in reg.summary()
    model = Classifier()
    classified(model, ("body", "head"))
    # A third of 6 rows: 2.
    assert rows(model.head) == 2


@pytest.mark.filterwarnings("ignore:target_density=0.3 was asked for")
@pytest.mark.parametrize("example", [False, True], ids=["untraced", "with an example"])
def test_the_head_may_stand_anywhere(example: bool):
    model = HeadFirst()
    classified(model, (), example)
    assert rows(model.head) == 6


@pytest.mark.filterwarnings("ignore:target_density=0.3 was asked for")
def test_every_head_keeps_its_classes():
    model = TwoHeads()
    classified(model, ())
    assert [rows(model.head), rows(model.nouns)] == [6, 6]


@pytest.mark.parametrize("penalty", ["entries", "inputs", "entries and inputs"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layerwise_factors_cost_no_planning(name: str, penalty: str):
    model = three()
    optimizer = OPTIMIZERS[name](model.parameters())
    reg = aimed(model, optimizer, PENALTIES[penalty], layerwise=True)
    train(model, optimizer)
    assert reg._steps[0].plans.num_built <= 4


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_no_penalty_can_make_zero_is_neither_counted_nor_searched_for(
    name: str, layerwise: bool
):
    """A ridge on one layer keeps its lam; L1 on another meets the target by itself."""
    model = three()
    optimizer = OPTIMIZERS[name](model.parameters())
    penalties = {"ridge": L2(1e-3, params="0"), "lasso": L1(1e-3, params=["2", "4"])}
    reg = aimed(model, optimizer, penalties, layerwise=layerwise)
    assert train(model, optimizer) == []
    assert density_of(model[0].weight) == 1.0
    assert density_of(model[2].weight, model[4].weight) == pytest.approx(0.3, abs=0.01)
    assert reg.current_lams()["ridge"] == 1e-3
    assert 0 < reg.current_lams()["lasso"] < 1e3
    assert set(reg.counted_parameters()) == {"2.weight", "4.weight"}
