import numpy as np
import pytest

from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.data.decode import read_frames
from regkit.data.timeline import Timeline, VideoError, read_timeline
from regkit.data.video import Video


def timeline(count: int, fps: float = 10.0) -> Timeline:
    return Timeline(np.arange(count), np.ones(count, dtype=bool), True, 1 / fps, 64, 48)


def test_a_part_of_a_file():
    """Frames from start_s on, up to but without end_s."""
    cut = ClipSpec(Sampling(4, "uniform"), 8, 8)
    part = Video("x", 0, "", start_s=2.0, end_s=2.4)
    np.testing.assert_array_equal(cut.indices(part, timeline(50), None), [[20, 21, 22, 23]])
    rest = Video("x", 0, "", start_s=4.6)
    np.testing.assert_array_equal(cut.indices(rest, timeline(50), None), [[46, 47, 48, 49]])
    seen = {
        index
        for seed in range(50)
        for index in cut.indices(part, timeline(50), np.random.default_rng(seed)).ravel().tolist()
    }
    assert seen == {20, 21, 22, 23}


def test_a_part_behind_the_end_is_named():
    late = Video("films/x.mp4", 0, "", start_s=12.0, end_s=22.0)
    with pytest.raises(VideoError, match=r"x\.mp4 \[12-22 s\]: no frame in this part.* 5 s long"):
        ClipSpec(Sampling(4), 8, 8).indices(late, timeline(50), None)


@pytest.mark.parametrize("sides", [(10, 30), (30, 10), (10, 10), (11, 13)])
def test_three_crops_lie_at_the_ends_and_in_the_middle(sides):
    height, width = sides
    pixels = np.indices(sides).sum(axis=0) % 251
    frames = np.broadcast_to(pixels[None, ..., None], (2, *sides, 3)).astype(np.uint8)
    cut = ClipSpec(Sampling(2), 8, 10, crops=3)
    clips = cut.clip(np.array([[0, 1]]), frames, None)
    assert clips.shape == (3, 2, 8, 8, 3)
    down, right = height - 8, width - 8
    if height > width:
        corners = [(0, right // 2), (down // 2, right // 2), (down, right // 2)]
    else:
        corners = [(down // 2, 0), (down // 2, right // 2), (down // 2, right)]
    for clip, (top, left) in zip(clips, corners, strict=True):
        np.testing.assert_array_equal(clip[0, ..., 0], pixels[top : top + 8, left : left + 8])
        np.testing.assert_array_equal(clip[0], clip[1])


def test_random_crops_are_one_for_a_clip_and_reach_all_places():
    frames = np.zeros((3, 10, 14, 3), dtype=np.uint8)
    frames[..., 0], frames[..., 1] = np.indices((10, 14))
    cut = ClipSpec(Sampling(3), 8, 10, random_crop=True)
    places = set()
    for seed in range(200):
        (clip,) = cut.clip(np.array([[0, 1, 2]]), frames, np.random.default_rng(seed))
        assert len({(frame[0, 0, 0], frame[0, 0, 1]) for frame in clip}) == 1
        places.add((int(clip[0, 0, 0, 0]), int(clip[0, 0, 0, 1])))
    assert places == {(top, left) for top in range(3) for left in range(7)}


def test_views_times_crops_from_one_reading(write):
    """As many clips as if each view were read by itself."""
    path = write("video.mp4", num_frames=40, g="6", size=(80, 48))
    video, cut = (
        Video(str(path), 0, ""),
        ClipSpec(Sampling(4, "dense", 3, views=5), 24, 32, crops=3),
    )
    known = read_timeline(path)
    indices = cut.indices(video, known, None)
    clips = cut.clip(indices, read_frames(path, np.unique(indices), 32, known), None)
    assert len(clips) == cut.clips == 15
    for view, chosen in enumerate(indices):
        frames = read_frames(path, chosen, 32)
        height, width = frames.shape[1:3]
        for crop, left in enumerate((0, (width - 24) // 2, width - 24)):
            top = (height - 24) // 2
            expected = frames[:, top : top + 24, left : left + 24]
            np.testing.assert_array_equal(clips[3 * view + crop], expected)
