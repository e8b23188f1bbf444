"""Choose which frames of a video make a clip."""

import numpy as np
from jaxtyping import Int64


def uniform(
    num_available: int, num_frames: int, rng: np.random.Generator | None = None
) -> Int64[np.ndarray, " frames"]:
    """Cut the video into equal segments and take one frame of each: a random one, or the middle.

    index_k = floor((k + u_k) * num_available / num_frames),   u_k ~ U[0, 1), or 1/2 without rng

    Never decreases; a video with fewer frames repeats some, in order.

    Source: Wang et al., Temporal Segment Networks, 2016, section 3.1.
    """
    offset = 0.5 if rng is None else rng.random(num_frames)
    indices = (np.arange(num_frames) + offset) * num_available / num_frames
    return np.minimum(indices.astype(np.int64), num_available - 1)


def dense(
    num_available: int, num_frames: int, stride: int = 1, rng: np.random.Generator | None = None
) -> Int64[np.ndarray, " frames"]:
    """Take every `stride`-th frame from a random start, or from the middle of the video.

    A video too short starts at 0 and repeats its last frame: a loop would put in a jump that was
    never filmed.
    """
    room = max(0, num_available - ((num_frames - 1) * stride + 1))
    start = room // 2 if rng is None else int(rng.integers(room + 1))
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), num_available - 1)
