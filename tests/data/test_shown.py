"""Films are read as ffmpeg shows them: the right stream, the frames that are shown, upright."""

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame

from regkit.data import readers
from regkit.data.cache import CacheBudget, Cached, Store, fill
from regkit.data.clip_spec import Sampling
from regkit.data.decode import read_frames
from regkit.data.prepare.check import Checker
from regkit.data.readers import PyAV, TorchCodec
from regkit.data.timeline import VideoError, is_shown, opened, read_timeline

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
needs_torchcodec = pytest.mark.skipif(
    readers.unavailable() is not None, reason=str(readers.unavailable())
)
ONE = 65536
# (a, b, c, d) of the display matrix: a stored point (x, y) is shown at (ax + cy, bx + dy).
WAYS = {
    "as it is": (1, 0, 0, 1),
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "clockwise": (0, 1, -1, 0),
    "counter-clockwise": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed, half a turn": (0, -1, -1, 0),
}


def turn(path: Path, matrix: tuple[float, ...]) -> None:
    """Write the matrix into the header of the track; the movie header before it has one too."""
    content = path.read_bytes()
    track = content.index(b"tkhd")

    def packed(a: float, b: float, c: float, d: float) -> bytes:
        fixed = [round(ONE * one) for one in (a, b, c, d)]
        return struct.pack(">9i", *fixed[:2], 0, *fixed[2:], 0, 0, 0, 1 << 30)

    turned = content[track:].replace(packed(1, 0, 0, 1), packed(*matrix), 1)
    path.write_bytes(content[:track] + turned)


def as_defined(stored: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Move each pixel by the definition."""
    a, b, c, d = matrix
    height, width = stored.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = (to_x - to_x.min()).astype(int), (to_y - to_y.min()).astype(int)
    shown = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), dtype=stored.dtype)
    shown[to_y, to_x] = stored
    return shown


def by_ffmpeg(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """Return all frames that ffmpeg shows, of height and width."""
    run = subprocess.run(
        f"ffmpeg -v error -i {path} -f rawvideo -pix_fmt rgb24 -vsync passthrough "
        "-sws_flags bilinear -an -sn -dn -".split(),
        capture_output=True,
        check=False,
    )
    each = 3 * size[0] * size[1]
    assert len(run.stdout) % each == 0, "ffmpeg shows another size"
    return np.frombuffer(run.stdout, np.uint8).reshape(-1, *size, 3)


def all_frames(path: Path) -> np.ndarray:
    timeline = read_timeline(path)
    return read_frames(path, range(len(timeline)), min(timeline.width_px, timeline.height_px))


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_display_matrix_counts(write, way):
    path = write("turned.mp4", num_frames=3)
    stored = all_frames(path)
    turn(path, WAYS[way])
    for shown, frame in zip(all_frames(path), stored, strict=True):
        np.testing.assert_array_equal(shown, as_defined(frame, WAYS[way]))


@needs_ffmpeg
@pytest.mark.parametrize("way", WAYS)
def test_turned_as_ffmpeg_turns(write, way):
    path = write("turned.mp4", num_frames=3)
    turn(path, WAYS[way])
    shown = all_frames(path)
    assert np.abs(shown - by_ffmpeg(path, shown.shape[1:3]).astype(int)).max() <= 2


def test_a_turn_between_quarters_is_the_nearest_quarter(write):
    path = write("turned.mp4", num_frames=1)
    stored = all_frames(path)
    turn(path, (0.1, 0.99, -0.99, 0.1))
    np.testing.assert_array_equal(all_frames(path)[0], as_defined(stored[0], WAYS["clockwise"]))


@needs_torchcodec
@pytest.mark.filterwarnings("ignore:PyAV reads what torchcodec cannot")
@pytest.mark.parametrize("way", WAYS)
def test_torchcodec_shows_the_same(write, way):
    path = write("turned.mp4", num_frames=3)
    turn(path, WAYS[way])
    timeline = read_timeline(path)
    shown = TorchCodec().frames(str(path), np.arange(3), 48, timeline)
    np.testing.assert_array_equal(shown, all_frames(path))


@pytest.mark.parametrize("kind", ["memmap", "reencode"])
@pytest.mark.filterwarnings("ignore:.*os.fork")
def test_copies_are_mirrored_once(write, tmp_path, kind):
    path = write("turned.mp4", num_frames=3)
    turn(path, WAYS["transposed"])
    store = Store(str(tmp_path / "cache"), kind, 48)
    fill(store, [str(path)], PyAV(), CacheBudget(store.root, 1.0), 1)
    reader = Cached(PyAV(), store)
    got = reader.frames(str(path), np.arange(3), 48, reader.timeline(str(path)))
    truth = all_frames(path)
    off = np.abs(got.astype(int) - truth).mean()
    assert off == 0 if kind == "memmap" else off < 30
    assert off < np.abs(got[:, ::-1].astype(int) - truth).mean() / 2


def test_prepare_tells_the_size_as_shown(write):
    path = write("turned.mp4", num_frames=3)
    turn(path, WAYS["transposed"])
    facts = Checker(PyAV(), Sampling(2))((str(path), ((0.0, None),)))
    assert (facts.width_px, facts.height_px, facts.decoded) == (48, 64, 3)


def pattern(number: int, size: tuple[int, int]) -> VideoFrame:
    """Draw a bar that moves over noise: what alt-ref frames are made for."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    array[:, 2 * number % size[0] :][:, :8] = 200
    return VideoFrame.from_ndarray(array, format="rgb24")


def with_hidden(path: Path, num_frames: int) -> int:
    """Write VP8 in which each fifth frame comes twice, the first time hidden; count these."""
    plain, number = path.with_name("plain.webm"), 0
    with av.open(str(plain), "w") as container:
        stream = container.add_stream("libvpx", rate=20)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(num_frames):
            container.mux(stream.encode(pattern(number, (160, 120))))
        container.mux(stream.encode())
    hidden = 0
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux()):
            if not packet.size:
                continue
            if number % 5 == 3 and not packet.is_keyframe:
                twin = Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])
                twin.pts, twin.dts, twin.time_base = packet.pts, packet.dts, packet.time_base
                twin.stream = stream
                target.mux(twin)
                hidden += 1
            packet.stream = stream
            target.mux(packet)
    return hidden


