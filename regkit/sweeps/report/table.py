"""Configurations: runs that differ in seed or fold alone, and what they reached."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from regkit.training.config import has_target, key_value, only_watches, short
from regkit.training.runs import SUMMARY, Run

# Overrides of which several are asked for so as to see a spread, beside the seed, and what they are
# called. Without a fold, or without a sample, a run learned from all videos: that is no repeat of
# one that did not.
REPEATS = {"data.fold": "folds", "data.cv_fold": "folds", "data.bootstrap": "samples"}
SEEDS, SEVERAL = "seeds", "runs"
WHOLE = {"0", "null"}
# Settings of data that leave the videos what they are: how they become clips (clips.yaml), and how
# many are learned from. Rows that differ in another were validated on other videos.
PREPARING = {
    *("num_frames", "size_px", "short_px", "sampling", "stride", "fps", "pad", "random_crop"),
    *("test_views", "test_crops", "batch_size", "num_workers", "reader", "cache", "cache_gib"),
    *("cache_root", "worker_ram_mib", "on_error", "timeout_s", "augment", "modality"),
    *("mean", "std"),
    *("seed", "cv_folds", "cv_fold", "bootstrap", "fold", "num_train"),
}
# Numbers that follow from two of a summary.
SHARES = {"flops_share": ("remaining_flops", "flops"), "live_share": ("live_groups", "num_groups")}


@dataclass(frozen=True)
class Spread:
    """A mean over runs and the standard deviation; one run has none."""

    mean: float
    deviation: float | None
    num: int

    @property
    def error(self) -> float | None:
        """Return the standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.num)


@dataclass(frozen=True, eq=False)
class Configuration:
    """Finished runs that differ in their seed, fold or sample alone.

    lam: the mean where each run found its own.
    settings: what was asked for beside penalty, lam and seed.
    """

    penalty: str
    lam: float
    settings: dict[str, str]
    runs: list[Run]

    def spread(self, key: str) -> Spread | None:
        """Return mean and spread of what the summaries say; None where none says anything."""
        values = [found for run in self.runs if (found := value(run, key)) is not None]
        if not values:
            return None
        several = len(values) > 1 and all(map(math.isfinite, values))
        return Spread(fmean(values), stdev(values) if several else None, len(values))

    def mean(self, key: str) -> float | None:
        """Return the mean of what the summaries say."""
        spread = self.spread(key)
        return None if spread is None else spread.mean

    def setting(self, key: str) -> str:
        """Return what a setting was, asked for or not; - where that is not known."""
        if key in self.settings:
            return self.settings[key]
        node: Any = self.runs[0].recipe
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node = plug(node)
        return "-" if node is None else _plain(str(node))

    @property
    def seeds(self) -> list[int | None]:
        """Return the seeds, in order; None where one is not known."""
        return sorted(map(seed_of, self.runs), key=lambda seed: (seed is None, seed or 0))

    @property
    def repeats(self) -> str:
        """Say what its runs are: seeds, folds or samples; "runs" where they differ in two."""
        parts = [_repeat_of(run) for run in self.runs]
        found = {word for key, word in REPEATS.items() if len({part[key] for part in parts}) > 1}
        if not found or len(set(self.seeds)) > 1:
            found.add(SEEDS)
        return found.pop() if len(found) == 1 else SEVERAL

    @property
    def label(self) -> str:
        """Name penalty and strength."""
        return self.penalty if self.lam == 0 else f"{self.penalty} lam={short(self.lam)}"


@dataclass(frozen=True, eq=False)
class Table:
    """All that was found: rows to compare, and runs that stand apart.

    apart: failed, unfinished and pruned runs.
    repeated: runs whose configuration and seed a later run has too; only that one counts.
    """

    rows: list[Configuration]
    apart: list[Run]
    repeated: list[Run]

    @cached_property
    def varying(self) -> list[str]:
        """List the settings in which rows differ, beside penalty and lam."""
        keys = dict.fromkeys(key for row in self.rows for key in row.settings)
        return [key for key in keys if len({row.setting(key) for row in self.rows}) > 1]

    @property
    def repeats(self) -> str:
        """Say what the runs of rows are: seeds, folds, samples; "runs" where rows differ in it."""
        found = {row.repeats for row in self.rows if len(row.runs) > 1} or {SEEDS}
        return found.pop() if len(found) == 1 else SEVERAL

    def settings(self, row: Configuration) -> tuple[str, ...]:
        """Return in what a row differs from others, beside penalty and lam."""
        return tuple(f"{key}={row.setting(key)}" for key in self.varying)

    def name(self, row: Configuration) -> str:
        """Name a row so that no other has its name."""
        return " ".join((row.label, *self.settings(row)))

    @cached_property
    def by_data(self) -> dict[str, list[Configuration]]:
        """Sort rows by the videos that validated them: accuracies compare within those only."""
        videos = {row: _videos(row) for row in self.rows}
        keys = dict.fromkeys(key for found in videos.values() for key in found)
        differ = [key for key in keys if len({v.get(key) for v in videos.values()}) > 1]
        found: dict[str, list[Configuration]] = {}
        for row in self.rows:
            name = " ".join(f"{key}={videos[row].get(key, '-')}" for key in differ)
            found.setdefault(name.replace("_target_=", ""), []).append(row)
        return found


