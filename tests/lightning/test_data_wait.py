import time
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regkit.lightning.data_wait import DataWaitMonitor


class SlowLoader(DataLoader):
    """Take `pause_s` for each batch, and count it."""

    def __init__(self, pause_s: float):
        super().__init__(TensorDataset(torch.ones(12, 1)), batch_size=2)
        self.pause_s = pause_s
        self.waited_s = 0.0

    def __iter__(self):  # pyright: ignore[reportIncompatibleMethodOverride]  # a generator will do
        for number, batch in enumerate(super().__iter__()):
            pause = self.pause_s if number else 5 * self.pause_s  # as workers start
            time.sleep(pause)
            self.waited_s += pause
            yield batch


class SlowNet(pl.LightningModule):
    def __init__(self, step_s: float):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.step_s = step_s

    def training_step(self, batch, batch_idx):
        time.sleep(self.step_s)
        return self.linear(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(
    loader, step_s: float, epochs: int = 1, cached: bool = False
) -> tuple[DataWaitMonitor, pl.Trainer]:
    pace = DataWaitMonitor(cached)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=2,
        callbacks=[pace],
    )
    trainer.fit(SlowNet(step_s), loader)
    return pace, trainer


pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec)")


def test_share_is_the_time_waited():
    """Six batches; the first is not counted."""
    pace, trainer = fit(SlowLoader(0.02), 0.02)
    assert pace.data_share == pytest.approx(5 / 11, abs=0.12)
    assert 0 < trainer.callback_metrics["speed/data_share"] < 1


def test_waiting_long_is_more_than_waiting_little():
    much, little = (fit(SlowLoader(pause), 0.01)[0].data_share for pause in (0.03, 0.001))
    assert much is not None
    assert little is not None
    assert much > 0.5 > 0.25 > little


def test_a_cache_is_advised_once_where_it_would_pay():
    with pytest.warns(UserWarning, match=r"waits for its data \d+% of the time. data.cache=auto"):
        fit(SlowLoader(0.02), 0.001, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec)")
        fit(SlowLoader(0.02), 0.001, epochs=2, cached=True)
        fit(SlowLoader(0.0), 0.01, epochs=2)
        fit(SlowLoader(0.02), 0.001, epochs=1)


class ColdLoader(SlowLoader):
    """Wait in the first epoch alone, as for a memory that fills."""

    num_batches = 0

    def __iter__(self):  # pyright: ignore[reportIncompatibleMethodOverride]  # a generator will do
        for batch in super().__iter__():
            self.num_batches += 1
            self.pause_s *= self.num_batches < len(self)
            yield batch


def test_a_cold_first_epoch_is_no_reason_to_advise_a_cache():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec)")
        pace, _ = fit(ColdLoader(0.03), 0.01, epochs=3)
    assert pace.data_share is not None
    assert pace.data_share < 0.2


def test_other_loaders_are_left_alone():
    pace, trainer = fit(DataLoader(TensorDataset(torch.ones(12, 1))), 0.001)
    assert pace.data_share is None
    assert "speed/data_share" not in trainer.callback_metrics
