"""The detector on streams: the same answers as on clips, each frame described once."""

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from blobs import travelling

from regkit.baseline import fitting, live
from regkit.baseline.detector import Detector, load
from regkit.baseline.features import Features, Row, Table
from regkit.baseline.live import Watch, frames
from regkit.data.decode import read_frames
from regkit.data.timeline import LostError
from regkit.data.video import Video
from regkit.errors import InputError

Write = Callable[..., Path]


def offline(detector: Detector, path: Path, indices: list[int]) -> np.ndarray:
    """Answer by the dense weights on a clip of these frames."""
    clip = read_frames(path, indices, detector.short_px)
    values = detector.features.clip(clip).astype(float)
    mean, scale = np.zeros(values.shape), np.ones(values.shape)
    mean[detector.places], scale[detector.places] = detector.mean, detector.scale
    scores = detector.dense().reshape(3, -1) @ ((values - mean) / scale) + detector.bias
    return np.exp(scores) / np.exp(scores).sum()


def test_the_window_slides_as_clips_would(video: Write, detector: Detector):
    path = video("a.mp4", 0.5, 0.2, num_frames=40)  # 8 fps: 0.25 s is every second frame
    watch = Watch(detector)
    sights = list(watch(frames(str(path), 32)))
    assert [s.time_s for s in sights] == pytest.approx([1.75 + 0.25 * k for k in range(13)])
    for number, sight in enumerate(sights):
        indices = [2 * (number + k) for k in range(8)]
        np.testing.assert_allclose(sight.probabilities, offline(detector, path, indices))
    assert (watch.num_frames, watch.num_used, watch.last_s) == (40, 20, pytest.approx(39 / 8))


def test_a_frame_is_described_once(
    video: Write, detector: Detector, monkeypatch: pytest.MonkeyPatch
):
    path, calls = video("a.mp4", 0.5, 0.2, num_frames=40), []
    edges = Features.edges
    monkeypatch.setattr(Features, "edges", lambda *args: calls.append(1) or edges(*args))
    list(Watch(detector)(frames(str(path), 32)))
    assert len(calls) == 20


def test_a_slow_stream_shows_frames_again(video: Write, detector: Detector):
    path = video("a.mp4", 0.5, 0.2, num_frames=10)
    sights = list(Watch(replace(detector, step_s=0.0625))(frames(str(path), 32)))
    indices = [0, 1, 1, 2, 2, 3, 3, 4]  # the first frame at or after 0, 1/16, 2/16, ... s
    np.testing.assert_allclose(sights[0].probabilities, offline(detector, path, indices))


def test_rounded_times_skip_no_frame(detector: Detector):
    """Three steps of 0.1 s add up to a little more than 0.3 s."""
    clip = travelling(0.5, 0.2, num_frames=12)
    times = [k / 10 for k in range(12)]
    sights = list(Watch(replace(detector, step_s=0.1))(zip(times, clip, strict=True)))
    assert [sight.time_s for sight in sights] == times[7:]
    expected = detector.probabilities(detector.features.clip(clip[:8])[None])[0]
    np.testing.assert_allclose(sights[0].probabilities, expected)


def test_a_short_stream_repeats_its_last_frame(video: Write, detector: Detector):
    path = video("a.mp4", 0.5, 0.2, num_frames=9)
    (sight,) = Watch(detector)(frames(str(path), 32))
    expected = offline(detector, path, [0, 2, 4, 6, 8, 8, 8, 8])
    np.testing.assert_allclose(sight.probabilities, expected)


def test_a_gap_is_not_filled_for_longer_than_the_window(detector: Detector):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    watch = Watch(detector)
    assert 1 <= len(list(watch([(0.0, picture), (1e3, picture)]))) <= 9


def test_a_pipe_gives_what_its_file_does(video: Write, tmp_path: Path):
    stored, piped = video("a.mp4", 0.5, 0.2), tmp_path / "b.mkv"
    with av.open(str(stored)) as source, av.open(str(piped), "w") as target:
        copied = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(piped.read_bytes()))
    feeder.start()
    found = list(frames(str(pipe), 32))
    feeder.join()
    for (time_s, picture), (file_s, expected) in zip(found, frames(str(stored), 32), strict=True):
        assert time_s == pytest.approx(file_s, abs=1e-3)
        np.testing.assert_array_equal(picture, expected)


