"""Streams: windows as they come, bounded memory, clocks that leap, and real pipes and sockets."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from predicted_films import drawn, write_film

from regkit.__main__ import main
from regkit.data import stream as feed_module
from regkit.data.stream import Feed, Stamps, is_live
from regkit.data.timeline import VideoError
from regkit.errors import InputError
from regkit.inference.predict import frame_buffer as ring_module
from regkit.inference.predict.film import Classifier, Sliding, classify_film
from regkit.inference.predict.frame_buffer import BufferedFrame, FrameBuffer
from regkit.inference.predict.live import classify_stream, feed_of
from regkit.inference.predict.result import Smoothing
from regkit.inference.predict.windows import Span, lay
from regkit.training.checkpoints import TrainedRun

DOT = np.zeros((1, 1, 3), dtype=np.uint8)


def shot(time_s: float) -> BufferedFrame:
    return BufferedFrame(time_s, DOT, 0.0, 0.0)


def all_of(ring: FrameBuffer) -> list:
    found = []
    while (taken := ring.take()) is not None:
        found.append(taken)
    return found


@given(
    stays=st.lists(st.integers(1, 400), min_size=1, max_size=50),
    window_ms=st.integers(2, 900),
    hop_ms=st.integers(2, 900),
)
def test_a_stream_has_the_windows_of_a_file(stays, window_ms: int, hop_ms: int):
    times = np.cumsum([0, *stays]) / 1000
    span, hop_s = Span(window_ms / 1000), hop_ms / 1000
    last = times[-1] * len(times) / (len(times) - 1)  # as Timeline has it
    expected = lay(np.append(times, last), span, hop_s)
    ring = FrameBuffer(span, hop_s, drops=False)

    def fill() -> None:
        for t in times.tolist():
            ring.put(shot(t))
        ring.end()

    thread = threading.Thread(target=fill)
    thread.start()
    found = all_of(ring)
    thread.join()
    assert [(t.window.first, t.window.last) for t in found] == [(w.first, w.last) for w in expected]
    for taken, w in zip(found, expected, strict=True):
        assert [s.time_s for s in taken.shots] == times[w.first : w.last].tolist()
        assert taken.window.end_s == pytest.approx(w.end_s)
    covered = set().union(*(range(w.first, w.last) for w in expected))
    assert sum(t.num_new for t in found) == len(covered)
    assert ring.dropped <= len(times) - len(covered)
    assert ring.skipped == 0


def test_nobody_takes_and_little_is_kept():
    """An hour of a stream, and the net asleep."""
    ring = FrameBuffer(Span(2.0), 1.0)
    for number in range(2_000):
        assert ring.put(shot(number / 25))
        assert len(ring._shots) <= 2 * 25 + 25 + 2
    ring.end()
    found = all_of(ring)
    # All but the newest gave way; the frames in it are the only ones that were not dropped.
    assert ring.skipped >= 75
    seen = {s.time_s for taken in found for s in taken.shots}
    assert ring.dropped == 2_000 - len(seen)
    assert found[-1].window.last == 2_000


def test_frames_that_all_come_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr(ring_module, "_MOST_FRAMES", 200)
    ring = FrameBuffer(Span(60.0), 30.0)
    for number in range(500):
        ring.put(shot(number * 1e-4))
    assert len(ring._shots) <= 200


def test_counted_windows_of_a_stream_find_their_hop():
    ring = FrameBuffer(Span(None, 8), None, drops=False)
    thread = threading.Thread(
        target=lambda: ([ring.put(shot(k / 10)) for k in range(20)], ring.end())
    )
    thread.start()
    found = [(t.window.first, t.window.last) for t in all_of(ring)]
    thread.join()
    assert found == [(0, 8), (4, 12), (8, 16), (12, 20)]
    assert ring.hop_s == pytest.approx(0.4)


def test_a_closed_ring_lets_everyone_go():
    ring = FrameBuffer(Span(0.1), 0.1, drops=False)
    threading.Timer(0.2, ring.close).start()
    assert ring.take() is None
    assert not ring.put(shot(0.0))


def test_stamps_grow_whatever_the_clock_does():
    stamps = Stamps(0.01, rate=10.0)
    # A start that is not 0, a step back, a leap, a frame without a time, one with its neighbour's.
    told = [500, 510, 520, 3, 13, 900_000, 900_010, None, 900_020, 900_020]
    expected = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    found = [stamps(pts) for pts in told]
    assert found[:7] == pytest.approx(expected[:7])
    assert (np.diff(found) > 0).all()
    assert found[-1] < 1.5


def test_what_is_a_stream(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for live in ("-", "camera:/dev/video0", "rtsp://host/a", "tcp://host:1", "pipe:3", str(fifo)):
        assert is_live(live)
    film = tmp_path / "a:b.mp4"
    film.touch()
    for dead in (str(film), str(tmp_path), "nothing.mp4"):
        assert not is_live(dead)


def test_feed_refuses():
    with pytest.raises(InputError, match="options=fast"):
        feed_of("-", "", "fast", 10.0)
    with pytest.raises(InputError, match="timeout_s"):
        feed_of("tcp://a:1", "", {}, 0.0)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Write MPEG-TS of 4 s whose stream can be joined anywhere."""
    return write_film(tmp_path / "film.ts", drawn(100), 25, g="5", bf="0", tune="zerolatency")