def test_hidden_frames_are_none(tmp_path):
    path, num_frames = tmp_path / "alt_ref.webm", 40
    hidden = with_hidden(path, num_frames)
    with opened(path) as (container, stream):
        assert sum(packet.size > 0 for packet in container.demux(stream)) == num_frames + hidden
    timeline = read_timeline(path)
    assert timeline.exact
    assert len(timeline) == num_frames
    with opened(path) as (container, stream):
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    np.testing.assert_array_equal(read_frames(path, range(num_frames), 120, timeline), truth)
    np.testing.assert_array_equal(read_frames(path, [7, 33], 120), [truth[7], truth[33]])


@pytest.mark.parametrize(
    ("codec", "header", "shown"),
    [
        # VP8: size (3 bits), shown, version (3 bits), not a keyframe.
        ("vp8", 0b00010001, True),
        ("vp8", 0b11100001, False),
        # VP9: 10, profile (2 bits), shows an old one, not a keyframe, shown, resilient.
        ("vp9", 0b10000010, True),
        ("vp9", 0b10000100, False),
        ("vp9", 0b10001000, True),
        ("vp9", 0b10110001, True),  # profile 3 has one bit more before them
        ("vp9", 0b10110010, False),
        ("h264", 0, True),
    ],
)
def test_headers_tell_what_is_shown(codec, header, shown):
    assert is_shown(bytes([header, 0]), codec) is shown
    assert is_shown(bytes([header, 0b11000000]), "vp9")  # several frames, of which one is shown


def two_streams(
    path: Path, sizes: list[tuple[int, int]], marks: list[Disposition], codec: str = "libx264"
) -> None:
    """Write 3, 4, ... frames of each size."""
    with av.open(str(path), "w") as container:
        streams = []
        for (width, height), mark in zip(sizes, marks, strict=True):
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = mark
            streams.append(stream)
        for count, stream in enumerate(streams, 3):
            for number in range(count):
                frame = pattern(number, (stream.width, stream.height))
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


