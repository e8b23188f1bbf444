"""One file: what is said of it, against how it was written."""

import dataclasses
import hashlib
import os
import struct
import time
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from regkit.data.clip_spec import Sampling
from regkit.data.prepare.check import Checker, Facts, Part
from regkit.data.readers import PyAV, Reader

WHOLE: Part = (0.0, None)


def check(path: Path, *parts: Part, quick: bool = False, fps: float | None = None) -> Facts:
    checker = Checker(PyAV(1), Sampling(8, fps=fps), quick)
    return checker((str(path), parts or (WHOLE,)))


@pytest.mark.parametrize(
    ("name", "codec", "said"),
    [
        ("a.mp4", "libx264", "h264"),
        ("a.avi", "mpeg4", "mpeg4"),
        ("a.webm", "libvpx-vp9", "vp9"),
        ("a.mkv", "mjpeg", "mjpeg"),
    ],
)
def test_all_facts_of_a_sound_file(write, name, codec, said):
    path = write(name, 24, codec)
    facts = check(path)
    assert (facts.reason, facts.fatal, facts.cut_short, facts.late) == ("", False, False, ())
    assert (facts.codec, facts.width_px, facts.height_px) == (said, 64, 48)
    assert (facts.announced, facts.decoded, facts.in_part) == (24, 24, (24,))
    assert facts.rate_fps == pytest.approx(25, rel=1e-3)
    assert facts.duration_s == pytest.approx(24 / 25, rel=1e-3)
    assert not facts.variable
    content = path.read_bytes()
    assert (facts.num_bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_quick_decodes_one_frame_and_says_so(write):
    whole, quick = (check(write("a.mp4"), quick=quick) for quick in (False, True))
    assert quick.decoded is None
    assert not quick.cut_short
    for name in set(Facts.__slots__) - {"decoded"}:
        assert getattr(whole, name) == getattr(quick, name)


def test_sides_are_told_as_shown(write):
    path = write("upright.mp4")
    content = path.read_bytes()
    track = content.index(b"tkhd")
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:track] + content[track:].replace(upright, clockwise, 1))
    facts = check(path)
    assert (facts.width_px, facts.height_px) == (48, 64)


@pytest.mark.parametrize(
    ("name", "rate", "times", "varies"),
    [
        ("rounded.mkv", 30, None, False),  # 33, 33, 34 ms
        ("dropped.mp4", 25, [*range(10), *range(11, 21)], True),
        ("swaying.mp4", 25, np.cumsum(np.arange(20) % 3 + 1).tolist(), True),
        ("every_third.mp4", 25, list(range(0, 60, 3)), False),
    ],
)
def test_variable_rate_is_told_from_rounding(write, name, rate, times, varies):
    assert check(write(name, rate=rate, times=times)).variable == varies


def test_rate_is_that_of_the_time_stamps(write):
    facts = check(write("a.mp4", times=list(range(0, 60, 3))))
    assert facts.rate_fps == pytest.approx(25 / 3)
    assert facts.duration_s == pytest.approx(60 / 25)


