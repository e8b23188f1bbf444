"""Whether an exported model says of each test clip what PyTorch says."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.inference.export.exported import Run, scores_of
from regkit.training.checkpoints import TrainedRun
from regkit.training.config import make


@dataclass
class Agreement:
    """On how many test clips the class is the same, and how far scores differ at most."""

    clips: int = 0
    same: int = 0
    difference: float = 0.0

    def __str__(self) -> str:
        return (
            f"same class on {self.same} of {self.clips} test clips, "
            f"largest difference {self.difference:.2g}"
        )

    def count(self, expected: Tensor, found: Tensor) -> None:
        """Count the clips of one batch of scores."""
        self.clips += len(expected)
        self.same += int((expected.argmax(1) == found.argmax(1)).sum())
        self.difference = max(self.difference, float((expected - found).abs().max()))


def on_test_clips(held: TrainedRun, run: Run) -> Agreement:
    """Compare the scores of all test clips of the run's data set.

    Raises: InputError when its videos are not there, or there is no test split.
    """
    found, net = Agreement(), scores_of(held.model.net)
    for clips in _test_clips(held):
        found.count(net(clips), run(clips))
    if not found.clips:
        raise InputError("none of the test videos can be read")
    return found


def _test_clips(held: TrainedRun) -> Iterator[Tensor]:
    # Each clip is read once: a cache of the whole data set would take longer.
    data: VideoData = make(held.recipe["data"], cache="none", num_workers=0)
    data.prepare_data()
    data.setup()
    if not data.known_splits().test:
        raise InputError("the data set has no test split")
    if data.classes != held.model.classes:
        raise InputError("the data set has other classes by now")
    for batch in data.test_dataloader():
        clips: Tensor = data.finish(batch, training=False)["clip"]
        if len(clips):
            yield clips
