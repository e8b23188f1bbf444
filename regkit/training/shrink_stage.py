"""The net of a run without what its zeros make superfluous, tested and kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regkit.data.video_data import VideoData
from regkit.lightning.video_classifier import VideoClassifier
from regkit.pruning.shrink import ShrinkReport, shrink
from regkit.training.checkpoints import save_shrunk
from regkit.training.config import make
from regkit.training.cost import warn_of_a_cut

NUM_CLIPS = 32  # real ones that outputs are compared on


def shrink_stage(
    config: DictConfig,
    folder: Path,
    model: VideoClassifier,
    data: VideoData,
    whole: float | None = None,
) -> dict[str, Any]:
    """Shrink the net, keep it as `folder`/checkpoints/shrunk.ckpt, and return what it reaches.

    whole: test accuracy of the net as it is; a warning tells if the small one has less.
    """
    trainer = make(
        config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    device = trainer.strategy.root_device
    device = device if device.type == "cuda" else torch.device("cpu")  # others lack float64
    inputs = (clip.to(device) for clip in clips(data))
    multiple = config.strength.multiple_of
    example = data.example().to(device)
    net, report = shrink(model.net.to(device), example, inputs=inputs, multiple_of=multiple)
    small = VideoClassifier(net, model.classes, make(config.optimizer))
    tested = trainer.test(small, datamodule=data, verbose=False)[0]
    if trainer.is_global_zero:
        recipe = OmegaConf.to_container(config, resolve=True)
        assert isinstance(recipe, dict)
        named = {str(key): value for key, value in recipe.items()}
        save_shrunk(net.cpu(), named, model.classes, folder / "checkpoints" / "shrunk.ckpt")
        print(f"shrunk: {folder / 'checkpoints' / 'shrunk.ckpt'}\n{report}", flush=True)
    if whole is not None:
        warn_of_a_cut(whole, tested["test/acc"], len(data.known_splits().test))
    return {"shrunk_accuracy": tested["test/acc"], **_numbers(report)}


def clips(data: VideoData, count: int = NUM_CLIPS) -> Iterator[Tensor]:
    """Yield real clips of the validation or test videos, in batches, until there are `count`."""
    splits = data.known_splits()
    if not (splits.val or splits.test):
        return
    loader = data.val_dataloader() if splits.val else data.test_dataloader()
    for batch in loader:
        clip = data.finish(batch, training=False)["clip"][:count]
        count -= len(clip)
        if len(clip):
            yield clip
        if not count:
            return


def _numbers(report: ShrinkReport) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "shrunk_parameters": report.after.parameters,
        "shrunk_flops": report.after.flops,
        "shrink_difference": report.max_difference,
    }
    for key, sizes in (("whole", report.before), ("shrunk", report.after)):
        if sizes.latency_s is not None:
            numbers[f"{key}_latency_ms"] = round(1e3 * sizes.latency_s.median, 3)
    return numbers
