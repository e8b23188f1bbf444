"""The verb `explain`: what carried the decision on one film, as a picture and as numbers."""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from regkit.data.video import Video
from regkit.errors import InputError
from regkit.files import make_folder, write_text
from regkit.inference.explain import picture
from regkit.inference.explain.evidence import (
    Film,
    Questions,
    agreement,
    gather,
    on_pixels,
    read_film,
    reinitialised,
)
from regkit.inference.explain.explanation import Explanation, Untrained, as_json, as_text
from regkit.inference.explain.occlusion import occlusion
from regkit.inference.explain.survived import survived
from regkit.lightning.monitors.canvas import pixels, write_png
from regkit.training.checkpoints import TrainedRun, load
from regkit.training.overrides import REQUIRED, closest, options

DEFAULTS: dict[str, Any] = {
    "ckpt": REQUIRED,
    "video": REQUIRED,
    "start_s": 0.0,
    "end_s": None,
    "class": "",
    "out": "",
    "span": None,
    "fill": "freeze",
    "grid": 4,
    "shuffles": 8,
    "seed": 0,
    "untrained": 0,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ckpt=RUN video=FILE",
        help="a run folder or checkpoint, and a film. Also: start_s= end_s= (a part of it), class= "
        "(default: the predicted one), out= (folder), span= (frames that are taken away together; "
        "default: a sixth of the clip), fill=freeze, mean or flat (what stands in their place), "
        "grid= (cells a side), shuffles= (draws), seed=, untrained= (draws of first weights, whose "
        "curves must differ)",
    )
    parser.epilog = (
        "Writes explanation.png and explanation.json. Drops are in nats of log-odds, "
        "log p / (1 - p)."
    )


def run(args: argparse.Namespace) -> None:
    """Explain, print a table, and write the picture and the numbers.

    Raises: InputError when an option is wrong, or the film cannot be read.
    """
    given = options(args.words, DEFAULTS, "explain")
    video = _video(given)
    held = load(given["ckpt"])
    questions, target = _questions(given, held), _target(given["class"], held.model.classes)
    film = read_film(held, video)
    out = _folder(given["out"], Path(video.path))
    explanation = explain(held, film, target, questions, given["untrained"])
    print(as_text(explanation))
    _write(explanation, out)
    print(out / "explanation.png")


def explain(
    held: TrainedRun, film: Film, target: int | None, questions: Questions, num_untrained: int = 0
) -> Explanation:
    """Look at the weights of a classifier, and ask it about the clip of a film.

    target: a class; None: the one that is predicted.
    num_untrained: nets with first weights to compare with.
    Raises: InputError when a question is out of range, or a score is NaN or infinite.
    """
    net = held.model.net
    evidence = gather(on_pixels(held, net), film.pixels, target, questions)
    curves = []
    for seed in range(num_untrained):
        fresh = on_pixels(held, reinitialised(net, questions.seed + seed))
        how = (evidence.target, evidence.span, questions.fill, questions.batch_size)
        curves.append(occlusion(fresh, film.pixels, *how).numpy())
    untrained = None
    if curves:
        agreements = [agreement(evidence.spans, curve) for curve in curves]
        untrained = Untrained([curve.tolist() for curve in curves], agreements)
    return Explanation(held, film, questions, evidence, survived(net), untrained)


def _write(explanation: Explanation, out: Path) -> None:
    image, numbers = pixels(picture.draw(explanation)), as_json(explanation)
    try:
        write_png(image, out / "explanation.png")
        write_text(out / "explanation.json", json.dumps(numbers, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"explain got out={out}, but cannot write there: {error}.") from error


def _questions(given: dict[str, Any], held: TrainedRun) -> Questions:
    """Refuse numbers that mean nothing; what depends on the clip is checked with it.

    Raises: InputError.
    """
    span = given["span"]
    if span is not None and (not isinstance(span, int) or isinstance(span, bool)):
        raise InputError(f"explain got span={span}; give a number of frames.")
    for name in ("seed", "untrained"):
        if given[name] < 0:
            raise InputError(f"explain got {name}={given[name]}; give 0 or more.")
    asked = {name: given[name] for name in ("span", "fill", "grid", "shuffles", "seed")}
    return Questions(**asked, batch_size=held.data.batch_size)


def _video(given: dict[str, Any]) -> Video:
    start_s, end_s = given["start_s"], given["end_s"]
    if not start_s >= 0:
        raise InputError(f"explain got start_s={start_s:g}; give 0 or more.")
    number = isinstance(end_s, int | float) and not isinstance(end_s, bool)
    if end_s is not None and not (number and end_s > start_s):
        raise InputError(f"explain got end_s={end_s}; give a time after start_s={start_s:g}.")
    path = str(Path(given["video"]).expanduser())
    return Video(path, 0, "", start_s, None if end_s is None else float(end_s))


def _target(name: str, classes: list[str]) -> int | None:
    if not name:
        return None
    if name in classes:
        return classes.index(name)
    close = closest(name, classes)
    hint = f"; close: {close}" if close else ""
    raise InputError(f"explain got class={name}{hint}. There are: {', '.join(classes)}.")


def _folder(given: str, video: Path) -> Path:
    """Make the folder to write to, before anything is computed."""
    name = f"explain {datetime.now():%Y-%m-%d_%H-%M-%S} {video.stem}"
    folder = Path(given).expanduser() if given else Path("runs", name)
    return make_folder(folder, f"explain got out={folder}")
