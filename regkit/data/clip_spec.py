"""What clips are made of a video: which frames, and which squares of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from regkit.data.timeline import ROUNDING_S, Timeline, VideoError
from regkit.data.video import Video


@dataclass(frozen=True)
class Sampling:
    """Take clips of `num_frames` from a video, given when its frames appear.

    kind: "uniform", one frame of each of equal segments; "dense", every `stride`-th frame.
    fps: None counts the frames as they are. Else each video is seen at this rate, by its time
        stamps (also where the rate varies): the frames shown at 0, 1/fps, 2/fps, ... seconds.
    pad: what "dense" puts behind the end of a video too short: "repeat" its last frame, or "loop".
    views: clips of each video in evaluation, spread evenly over it.

    Source: Wang et al., Temporal Segment Networks, 2016, section 3.1 (uniform); Feichtenhofer et
    al., SlowFast, 2019, section 4 (views).
    """

    num_frames: int
    kind: str = "uniform"
    stride: int = 1
    fps: float | None = None
    pad: str = "repeat"
    views: int = 1

    def __call__(
        self, times_s: Float64[np.ndarray, " available"], rng: np.random.Generator | None
    ) -> Int64[np.ndarray, "views frames"]:
        """Return indices into `times_s`: one clip at random, or without `rng` all views."""
        grid = self._grid(times_s)
        count, views = len(grid), 1 if rng is not None else self.views
        if self.kind == "uniform":
            places = [uniform(count, self.num_frames, rng, (v + 0.5) / views) for v in range(views)]
        else:
            shares = [0.5] if views == 1 else np.linspace(0, 1, views).tolist()
            loop = self.pad == "loop"
            places = [
                dense(count, self.num_frames, self.stride, rng, share, loop) for share in shares
            ]
        return grid[np.stack(places)]

    def _grid(self, times_s: Float64[np.ndarray, " available"]) -> Int64[np.ndarray, " grid"]:
        if self.fps is None or len(times_s) == 1:
            return np.arange(len(times_s))
        last = times_s[-1] - times_s[0]
        stays = last / (len(times_s) - 1)  # of the last frame: as long as frames do in the mean
        count = max(1, round((last + stays) * self.fps))
        moments = times_s[0] + np.arange(count) / self.fps + 1e-6  # time stamps are rounded
        return np.searchsorted(times_s, moments, side="right") - 1


def uniform(
    num_available: int, num_frames: int, rng: np.random.Generator | None = None, offset: float = 0.5
) -> Int64[np.ndarray, " frames"]:
    """Cut the video into equal segments and take one frame of each: a random one, or at `offset`.

    index_k = floor((k + u_k) * num_available / num_frames),   u_k ~ U[0, 1), or offset without rng

    Never decreases; a video with fewer frames repeats some, in order.
    """
    places = offset if rng is None else rng.random(num_frames)
    indices = (np.arange(num_frames) + places) * num_available / num_frames
    return np.minimum(indices.astype(np.int64), num_available - 1)


def dense(
    num_available: int,
    num_frames: int,
    stride: int = 1,
    rng: np.random.Generator | None = None,
    share: float = 0.5,
    loop: bool = False,
) -> Int64[np.ndarray, " frames"]:
    """Take every `stride`-th frame from a random start, or from `share` of all possible starts.

    A video too short starts at 0 and repeats its last frame, or begins again (`loop`, a jump that
    was never filmed).
    """
    room = max(0, num_available - ((num_frames - 1) * stride + 1))
    start = int(room * share) if rng is None else int(rng.integers(room + 1))
    indices = start + stride * np.arange(num_frames, dtype=np.int64)
    return indices % num_available if loop else np.minimum(indices, num_available - 1)


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
        first = int(np.searchsorted(times, video.start_s - ROUNDING_S))
        last = len(times)
        if video.end_s is not None:
            last = int(np.searchsorted(times, video.end_s - ROUNDING_S))
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
