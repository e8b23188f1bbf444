"""The root of the configuration: types, ranges, run names, and errors that say what is allowed."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from regkit.errors import InputError
from regkit.lightning.divergence import WAYS
from regkit.optim.schedule import UNITS, Schedule

# Parts of a configuration that a run may not change when it continues.
KEPT = ("data", "model", "penalty", "optimizer", "scheduler", "seed", "strength", "warm_start")
# Options of a plug that are no option of a run, and what they follow from.
FOLLOWS = {
    "model": (("num_classes",), "the videos"),
    "trainer": (("callbacks", "logger"), "the other options"),
}
AUTO, PATH = "auto", "path"  # what lam may be, beside a number


@dataclass
class StrengthConfig:
    """How the strength of all weight penalties changes in training (`regkit.Schedule`)."""

    ramp: str | None = None
    ramp_until: float = 0.5
    target_density: float | None = None
    target_flops: float | None = None
    target_parameters: float | None = None
    target_latency: float | None = None
    layerwise: bool = False
    by_cost: bool = True
    multiple_of: int = 1
    settle: float | None = None
    debias: float | None = None
    holds_zeros: bool = True


@dataclass
class GridConfig:
    """The strengths that lam=path stands for, from `high` down to `lam_min_ratio` times it."""

    num: int = 10
    high: float | None = None
    lam_min_ratio: float = 1e-2


@dataclass
class PathConfig:
    """How one model is trained along the grid (`regkit.sweeps.path`)."""

    direction: str = "increasing"
    epochs: int = 6
    lr_scale: float = 1.0


@dataclass
class CvConfig:
    """What cross-validation chooses by (`regkit.sweeps.cross_validation`)."""

    measure: str = "loss"
    rule: str = "one_se"
    refit: bool = True


@dataclass
class TrainConfig:
    """What `train.py` understands; the groups below are free to hold any plug."""

    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    penalty: dict[str, Any] = field(default_factory=dict)
    lam: float | int | str = 1e-4
    grid: GridConfig = field(default_factory=GridConfig)
    strength: StrengthConfig = field(default_factory=StrengthConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    test_checkpoint: str = "last"
    debias_epochs: int = 0
    shrink: bool = False
    stop_dominated: str | None = None
    on_divergence: str = "stop"
    save_every_n_steps: int | None = None
    pictures_every_n_epochs: int | None = None
    warm_start: str | None = None
    ckpt_path: str | None = None
    path: PathConfig | None = None
    cv: CvConfig | None = None
    bagging: bool = False
    name: str = ""


def register() -> None:
    """Tell Hydra the types of the root and how runs are named."""
    ConfigStore.instance().store(name="schema", node=TrainConfig)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("started", started, replace=True, use_cache=True)


# Options that say where a run lies and how it is watched, not what comes out of it.
WATCHING = (
    *(
        "on_divergence",
        "ckpt_path",
        "name",
        "logger",
        "save_every_n_steps",
        "pictures_every_n_epochs",
    ),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
)


# Numbers that may be left out (null), the least and the most that each may be.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # of NumPy's generators
    "debias_epochs": (0, math.inf),
    "save_every_n_steps": (1, math.inf),
    "pictures_every_n_epochs": (1, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
    "optimizer.lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
}


def key_value(word: str) -> tuple[str, str]:
    """Split a word of a command line: +data.fold=1 gives data.fold and 1."""
    key, _, value = word.lstrip("+~").partition("=")
    return key, value


def only_watches(key: str) -> bool:
    """Say whether an option changes nothing of what a run comes to."""
    return any(key == one or key.startswith(f"{one}.") for one in WATCHING)


def run_name(
    penalty: Mapping[str, Any],
    lam: float | int | str,
    overrides: Iterable[str],
    strength: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Name a run by its penalties, the strength that acts and whatever else was asked for.

    ({"l1": ...}, 1e-4, ["penalty=l1", "seed=1"]) -> "l1 lam=1e-4 seed=1"

    lam: what penalties take that have no strength of their own.
    strength: of the configuration; with a target in it the strength is to be found, and where the
        search starts tells nothing.
    """
    parts, words = ["+".join(penalty) or "none"], list(overrides)
    leading = leading_penalty(penalty, lam)
    if leading is not None and not has_target(strength):
        parts.append(f"lam={short(penalty[leading].get('lam', lam))}")
    elif leading is not None and any(word.startswith("lam=") for word in words):
        parts.append(f"start_lam={short(lam)}")
    for override in words:
        key, value = key_value(override)
        if key in ("penalty", "lam", f"penalty.{leading}.lam") or only_watches(key):
            continue
        key = key.removeprefix("penalty.") if key.startswith("penalty.") else key.split(".")[-1]
        value = Path(value.strip("'\"")).name
        parts.append(f"{key}={short(value)}")
    return re.sub(r"[^\w.+=\[\], -]", "_", " ".join(parts))[:200]


