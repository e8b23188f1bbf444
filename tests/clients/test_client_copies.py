"""Copies of modules, callbacks and regularizers, made before, while and after they train."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_clips import Clips, fitted, smoothness
from client_courses import ASKED
from client_nets import LAM, LR, NUM_BATCHES, QUIET, Client, error, loader, trainer
from torch import Tensor, optim

from regkit import Regularizer, RegularizerCallback, Schedule
from regkit.penalties import L1, TemporalSmoothness

pytestmark = QUIET


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