def feed_in_real_time(path: Path, write, seconds: float) -> None:
    data = path.read_bytes()
    size = 188 * 7
    pieces = [data[k : k + size] for k in range(0, len(data), size)]
    for piece in pieces:
        write(piece)
        time.sleep(seconds / len(pieces))


def watched(held: TrainedRun, feed: Feed, drops: bool = True, sliding: Sliding | None = None):
    told = []
    live = classify_stream(
        feed,
        Classifier(held, "cpu"),
        sliding or Sliding(1.0, 0.5),
        Smoothing(),
        lambda window, row, behind_ms: told.append((time.perf_counter(), window, row)),
        drops,
    )
    return live, told


def test_a_pipe_that_nobody_can_seek_in(held: TrainedRun, film: Path, tmp_path: Path):
    """It gives the probabilities of the file, and gives them while it runs."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        with fifo.open("wb", buffering=0) as pipe:
            feed_in_real_time(film, pipe.write, 2.0)

    writer = threading.Thread(target=write)
    writer.start()
    options = {"probesize": "2000", "analyzeduration": "0"}
    live, told = watched(held, Feed(str(fifo), "mpegts", options), drops=False)
    ended = time.perf_counter()
    writer.join()
    assert told[0][0] < ended - 0.5
    assert live.error is None
    assert live.frames == 100
    expected = classify_film(str(film), Classifier(held, "cpu"), Sliding(1.0, 0.5), Smoothing())
    np.testing.assert_allclose(live.result.probabilities, expected.result.probabilities, atol=1e-6)
    starts = [w.start_s for w in expected.result.windows]
    assert [w.start_s for w in live.result.windows] == pytest.approx(starts, abs=1e-3)
    assert live.dropped == live.skipped == 0


def test_a_server(held: TrainedRun, film: Path):
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.sendall(film.read_bytes())

    thread = threading.Thread(target=serve)
    thread.start()
    live, told = watched(held, Feed(f"tcp://127.0.0.1:{server.getsockname()[1]}"), drops=False)
    thread.join()
    server.close()
    assert live.frames == 100
    assert len(told) == 7


def test_a_slow_net_drops_frames_and_stays_up_to_date(held: TrainedRun, monkeypatch):
    """0.2 s for each window every 0.1 s of a film in real time."""
    classifier = Classifier(held, "cpu")
    monkeypatch.setattr(
        Classifier, "__call__", lambda self, rows: (time.sleep(0.25), np.full((1, 6), 1 / 6))[1]
    )
    source = Feed("testsrc=size=64x48:rate=50:duration=3,realtime", "lavfi")
    # So short that windows which are skipped take frames along.
    live = classify_stream(source, classifier, Sliding(0.04, 0.04), Smoothing(), lambda *_: None)
    assert live.frames == 150
    assert live.skipped > 20
    assert live.dropped > 50
    assert len(live.result.windows) + live.skipped >= 70
    assert max(live.behind_ms) < 1000
    assert live.result.end_s == pytest.approx(3, abs=0.05)


def test_broken_packets_are_passed_over(held: TrainedRun, film: Path, tmp_path: Path):
    data = bytearray(film.read_bytes())
    rng = np.random.default_rng(0)
    half = len(data) // 2
    data[half : half + 4000] = rng.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(data))
    writer.start()
    live, _ = watched(held, Feed(str(fifo), "mpegts"), drops=False)
    writer.join()
    assert live.frames > 60
    assert live.result.end_s == pytest.approx(4, abs=0.5)


def test_a_packet_that_cannot_be_decoded_is_counted(held: TrainedRun, tmp_path: Path):
    path, fifo = write_film(tmp_path / "film.mkv", drawn(100), codec="ffv1"), tmp_path / "fifo"
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][50]
    data = path.read_bytes().replace(packet, np.random.default_rng(0).bytes(len(packet)))
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(data))
    writer.start()
    live, _ = watched(held, Feed(str(fifo), "matroska"), drops=False)
    writer.join()
    assert (live.frames, live.broken_packets, live.error) == (99, 1, None)


@pytest.mark.parametrize(
    ("feed", "reason"),
    [
        (Feed("tcp://127.0.0.1:9"), "refused"),
        (Feed("camera:/dev/no such camera"), "No such file"),
        (Feed("sine=duration=1", "lavfi"), "no video stream"),
        (Feed("x", "no_format"), "no_format"),
    ],
)
def test_a_source_that_cannot_be_opened(held: TrainedRun, feed: Feed, reason: str):
    with pytest.raises(VideoError, match=reason):
        watched(held, feed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_while_reading_reaches_who_waits(held: TrainedRun, film: Path, monkeypatch):
    def fault(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(feed_module, "sides", fault)
    with pytest.raises(RuntimeError, match="a fault"):
        watched(held, Feed(str(film), timeout_s=1.0))


def test_a_silent_source_ends(held: TrainedRun):
    server = socket.create_server(("127.0.0.1", 0))
    feed = Feed(f"tcp://127.0.0.1:{server.getsockname()[1]}", "mpegts", {}, timeout_s=0.5)
    began = time.perf_counter()
    with pytest.raises(VideoError):
        watched(held, feed)
    assert time.perf_counter() - began < 5
    server.close()


def test_a_file_that_grows(held: TrainedRun, film: Path, tmp_path: Path):
    data = film.read_bytes()
    growing = tmp_path / "growing.ts"
    growing.write_bytes(data[: len(data) // 2 // 188 * 188])

    def grow() -> None:
        time.sleep(0.7)
        with growing.open("ab") as file:
            file.write(data[len(data) // 2 // 188 * 188 :])

    thread = threading.Thread(target=grow)
    thread.start()
    live, _ = watched(held, Feed(str(growing), timeout_s=2.0), drops=False)
    thread.join()
    assert live.frames >= 95  # the decoder keeps what may go on
    assert live.error is not None  # it fell silent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_with_all_written(
    run: Path, tmp_path: Path, number: int, monkeypatch, capsys
):
    out, before = tmp_path / "out", signal.getsignal(number)

    def stop() -> None:
        while len((out / "windows.csv").read_text().splitlines()) < 4:  # they are there at once
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    source = "video=testsrc=size=64x48:rate=20,realtime"
    out.mkdir()
    (out / "windows.csv").touch()
    thread = threading.Thread(target=stop)
    thread.start()
    words = [f"ckpt={run}", source, "format=lavfi", f"out={out}", "hop_s=0.5", "window_s=0.5"]
    assert main(["predict", *words]) == 0
    thread.join()
    assert signal.getsignal(number) is before
    printed = capsys.readouterr().out.splitlines()
    assert sum("ms behind" in line for line in printed) >= 3
    assert printed[-1] == f"written to {out}"
    names = {"windows.csv", "windows.json", "segments.csv", "timeline.png"}
    assert {path.name for path in out.iterdir()} == names
