"""Several callbacks on one module, with an optimizer for each of its nets."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_nets import QUIET, Pair, loader, trainer
from torch import optim

from regkit import RegularizerCallback
from regkit.penalties import L1, ActivationL1

pytestmark = QUIET


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
