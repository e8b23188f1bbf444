import csv
import io
import os
import pickle
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from regkit.data.decode import read_frames
from regkit.data.timeline import VideoError, read_timeline

SIZE = 32

CODINGS = {
    "gop.mp4": {"g": "6", "bf": "0"},
    "reordered.mp4": {"g": "7", "bf": "3", "b_strategy": "0"},
    "open_gop.mkv": {"g": "7", "bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"},
    "one_key.mp4": {"g": "250"},
    "reordered.avi": {"g": "6", "bf": "2", "b_strategy": "0"},
    "stream.ts": {"g": "6", "bf": "2", "b_strategy": "0"},
    "elementary.h264": {"g": "6", "bf": "2", "b_strategy": "0"},
    "all_keys.avi": {"codec": "mjpeg"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "5"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "6", "deadline": "realtime"},
}


def linear(path: Path) -> list[np.ndarray]:
    """Decode from the first frame to the last, and scale with PyAV's own conversion."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = SIZE / min(frame.width, frame.height)
            width, height = round(frame.width * scale), round(frame.height * scale)
            array = frame.to_ndarray(format="rgb24", width=width, height=height)
            frames.append(np.rot90(array, frame.rotation // 90))
    return frames


def choices(num: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    few = [sorted(rng.integers(0, num, size=3).tolist()) for _ in range(4)]
    return [list(range(num)), [num - 1], [num - 1, 0, num // 2, num // 2], *few]


def assert_linear(path: Path) -> None:
    truth, timeline = linear(path), read_timeline(path)
    assert len(timeline) == len(truth)
    for indices in choices(len(truth)):
        got = read_frames(path, indices, SIZE, timeline)
        np.testing.assert_array_equal(got, np.stack([truth[index] for index in indices]))


@pytest.mark.parametrize("name", CODINGS)
def test_reads_the_frames_of_a_linear_decode(write, name):
    assert_linear(write(name, **CODINGS[name]))


def test_frames_are_really_reordered(write):
    """Else the tests above prove less than they say. AVI has no pts to tell it by."""
    path = write("reordered.mp4", **CODINGS["reordered.mp4"])
    with av.open(str(path)) as container:
        pts = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert pts != sorted(pts)
    assert read_timeline(path).exact
    assert not read_timeline(write("reordered.avi", **CODINGS["reordered.avi"])).exact


def test_variable_rate(write):
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, size=24)).tolist()
    assert_linear(write("vfr.mp4", times=times, g="6", bf="2", b_strategy="0"))


def test_decodes_from_the_keyframe_what_is_needed(write, monkeypatch):
    path = write("gop.mp4", num_frames=60, g="10", bf="2", b_strategy="0", sc_threshold="0")
    decoded = []
    timeline = read_timeline(path)
    locate = type(timeline).locate

    def counted(self, frame, previous):
        decoded.append(locate(self, frame, previous))
        return decoded[-1]

    monkeypatch.setattr(type(timeline), "locate", counted)
    read_frames(path, [2, 4, 33, 34, 41], SIZE, timeline)
    # 32 is neither wanted nor referred to; 1 and 31 are what B-frames refer to.
    assert decoded == [0, 1, 2, 3, 4, 30, 31, 33, 34, 40, 41]


def test_real_video(shared):
    files = sorted((shared / "bodygesture").glob("*/*.mp4"))[::45]
    files += sorted((shared / "bodygesture_raw").glob("*/*.avi"))[:2]
    for path in files:
        assert_linear(path)


def test_robustness_files(shared):
    """Sound files read exactly, the others raise VideoError and nothing else."""
    with (shared / "robustness" / "table.csv").open() as table:
        rows = list(csv.DictReader(table))
    sound = 0
    for row in rows:
        path = shared / "robustness" / row["file"]
        if row["error"] or int(row["dec_frames"]) == 0:
            with pytest.raises(VideoError, match=path.name):
                read_frames(path, range(10**4), SIZE)
        elif path.name == "d_byteflips.avi":  # damage lasts until the next keyframe
            assert read_frames(path, [0, 60], SIZE).shape == (2, 32, 43, 3)
        elif int(row["w"]) * int(row["dec_frames"]) < 60_000 and row["w"] != "1":
            assert_linear(path)
            sound += 1
    assert sound > 30


def test_rotation_is_honoured(write):
    """QuickTime's matrix (a b u, c d v, x y w) shows the point (x, y) at (ax + cy, bx + dy)."""
    path = write("upright.mp4")
    upright = read_frames(path, [0], SIZE)
    numbers = dict(zip("abucdvxyw", (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), strict=True))
    clockwise = {**numbers, "a": 0, "b": 65536, "c": -65536, "d": 0}  # shown at (-y, x)
    content = path.read_bytes()
    track = content.index(b"tkhd")  # the movie header before it has a matrix as well
    old, new = (struct.pack(">9i", *matrix.values()) for matrix in (numbers, clockwise))
    path.write_bytes(content[:track] + content[track:].replace(old, new, 1))
    np.testing.assert_array_equal(read_frames(path, [0], SIZE)[0], np.rot90(upright[0], -1))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\necho hello\n", bytes(range(256)) * 40])
def test_what_is_no_video(tmp_path, content):
    path = tmp_path / "fake.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"fake\.mp4: InvalidDataError"):
        read_timeline(path)