def truncated(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_a_cut_avi_gives_fewer_frames(write):
    path = truncated(write("a.avi", 40), 0.5)
    facts = check(path)
    with av.open(str(path)) as container:
        left = sum(1 for _ in container.decode(video=0))
    assert (facts.reason, facts.announced, facts.decoded) == ("", 40, left)
    assert 5 < left < 35
    assert facts.cut_short
    assert facts.in_part == (left,)
    assert facts.duration_s == pytest.approx(left / 25)


@pytest.mark.parametrize(
    ("announced", "decoded", "cut"),
    [(100, 90, False), (100, 89, True), (10, 8, False), (10, 7, True), (50, None, False)],
)
def test_a_few_frames_less_are_no_cut(announced, decoded, cut):
    assert Facts("a", announced=announced, decoded=decoded).cut_short == cut
    assert not Facts("a", "some reason", announced=100, decoded=1).cut_short


class Promising(Reader):
    """Announces packets that never become frames."""

    def timeline(self, source):
        timeline = PyAV(1).timeline(source)
        pts = np.arange(len(timeline) + 10) * timeline.pts[1]
        return dataclasses.replace(timeline, pts=pts, keyframe=np.ones(len(pts), dtype=bool))

    def frames(self, source, indices, short_px, timeline):
        return PyAV(1).frames(source, indices, short_px, timeline)


def test_clips_are_taken_from_frames_that_come(write):
    facts = Checker(Promising(), Sampling(8))((str(write("a.mp4")), (WHOLE,)))
    assert (facts.announced, facts.decoded, facts.in_part) == (30, 20, (20,))
    assert facts.cut_short
    assert facts.duration_s == pytest.approx(0.8)


def test_hidden_frames_are_not_missed(write, tmp_path):
    """An edit list that begins late: what `ffmpeg -ss -c copy` writes."""
    path, cut = write("a.mp4", 40, "libx264"), tmp_path / "cut.mp4"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.stream = copy
                shift = round(0.8 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                target.mux(packet)
    with av.open(str(cut)) as container:
        header = container.streams.video[0].frames
    facts = check(cut)
    assert (header, facts.announced, facts.decoded, facts.cut_short) == (40, 20, 20, False)


def test_a_break_is_told_with_its_place(broken: Path):
    facts = check(broken)
    assert facts.reason.startswith("InvalidDataError after ")
    assert facts.decoded is not None
    assert f"after {facts.decoded} frames" in facts.reason
    assert 0 < facts.decoded < facts.announced


@pytest.fixture
def broken(write) -> Path:
    """One packet of an MP4 whose lengths of units make no sense."""
    path = write("broken.mp4", 24, "libx264")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        place, size = packets[12].pos, packets[12].size
    assert place is not None
    content = bytearray(path.read_bytes())
    content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("#!/bin/sh\necho hello\n")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def folder(path: Path) -> None:
    path.mkdir()


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere.mp4")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        assert isinstance(stream, AudioStream)
        silence = AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (empty, "InvalidDataError"),
        (text, "InvalidDataError"),
        (noise, "InvalidDataError"),
        (folder, "it is no regular file"),
        (nowhere, "FileNotFoundError"),
        (pipe, "it is no regular file"),
        (sound, "it has no video stream"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_what_cannot_be_read(tmp_path, spoil, said, quick):
    path = tmp_path / "clip.mp4"
    spoil(path)
    began = time.monotonic()
    facts = check(path, quick=quick)
    assert time.monotonic() - began < 5
    assert said in facts.reason
    assert (facts.fatal, facts.sha256, facts.in_part) == (False, "", ())


def test_a_file_that_one_may_not_read(write):
    path = write("a.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "PermissionError" in check(path).reason


def test_a_cut_mp4_and_a_strip(write):
    assert "InvalidDataError" in check(truncated(write("a.mp4"), 0.5)).reason
    assert "no picture but a strip" in check(write("b.avi", size=(640, 16))).reason


def test_an_error_of_another_kind_is_an_answer_too():
    assert "ValueError" in check(Path("null\0byte.mp4")).reason


def test_parts_are_held_against_the_file(write):
    """The file lasts 2 s; 0.04 s, a frame, and 0.1 s more are forgiven."""
    path = write("a.mp4", 50)
    parts: list[Part] = [(0.0, None), (0.5, 1.5), (1.0, 2.13), (1.0, 2.2), (2.5, None), (2.5, 3.0)]
    facts = check(path, *parts)
    assert facts.late == (3, 4, 5)
    assert facts.in_part == (50, 25, 25, 25, 0, 0)


def test_frames_are_counted_at_the_rate_of_the_sampling(write):
    path = write("a.mp4", 50)
    assert check(path, fps=10.0).in_part == (20,)
    assert check(path, (0.5, 1.5), fps=50.0).in_part == (50,)
    assert check(path, fps=0.1).in_part == (1,)