def test_a_stream_begins_at_0(video: Write):
    path = video("a.ts", 0.5, 0.2)  # whose clock is at 0.25 s then
    assert next(frames(f"file://{path}", 32))[0] == 0


def test_a_stream_is_turned_as_its_file_is(video: Write):
    """The matrix of QuickTime, by a quarter clockwise, in the header of the track."""
    path = video("a.mp4", 0.5, 0.2)
    upright = next(frames(str(path), 32))[1]
    content, one = path.read_bytes(), 1 << 16
    track = content.index(b"tkhd")
    old, new = (struct.pack(">5i", *five) for five in ((one, 0, 0, 0, one), (0, one, 0, -one, 0)))
    path.write_bytes(content[:track] + content[track:].replace(old, new, 1))
    for source in (str(path), f"file://{path}"):
        np.testing.assert_array_equal(next(frames(source, 32))[1], np.rot90(upright, -1))


def test_standard_input_is_a_stream(video: Write):
    path = video("a.mp4", 0.5, 0.2)
    code = "from regkit.baseline.live import frames; print(len(list(frames('-', 32))))"
    with path.open("rb") as file:
        done = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True)
    assert done.stdout.split() == [b"16"], done.stderr


def test_a_file_that_leaves_its_timeline_is_counted(video: Write, monkeypatch: pytest.MonkeyPatch):
    path, pictures = video("a.mp4", 0.5, 0.2), live.pictures

    def lose(source: Any, wanted: Any, short_px: int, timeline: Any, threads: int) -> Any:
        for number, picture in enumerate(pictures(source, wanted, short_px, timeline, threads)):
            if timeline.exact and number == 5:
                raise LostError
            yield picture

    expected = list(frames(str(path), 32))
    monkeypatch.setattr(live, "pictures", lose)
    found = list(frames(str(path), 32))
    assert [time_s for time_s, _ in found] == [time_s for time_s, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_no_video_is_refused(tmp_path: Path):
    text = tmp_path / "a.mp4"
    text.write_text("no video")
    for source in (str(text), str(tmp_path / "none.mp4"), str(tmp_path), "file:///none.mp4"):
        with pytest.raises(InputError, match="--watch got"):
            list(frames(source, 32))


def test_clips_of_a_video_are_averaged(detector: Detector):
    values = np.random.default_rng(1).random((3, np.prod(detector.features.shape)))
    row = Row(Video("a.mp4", 0, "g"), values.astype(np.float32), 1.0, 1.0, 0.1, 0.1)
    found = fitting._chances(detector, Table([row], []))
    np.testing.assert_allclose(found, detector.probabilities(row.values).mean(0)[None])


def test_a_saved_detector_is_the_same(detector: Detector, tmp_path: Path):
    detector.save(tmp_path / "hog.json")
    again = load(tmp_path / "hog.json")
    values = np.random.default_rng(1).random((5, np.prod(detector.features.shape)))
    values = values.astype(np.float32)
    np.testing.assert_array_equal(again.probabilities(values), detector.probabilities(values))
    assert (again.classes, again.features) == (detector.classes, detector.features)
    assert (again.lam, again.step_s, again.short_px) == (0.1, 0.25, 32)


def test_without_features_the_constant_answers(detector: Detector, tmp_path: Path):
    none = np.zeros(0)
    empty = replace(
        detector, places=none.astype(int), mean=none, scale=none, weight=np.zeros((3, 0))
    )
    empty.save(tmp_path / "hog.json")
    values = np.ones((2, np.prod(detector.features.shape)), dtype=np.float32)
    found = load(tmp_path / "hog.json").probabilities(values)
    expected = np.exp(detector.bias) / np.exp(detector.bias).sum()
    np.testing.assert_allclose(found, np.stack([expected, expected]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.pop("mean"),
        lambda c: c.update(format=2),
        lambda c: c.update(more=1),
        lambda c: c["bias"].pop(),
        lambda c: c["weight"].pop(),
        lambda c: c["places"].__setitem__(0, 10**6),
        lambda c: c["features"].update(num_cells=3),
        lambda c: c.update(step_s=0.0),
        lambda c: c.update(mean="x"),
    ],
)
def test_another_file_is_refused(detector: Detector, tmp_path: Path, spoil: Callable):
    path = tmp_path / "hog.json"
    detector.save(path)
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="which is no hog"):
        load(path)