def test_a_pipe_is_refused(tmp_path):
    """Opened, it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe\.mp4: it is no regular file"):
        read_timeline(tmp_path / "pipe.mp4")


def test_a_strip_is_refused(write):
    with pytest.raises(VideoError, match=r"strip\.mp4: its frames of 640 x 16 px"):
        read_frames(write("strip.mp4", size=(640, 16)), [0], SIZE)


def test_from_memory_as_from_disk(write):
    path = write("gop.mp4", g="6", bf="2", b_strategy="0")
    content = io.BytesIO(path.read_bytes())
    np.testing.assert_array_equal(
        read_frames(content, [3, 20, 7], SIZE), read_frames(path, [3, 20, 7], SIZE)
    )
    content.name = "in memory"
    content.truncate(100)
    with pytest.raises(VideoError, match="in memory: "):
        read_timeline(content)


@pytest.mark.parametrize("threads", [0, 2])
def test_threads_change_no_frame(write, threads):
    for name in ("reordered.mp4", "open_gop.mkv"):
        path = write(name, num_frames=60, **CODINGS[name])
        for indices in choices(60):
            np.testing.assert_array_equal(
                read_frames(path, indices, SIZE, threads=threads),
                read_frames(path, indices, SIZE),
            )


def test_times_follow_the_time_stamps(write):
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, size=24)).tolist()
    timeline = read_timeline(write("vfr.mp4", times=times, bf="2", b_strategy="0"))
    np.testing.assert_allclose(timeline.times_s, (np.array(times) - times[0]) / 25, atol=1e-4)
    steady = read_timeline(write("steady.mkv"))
    assert steady.duration_s == pytest.approx(24 / 25, abs=1e-3)
    assert (steady.width_px, steady.height_px) == (64, 48)
    counted = read_timeline(write("reordered.avi", **CODINGS["reordered.avi"]))
    np.testing.assert_allclose(counted.times_s, np.arange(24) / 25)


# Kb and Kr of the two standards: Y = Kr R + (1 - Kr - Kb) G + Kb B (ITU-R BT.601, BT.709).
MATRICES = {"bt601": (0.299, 0.114, 5), "bt709": (0.2126, 0.0722, 1)}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_tags(tmp_path, matrix, full):
    """Plain surfaces, as BT.601 and BT.709 define them, limited (16 to 235) and full range."""
    red, blue, tag = MATRICES[matrix]
    path = tmp_path / "colour.mp4"
    ycc = [(120, 90, 160), (60, 180, 110), (200, 120, 135)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.colorspace = tag
        for numbers in ycc:
            planes = [np.full((64, 64), numbers[0]), *(np.full((32, 32), n) for n in numbers[1:])]
            flat = np.concatenate([plane.ravel() for plane in planes]).astype(np.uint8)
            frame = VideoFrame.from_ndarray(flat.reshape(96, 64), format="yuv420p")
            frame.color_range, frame.colorspace = stream.codec_context.color_range, tag
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    got = read_frames(path, range(3), SIZE)[:, 16, 16].astype(float)
    for pixel, (y, cb, cr) in zip(got, ycc, strict=True):
        low, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
        light, b, r = (y - low) / luma, (cb - 128) / chroma * 2, (cr - 128) / chroma * 2
        rgb = [light + (1 - red) * r, 0.0, light + (1 - blue) * b]
        rgb[1] = (light - red * rgb[0] - blue * rgb[2]) / (1 - red - blue)
        np.testing.assert_allclose(pixel, np.clip(rgb, 0, 1) * 255, atol=3.5)  # rounding


def test_missing_and_audio_only(tmp_path, audio_only):
    with pytest.raises(VideoError, match=r"none\.mp4: FileNotFoundError"):
        read_timeline(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match=r"audio\.mp4: it has no video stream"):
        read_frames(audio_only, [0], SIZE)


def test_cut_file_counts_what_is_left(write):
    path = write("cut.avi", codec="mpeg4", g="5")
    whole = read_frames(path, range(24), SIZE)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[12]])
    assert len(read_timeline(path)) == 12  # while the header still says 24
    np.testing.assert_array_equal(read_frames(path, [3, 11, 20], SIZE), whole[[3, 11, 11]])


def test_stream_that_ends_early_repeats_its_last_frame(write):
    path = write("short.mp4", num_frames=10)
    longer = read_timeline(write("longer.mp4", num_frames=30))
    got = read_frames(path, [8, 9, 20], SIZE, longer)
    np.testing.assert_array_equal(got[1], got[2])
    assert (got[0] != got[1]).any()


def test_wrong_timeline_falls_back_to_counting(write):
    path = write("gop.mp4", g="6", bf="0")
    other = read_timeline(write("other.mkv", g="6", bf="0"))  # another time base
    np.testing.assert_array_equal(
        read_frames(path, [3, 19], SIZE, other), read_frames(path, [3, 19], SIZE)
    )


def test_colon_in_a_name_is_no_protocol(write, monkeypatch):
    path = write("a:b.mp4")
    monkeypatch.chdir(path.parent)
    assert len(read_timeline("a:b.mp4")) == 24


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoError("x.mp4", "it is odd")))
    assert (str(error), error.path, error.reason) == ("x.mp4: it is odd", "x.mp4", "it is odd")


def test_a_list_of_other_files_is_no_film(write, tmp_path):
    """FFmpeg would show any film on the disk that a stranger's file names."""
    write("secret.mp4")
    listing = tmp_path / "film.mp4"
    listing.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(VideoError, match=r"film\.mp4: it is no film but a list of others"):
        read_timeline(listing)
