"""Torchcodec against PyAV: the same frames, the same refusals."""

import csv
import io
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from regkit.data import readers as ours
from regkit.data.decode import read_frames
from regkit.data.readers import READERS, TorchCodec, unavailable
from regkit.data.timeline import VideoError, read_timeline
from regkit.errors import InputError

REASON = unavailable()
needs_torchcodec = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SIZE = (64, 48)
SHORT_PX = min(SIZE)

CODINGS = {
    "gop.mp4": {"g": "6", "bf": "0"},
    "reordered.mp4": {"g": "7", "bf": "3", "b_strategy": "0"},
    "one_key.mp4": {"g": "250"},
    "all_keys.avi": {"codec": "mjpeg"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "6", "deadline": "realtime"},
}
# torchcodec 0.17 finds no frame after the last keyframe of an open GOP, and few in some streams.
FAILING = {
    "open_gop.mkv": {"g": "7", "bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"},
    "stream.ts": {"g": "6", "bf": "2", "b_strategy": "0"},
}

# Damage on which FFmpegs differ; a turn that only newer ones see; a margin that PyAV shows.
OTHERWISE = {"d_byteflips.avi", "mo_no_timescale.mp4", "mu_sample.oggtheora"}


def read(path: str | Path | io.BytesIO, indices: list[int], short_px: int = SHORT_PX) -> np.ndarray:
    reader = TorchCodec()
    return reader.frames(path, np.array(indices), short_px, reader.timeline(path))


@needs_torchcodec
@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("threads", [1, 0])
def test_frames_are_those_of_pyav(write, monkeypatch, name, threads):
    """Any order, repeats too; a warning, which is an error here, would tell that PyAV read them."""
    path = write(name, **CODINGS[name])
    timeline = read_timeline(path)
    for indices in ([20, 3, 3, 11], [0], [23], list(range(24))):
        truth = read_frames(path, indices, SHORT_PX, timeline)
        got = TorchCodec(threads).frames(str(path), np.array(indices), SHORT_PX, timeline)
        np.testing.assert_array_equal(got, truth)


@needs_torchcodec
def test_scaled_frames_differ_little(write):
    """Our noise has no scale at which pixels are alike, so filters differ more than on film."""
    path = write("scaled.mp4", size=(160, 112))
    got, truth = read(path, list(range(24)), 40), read_frames(path, range(24), 40)
    assert got.shape == truth.shape == (24, 40, 57, 3)
    assert np.abs(got.astype(int) - truth).mean() < 4
    for other in (1, -1):  # a neighbour in time is farther off
        assert np.abs(got[1:-1].astype(int) - truth[1 + other : 23 + other]).mean() > 4


@needs_torchcodec
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_is_ours(write, turn):
    path = write("turned.mp4")
    cos, sin = round(np.cos(np.deg2rad(turn))), round(np.sin(np.deg2rad(turn)))
    upright = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    turned = (65536 * cos, 65536 * sin, 0, -65536 * sin, 65536 * cos, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    track = content.index(b"tkhd")
    matrices = (struct.pack(">9i", *upright), struct.pack(">9i", *turned))
    path.write_bytes(content[:track] + content[track:].replace(*matrices, 1))
    got = read(path, [0, 9])
    assert got.shape[1:3] == ((64, 48) if turn in (90, 270) else (48, 64))
    np.testing.assert_array_equal(got, read_frames(path, [0, 9], SHORT_PX))
    assert (got != np.rot90(got, 2, axes=(1, 2))).any()


@needs_torchcodec
@pytest.mark.parametrize("name", FAILING)
@pytest.mark.filterwarnings("ignore:PyAV reads what torchcodec cannot")
def test_pyav_reads_what_torchcodec_cannot(write, name):
    path = write(name, **FAILING[name])
    np.testing.assert_array_equal(read(path, [3, 20]), read_frames(path, [3, 20], SHORT_PX))
    np.testing.assert_array_equal(read(path, [23]), read_frames(path, [23], SHORT_PX))


@needs_torchcodec
def test_frames_without_time_stamps_are_left_to_pyav(write):
    path = write("reordered.avi", g="6", bf="2", b_strategy="0")
    assert not read_timeline(path).exact
    np.testing.assert_array_equal(read(path, [3, 20]), read_frames(path, [3, 20], SHORT_PX))


@needs_torchcodec
def test_a_timeline_of_another_file_is_noticed(write):
    path, reader = write("gop.mp4", g="6", bf="0"), TorchCodec()
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, size=24)).tolist()
    others = {
        "number of frames": write("shorter.mp4", num_frames=20),
        "another size": write("larger.mp4", size=(80, 48)),
        "other times": write("vfr.mp4", times=times),
    }
    for said, other in others.items():
        timeline = read_timeline(other)
        with pytest.warns(UserWarning, match=said):
            got = reader.frames(str(path), np.array([3, 19]), SHORT_PX, timeline)
        np.testing.assert_array_equal(got, read_frames(path, [3, 19], SHORT_PX, timeline))


