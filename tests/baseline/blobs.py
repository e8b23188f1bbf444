"""Clips of a bright blob that travels."""

import numpy as np

SIDE = 32


def travelling(right: float, down: float, num_frames: int = 16, seed: int = 0) -> np.ndarray:
    """Return frames of a soft blob whose centre moves by so many pixels a frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    start = 16 - np.array([right, down]) * num_frames / 2 + rng.uniform(-1, 1, 2)
    frames = []
    for number in range(num_frames):
        across, along = start + number * np.array([right, down])
        blob = np.exp(-((x - across) ** 2 + (y - along) ** 2) / 40)
        frames.append(np.repeat((30 + 200 * blob)[..., None], 3, axis=2))
    return np.stack(frames).astype(np.uint8)
