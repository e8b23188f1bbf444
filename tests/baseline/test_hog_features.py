"""Features against the definition, and what motion must look like in them."""

import math
from itertools import pairwise

import numpy as np
import pytest
from blobs import SIDE, travelling

from regkit.baseline.features import Features
from regkit.errors import InputError


def by_definition(grey: np.ndarray, cells: int, orientations: int) -> np.ndarray:
    """Dalal and Triggs, pixel by pixel: hard bins of 180 degrees, L2-Hys over 2 x 2 cells."""
    px = len(grey) // cells
    histogram = np.zeros((cells, cells, orientations))
    for i in range(len(grey)):
        for j in range(len(grey)):
            down = grey[i + 1, j] - grey[i - 1, j] if 0 < i < len(grey) - 1 else 0.0
            right = grey[i, j + 1] - grey[i, j - 1] if 0 < j < len(grey) - 1 else 0.0
            angle = math.degrees(math.atan2(down, right)) % 180
            place = min(int(angle / (180 / orientations)), orientations - 1)
            histogram[i // px, j // px, place] += math.hypot(down, right) / px**2
    sums, counts = np.zeros_like(histogram), np.zeros((cells, cells, 1))
    for i in range(cells - 1):
        for j in range(cells - 1):
            block = histogram[i : i + 2, j : j + 2]
            block = np.minimum(block / np.sqrt((block**2).sum() + 1e-10), 0.2)
            block = block / np.sqrt((block**2).sum() + 1e-10)
            sums[i : i + 2, j : j + 2] += block
            counts[i : i + 2, j : j + 2] += 1
    return sums / counts


def test_edges_are_as_defined():
    features = Features(16, SIDE)
    grey = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(features.edges(grey), by_definition(grey, 4, 9), atol=1e-5)


def test_an_edge_lies_across_its_gradient():
    features = Features(16, SIDE)
    stripes = np.zeros((SIDE, SIDE), dtype=np.float32)
    stripes[:, ::4] = 1
    stripes[:, 1::4] = 1
    assert features.edges(stripes).sum((0, 1)).argmax() == 0
    assert features.edges(stripes.T.copy()).sum((0, 1)).argmax() == 4


@pytest.mark.parametrize(
    ("velocity", "direction"), [((1, 0), 0), ((1, 1), 1), ((0, 1), 2), ((-1, 0), 4), ((0, -1), 6)]
)
def test_motion_points_where_things_go(velocity: tuple[float, float], direction: int):
    features = Features(16, SIDE)
    frames = travelling(*velocity)
    pairs = [features.motion(*map(features.grey, pair)) for pair in pairwise(frames)]
    total = np.sum(pairs, axis=(0, 1, 2))
    assert total.argmax() == direction
    against = total[(direction + 4) % 8]
    assert against < 0.05 * total[direction]


def test_motion_is_counted_in_the_cell_where_it_is():
    features = Features(16, SIDE)
    before = np.zeros((SIDE, SIDE), dtype=np.float32)
    after = before.copy()
    after[26, 10] = 1  # row 3, column 1
    found = features.motion(before, after)
    assert np.argwhere(found.sum(-1)).tolist() == [[3, 1]]
    assert found.sum() == pytest.approx(1 / 64)  # the mean change over the cell's 8 x 8 pixels


def test_a_reversed_clip_has_other_features():
    # 17 frames: 16 pairs, four a segment. 16 frames: four a segment.
    clip = travelling(0.8, 0.3, num_frames=17)
    features = Features(17, SIDE)
    forward = features.clip(clip).reshape(features.shape)[..., 9:]
    backward = features.clip(clip[::-1]).reshape(features.shape)[..., 9:]
    np.testing.assert_allclose(backward, np.roll(forward[::-1], 4, axis=-1), atol=1e-6)
    assert np.abs(backward - forward).max() > 0.1

    features = Features(16, SIDE)
    forward = features.clip(clip[1:]).reshape(features.shape)[..., :9]
    backward = features.clip(clip[:0:-1]).reshape(features.shape)[..., :9]
    np.testing.assert_allclose(backward, forward[::-1], atol=1e-6)
    assert np.abs(backward - forward).max() > 0.05


def test_motion_is_a_share_of_all_that_moves():
    """Half the contrast is half the change, and the same motion."""
    features = Features(16, SIDE)
    strong = travelling(1, 0).astype(float)
    weak = (strong / 2).astype(np.uint8)
    one, two = (features.clip(c).reshape(features.shape) for c in (strong.astype(np.uint8), weak))
    np.testing.assert_allclose(two[..., 9:].sum(-1), one[..., 9:].sum(-1), atol=0.05)
    shares = one[..., 9:].astype(float) ** 2  # features are their roots
    assert shares.sum((1, 2, 3)).mean() == pytest.approx(1, abs=0.01)
    still = np.repeat(weak[:1], 16, axis=0)
    assert features.clip(still).reshape(features.shape)[..., 9:].max() == 0


def test_the_rim_that_fills_no_cell_is_left_out():
    features = Features(16, 35)
    frame = np.zeros((35, 35, 3), dtype=np.uint8)
    frame[:SIDE, :SIDE] = travelling(1, 0)[0]
    plain = Features(16, SIDE)
    expected = plain.edges(plain.grey(travelling(1, 0)[0]))
    np.testing.assert_array_equal(features.edges(features.grey(frame)), expected)


@pytest.mark.parametrize(
    ("options", "word"), [((16, 15), "data.size_px=16"), ((4, 32), "data.num_frames=5")]
)
def test_clips_too_small_are_refused(options: tuple[int, int], word: str):
    with pytest.raises(InputError, match=word):
        Features(*options)
