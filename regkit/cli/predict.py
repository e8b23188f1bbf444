"""The verb `predict`: a trained net and a film in, what happens when out."""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from regkit.data.stream import is_live
from regkit.data.timeline import VideoError
from regkit.errors import InputError
from regkit.files import make_folder, write_table
from regkit.inference.predict import annotate, outputs
from regkit.inference.predict.film import Classifier, Film, Sliding, classify_film
from regkit.inference.predict.live import classify_stream, feed_of
from regkit.inference.predict.result import Smoothing
from regkit.inference.predict.windows import span
from regkit.training.checkpoints import load
from regkit.training.overrides import REQUIRED, options

DEFAULTS: Mapping[str, Any] = {
    "ckpt": REQUIRED,
    "video": REQUIRED,
    "out": "",
    "window_s": None,
    "hop_s": None,
    "smooth": "average",
    "smooth_s": None,
    "threshold": 0.0,
    "top": 3,
    "annotate": False,
    "device": "auto",
    "threads": 0,
    "batch": 16,
    "live": False,
    "drop": True,
    "format": "",
    "options": {},
    "timeout_s": 10.0,
}
_WORDS = """\
ckpt=RUN           run folder of train.py, or a checkpoint
video=FILE         a file; a folder, of which all files are read; or a stream: camera:/dev/video0,
                   an address (tcp://, http://, rtsp://), a pipe, or - (standard input)
out=FOLDER         where to write (default: predictions/NAME OF THE VIDEO in this folder)
window_s=2 hop_s=1 length of a window and way to the next (default: 2 s, for dense clips their own
                   length; half a window)
smooth=average     or viterbi, or none; smooth_s=2: seconds that are averaged, or the price of a
                   change of class (default: a window)
threshold=0        windows in which no class is as probable are (unsure)
top=3              classes to list of each window
annotate=false     true writes annotated.mp4 too: the film with the class of each moment
device=auto        cpu, cuda; threads=0: all cores; batch=16: windows at once
live=false         true reads a file that still grows
drop=true          false lets a stream wait for the net, where it can
format= options={} of FFmpeg, for streams: format=mpegts options={framerate:30}
timeout_s=10       how long a stream may be silent

Times of a window: a class is told of its centre and holds half way to the next one's.
Writes windows.csv, windows.json, segments.csv and timeline.png; of a folder summary.csv, and the
rest in a folder a file. Exit code 0: all was read; 1: some was not; 2: wrong input."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked for, checked."""

    given: Mapping[str, Any]
    classifier: Classifier
    sliding: Sliding
    smoothing: Smoothing
    out: Path

    @property
    def about(self) -> dict[str, Any]:
        """Return the options in plain values."""
        smoothing = self.smoothing
        return {
            "checkpoint": str(self.classifier.held.path),
            "device": str(self.classifier.device),
            "batch": self.classifier.batch,
            "window": str(span(self.classifier.cut.sampling, self.sliding.window_s)),
            "smooth": smoothing.way,
            "smooth_s": smoothing.seconds,
            "threshold": smoothing.threshold,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _WORDS
    parser.add_argument("overrides", nargs="*", metavar="ckpt=RUN video=FILE")


def run(args: argparse.Namespace) -> int:
    """Predict; return 1 when something could not be read.

    Raises: InputError when an option is wrong.
    """
    given = options(args.overrides, DEFAULTS, "predict")
    for name in ("window_s", "hop_s", "smooth_s"):
        given[name] = _seconds(name, given[name])
    if given["threads"] < 0 or given["top"] < 1:
        raise InputError("predict takes threads=0 or more, and top=1 or more.")
    video = given["video"]
    live = given["live"] or bool(given["format"]) or is_live(video)
    path = Path(video).expanduser()
    if not live and not path.exists():
        raise InputError(f"predict got video={video}, which is no file, folder or stream.")
    if live and given["annotate"]:
        raise InputError("predict got annotate=true for a stream; record it, and annotate the file")
    task = _task(given, live, path)
    if live:
        return _stream(task)
    return _folder(task, path) if path.is_dir() else _file(task, path)


def _task(given: Mapping[str, Any], live: bool, path: Path) -> Task:
    sliding = Sliding(given["window_s"], given["hop_s"])
    smooth_s = given["smooth_s"]
    Smoothing(given["smooth"], smooth_s or 0.0, given["threshold"])
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    classifier = Classifier(load(given["ckpt"]), given["device"], given["batch"])
    length = span(classifier.cut.sampling, sliding.window_s)
    smooth_s = length.length_s(1 / 25) if smooth_s is None else smooth_s
    smoothing = Smoothing(given["smooth"], smooth_s, given["threshold"])
    stem = f"stream {datetime.now():%Y-%m-%d_%H-%M-%S}" if live else path.resolve().stem
    out = Path(given["out"] or Path("predictions", stem)).expanduser()
    make_folder(out, f"predict got out={out}")
    return Task(given, classifier, sliding, smoothing, out)


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"predict got {name}={value}; give seconds.")
    return float(value)


