"""Cut clips out of a video: which frames, and which square of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from regkit.data.sampling import Sampling
from regkit.data.timeline import Timeline, VideoError
from regkit.data.video import Video

_ROUNDING_S = 1e-6  # time stamps come rounded to their ticks

# (indices, short side in px) -> frames, upright
Frames = Callable[[Int64[np.ndarray, " frames"], int], UInt8[np.ndarray, "frames height width 3"]]


@dataclass(frozen=True)
class ClipSpec:
    """What training and evaluation see of a video.

    short_px: frames are scaled to this short side; squares of `size_px` are cut out of them.
    crops: squares of each frame in evaluation: 1, the middle; 3, both ends of the long side too.
    random_crop: training takes a square at a random place, the same in all frames of a clip.
    """

    sampling: Sampling
    size_px: int
    short_px: int
    crops: int = 1
    random_crop: bool = False

    @property
    def clips(self) -> int:
        """Count the clips that evaluation takes of a video."""
        return self.sampling.views * self.crops

    def indices(
        self, video: Video, timeline: Timeline, rng: np.random.Generator | None
    ) -> Int64[np.ndarray, "views frames"]:
        """Choose frames within the part of the file that `video` names.

        Raises: VideoError when that part holds no frame.
        """
        times = timeline.times_s
        first = int(np.searchsorted(times, video.start_s - _ROUNDING_S))
        last = len(times)
        if video.end_s is not None:
            last = int(np.searchsorted(times, video.end_s - _ROUNDING_S))
        if first >= last:
            raise VideoError(
                str(video), f"no frame in this part; the file is {timeline.duration_s:.3g} s long"
            )
        return first + self.sampling(times[first:last], rng)

    def clip(
        self,
        indices: Int64[np.ndarray, "views frames"],
        frames: UInt8[np.ndarray, "read height width 3"],
        rng: np.random.Generator | None,
    ) -> UInt8[np.ndarray, "clips frames size size 3"]:
        """Cut the squares; `frames` are those at `np.unique(indices)`. View by view, crop by crop.

        All views share one reading of the file.
        """
        _, back = np.unique(indices, return_inverse=True)
        back = back.reshape(indices.shape)
        crops = [
            frames[:, top : top + self.size_px, left : left + self.size_px]
            for top, left in self._corners(frames.shape[1], frames.shape[2], rng)
        ]
        return np.stack([crop[view] for view in back for crop in crops])

    def _corners(
        self, height: int, width: int, rng: np.random.Generator | None
    ) -> list[tuple[int, int]]:
        down, right = height - self.size_px, width - self.size_px
        if rng is not None and self.random_crop:
            return [(int(rng.integers(down + 1)), int(rng.integers(right + 1)))]
        if rng is not None or self.crops == 1:
            return [(down // 2, right // 2)]
        if height > width:
            return [(top, right // 2) for top in (0, down // 2, down)]
        return [(down // 2, left) for left in (0, right // 2, right)]