@needs_torchcodec
def test_from_memory_as_from_disk(write, monkeypatch):
    path = write("a:b.mp4")
    content = io.BytesIO(path.read_bytes())
    content.read()  # wherever it stands
    np.testing.assert_array_equal(read(content, [3, 20, 7]), read(path, [3, 20, 7]))
    monkeypatch.chdir(path.parent)
    np.testing.assert_array_equal(read("a:b.mp4", [3]), read(path, [3]))


@needs_torchcodec
def test_what_is_no_video(tmp_path, write, audio_only):
    reader, path = TorchCodec(), write("gone.mp4")
    timeline = reader.timeline(path)
    with pytest.raises(VideoError, match=r"audio\.mp4: it has no video stream"):
        reader.timeline(audio_only)
    path.unlink()
    with pytest.raises(VideoError, match=r"gone\.mp4: FileNotFoundError"):
        reader.frames(str(path), np.array([0]), SHORT_PX, timeline)
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(VideoError, match=r"gone\.mp4: InvalidDataError"):
        reader.frames(str(path), np.array([0]), SHORT_PX, timeline)
    with pytest.raises(VideoError, match=r"strip\.mp4: its frames of 640 x 16 px"):
        read(write("strip.mp4", size=(640, 16)), [0])


@needs_torchcodec
@pytest.mark.filterwarnings("ignore:PyAV reads what torchcodec cannot")
def test_robustness_files(shared):
    """Bit for bit where frames keep their size, but of 10-bit colours."""
    with (shared / "robustness" / "table.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if not row["error"] and row["w"] != "1"]
    compared = 0
    for row in rows:
        path = shared / "robustness" / row["file"]
        if int(row["w"]) > 700 or path.name in OTHERWISE or int(row["dec_frames"]) == 0:
            continue
        timeline = read_timeline(path)
        sides = timeline.width_px, timeline.height_px
        middle = len(timeline) // 2
        wanted = np.arange(middle, min(len(timeline), middle + 4))
        truth = read_frames(path, wanted, min(sides), timeline)
        got = TorchCodec().frames(str(path), wanted, min(sides), timeline)
        assert got.shape == truth.shape, path.name
        off = np.abs(got.astype(int) - truth).mean()
        assert off < (4 if "10bits" in path.name else 0.1), path.name
        compared += 1
    assert compared > 30


def test_the_table_of_readers_names_it():
    if REASON is not None:
        with pytest.raises(InputError, match=r"data\.reader=torchcodec cannot be used"):
            READERS["torchcodec"](1)
        return
    reader = READERS["torchcodec"](3)
    assert reader == TorchCodec(3)
    assert pickle.loads(pickle.dumps(reader)) == reader  # it goes to the workers


@pytest.mark.parametrize("missing", ["package", "libraries", "old"])
def test_what_is_missing_is_said(monkeypatch, missing):
    def imported(name: str):
        if missing == "libraries":
            return SimpleNamespace(ffmpeg_major_version=None)
        if missing == "old":
            raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg")
        raise ModuleNotFoundError("No module named 'torchcodec'")

    monkeypatch.setattr(ours, "import_module", imported)
    said = {
        "package": "ModuleNotFoundError, No module named 'torchcodec'",
        "libraries": "it finds no FFmpeg libraries",
        "old": "RuntimeError, Could not load libtorchcodec",
    }[missing]
    with pytest.raises(InputError, match=rf"{said}.*regkit\[torchcodec\].*apt-get install"):
        TorchCodec()