def _predict(task: Task, path: Path, out: Path) -> Film:
    """Classify one file and write what was found.

    Raises: VideoError when not one window could be read.
    """
    threads = task.given["threads"]
    film = classify_film(str(path), task.classifier, task.sliding, task.smoothing, threads)
    about = task.about | {"video": str(path), "hop_s": film.hop_s, "fps": film.fps}
    about |= {"speed": film.speed, "broken": film.broken and film.broken.reason}
    outputs.write(film.result, out, path.name, about, task.given["top"])
    if task.given["annotate"]:
        annotate.write(film, out / "annotated.mp4", threads)
    return film


def _file(task: Task, path: Path) -> int:
    try:
        film = _predict(task, path, task.out)
    except VideoError as error:
        print(f"regkit: {error}", file=sys.stderr)
        return 1
    for line in outputs.summary(film.result, film.hop_s):
        print(line)
    print(outputs.speed(film.speed))
    print(film.times)
    print(f"written to {task.out}")
    return _broken(film)


def _broken(film: Film) -> int:
    if film.broken is None:
        return 0
    end_s = film.result.end_s
    print(f"regkit: {film.broken}; it was read up to {end_s:.2f} s", file=sys.stderr)
    return 1


def _folder(task: Task, path: Path) -> int:
    """Predict all files, one after the other; a bad one does not stop the others."""
    films: list[Film] = []
    rows = [outputs.SUMMARY_COLUMNS]
    for file in outputs.files_in(path, task.out):
        name = os.path.relpath(file, path)
        try:
            film = _predict(task, file, task.out / name)
        except VideoError as error:
            print(f"{name}: {error.reason}", file=sys.stderr)
            rows.append([name, "", "", "", "", error.reason])
        else:
            label, probability = film.result.overall
            print(f"{name}: {film.result.end_s:.2f} s, {film.result.name(label)} {probability:.2f}")
            films.append(film)
            rows.append(outputs.summary_row(name, film))
            _broken(film)
        write_table(task.out / outputs.SUMMARY, rows)  # which grows with them
    bad = sum(bool(row[-1]) for row in rows[1:])
    print(outputs.together(films))
    print(f"{len(rows) - 1} files, {bad} with a problem; written to {task.out / outputs.SUMMARY}")
    return 1 if bad else 0


def _stream(task: Task) -> int:
    given = task.given
    feed = feed_of(given["video"], given["format"], given["options"], given["timeout_s"])
    threads = given["threads"] or 1
    try:
        with outputs.growing(task.out, task.classifier.classes, given["top"]) as tell:
            live = classify_stream(
                *(feed, task.classifier, task.sliding, task.smoothing),
                *(tell, given["drop"], threads),
            )
    except VideoError as error:
        print(f"regkit: {error}", file=sys.stderr)
        return 1
    about = task.about | {"video": given["video"], "hop_s": live.hop_s, "speed": live.speed}
    about["fps"] = live.frames / live.result.end_s
    about["broken"] = None if live.error is None else str(live.error)
    outputs.write(live.result, task.out, given["video"], about, given["top"], table=False)
    for line in [*outputs.summary(live.result, live.hop_s), outputs.speed(live.speed)]:
        print(line)
    print(live.times)
    print(outputs.losses(live.speed))
    print(f"written to {task.out}")
    if live.error is not None:
        print(f"regkit: {live.error}", file=sys.stderr)
    return 0 if live.error is None else 1
