"""A training that comes to nothing says so once; it stops before the last checkpoint is lost."""

import math
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from regkit.errors import InputError
from regkit.lightning.divergence import DivergedError, DivergenceMonitor


class Net(pl.LightningModule):
    """Whose loss, gradient or weight turns bad at one step."""

    def __init__(self, bad: str = "", at: int = 3, value: float = math.nan) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.bad, self.at, self.value = bad, at, value

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.linear(batch[0]).square().mean()
        return loss * (self.value if self.is_time("loss") else 1.0)

    def is_time(self, kind: str) -> bool:
        return self.bad == kind and self.global_step + 1 == self.at

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.is_time("weight"):
            self.linear.weight.data[0, 0] = self.value

    def on_after_backward(self) -> None:
        if self.is_time("gradient"):
            assert self.linear.bias.grad is not None
            self.linear.bias.grad[0] = self.value

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.25)


def fit(net: Net, monitor: DivergenceMonitor, log_every: int = 1) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        callbacks=[monitor],
    )
    with warnings.catch_warnings():
        for known in ("does not have many workers", "LeafSpec", "logging interval"):
            warnings.filterwarnings("ignore", f".*{known}")
        trainer.fit(net, DataLoader(TensorDataset(torch.ones(12, 1)), batch_size=2))
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("loss", r"at step 3, in epoch 1: the loss was -?(nan|inf)\. Try a tenth of .*now 0\.25"),
        ("gradient", r"at step 3, in epoch 1: the gradient linear\.bias was not finite"),
        ("weight", r"in epoch 1: the weight linear\.weight was not finite"),
    ],
)
def test_the_first_number_that_is_not_finite_stops_it(bad: str, said: str, value: float):
    net = Net(bad, value=value)
    with pytest.raises(DivergedError, match=said):
        fit(net, DivergenceMonitor(lambda: 1.0))
    if bad != "weight":
        assert net.linear.weight.isfinite().all()


@pytest.mark.parametrize("bad", ["loss", "weight"])
def test_what_no_look_has_seen_is_seen_at_the_end_of_the_epoch(bad: str):
    with pytest.raises(DivergedError, match="epoch 1"):
        fit(Net(bad), DivergenceMonitor(lambda: 1.0), log_every=100)


def test_a_checkpoint_is_looked_at_before():
    net = Net("gradient", at=4)
    with pytest.raises(DivergedError, match="step 4"):
        fit(net, DivergenceMonitor(lambda: 1.0, every_n_steps=4), log_every=100)


def test_losses_of_a_device_that_is_not_waited_for_are_summed(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: each is kept, none is read, until it is time."""
    read = []
    monkeypatch.setattr("regkit.lightning.divergence.is_near", lambda loss, trainer: False)
    finite = math.isfinite

    def looked(number: Any) -> bool:
        read.append(number)
        return finite(number)

    monkeypatch.setattr(math, "isfinite", looked)
    with pytest.raises(DivergedError, match="a loss since the last look was not finite"):
        fit(Net("loss", at=2), DivergenceMonitor(lambda: 1.0), log_every=4)
    assert len(read) == 1


def test_a_warning_is_given_once():
    net = Net("loss")
    with pytest.warns(UserWarning, match="the loss was nan") as told:
        fit(net, DivergenceMonitor(lambda: 1.0, "warn"))
    assert len([one for one in told if "diverged" in str(one.message)]) == 1
    assert net.global_step == 12


def test_the_clips_are_to_blame_where_they_are():
    monitor = DivergenceMonitor(lambda: 1.0)
    clip = torch.zeros(2, 3, 1, 1, 1)
    clip[1, 0] = math.nan
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monitor.on_train_batch_start(trainer, Net(), {"clip": clip, "path": ["a", "b.mp4"]}, 0)
    with pytest.raises(DivergedError, match=r"the clip of b\.mp4 has values that are not finite"):
        monitor.on_before_backward(trainer, Net(), torch.tensor(math.nan))


def test_a_dead_net_is_told_once():
    with pytest.warns(UserWarning, match=r"After epoch 1 no penalised weight is left") as told:
        fit(Net(), DivergenceMonitor(lambda: 0.0))
    assert len([one for one in told if "no penalised weight" in str(one.message)]) == 1


def test_there_are_two_ways():
    with pytest.raises(InputError, match="way='ignore'; give stop or warn"):
        DivergenceMonitor(lambda: 1.0, "ignore")
