"""Schedules and penalties in every way in which people train: the matrix, and odd clients.

What a penalty did is read off idle weights: their input is always zero, so SGD moves them by
lr * strength at each step of their optimizer and by nothing else.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn, optim
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from regkit import Regularizer, RegularizerCallback, Schedule
from regkit.penalties import L1, ActivationL1, GroupLasso, TemporalSmoothness

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*Please add the following callbacks",
)

NUM_EPOCHS, NUM_BATCHES, EVERY = 5, 12, 4
TOTAL = NUM_EPOCHS * NUM_BATCHES
LR, LAM, IDLE = 0.1, 0.02, 5.0


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nets this small only make threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn() -> TensorDataset:
    """Make inputs, of which the first is always zero, and the outputs of a sparse teacher."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_BATCHES * 4, 20, generator=generator)
    x[:, 0] = 0.0
    teacher = torch.randn(20, 20, generator=generator) * (
        torch.rand(20, 20, generator=generator) < 0.2
    )
    return TensorDataset(x, x @ teacher + 0.3 * torch.randn(len(x), 20, generator=generator))


def loader() -> DataLoader:
    return DataLoader(drawn(), batch_size=4)


def error(net: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return mse_loss(net(batch[0]), batch[1]) * 4


def body() -> nn.Sequential:
    """Return two layers of at least 400 weights."""
    net = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 20))
    idle_weights(net[0])
    return net


