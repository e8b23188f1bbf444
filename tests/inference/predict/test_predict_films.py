"""Films: the clips of evaluation, and what is written of them."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from predicted_films import CLASSES, drawn, write_film

from regkit.__main__ import main
from regkit.data.timeline import VideoError, read_timeline
from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.inference.predict import annotate, picture
from regkit.inference.predict.film import Classifier, Film, Sliding, Times, classify_film
from regkit.inference.predict.result import UNSURE, Result, Smoothing
from regkit.inference.predict.windows import Span, lay
from regkit.training.checkpoints import TrainedRun


def found(held: TrainedRun, path: Path, *window: float, way: str = "none") -> Film:
    return classify_film(
        str(path), Classifier(held, "cpu", 4), Sliding(*window), Smoothing(way, 1.0)
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_whole_video_is_what_the_test_loader_makes_of_it(held: TrainedRun, made: VideoData):
    """Clip and probabilities, of every test video."""
    clips = []
    held.model.net.register_forward_pre_hook(lambda _, args: clips.append(args[0].clone()))
    count = 0
    for raw in made.test_dataloader():
        batch = made.finish(raw, training=False)
        with torch.no_grad():
            expected = held.model(batch["clip"]).softmax(1).numpy()
        assert expected.max() > 0.4  # a net that is sure of something
        for path, clip, row in zip(batch["path"], batch["clip"], expected, strict=True):
            film = found(held, Path(path))
            assert len(film.result.windows) == 1
            torch.testing.assert_close(clips[-1][0], clip, atol=1e-6, rtol=0)
            np.testing.assert_allclose(film.result.probabilities[0], row, atol=1e-6)
            count += 1
    assert count == 6


@pytest.mark.parametrize("options", [{}, {"bf": "3", "g": "250"}, {"g": "10"}])
def test_a_window_is_what_evaluation_makes_of_that_part(
    held: TrainedRun, tmp_path: Path, options: dict[str, str]
):
    """Each window again on its own, by the reader of the data set."""
    path = write_film(tmp_path / "film.mp4", drawn(90), **options)
    film = found(held, path, 1.0, 0.3)
    assert len(film.result.windows) == 10
    cut, timeline = held.data.cut(), read_timeline(path)
    for window, row in zip(film.result.windows, film.result.probabilities, strict=True):
        times = timeline.times_s[window.first : window.last]
        indices = window.first + cut.sampling(times, None)
        frames = held.data.file_reader().frames(str(path), np.unique(indices), 32, timeline)
        clip = torch.from_numpy(cut.clip(indices, frames, None)).permute(0, 4, 1, 2, 3)
        raw: dict[str, Any] = {"clip": clip.contiguous(), "skipped": [], "draws": []}
        with torch.no_grad():
            scores = held.model(held.data.finish(raw, False)["clip"])
        np.testing.assert_allclose(row, scores.softmax(1)[0].numpy(), atol=1e-6)


def test_batches_change_nothing(held: TrainedRun, tmp_path: Path):
    path = write_film(tmp_path / "film.mp4", drawn(90))
    results = [
        classify_film(str(path), Classifier(held, "cpu", n), Sliding(1.0, 0.3), Smoothing())
        for n in (1, 3, 64)
    ]
    for film in results:
        expected = results[0].result.probabilities
        np.testing.assert_allclose(film.result.probabilities, expected, atol=1e-6)
        assert len(film.times) == len(film.times.decode) == len(film.result.windows)


def test_a_film_that_breaks_off_is_told_as_far_as_it_goes(
    held: TrainedRun, tmp_path: Path, monkeypatch
):
    path = write_film(tmp_path / "film.mp4", drawn(100))
    from regkit.inference.predict import film as module

    whole = module.pictures

    def breaking(source, wanted, *rest):
        for number, frame in zip(wanted.tolist(), whole(source, wanted, *rest), strict=True):
            if number > 60:
                raise VideoError(source, "it is torn")
            yield frame

    expected = found(held, path, 1.0, 0.5).result
    monkeypatch.setattr(module, "pictures", breaking)
    film = found(held, path, 1.0, 0.5)
    assert film.broken is not None
    assert film.broken.reason == "it is torn"
    assert [w.last for w in film.result.windows] == [25, 37, 50]
    assert film.result.end_s == pytest.approx(50 / 25)
    np.testing.assert_allclose(film.result.probabilities, expected.probabilities[:3], atol=1e-6)
    with pytest.raises(VideoError, match="torn"):
        found(held, path, 4.0)


def test_tables(held: TrainedRun, run: Path, tmp_path: Path, capsys):
    path = write_film(tmp_path / "film.mp4", drawn(90))
    out = tmp_path / "out"
    words = [f"ckpt={run}", f"video={path}", f"out={out}", "window_s=1", "hop_s=0.5"]
    assert main(["predict", *words, "smooth=viterbi", "smooth_s=0.5", "top=2"]) == 0
    film = found(held, path, 1.0, 0.5)
    result = Result.of(
        CLASSES, film.result.windows, film.result.probabilities, Smoothing("viterbi", 0.5), 3.6
    )
    table = rows_of(out / "windows.csv")
    best = ["class_1", "probability_1", "class_2", "probability_2"]
    assert list(table[0]) == ["start_s", "end_s", *best, *(f"p({name})" for name in CLASSES)]
    for row, p, window in zip(table, result.probabilities, result.windows, strict=True):
        assert [float(row[f"p({name})"]) for name in CLASSES] == pytest.approx(p, abs=1e-5)
        first, second = np.argsort(-p)[:2]
        assert (row["class_1"], row["class_2"]) == (CLASSES[first], CLASSES[second])
        assert float(row["probability_2"]) == pytest.approx(p[second], abs=1e-5)
        times = float(row["start_s"]), float(row["end_s"])
        assert times == pytest.approx((window.start_s, window.end_s), abs=1e-5)
    plain = json.loads((out / "windows.json").read_text())
    assert plain["classes"] == CLASSES
    assert plain["checkpoint"].endswith("last.ckpt")
    assert plain["fps"] == pytest.approx(25)
    assert len(plain["windows"]) == len(table) == 7
    assert plain["windows"][3]["top"][0]["class"] == table[3]["class_1"]
    assert set(plain["speed"]["ms_per_window"]) == {"decode", "prepare", "net"}
    parts = rows_of(out / "segments.csv")
    assert [CLASSES.index(part["class"]) for part in parts] == [s.label for s in result.segments]
    assert float(parts[0]["start_s"]) == 0
    assert float(parts[-1]["end_s"]) == pytest.approx(3.6)
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(parts))
    printed = capsys.readouterr().out
    assert "times real time" in printed
    assert "95th percentile" in printed
    with Image.open(out / "timeline.png") as image:
        assert image.width > 600


def test_a_folder_goes_on_after_a_bad_file(run: Path, tmp_path: Path, capsys):
    folder = tmp_path / "films"
    write_film(folder / "a.mp4", drawn(30))
    (folder / "b.mp4").write_text("no film")
    write_film(folder / "deep" / "c.avi", drawn(30), codec="mpeg4")
    (folder / ".hidden").write_text("not looked at")
    out = folder / "out"  # within it: the second time it is no film
    words = ["predict", f"ckpt={run}", f"video={folder}", f"out={out}"]
    for _ in range(2):
        assert main(words) == 1
    rows = rows_of(out / "summary.csv")
    assert [row["file"] for row in rows] == ["a.mp4", "b.mp4", "deep/c.avi"]
    assert rows[0]["class"] in CLASSES
    assert float(rows[0]["seconds"]) == pytest.approx(1.2)
    assert "damaged" in rows[1]["problem"]
    assert rows[1]["class"] == rows[2]["problem"] == ""
    assert (out / "deep" / "c.avi" / "timeline.png").exists()
    assert not (out / "b.mp4").exists()
    assert "b.mp4: InvalidDataError" in capsys.readouterr().err
    (folder / "b.mp4").unlink()
    assert main(words) == 0


def test_one_bad_file(run: Path, tmp_path: Path, capsys):
    path = tmp_path / "text.mp4"
    path.write_text("no film")
    assert main(["predict", f"ckpt={run}", f"video={path}", f"out={tmp_path / 'out'}"]) == 1
    assert "text.mp4: InvalidDataError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("video=nothing.mp4", "no file, folder or stream"),
        ("smooth=median", "smooth=median"),
        ("smooth_s=-1", "smooth_s=-1"),
        ("threshold=2.0", "threshold=2"),
        ("window_s=long", "window_s=long"),
        ("hop_s=0", "hop_s=0"),
        ("top=0", "top=1"),
        ("batch=0", "batch=0"),
        ("device=tpu", "device=tpu"),
        ("hop=1", "close: top=|close: hop_s="),
    ],
)
def test_wrong_words(run: Path, tmp_path: Path, word: str, said: str, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_film(tmp_path / "film.mp4", drawn(30))
    words = [f"ckpt={run}", *([] if word.startswith("video") else [f"video={path}"]), word]
    assert main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in said.split("|"))
    assert error.count("\n") == 1


def test_the_default_folder(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_film(tmp_path / "a film.mp4", drawn(30))
    assert main(["predict", f"ckpt={run}", f"video={path}"]) == 0
    assert (tmp_path / "predictions" / "a film" / "windows.csv").exists()


def test_a_net_that_gives_no_numbers(held: TrainedRun, tmp_path: Path):
    with torch.no_grad():
        next(held.model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="diverged"):
        found(held, write_film(tmp_path / "film.mp4", drawn(30)))


def annotated(film: Film, tmp_path: Path) -> tuple[list[Any], list[np.ndarray], str]:
    out = tmp_path / "annotated.mp4"
    annotate.write(film, out)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [frame.time for frame in frames]
        return times, [f.to_ndarray(format="rgb24") for f in frames], stream.codec_context.name


def test_an_annotated_film_keeps_its_times_and_picture(held: TrainedRun, tmp_path: Path):
    """At a rate that varies; the odd sides become even."""
    ticks = (np.cumsum([1, 1, 5, 2, 9] * 6) - 1).tolist()
    frames = drawn(30, (241, 187))
    path = write_film(tmp_path / "film.mkv", frames, 30, ticks, "ffv1", pix_fmt="yuv444p")
    times, pictures, codec = annotated(found(held, path), tmp_path)
    assert codec == "h264"
    np.testing.assert_allclose(times, np.array(ticks) / 30, atol=1e-3)
    for before, after in zip(frames, pictures, strict=True):
        assert after.shape[0] % 2 == after.shape[1] % 2 == 0
        # Brightness; at the edges colours blur in 4:2:0. A neighbour's would be 50 away.
        assert np.abs(after[:187, :241].mean(2) - before.mean(2)).mean() < 8
        assert after[190:, :240].mean() > 150  # paper, with little on it


def test_a_tiny_film_is_enlarged(held: TrainedRun, tmp_path: Path):
    path = write_film(tmp_path / "film.mp4", drawn(10, (48, 32)))
    _, pictures, _ = annotated(found(held, path), tmp_path)
    assert pictures[0].shape == (180 + 34, 270, 3)


def test_the_band_tells_the_class_of_each_moment():
    """The bar is as long as the probability of the label that holds."""
    p = np.array([[0.9, 0.1], [0.25, 0.75]])
    windows = lay(np.arange(31) / 10, Span(2.0), 1.0)
    result = Result.of(["no", "yes"], windows, p, Smoothing("none"), 3.0)
    assert result.at(0.0) == result.at(1.49) == (0, 0.9)
    assert result.at(1.5) == result.at(3.0) == (1, 0.75)
    for moment, share in ((1.0, 0.9), (2.0, 0.75)):
        drawn = annotate._with_band(np.zeros((300, 400, 3), dtype=np.uint8), result, moment)
        bar = (drawn[302] == annotate._BAR).all(1)
        assert bar.sum() == share * 400
        assert bar[: bar.sum()].all()


def test_names_too_long_for_the_band_are_cut():
    band = annotate._band((200, 34), "a very long name of a class " * 5, 0.5, "0:00.0")
    assert (band[10:, 195:] == annotate._PAPER).all(2).any()


def test_the_clock():
    assert [annotate.clock(t) for t in (0.0, 9.96, 60.0, 3723.4)] == [
        "0:00.0",
        "0:09.9",
        "1:00.0",
        "1:02:03.4",
    ]


def many(classes: int, windows: int, way: str, threshold: float = 0.0) -> Result:
    p = np.random.default_rng(0).dirichlet(np.full(classes, 0.1), windows)
    laid = lay(np.arange(25 * (windows + 1) + 1) / 25, Span(2.0), 1.0)
    names = [f"class {k}" for k in range(classes)]
    return Result.of(names, laid, p, Smoothing(way, 3.0, threshold), windows + 1.0)


@pytest.mark.parametrize(
    ("classes", "windows", "threshold"), [(2, 1, 0.0), (6, 9, 0.9), (101, 50, 0.3), (3, 5000, 0.0)]
)
def test_the_picture_shows_the_path(classes: int, windows: int, threshold: float):
    result = many(classes, windows, "viterbi", threshold)
    rows = picture.shown_classes(result)
    assert len(rows) <= picture.MOST_CLASSES + 1
    assert (UNSURE in rows) == (UNSURE in result.labels)
    figure = picture.draw(result, "$a film$")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [result.name(r) for r in rows]
    path = axes.lines[1]  # its white border is below
    x, y = path.get_data()
    for k, part in enumerate(result.segments):
        assert (x[2 * k], x[2 * k + 1]) == (part.start_s, part.end_s)
        at = rows.index(part.label) if part.label in rows else np.nan
        np.testing.assert_equal(y[2 * k : 2 * k + 2], [at, at])
    (mesh,) = axes.collections
    assert np.shape(mesh.get_array())[0] == len(rows)
    figure.draw_without_rendering()


def test_times_say_medians():
    times = Times([1.0, 2.0, 9.0], [1.0] * 3, [0.5] * 3)
    assert times.table()["decode"] == {"median": 2.0, "p95": pytest.approx(8.3)}
    assert "decode 2 ms (8.3)" in str(times)


def test_shared_films_of_all_kinds(held: TrainedRun, shared: Path):
    """Rotated, of 10 bits, of one frame, of one pixel, elementary, and two that are none."""
    folder = shared / "robustness"
    names = ["files/dec_video_90.mov", "files/tc_h264_10bits.mp4", "derived/d_one_frame.mp4"]
    names += ["files/mp_-video-with-dash-.mp4", "derived/d_elementary.h264", "derived/d_vfr.mp4"]
    for name in names:
        film = found(held, folder / name)
        assert film.broken is None
        assert film.result.windows[-1].last == len(read_timeline(folder / name))
    for name in ("derived/d_audio_only.mp4", "files/mo_invalid_userdata.mp4"):
        with pytest.raises(VideoError, match="it h"):
            found(held, folder / name)
    broken = found(held, folder / "files" / "dec_corrupted.mp4")
    assert broken.broken is not None
    assert broken.result.windows