def has_target(strength: Mapping[str, Any]) -> bool:
    """Say whether the strength of a run is found for a target."""
    return any(strength.get(f"target_{kind}") is not None for kind in UNITS)


def leading_penalty(penalty: Mapping[str, Any], lam: float | int | str) -> str | None:
    """Return the penalty whose strength stands for a run: the first that takes `lam`, or the first.

    None without any.
    """
    names = [str(name) for name in penalty]
    shared = [name for name in names if penalty[name].get("lam", lam) == lam]
    return next(iter(shared or names), None)


def run_dir(ckpt_path: str | None, fresh: str) -> str:
    """Return the folder of a run: the old one when it continues from a checkpoint."""
    if ckpt_path is None:
        return fresh
    return str(Path(ckpt_path).expanduser().absolute().parent.parent)


def started(now: str) -> str:
    """Name a run by when it started; a batch job of SLURM, which may start it again, by the job."""
    job = os.environ.get("SLURM_JOB_ID")
    by_hand = os.environ.get("SLURM_JOB_NAME") in (None, "bash", "sh", "interactive")
    return now if job is None or by_hand else f"slurm-{job}"


def short(value: Any) -> str:
    """Write a number as people do: 1e-4, not 0.0001 or 1e-04."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    plain = f"{number:g}"
    scientific = re.sub(r"e([+-])0*(\d+)", r"e\1\2", f"{number:.6e}").replace("e+", "e")
    scientific = re.sub(r"\.?0+e", "e", scientific)
    return scientific if 0 < abs(number) < 0.01 or "e" in plain else plain


def make_penalties(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make the penalties, by name.

    Raises: InputError when settings are given for a penalty that was not selected.
    """
    chosen = [str(n) for n, o in settings.items() if isinstance(o, dict) and "_target_" in o]
    for name in map(str, settings):
        if name not in chosen:
            raise not_selected(name, chosen)
    return {str(name): make(options) for name, options in settings.items()}


def not_selected(name: str, chosen: Sequence[str]) -> InputError:
    """Return what is said of settings for a penalty that is none of those chosen."""
    return InputError(
        f"penalty.{name} has settings, but {name} was not selected; give "
        f"penalty=[{','.join([*chosen, name])}]."
    )