def idle_weights(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[:, 0] = IDLE


class LowRank(nn.Module):
    """A frozen layer and what LoRA trains beside it."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.down = nn.Linear(num_inputs, 20, bias=False)
        self.up = nn.Linear(20, num_outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class Client(pl.LightningModule):
    """A user's module under automatic optimization; it knows nothing of regkit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(20, 24), nn.ReLU())
        self.head = nn.Linear(24, 20)
        idle_weights(self.backbone[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        return error(self, batch)

    def configure_optimizers(self) -> Any:
        return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR)

    def trained(self) -> list[list[Any]]:
        """Return the weights that each optimizer trains; idle ones stand in the first."""
        return [[self.backbone[0].weight, self.head.weight]]


class LoRA(Client):
    """Low-rank updates of a frozen net; the optimizer holds them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(LowRank(20, 24), nn.ReLU())
        self.head = LowRank(24, 20)
        idle_weights(self.backbone[0].down)

    def trained(self) -> list[list[Any]]:
        layers = (self.backbone[0], self.head)
        return [[p for layer in layers for p in (layer.down.weight, layer.up.weight)]]


class ByHand(Client):
    """Manual optimization with a step at every 4th batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(error(self, batch) / EVERY)
        if (batch_idx + 1) % EVERY == 0:
            optimizer.step()
            optimizer.zero_grad()


class Pair(pl.LightningModule):
    """Two nets with an optimizer each, as a GAN has them; one steps at every 4th batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = body(), body()
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        often, seldom = optimizers
        self.toggle_optimizer(often)
        often.zero_grad()
        self.manual_backward(error(self.one, batch))
        often.step()
        self.untoggle_optimizer(often)
        self.toggle_optimizer(seldom)
        self.manual_backward(error(self.two, batch) / EVERY)
        if (batch_idx + 1) % EVERY == 0:
            seldom.step()
            seldom.zero_grad()
        self.untoggle_optimizer(seldom)

    def configure_optimizers(self) -> Any:
        return [optim.SGD(net.parameters(), lr=LR) for net in (self.one, self.two)]

    def trained(self) -> list[list[Any]]:
        return [[net[0].weight, net[2].weight] for net in (self.one, self.two)]


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


def density_of(held: Sequence[Tensor]) -> float:
    return sum(int((p != 0).sum()) for p in held) / sum(p.numel() for p in held)


class Look(pl.Callback):
    """Keeps the course; stands behind the callback that it looks at."""

    def __init__(self, course: Course, regularize: RegularizerCallback) -> None:
        self.course, self.regularize = course, regularize

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.regularize.regularizer is not None
        self.course.look(pl_module, self.regularize.regularizer)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**defaults, **options})


def said(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return our own warnings; Lightning has some, too."""
    texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return [t for t in texts if "target_density" in t or "Training ended" in t or "regkit" in t]


def lightning(
    schedule: Schedule,
    *others: pl.Callback,
    module: type[Any] = Client,
    length: int = TOTAL,
    **options: Any,
) -> Course:
    """Fit a module and return its course."""
    course = Course(length)
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    options = {"max_epochs": NUM_EPOCHS} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(regularize, Look(course, regularize), *others, **options).fit(module(), loader())
    course.results, course.warned = regularize.target_results, said(caught)
    return course


def plain(schedule: Schedule, told: bool) -> Course:
    """Train by a plain loop, and return its course.

    told: the loop says how far it is; else the regularizer counts steps.
    """
    module, course = Client(), Course(TOTAL)
    optimizer = module.configure_optimizers()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg = Regularizer(module, L1(LAM), schedule=schedule)
        if told:
            reg.set_progress(0.0)
        reg.attach(optimizer)
        batches = [batch for _ in range(NUM_EPOCHS) for batch in loader()]
        for i, batch in enumerate(batches):
            if told:
                reg.set_progress((i + 1) / TOTAL)
            optimizer.zero_grad()
            error(module, batch).backward()
            optimizer.step()
            course.look(module, reg)
    course.results, course.warned = reg.target_results(), said(caught)
    return course


def two_fits(schedule: Schedule) -> Course:
    """Fit, raise `max_epochs`, and fit again: the schedule is over when the first fit is."""
    first, last = 3, 5
    course, module = Course(first * NUM_BATCHES), Client()
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = trainer(regularize, Look(course, regularize), max_epochs=first)
        fits.fit(module, loader())
        fits.fit_loop.max_epochs = last
        fits.fit(module, loader())
    assert len(course.lams) == last * NUM_BATCHES
    course.results, course.warned = regularize.target_results, said(caught)
    return course


def resumed(schedule: Schedule, folder: Path) -> Course:
    """Go on from a checkpoint in the middle, and compare with the run that was never stopped."""
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    whole = lightning(schedule, keep, enable_checkpointing=True)
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    course = copy.deepcopy(whole)
    half = 3 * NUM_BATCHES
    course.weights, course.lams = course.weights[:half], course.lams[:half]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = trainer(regularize, Look(course, regularize), max_epochs=NUM_EPOCHS)
        fits.fit(Client(), loader(), ckpt_path=str(folder / "epoch=2.ckpt"))
    assert course.lams == whole.lams
    for ours, theirs in zip(course.weights[-1][0], whole.weights[-1][0], strict=True):
        assert torch.equal(ours, theirs)
    course.results, course.warned = regularize.target_results, said(caught)
    return course


def unfrozen(schedule: Schedule) -> Course:
    def keep_lr(epoch: int) -> float:
        return 1.0

    wake = BackboneFinetuning(1, lambda_func=keep_lr, backbone_initial_lr=LR, initial_denom_lr=1.0)
    return lightning(schedule, wake)


WAYS: dict[str, Callable[[Schedule, Path], Course]] = {
    "plain, steps": lambda s, _: plain(replace(s, num_steps=TOTAL), told=False),
    "plain, told": lambda s, _: plain(s, told=True),
    "automatic": lambda s, _: lightning(s),
    "max_steps": lambda s, _: lightning(s, max_epochs=-1, max_steps=TOTAL),
    "by hand": lambda s, _: lightning(s, module=ByHand),
    "accumulation": lambda s, _: lightning(s, accumulate_grad_batches=4),
    "scheduled accumulation": lambda s, _: lightning(
        s, GradientAccumulationScheduler({0: 2, 2: 3})
    ),
    "pair": lambda s, _: lightning(s, module=Pair),
    "pair, max_steps": lambda s, _: lightning(
        s, module=Pair, max_epochs=-1, max_steps=TOTAL * (EVERY + 1) // EVERY
    ),
    "two fits": lambda s, _: two_fits(s),
    "resumed": resumed,
    "unfrozen": lambda s, _: unfrozen(s),
    "lora": lambda s, _: lightning(s, module=LoRA),
}


def assert_target(course: Course) -> None:
    """Weights can be zeroed one by one, so that nothing excuses a miss."""
    densities = course.densities()
    assert densities == pytest.approx([0.3] * len(densities), abs=0.02)
    assert course.warned == []
    assert [r.density for r in course.results] == pytest.approx(densities)
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


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_asked_for_is_there_whatever_the_way(way: str, asked: str, tmp_path: Path):
    schedule, holds = ASKED[asked]
    course = WAYS[way](schedule, tmp_path)
    assert all(p.isfinite().all() for held in course.weights[-1] for p in held)
    assert course.warned == []
    holds(course)


def test_a_ramp_is_at_zero_before_the_first_step():
    """What is logged then must not be the full strength."""
    module = Client()
    reg = Regularizer(module, L1(LAM), schedule=Schedule(ramp="cubic", num_steps=10))
    reg.attach(module.configure_optimizers())
    assert reg.current_lams() == {"l1": 0.0}
    assert float(reg.value()) == 0.0


class Endless(torch.utils.data.IterableDataset):
    """The same data, of a length that nobody knows before an epoch is over."""

    def __iter__(self) -> Any:
        return iter(drawn())


@pytest.mark.parametrize("asked", ["target", "debias", "settle"])
def test_a_loader_that_does_not_know_its_length(asked: str):
    schedule, holds = ASKED[asked]
    course, module = Course(TOTAL), Client()
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(regularize, Look(course, regularize), max_epochs=NUM_EPOCHS).fit(
            module, DataLoader(Endless(), batch_size=4)
        )
    course.results, course.warned = regularize.target_results, said(caught)
    holds(course)


@pytest.mark.parametrize("lam", [1e-12, LAM])
def test_a_first_epoch_of_unknown_length_does_not_take_the_density_down(lam: float):
    """Nobody knows how far training is: then it has hardly begun, and most weights should live."""
    course, module = Course(TOTAL), Client()
    regularize = RegularizerCallback(L1(lam), schedule=Schedule(target_density=0.3))
    trainer(regularize, Look(course, regularize), max_epochs=NUM_EPOCHS).fit(
        module, DataLoader(Endless(), batch_size=4)
    )
    lowest = min(density_of(held[0]) for held in course.weights[:NUM_BATCHES])
    assert lowest > 0.8


@pytest.mark.parametrize("asked", ["target", "debias"])
def test_a_length_that_was_found_out_is_in_the_checkpoint(asked: str, tmp_path: Path):
    """The last epoch alone must know how far it is, or nothing that belongs there is done."""

    def fit(*others: pl.Callback, **options: Any) -> tuple[Client, RegularizerCallback, list[str]]:
        regularize = RegularizerCallback(L1(LAM), schedule=ASKED[asked][0])
        fits = trainer(regularize, *others, max_epochs=NUM_EPOCHS,
                       enable_checkpointing=True, default_root_dir=tmp_path)  # fmt: skip
        module = Client()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fits.fit(module, DataLoader(Endless(), batch_size=4), **options)
        return module, regularize, said(caught)

    whole, _, _ = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    last = tmp_path / f"epoch={NUM_EPOCHS - 2}.ckpt"
    resumed, regularize, warned = fit(ckpt_path=str(last))
    assert warned == []
    assert all(result.is_met for result in regularize.target_results)
    for p, q in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("asked", ["target", "ramp", "debias"])
def test_another_module_begins_anew(asked: str):
    """With the callback of an earlier fit, and with a copy of it, as a sweep may make them."""

    def fit(regularize: RegularizerCallback) -> Client:
        module = Client()
        trainer(regularize, max_epochs=2).fit(module, loader())
        return module

    used = RegularizerCallback(L1(LAM), schedule=ASKED[asked][0])
    first = fit(used)
    for callback in (copy.deepcopy(used), pickle.loads(pickle.dumps(used)), used):
        again = fit(callback)
        for p, q in zip(again.parameters(), first.parameters(), strict=True):
            assert torch.equal(p, q)


class Stop(pl.Callback):
    """Ends training early, as patience does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


class Patience(Client):
    """Logs a number that never gets better."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        self.log("watched", 1.0, on_step=False, on_epoch=True)
        return error(self, batch)


STOPS: dict[str, Callable[[], pl.Callback]] = {
    "should_stop": lambda: Stop(1),
    "patience": lambda: EarlyStopping("watched", patience=1, check_on_train_epoch_end=True),
}


def stopped(
    schedule: Schedule, stop: pl.Callback, module: type[Any] = Patience
) -> tuple[Any, RegularizerCallback, list[str]]:
    regularize, made = RegularizerCallback(L1(LAM), schedule=schedule), module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(regularize, stop, max_epochs=NUM_EPOCHS).fit(made, loader())
    return made, regularize, said(caught)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_an_early_end_is_said_once_and_can_be_finished(stop: str, layerwise: bool):
    schedule = Schedule(target_density=0.3, ramp_until=0.8, layerwise=layerwise)
    module, regularize, warned = stopped(schedule, STOPS[stop]())
    assert len(warned) == 1
    assert "Regularizer.meet_target()" in warned[0]
    (result,) = regularize.target_results
    assert not result.is_met
    assert "training ended at 40%" in result.reason
    before = [p.detach().clone() for p in module.trained()[0]]
    assert regularize.regularizer is not None
    reached = regularize.regularizer.meet_target()
    assert reached == pytest.approx(0.3, abs=0.01)
    assert density_of(module.trained()[0]) == pytest.approx(reached)
    for p, q in zip(before, module.trained()[0], strict=True):
        assert torch.equal(q, p * (q != 0))
        assert not layerwise or density_of([q]) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("schedule", "module"),
    [
        (Schedule(target_density=0.3, debias=0.8), Client),
        (Schedule(target_density=0.3, ramp_until=0.8), Pair),
        (Schedule(target_density=0.3, ramp_until=0.8, num_steps=TOTAL), Client),
        (Schedule(ramp="cubic", ramp_until=0.5, settle=0.7, debias=0.8), Client),
        (Schedule(debias=0.8, num_steps=TOTAL), Client),
    ],
    ids=["and debias", "of a pair", "in steps", "before phases", "before phases in steps"],
)
def test_an_early_end_gives_one_warning(schedule: Schedule, module: type[Any]):
    _, _, warned = stopped(schedule, Stop(1), module)
    assert len(warned) == 1


def test_finishing_a_pair_brings_each_net_to_the_target():
    """Of one more is left than of the other; each has an optimizer, and so a target, of its own."""
    module, regularize, _ = stopped(Schedule(target_density=0.3), Stop(0), Pair)
    assert min(density_of(held) for held in module.trained()) > 0.4
    with torch.no_grad():
        module.two[0].weight.mul_(10.0)
        module.two[2].weight.mul_(10.0)
    assert regularize.regularizer is not None
    assert regularize.regularizer.meet_target() == pytest.approx(0.3, abs=0.01)
    found = [density_of(held) for held in module.trained()]
    assert found == pytest.approx([0.3, 0.3], abs=0.02)


def smoothness(frames: Tensor) -> Tensor:
    frames = frames.float()
    return (frames[:, 1:] - frames[:, :-1]).square().mean()


class Clips(pl.LightningModule):
    """A user's module on clips. `extra` writes the temporal term by hand: the reference."""

    def __init__(self, extra: float = 0.0, manual: bool = False, wrapped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.head = nn.Linear(4, 3), nn.Linear(3, 1)
        self.automatic_optimization = not manual
        self.extra, self.wrapped = extra, wrapped
        self.seen: list[tuple[float, float]] = []

    def objective(self, batch: Tensor) -> Tensor:
        frames = self.encoder(batch)
        loss = self.head(frames.mean(1)).square().mean()
        self.plain = loss.item()
        return loss + self.extra * smoothness(frames)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.objective(batch)
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.seen.append((self.plain, loss.item()))
            optimizer.step()
            return None
        return {"loss": loss, "other": 1} if self.wrapped else loss

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        if self.automatic_optimization:
            self.seen.append((self.plain, float(self.trainer.callback_metrics["loss"])))

    def configure_optimizers(self) -> Any:
        return optim.SGD(self.parameters(), lr=0.05)


class Gradients(pl.Callback):
    """Keeps the gradients that the optimizer is about to use."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([p.grad.clone() for p in pl_module.parameters()])


def clips() -> DataLoader:
    drawn = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(drawn, batch_size=2)  # type: ignore[arg-type]


def fitted(module: Any, *callbacks: pl.Callback, **options: Any) -> Any:
    trainer(*callbacks, **{"max_epochs": 2, **options}).fit(module, clips())
    return module


def fp16() -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "accumulation with a rest": lambda: {"accumulate_grad_batches": 4},
    "scheduled accumulation": lambda: {"callbacks": [GradientAccumulationScheduler({0: 2, 1: 3})]},
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fp16": fp16,
}
KINDS: dict[str, dict[str, bool]] = {
    "tensor": {}, "dict": {"wrapped": True}, "manual": {"manual": True}
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_activation_penalties_give_the_gradients_of_the_term_by_hand(setting: str, kind: str):
    if KINDS[kind].get("manual") and "accumulation" in setting:
        pytest.skip("Lightning leaves it to the user under manual optimization")

    def run(*mine: pl.Callback, extra: float = 0.0) -> tuple[list[list[Tensor]], Clips]:
        kept, options = Gradients(), SETTINGS[setting]()
        others = options.pop("callbacks", [])
        module = fitted(Clips(extra, **KINDS[kind]), kept, *others, *mine, **options)
        return kept.seen, module

    expected, _ = run(extra=0.7)
    penalised, module = run(RegularizerCallback(TemporalSmoothness(0.7, module="encoder")))
    without, _ = run()
    assert len(penalised) == len(expected)
    for ours, theirs in zip(penalised, expected, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6 * float(q.abs().max() + 1e-6))
    assert not torch.allclose(without[-1][0], expected[-1][0], rtol=1e-2)
    assert all(logged == pytest.approx(own, abs=0) for own, logged in module.seen)


class OddLoss(Clips):
    """Manual optimization with a loss that autograd needs again, or that is a view."""

    def __init__(self, form: Callable[[Tensor], Tensor], extra: float = 0.0) -> None:
        super().__init__(extra, manual=True)
        self.form = form

    def objective(self, batch: Tensor) -> Tensor:
        frames = self.encoder(batch)
        loss = self.form(self.head(frames.mean(1)).square().mean())
        self.plain = loss.item()
        return loss if self.extra == 0 else loss + self.extra * smoothness(frames)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "root": torch.sqrt,
    "exponential": torch.exp,
    "part of a vector": lambda loss: torch.stack([loss, 2 * loss])[0],
    "unbound": lambda loss: torch.stack([loss, 2 * loss]).unbind()[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_any_loss_may_be_differentiated_by_hand(form: str):
    expected = fitted(OddLoss(FORMS[form], extra=0.7))
    penalty = TemporalSmoothness(0.7, module="encoder")
    ours = fitted(OddLoss(FORMS[form]), RegularizerCallback(penalty))
    for p, q in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def differentiate(module: Clips, loss: Tensor, trainer: pl.Trainer) -> None:
    """Call backward in the way of this module."""
    if module.automatic_optimization:
        loss.backward()
    else:
        module.trainer = trainer
        module.manual_backward(loss)


class Average(pl.Callback):
    """An average of weights by hand: it copies the module in training, and runs the copy."""

    def __init__(self) -> None:
        self.twins: list[Any] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        twin = copy.deepcopy(pl_module)
        before = pl_module.encoder.weight.detach().clone()
        for p in twin.parameters():
            p.data.fill_(0.5)
        # By hand: 0.5 (sum of 0.5 x + 0.5, over 3) + 0.5.
        frames = 0.5 * batch.sum(-1) + 0.5
        expected = (1.5 * frames.mean(1) + 0.5).square().mean()
        loss = twin.objective(batch)
        torch.testing.assert_close(loss, expected)
        differentiate(twin, loss, trainer)
        grads = torch.autograd.grad(twin.objective(batch), list(twin.parameters()))
        twin.configure_optimizers().step()
        for p, g in zip(twin.parameters(), grads, strict=True):
            torch.testing.assert_close(p.detach(), 0.5 - 0.05 * g)
        assert torch.equal(pl_module.encoder.weight, before)
        self.twins.append(twin)


@pytest.mark.parametrize("manual", [False, True])
def test_a_copy_made_while_training_is_a_copy(manual: bool):
    def regularize() -> RegularizerCallback:
        return RegularizerCallback([L1(0.1), TemporalSmoothness(0.7, module="encoder")])

    alone, average = fitted(Clips(manual=manual), regularize()), Average()
    for order in ([regularize(), average], [average, regularize()]):
        watched = fitted(Clips(manual=manual), *order)
        for p, q in zip(watched.parameters(), alone.parameters(), strict=True):
            assert torch.equal(p, q)
    assert len(average.twins) == 24


def loaded(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": loaded
}  # fmt: skip


class Copier(pl.Callback):
    """Copies all that there is in the middle of training."""

    def __init__(self, how: Callable[[Any], Any], regularize: RegularizerCallback) -> None:
        self.how, self.regularize = how, regularize
        self.found: Any = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 4:
            self.found = (
                self.how(pl_module),
                self.how(self.regularize),
                self.how(self.regularize.regularizer),
                pl_module.encoder.weight.detach().clone(),
            )
            twin = self.found[0]
            twin.zero_grad()
            loss = twin.objective(batch)
            (wanted,) = torch.autograd.grad(loss, twin.encoder.weight, retain_graph=True)
            differentiate(twin, loss, trainer)
            assert torch.equal(twin.encoder.weight.grad, wanted)
            twin.trainer = None


def assert_bound(reg: Regularizer, penalised: Tensor) -> None:
    """A copy of a regularizer has a model of its own, and regularizes that."""
    model = reg.model
    torch.testing.assert_close(reg.value(), 0.1 * penalised.abs().sum())
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    reg.attach(optimizer)
    before = model.encoder.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = before.sign() * (before.abs() - 0.05 * 0.1).clamp_min(0.0)
    torch.testing.assert_close(model.encoder.weight.detach(), shrunk)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_everything_can_be_copied_and_saved(how: str, manual: bool):
    penalties = [L1(0.1, params="encoder"), TemporalSmoothness(0.7, module="encoder")]
    first = COPIES[how](RegularizerCallback(penalties))
    expected = fitted(Clips(manual=manual), RegularizerCallback(penalties))
    module = fitted(Clips(manual=manual), first)
    for p, q in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)

    regularize = RegularizerCallback(penalties)
    copier = Copier(COPIES[how], regularize)
    module = fitted(Clips(manual=manual), regularize, copier)
    twin, callback, reg, weight = copier.found
    assert torch.equal(twin.encoder.weight, weight)
    assert twin.encoder.weight is not module.encoder.weight
    twin.objective(torch.randn(2, 5, 4)).backward()
    assert copy.deepcopy(callback).penalties == regularize.penalties
    assert_bound(reg, weight)

    after = COPIES[how](regularize)
    assert after.penalties == regularize.penalties
    assert torch.equal(COPIES[how](module).encoder.weight, module.encoder.weight)
    assert_bound(COPIES[how](regularize.regularizer), module.encoder.weight.detach())
    module.objective(torch.randn(2, 5, 4)).backward()


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_regularizer_sees_the_activations_of_its_own_model(how: str):
    module, clip = Clips(), torch.randn(2, 5, 4)
    reg = COPIES[how](Regularizer(module, TemporalSmoothness(0.7, module="encoder")))
    reg.model.objective(clip)
    expected = 0.7 * smoothness(module.encoder(clip))
    torch.testing.assert_close(reg.activation_loss(), expected)


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, LR / 5, momentum=0.9), optim.AdamW])
def test_a_plain_loop_goes_on_from_a_copy_of_everything(make: Callable[..., Any]):
    module, batches = Client(), list(loader())
    optimizer = make(module.parameters())
    schedule = Schedule(target_density=0.3, debias=0.8, num_steps=2 * NUM_BATCHES)
    reg = Regularizer(module, L1(LAM), schedule=schedule).attach(optimizer)

    def train(module: Client, optimizer: optim.Optimizer) -> None:
        for batch in batches:
            optimizer.zero_grad()
            error(module, batch).backward()
            optimizer.step()

    train(module, optimizer)
    twin, twin_optimizer, twin_reg = copy.deepcopy((module, optimizer, reg))
    twin_reg.attach(twin_optimizer)
    train(module, optimizer)
    train(twin, twin_optimizer)
    assert twin_reg.target_results() == reg.target_results()
    for p, q in zip(twin.parameters(), module.parameters(), strict=True):
        assert p is not q
        assert torch.equal(p, q)


def hooks_of(module: pl.LightningModule, optimizers: Sequence[optim.Optimizer]) -> int:
    """Count all hooks on a module, its parts, its parameters and its optimizers."""
    count = 0
    for thing in (*module.modules(), *optimizers):
        count += sum(len(v) for k, v in vars(thing).items() if "_hooks" in k and v)
    return count + sum(len(p._backward_hooks or ()) for p in module.parameters())


@pytest.mark.parametrize("ends", ["well", "in an error"])
@pytest.mark.parametrize("order", [1, -1])
def test_two_callbacks_leave_nothing_behind(order: int, ends: str):
    class Breaks(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if ends == "in an error" and trainer.global_step > 5:
                raise RuntimeError("mine")

    def fit(*callbacks: pl.Callback) -> tuple[Pair, set[str], int]:
        module = Pair()
        fits = trainer(*callbacks, max_epochs=2)
        try:
            fits.fit(module, loader())
        except RuntimeError:
            assert ends == "in an error"
        optimizers = fits.strategy.optimizers
        assert len(optimizers) == 2
        return module, set(vars(module)), hooks_of(module, optimizers)

    both = {"one": L1(0.05, params="one"), "two": L1(0.02, params="two"),
            "smooth": ActivationL1(0.1, module="one.0")}  # fmt: skip
    first = RegularizerCallback({"one": both["one"], "smooth": both["smooth"]})
    second = RegularizerCallback({"two": both["two"]})
    bare, names, num_hooks = fit(Breaks())
    together, _, _ = fit(RegularizerCallback(both), Breaks())
    apart, left, hooks = fit(*[first, second][::order], Breaks())
    assert left == names
    assert hooks == num_hooks
    assert not torch.equal(bare.two[0].weight, together.two[0].weight)
    for p, q in zip(apart.parameters(), together.parameters(), strict=True):
        assert torch.equal(p, q)


def test_two_callbacks_with_penalties_of_one_kind_are_two():
    """Nobody gave names; a checkpoint keeps both."""
    callbacks = [RegularizerCallback(L1(0.05, params=name)) for name in ("one", "two")]
    trainer(*callbacks, max_epochs=1).fit(Pair(), loader())


class Images(pl.LightningModule):
    """A backbone of two convolutions with norms, and a head; its loss has no gradient."""

    def __init__(self, deep: bool, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.whole = whole
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(*([nn.Linear(8, 8)] if deep else []), nn.Linear(8, 4))
        self.example_input_array = torch.randn(1, 3, 6, 6)
        self.lengths: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        conv, norm = self.backbone[3:5]
        beside = (conv.bias, norm.weight, norm.bias) if self.whole else ()
        groups = [conv.weight.flatten(1), *(p[:, None] for p in beside)]
        self.lengths.append(torch.cat(groups, 1).detach().norm(dim=1))
        return 0 * self(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR)


@pytest.mark.filterwarnings("ignore:.*already exist within another group of this optimizer")
@pytest.mark.parametrize("deep", [True, False], ids=["some trained before", "none"])
@pytest.mark.parametrize("train_bn", [True, False], ids=["norms", "no norms"])
@pytest.mark.parametrize("groups", ["filter", "channel"])
def test_what_finetuning_unfreezes_is_penalised_from_then_on(
    groups: str, train_bn: bool, deep: bool
):
    """Without a gradient, a step shortens a group by lr * lam * sqrt(size), and nothing else."""
    module, num_batches, unfrozen_at = Images(deep, groups == "channel"), 4, 2
    data = DataLoader(TensorDataset(torch.randn(4 * num_batches, 3, 6, 6)), batch_size=4)
    regularize = RegularizerCallback(GroupLasso(0.01, groups=groups))
    wake = BackboneFinetuning(
        unfrozen_at, lambda_func=lambda epoch: 1.0, backbone_initial_lr=LR, initial_denom_lr=1.0,
        train_bn=train_bn,
    )  # fmt: skip
    before = module.backbone[3].weight.detach().clone()
    trainer(regularize, wake, max_epochs=unfrozen_at).fit(module, data)
    assert torch.equal(module.backbone[3].weight, before)
    trainer(regularize, wake, max_epochs=unfrozen_at + 2).fit(module, data)
    lengths = torch.stack(module.lengths[(unfrozen_at + unfrozen_at) * num_batches :])
    falls = lengths[:-1] - lengths[1:]
    size = 75 if module.whole else 72
    torch.testing.assert_close(falls, torch.full_like(falls, LR * 0.01 * size**0.5))


def compiled_course(step: Callable[[optim.Optimizer], Any], make: Callable[..., Any]) -> Client:
    module = Client().double()
    optimizer = make(module.parameters())
    schedule = Schedule(ramp="linear", ramp_until=0.5, settle=0.8, num_steps=NUM_BATCHES)
    Regularizer(module, L1(0.05), schedule=schedule).attach(optimizer)
    go = step(optimizer)
    for batch in loader():
        optimizer.zero_grad()
        error(module, [part.double() for part in batch]).backward()
        go()
    return module


MAKERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda p: optim.SGD(p, LR / 5, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, 0.01),
}


@pytest.mark.parametrize(
    ("name", "backend"), [("sgd", "inductor"), ("sgd", "eager"), ("adamw", "eager")]
)
def test_a_compiled_step_is_the_step(name: str, backend: str):
    torch._dynamo.reset()
    plain = compiled_course(lambda optimizer: optimizer.step, MAKERS[name])
    compiled = compiled_course(
        lambda optimizer: torch.compile(optimizer.step, backend=backend), MAKERS[name]
    )
    assert 0 < density_of([plain.head.weight]) < 1
    for p, q in zip(compiled.parameters(), plain.parameters(), strict=True):
        # Compiled, torch's AdamW corrects its moments in float32: 7e-7 apart without regkit.
        torch.testing.assert_close(p, q, rtol=0, atol=5e-6)
        assert torch.equal(p == 0, q == 0)