NONE, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize(
    ("sizes", "marks", "best"),
    [
        ([(32, 24), (64, 48)], [NONE, DEFAULT], 1),
        ([(64, 48), (32, 24)], [NONE, DEFAULT], 1),  # the mark outweighs the size
        ([(32, 24), (64, 48)], [DEFAULT, DEFAULT], 1),
        ([(64, 48), (64, 48)], [DEFAULT, DEFAULT], 0),
    ],
)
def test_the_film_is_chosen_as_ffmpeg_does(tmp_path, sizes, marks, best):
    path = tmp_path / "two.mkv"
    two_streams(path, sizes, marks)
    frames = all_frames(path)
    assert frames.shape == (3 + best, sizes[best][1], sizes[best][0], 3)
    if shutil.which("ffmpeg") is not None:
        shown = by_ffmpeg(path, frames.shape[1:3])
        assert len(shown) == len(frames)
        assert np.abs(shown - frames.astype(int)).max() <= 2


@needs_torchcodec
def test_torchcodec_takes_the_same_stream(tmp_path):
    path = tmp_path / "two.mkv"
    two_streams(path, [(32, 24), (64, 48)], [NONE, DEFAULT])
    shown = TorchCodec().frames(str(path), np.arange(4), 48, read_timeline(path))
    np.testing.assert_array_equal(shown, all_frames(path))


def test_attached_pictures_are_no_film(tmp_path, audio_only):
    path = tmp_path / "cover.mp4"
    with av.open(str(audio_only)) as sound, av.open(str(path), "w") as container:
        track = container.add_stream_from_template(sound.streams.audio[0])
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(pattern(0, (64, 48))))
        container.mux(cover.encode())
        for packet in sound.demux():
            if packet.dts is not None:
                packet.stream = track
                container.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video, "the cover is no stream of the file"
    with pytest.raises(VideoError, match=r"cover\.mp4: pictures are attached.* no video stream"):
        read_timeline(path)


# Damage on which FFmpegs differ; ten bits, whose colours each scaler spreads in its own way.
DAMAGED = {"d_byteflips.avi"}
TEN_BITS = {"tc_h264_10bits.mp4", "tc_h265_10bits.mp4"}
LARGEST = 250_000_000  # bytes of all frames of a film


@needs_ffmpeg
@pytest.mark.slow
def test_real_films_are_as_ffmpeg_shows_them(shared, capsys):
    """Frame by frame at full size; the table is printed with -s."""
    folders = [shared / "films", shared / "robustness" / "files", shared / "robustness" / "derived"]
    rows, wrong = [("film", "frames", "size", "mean", "largest")], []
    for path in sorted(path for folder in folders for path in folder.glob("*.*")):
        if path.suffix == ".md":
            continue
        try:
            timeline = read_timeline(path)
            if 3 * len(timeline) * timeline.width_px * timeline.height_px > LARGEST:
                continue
            ours = all_frames(path)
        except VideoError as error:
            rows.append((path.name, "-", error.reason[:60], "", ""))
            continue
        theirs = by_ffmpeg(path, ours.shape[1:3])
        if len(ours) != len(theirs):
            wrong.append(f"{path.name}: {len(ours)} frames, ffmpeg shows {len(theirs)}")
            continue
        off = [
            np.abs(one.astype(np.int16) - other) for one, other in zip(ours, theirs, strict=True)
        ]
        mean, most = max(one.mean() for one in off), max(int(one.max()) for one in off)
        size = f"{ours.shape[2]} x {ours.shape[1]}"
        rows.append((path.name, str(len(ours)), size, f"{mean:.2f}", str(most)))
        if most > 2 and path.name not in DAMAGED and not (path.name in TEN_BITS and mean < 4):
            wrong.append(f"{path.name}: a frame is off by {mean:.2f} in the mean")
    with capsys.disabled():
        for row in rows:
            print("{:<52}{:>7} {:<12}{:>7}{:>8}".format(*row))
    assert not wrong
    assert sum(row[1].isdigit() for row in rows) > 50


def test_the_films_that_others_got_wrong(shared):
    """By what is known of them; `films/README.md` says it."""
    films = shared / "films"
    base, mirrored = (all_frames(films / f"{name}.mp4") for name in ("base", "hflip"))
    np.testing.assert_array_equal(mirrored, base[:, :, ::-1])
    assert all_frames(films / "two_streams.mkv").shape == base.shape
    assert len(read_timeline(films / "vp8_altref.webm")) == 100
    with pytest.raises(VideoError, match="pictures are attached"):
        read_timeline(films / "audio_cover.mp4")
