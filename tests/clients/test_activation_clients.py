"""Penalties on activations under accumulation, half precision and manual optimization."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_clips import Clips, fitted, smoothness
from client_nets import QUIET
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from regkit import RegularizerCallback
from regkit.penalties import TemporalSmoothness

pytestmark = QUIET


class Gradients(pl.Callback):
    """Keeps the gradients that the optimizer is about to use."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([p.grad.clone() for p in pl_module.parameters()])


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
