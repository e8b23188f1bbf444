"""Lightning and our loader together: a run goes on in the middle of an epoch."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from regkit.data.made import SyntheticMotion


class CrashError(Exception):
    pass


class Net(pl.LightningModule):
    """Remember what it saw, and fail at a step."""

    def __init__(self, fails_at: int | None = None):
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 16 * 16, 6)
        self.seen: list[tuple[int, list[str]]] = []
        self.fails_at = fails_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise CrashError
        self.seen.append((self.current_epoch, batch["path"]))
        return nn.functional.cross_entropy(self.linear(batch["clip"].flatten(1)), batch["label"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


def fit(root, fails_at: int | None, workers: int, ckpt_path=None, limit: int = 7) -> Net:
    torch.manual_seed(0)
    net = Net(fails_at)
    sizes = {"num_train": 26, "num_val": 6, "num_test": 6, "video_px": 16}
    data = SyntheticMotion(
        root=str(root / "made"), size_px=16, num_frames=4, batch_size=4, num_workers=workers,
        cache_root=str(root / "cache"), **sizes,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=3,
        limit_train_batches=limit,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(root / "ckpt", "last", every_n_train_steps=1)],
    )
    try:
        trainer.fit(net, data, ckpt_path=ckpt_path, weights_only=True)
    except CrashError:
        assert fails_at is not None
    return net


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|LeafSpec)")
@pytest.mark.filterwarnings("ignore:.*no `validation_step`")
@pytest.mark.filterwarnings("ignore:(Checkpoint directory|The .*pin)")
@pytest.mark.parametrize(
    ("fails_at", "workers", "limit"),
    [(3, 0, 7), (7, 0, 7), (10, 1, 7), (14, 1, 7), (5, 1, 5), (8, 1, 5)],
)
def test_no_clip_is_lost_or_seen_twice(tmp_path, fails_at, workers, limit):
    """Of epochs of seven batches: within the first, after its last, within the second, after it.

    And of epochs that are cut to five of them.
    """
    whole = fit(tmp_path / "whole", None, workers, limit=limit)
    assert len(whole.seen) == 3 * limit
    broken = fit(tmp_path / "broken", fails_at, workers, limit=limit)
    (last,) = (tmp_path / "broken" / "ckpt").glob("*.ckpt")
    resumed = fit(tmp_path / "broken", None, workers, last, limit)

    def below_root(net: Net) -> list[tuple[int, list[str]]]:
        return [(epoch, [p.rpartition("/made/")[2] for p in paths]) for epoch, paths in net.seen]

    assert len(broken.seen) == fails_at
    assert below_root(broken) + below_root(resumed) == below_root(whole)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
