"""The verb `hog`: fit the old recipe on the videos at hand, and watch a stream with it."""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from regkit.baseline.detector import Detector, load
from regkit.baseline.fitting import Trained, train
from regkit.baseline.live import Watch, frames
from regkit.baseline.pictures import draw_features, draw_path
from regkit.errors import InputError
from regkit.files import write_text
from regkit.timing import cpu_name
from regkit.training.config import key_value, make, short
from regkit.training.overrides import composed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        metavar="data=...",
        help="the videos, in the words of regkit train: data=..., data.<option>=..., seed=...; "
        "frames are taken as they are, so data.modality, mean, std and augment change nothing",
    )
    add("--out", type=Path, metavar="FOLDER", help="what it leaves (default: runs/<time> hog)")
    add("--cells", type=int, default=4, help="along a side of the picture (default: %(default)s)")
    add("--lams", type=int, default=20, help="strengths of the path (default: %(default)s)")
    add(
        "--lam-min-ratio",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="the weakest strength, of that at which all weights are zero (default: %(default)s)",
    )
    add("--watch", metavar="VIDEO", help="say what happens in it: a file, URL, pipe, camera or -")
    add(
        "--detector",
        type=Path,
        metavar="hog.json",
        help="watch with this one, of an earlier run; nothing is fitted",
    )


def run(args: argparse.Namespace) -> None:
    """Fit, unless a detector is given; watch, if there is something to.

    Raises: InputError when an option is wrong.
    """
    if args.detector is not None:
        if args.watch is None or args.overrides or args.out is not None:
            raise InputError(
                "--detector watches with what was fitted before: give --watch VIDEO beside it, and "
                "neither words for data nor --out."
            )
        return _watch(load(args.detector), args.watch)
    if args.cells < 2:
        raise InputError(f"--cells got {args.cells}; give 2 or more.")
    for word in args.overrides:
        key, _ = key_value(word)
        if key not in ("data", "seed") and not key.startswith("data."):
            raise InputError(f"hog got {word}; it takes words for data, and seed=, alone.")
    config = composed(args.overrides, "hog", args.config_dir)
    data = make(config.data).ready()
    folder = args.out or Path("runs", f"{datetime.now():%Y-%m-%d_%H-%M-%S} hog")
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    trained = train(data, args.cells, args.lams, args.lam_min_ratio, config.seed)
    whole_s = time.perf_counter() - began
    print(_told(trained, len(data.classes), whole_s))
    _leave(folder, trained, config, args.overrides)
    print(f"left in {folder}: hog.json, summary.json, path.png, features.png")
    if args.watch is not None:
        _watch(trained.detector, args.watch)
    return None


def _told(trained: Trained, num_classes: int, whole_s: float) -> str:
    found = trained.summary
    test = "there are no test videos"
    if found["test_accuracy"] is not None:
        test = f"test {found['test_accuracy']:.3f} (macro {found['test_macro_accuracy']:.3f})"
    return "\n".join(
        [
            *trained.path.choice.why,
            f"lam {short(found['lam'])}: {found['live_groups']} of {found['num_groups']} features "
            f"in use, {found['density']:.2%} of the weights are not zero; optimality conditions "
            f"missed by {found['residual']:.1e} lam",
            f"accuracy: training {found['train_accuracy']:.3f}, validation "
            f"{found['val_accuracy']:.3f}, {test}; chance {1 / num_classes:.3f}",
            f"path of {len(trained.path.lams)} strengths: {found['train_s']:.1f} s, all in all "
            f"{whole_s:.1f} s; {found['files_skipped']} files could not be read",
            f"a clip: {found['read_ms']:.1f} ms reading, {found['hog_ms']:.1f} ms features "
            f"({found['features_per_s']:,.0f} a second), {found['classify_ms']:.3f} ms classifier: "
            f"{found['times_real_time']:.0f} x real time on one core ({cpu_name()})",
        ]
    )


def _leave(folder: Path, trained: Trained, config: Any, words: Sequence[str]) -> None:
    """Write the detector, the pictures and, last, what `report` reads."""
    trained.detector.save(folder / "hog.json")
    for name, figure in (
        ("path", draw_path(trained.path)),
        ("features", draw_features(trained.detector)),
    ):
        figure.savefig(folder / f"{name}.png", dpi=160)
    recipe = {
        "data": OmegaConf.to_container(config.data, resolve=True),
        "model": {"_target_": "hog"},
        "seed": config.seed,
    }
    (folder / "config").mkdir(exist_ok=True)
    OmegaConf.save(recipe, folder / "config" / "config.yaml")
    summary = {"name": " ".join(["hog", *words]), **trained.summary}
    write_text(folder / "summary.json", json.dumps(summary, indent=2))


def _watch(detector: Detector, source: str) -> None:
    """Print what is seen at each step, and at the end how fast."""
    watch, latencies = Watch(detector), []
    began = time.perf_counter()
    for sight in watch(frames(source, detector.short_px)):
        best = int(sight.probabilities.argmax())
        chance = sight.probabilities[best]
        print(f"{sight.time_s:9.2f} s  {detector.classes[best]}  {chance:.2f}", flush=True)
        latencies.append(sight.latency_s)
    wall_s = time.perf_counter() - began
    if not latencies:
        raise InputError(f"--watch got {source}, of which no frame could be decoded.")
    low, high = 1e3 * np.quantile(latencies, [0.5, 0.95])
    print(
        f"{watch.num_frames} frames ({watch.num_used} of them described, "
        f"{detector.step_s:.3g} s apart) in {wall_s:.2f} s: {watch.num_frames / wall_s:.0f} frames "
        f"a second, {watch.last_s / wall_s:.1f} x real time; from frame to answer {low:.1f} ms "
        f"(median; 95 %: {high:.1f} ms)"
    )