def tabulate(runs: Sequence[Run]) -> Table:
    """Put runs that differ in their seed, fold or sample alone together.

    Rows are ordered by penalty, then by strength.
    """
    kept: dict[Any, dict[Any, Run]] = {}
    repeated = []
    done = (run for run in runs if run.status == "done")
    for run in sorted(done, key=lambda run: (run.folder / SUMMARY).stat().st_mtime):
        same = kept.setdefault(_key(run), {})
        repeat = _repeat(run)
        if repeat in same:
            repeated.append(same[repeat])
        same[repeat] = run
    rows = [_configuration(key[0], list(same.values())) for key, same in kept.items()]
    rows.sort(key=lambda row: (row.penalty != "none", row.penalty, row.lam, *row.settings.items()))
    return Table(rows, [run for run in runs if run.status != "done"], repeated)


def value(run: Run, key: str) -> float | None:
    """Return a number of a run's summary, or one that follows from it; None where it is not."""
    if key == "lam":
        return lam_of(run)
    if key in SHARES:
        part, whole = (value(run, name) for name in SHARES[key])
        return part / whole if part is not None and whole else None
    found = run.summary.get(key)
    return float(found) if isinstance(found, int | float) else None


def lam_of(run: Run) -> float:
    """Return the strength that acted in a run, in the end; 0 without penalty."""
    found = run.summary.get("lam")
    return float(found) if isinstance(found, int | float) else 0.0


def seed_of(run: Run) -> int | None:
    """Return the seed of a run."""
    found = run.summary.get("seed", run.recipe.get("seed"))
    return found if isinstance(found, int) else None


def settings_of(overrides: Iterable[str]) -> dict[str, str]:
    """Return what overrides ask for, but for what changes nothing that is measured."""
    asked = map(key_value, overrides)
    return {key: _plain(found) for key, found in asked if key != "seed" and not only_watches(key)}


def plug(node: dict[str, Any]) -> str | None:
    """Name a part of a recipe as its YAML is named: regkit.data.made.Made is made."""
    target = str(node.get("_target_") or "")
    parts = target.split(".")
    return (parts[-2] if parts[0] == "regkit" and len(parts) > 3 else parts[-1]) or None


def _configuration(penalty: str, runs: list[Run]) -> Configuration:
    runs = sorted(runs, key=lambda run: (seed_of(run) or 0, str(run.folder)))
    asked = [settings_of(run.overrides) for run in runs]
    known = {"penalty", "lam", f"penalty.{penalty}.lam"}
    settings = {key: found for key, found in asked[0].items() if key not in known}
    for key in REPEATS:
        values = list(dict.fromkeys(found[key] for found in asked if key in found))
        if len(values) > 1:
            settings[key] = ",".join(values) if len(values) < 6 else f"{len(values)} of them"
    return Configuration(penalty, fmean(map(lam_of, runs)), settings, runs)


def _key(run: Run) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    settings = settings_of(run.overrides)
    settings.pop("penalty", None)
    penalty = str(run.summary.get("penalty") or "none")
    shared = settings.pop("lam", "")
    lam = settings.pop(f"penalty.{penalty}.lam", shared)
    # Where lam is a word (auto), or a density was asked for, seeds may find different strengths,
    # and are still the same.
    is_found = has_target(run.summary)
    lam = lam if is_found or (lam != "" and not _is_number(lam)) else repr(lam_of(run))
    for key in REPEATS:
        if settings.get(key, "null") not in WHOLE:
            settings[key] = "any"
    return penalty, lam, tuple(sorted(settings.items()))


def _plain(text: str) -> str:
    """Write a value so that 1e-3 and 0.001 are one."""
    text = text.strip("'\"")
    return short(text) if _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _repeat(run: Run) -> Any:
    """Tell runs of one configuration apart; without a seed each is its own."""
    seed = seed_of(run)
    return run.folder if seed is None else (seed, *_repeat_of(run).values())


def _repeat_of(run: Run) -> dict[str, str]:
    data = run.recipe.get("data")
    parts = data if isinstance(data, dict) else {}
    return {key: str(parts.get(key.removeprefix("data."))) for key in REPEATS}


def _videos(row: Configuration) -> dict[str, str]:
    data = row.runs[0].recipe.get("data")
    if not isinstance(data, dict):
        return {}
    kept = {key: str(found) for key, found in data.items() if key not in PREPARING}
    return kept | {"_target_": plug(data) or "-"}
