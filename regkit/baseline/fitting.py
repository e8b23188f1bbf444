"""Fit a detector on the videos of a configuration, and sum up what it reaches."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regkit.baseline.choice import Path, Scale, choose_by_folds, choose_by_validation, loss
from regkit.baseline.detector import Detector
from regkit.baseline.features import Features, Table, tabulate
from regkit.baseline.solver import lam_max
from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.selection.grid import log_grid


@dataclass(frozen=True, eq=False)
class Trained:
    """A detector, the path it was chosen from, and what its summary says."""

    detector: Detector
    path: Path
    summary: Mapping[str, Any]


def train(
    data: VideoData, num_cells: int, num_lams: int, lam_min_ratio: float, seed: int
) -> Trained:
    """Describe the videos, choose a strength, fit, and test.

    data: set up. A strength is chosen on the validation videos; where cv_folds left none, over the
        folds.
    Raises: InputError when videos for a step are missing.
    """
    features = Features(data.num_frames, data.size_px, num_cells)
    if not data.known_splits().val and data.cv_folds is None:
        raise InputError("hog found no validation videos to choose lam on. Give data.cv_folds=5.")
    tables = _described(data, features)
    rows, held = tables["train"].rows, tables["val"].rows
    began = time.perf_counter()
    scale = Scale.of(rows)
    ours = scale(rows)
    lams = log_grid(lam_max(ours.x, ours.y, data.num_classes), lam_min_ratio, num_lams)
    if held or data.cv_folds is None:
        path = choose_by_validation(ours, scale(held), lams, data.num_classes)
    else:
        path = choose_by_folds(rows, data.cv_folds, data.seed, lams, data.num_classes)
    fit_s = time.perf_counter() - began
    step_s = float(np.median([row.step_s for row in rows]))
    detector = _detector(data, features, step_s, path, scale)
    summary = {
        **_fitted(path, loss(path.fits[path.choice.chosen], ours)),
        "seed": seed,
        "num_val": len(held or rows),
        "train_s": round(fit_s, 2),
        "files_skipped": sum(len(table.skipped) for table in tables.values()),
        **_tested(detector, tables["test"], data),
        **_speed(detector, tables),
    }
    return Trained(detector, path, summary)


def _described(data: VideoData, features: Features) -> dict[str, Table]:
    splits, tables = data.known_splits(), {}
    for name, views, crops in (
        ("train", 1, 1),
        ("val", 1, 1),
        ("test", data.test_views, data.test_crops),
    ):
        cut = data.cut(views, crops)
        table = tables[name] = tabulate(data, getattr(splits, name), cut, features)
        if table.skipped and not table.rows:
            raise InputError(
                f"hog could read none of the {len(table.skipped)} {name} videos; the first: "
                f"{table.skipped[0]}. It reads files of data sets on disk."
            )
    if len({*tables["train"].labels}) < data.num_classes:
        raise InputError(
            "hog got classes without a training video that could be read. Restrict the classes, "
            "or mend the files."
        )
    return tables


def _detector(
    data: VideoData, features: Features, step_s: float, path: Path, scale: Scale
) -> Detector:
    """Keep what was chosen, and of it what is not zero."""
    place = path.choice.chosen
    fitted = path.fits[place]
    live = fitted.live.numpy()
    return Detector(
        classes=data.classes,
        features=features,
        short_px=data.cut().short_px,
        step_s=step_s,
        lam=path.lams[place],
        places=np.flatnonzero(live),
        mean=scale.mean[live],
        scale=scale.deviation[live],
        weight=fitted.weight.numpy()[:, live],
        bias=fitted.bias.numpy(),
    )


def _fitted(path: Path, loss: float) -> dict[str, Any]:
    place = path.choice.chosen
    fitted, lam = path.fits[place], path.lams[place]
    return {
        "penalty": "l1 on hog",
        "lam": lam,
        "lams": {"l1": lam},
        "loss": loss,
        "objective": loss + lam * float(fitted.weight.abs().sum()),
        "train_accuracy": path.train_accuracy[place],
        "val_accuracy": float(path.val_accuracy[:, place].mean()),
        "val_loss": path.choice.means[place],
        "num_parameters": fitted.weight.numel() + fitted.bias.numel(),
        "density": float((fitted.weight != 0).double().mean()),
        "live_groups": path.num_live[place],
        "num_groups": fitted.weight.shape[1],
        "residual": fitted.residual,
    }


def _chances(detector: Detector, table: Table) -> Float64[np.ndarray, "videos classes"]:
    """Average each video's probabilities over its clips."""
    return np.stack([detector.probabilities(row.values).mean(0) for row in table.rows])


def _tested(detector: Detector, table: Table, data: VideoData) -> dict[str, Any]:
    if not table.rows:
        return {"test_accuracy": None, "test_macro_accuracy": None, "test_top5_accuracy": None}
    chances, labels = _chances(detector, table), np.array(table.labels)
    right = chances.argmax(1) == labels
    top5 = (np.argsort(-chances, axis=1)[:, :5] == labels[:, None]).any(1)
    return {
        "test_accuracy": float(right.mean()),
        "test_macro_accuracy": float(np.mean([right[labels == k].mean() for k in {*labels}])),
        "test_top5_accuracy": float(top5.mean()) if data.num_classes > 5 else None,
        "views": data.test_views * data.test_crops,
    }


def _speed(detector: Detector, tables: Mapping[str, Table]) -> dict[str, float]:
    """Return the time of a clip in ms, on one core each, and how much faster than it was filmed."""
    rows = [row for table in tables.values() for row in table.rows]
    clips: Sequence[Any] = [values for row in rows for values in row.values]
    began = time.perf_counter()
    for values in clips:
        detector.probabilities(values[None])
    classify_s = time.perf_counter() - began
    read_s, describe_s = sum(row.read_s for row in rows), sum(row.describe_s for row in rows)
    filmed_s = sum(row.seconds * len(row.values) for row in rows)
    return {
        "read_ms": 1e3 * read_s / len(clips),
        "hog_ms": 1e3 * describe_s / len(clips),
        "classify_ms": 1e3 * classify_s / len(clips),
        "features_per_s": sum(values.size for values in clips) / describe_s,
        "times_real_time": filmed_s / (read_s + describe_s + classify_s),
    }