def recipe_of(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, resolved."""
    recipe = OmegaConf.to_container(config, resolve=True)
    assert isinstance(recipe, dict)
    return {str(key): value for key, value in recipe.items()}


def make(options: Any, **more: Any) -> Any:
    """Instantiate a plug; what it says against its options is what the user reads."""
    try:
        return instantiate(options, _convert_="all", **more)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} was not given; give {error.full_key}=...") from error
    except HydraException as error:
        causes = _causes(error)
        for cause in causes:
            if isinstance(cause, InputError):
                raise cause from None
        target = options.get("_target_", "?")
        if isinstance(causes[-1], ImportError):
            raise InputError(
                f"{target} was asked for: {causes[-1]}. A class of your own lies in a Python file "
                "in the folder of --config-dir, or in a package that is installed."
            ) from error
        raise InputError(f"{target} does not take these options: {causes[-1]}") from error


def check(config: Any) -> None:
    """Refuse ranges that the types do not know.

    Raises: InputError.
    """
    _check_finite(OmegaConf.to_container(config, resolve=False))
    number = isinstance(config.lam, int | float) and not isinstance(config.lam, bool)
    if not (config.lam >= 0 if number else config.lam == AUTO):
        grid = " (lam=path is a grid: a run for each with -m, one for all with -cn path)"
        raise InputError(
            f"lam={config.lam} was given; lam is a number >= 0, or {AUTO}."
            f"{grid if config.lam == PATH else ''}"
        )
    if config.test_checkpoint not in ("last", "best"):
        raise InputError(f"test_checkpoint={config.test_checkpoint} was given; it is last or best.")
    if config.stop_dominated not in (None, "median"):
        raise InputError(
            f"stop_dominated={config.stop_dominated} was given; it is median, or null."
        )
    if config.on_divergence not in WAYS:
        raise InputError(
            f"on_divergence={config.on_divergence} was given; it is {' or '.join(WAYS)}."
        )
    if config.ckpt_path is not None and not Path(config.ckpt_path).expanduser().is_file():
        raise InputError(f"ckpt_path={config.ckpt_path} was given, and there is no such file.")
    Schedule(**config.strength)
    _check_ranges(config)
    _check_replaced(config)
    _check_epochs(config.trainer)
    _check_optimizer(config.optimizer)


def _check_finite(part: Any, key: str = "") -> None:
    """Refuse numbers that are none, wherever they stand."""
    if isinstance(part, Mapping):
        for name, inner in part.items():
            _check_finite(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(part, list):
        for inner in part:
            _check_finite(inner, key)
    elif isinstance(part, float) and not math.isfinite(part):
        raise InputError(f"{key}={part} was given; numbers are finite here.")


def _check_ranges(config: Any) -> None:
    for key, (least, most) in RANGES.items():
        value = OmegaConf.select(config, key)
        if value is None or (isinstance(value, int | float) and least <= value <= most):
            continue
        allowed = f"a number from {least} to {most}" if most < math.inf else f"{least} or more"
        raise InputError(f"{key}={value} was given; it is {allowed}.")


def _check_replaced(config: Any) -> None:
    """Refuse options that would be replaced without a word."""
    for part, (keys, source) in FOLLOWS.items():
        for key in set(keys) & set(config[part]):
            raise InputError(
                f"{part}.{key}={config[part][key]} was given; it follows from {source}. Take it "
                "out."
            )


def _check_epochs(trainer: Mapping[str, Any]) -> None:
    epochs = trainer.get("max_epochs")
    ends_otherwise = trainer.get("max_time") is not None or trainer.get("max_steps", -1) != -1
    if epochs in (None, -1) and ends_otherwise:
        return
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise InputError(
            f"trainer.max_epochs={epochs} was given; it is a whole number >= 1, or -1 beside "
            "+trainer.max_steps or +trainer.max_time."
        )


def _check_optimizer(options: Mapping[str, Any]) -> None:
    """Let the optimizer see its options, before there are videos or weights."""
    try:
        make(options)([torch.nn.Parameter(torch.zeros(1, 1))])
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items() if key[0] != "_")
        raise InputError(f"{options['_target_']} got {given}: {error}") from error


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to continue a run with another configuration.

    Raises: InputError that names what differs.
    """
    changed = [
        f"{key}: {old.get(key)} became {new.get(key)}"
        for key in KEPT
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise InputError(
            "This folder holds a run of another configuration; repeat its options, or take "
            "another folder. " + "; ".join(changed)
        )


def _causes(error: BaseException) -> list[BaseException]:
    """List an error and what it came from, the first cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain
