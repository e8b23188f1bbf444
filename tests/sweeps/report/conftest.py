"""Runs to report on, made up: only what a report reads of them."""

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from regkit.sweeps.report import write

RECIPE: dict[str, Any] = {
    "data": {
        "_target_": "regkit.data.made.SyntheticMotion",
        "num_train": 96,
        "num_val": 24,
        "num_test": 48,
    },
    "model": {"_target_": "regkit.models.tiny3d.Tiny3D"},
    "optimizer": {"_target_": "torch.optim.AdamW"},
}


Make = Callable[..., Path]
TAGS = ("val/acc", "density/total", "density/live_groups", "objective/total", "val/roughness")


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw small pictures: what is on them is looked at elsewhere, by people."""
    monkeypatch.setattr(write, "PAPER_DPI", 40)


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """Make a run from its overrides and what its summary should say."""
    return maker(tmp_path / "runs")


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a sweep of two penalties, two strengths and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    make = maker(folder)
    for penalty, lam, seed in product(("l1", "group_lasso"), (0.001, 0.01), (0, 1)):
        density = 0.9 - 50 * lam - 0.1 * seed
        curves = {tag: {9: 0.1 + seed, 19: 0.3, 29: density} for tag in TAGS}
        curves["density_layer/net.head.weight"] = {29: density}
        make(
            f"{penalty} lam={lam} seed={seed}",
            f"penalty={penalty} lam={lam} seed={seed}",
            curves=curves,
            **{"val_accuracy": 0.5 + lam, "test_accuracy": 0.5, "density": density},
            **{"live_groups": 8, "num_groups": 10, "steps": 30, "epochs": 3},
            **{"remaining_flops": 50, "flops": 100, "remaining_parameters": 7},
        )
    return folder


def maker(where: Path) -> Make:
    """Return what makes runs in a folder."""

    def make(
        name: str,
        overrides: str,
        curves: Mapping[str, Mapping[int, float]] | None = None,
        recipe: Mapping[str, Any] = RECIPE,
        **summary: Any,
    ) -> Path:
        folder = where / name
        (folder / "config").mkdir(parents=True)
        words = overrides.split(" ") if overrides else []
        asked = dict(word.split("=", 1) for word in words)
        (folder / "config" / "overrides.yaml").write_text(yaml.safe_dump(words))
        seed = int(asked.get("seed", 0))
        (folder / "config" / "config.yaml").write_text(yaml.safe_dump({**recipe, "seed": seed}))
        penalty = asked.get("penalty", "l1").strip("[]").replace(",", "+")
        lam = 0.0 if penalty == "none" else float(asked.get("lam", 1e-4))
        said = {"name": name, "penalty": penalty, "lam": lam, "seed": seed, **summary}
        if summary:
            (folder / "summary.json").write_text(json.dumps(said))
        if curves:
            with SummaryWriter(str(folder)) as writer:
                for tag, points in curves.items():
                    for step, value in points.items():
                        writer.add_scalar(tag, value, step)
        return folder

    return make
