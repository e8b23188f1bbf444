"""A regularization path: one model along a grid of strengths, each point from the one before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from regkit.errors import InputError
from regkit.selection.one_error import share_error, within_one_error
from regkit.sweeps.path_picture import draw
from regkit.sweeps.report.choose import ROUNDING
from regkit.sweeps.report.write import write_report
from regkit.sweeps.sweep_summary import conclude
from regkit.training.config import short
from regkit.training.fit import fit
from regkit.training.resolve_lam import grid

DIRECTIONS = ("increasing", "decreasing")


def follow(config: DictConfig, folder: Path) -> list[dict[str, Any]]:
    """Train along the grid, and return the summaries of its points.

    The first point is trained in full; each further one begins with the weights of the last, at
    `path.lr_scale` of the learning rate, for `path.epochs`. Each is a run of its own in
    `folder`/lam=..., and one that is done is not repeated.

    Increasing strengths, from dense to sparse, by default: what a strong penalty has taken from a
    deep net seldom comes back under a weaker one. On videos that need most of their weights the
    way down kept the accuracy of the strongest point (Lemhadri, Ruan, Abraham and Tibshirani,
    LassoNet, JMLR 2021, section 3, go up for that reason).

    Raises: InputError when an option is out of range.
    """
    _check(config)
    lams = sorted(grid(config), reverse=config.path.direction == "decreasing")
    summaries, before = [], None
    for lam in lams:
        place = folder / f"lam={short(lam)}"
        summaries.append(fit(_point(config, lam, before, place), place))
        before = place / "checkpoints" / "last.ckpt"
    _conclude(folder, lams, summaries)
    return summaries


def _conclude(folder: Path, lams: Sequence[float], points: Sequence[dict[str, Any]]) -> None:
    """Choose a point, and leave the grounds and the picture in the folder of the path."""
    debiased = points[0].get("debiased_val_accuracy") is not None
    key = "debiased_val_accuracy" if debiased else "val_accuracy"
    known = [point for point in points if point.get(key) is not None]
    total = sum(point["train_s"] + point.get("debias_s", 0.0) for point in points)
    lines = [
        f"{len(points)} points from lam={short(min(lams))} to {short(max(lams))} in {total:.0f} s."
    ]
    chosen = None
    if known:
        errors = [share_error(point[key], point["num_val"]) for point in known]
        sizes = [(point["density"], -point["lam"]) for point in known]
        found = within_one_error([-point[key] for point in known], errors, sizes, ROUNDING)
        best, error, chosen = known[found.best], errors[found.best], known[found.chosen]
        lines += [
            f"Best on the {best['num_val']} validation videos{' after debiasing' * debiased}: "
            f"lam={short(best['lam'])}, accuracy {best[key]:.3f} (standard error {error:.3f}).",
            f"Sparsest within one standard error: lam={short(chosen['lam'])}, accuracy "
            f"{chosen[key]:.3f}, density {chosen['density']:.3f}.",
        ]
    conclude(
        folder,
        title=f"Path along {len(points)} strengths, each from the one before",
        lines=lines,
        pictures=[draw(folder, points, None if chosen is None else chosen["lam"])],
        chosen=None if chosen is None else chosen["name"],
        seconds=total,
    )
    print(f"report: {write_report([folder])}", flush=True)


def _check(config: DictConfig) -> None:
    path = config.path
    if path.direction not in DIRECTIONS:
        raise InputError(
            f"path.direction={path.direction} was given; it is {' or '.join(DIRECTIONS)}."
        )
    if path.epochs < 1:
        raise InputError(f"path.epochs={path.epochs} was given; it is 1 or more.")
    if not 0 < path.lr_scale <= 1:
        raise InputError(f"path.lr_scale={path.lr_scale} was given; it is above 0, at most 1.")
    if config.ckpt_path is not None:
        raise InputError("ckpt_path was given to a path; give resume=<its folder>.")


def _point(config: DictConfig, lam: float, before: Path | None, folder: Path) -> DictConfig:
    """Return the configuration of one point, and leave it in its folder as Hydra does."""
    point = config.copy()
    with open_dict(point):
        point.lam, point.path = lam, None
        point.name = f"{'+'.join(config.penalty)} lam={short(lam)}"
        if before is not None:
            point.warm_start = str(before)
            point.trainer.max_epochs = config.path.epochs
            point.optimizer.lr = config.path.lr_scale * config.optimizer.lr
    kept = folder / "config"
    kept.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(point, kept / "config.yaml", resolve=True)
    words = [w for w in HydraConfig.get().overrides.task if not w.startswith("lam=")]
    OmegaConf.save(OmegaConf.create([*words, f"lam={short(lam)}"]), kept / "overrides.yaml")
    return point
