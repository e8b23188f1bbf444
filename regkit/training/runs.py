"""Run folders: what one run keeps in its own, and what those of many runs say."""

import json
import logging
import os
import re
import shutil
import struct
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from filelock import FileLock, Timeout
from jaxtyping import Float, Int64
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tensorboard.compat.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from regkit.errors import InputError
from regkit.files import finite, make_folder, sweep_drafts, write_json, write_text
from regkit.training.checkpoints import one_line, read
from regkit.training.config import AUTO, check_unchanged, only_watches, recipe_of
from regkit.training.progress import is_first, tell

Status = Literal["done", "failed", "unfinished", "pruned"]
Curve = tuple[Int64[np.ndarray, " points"], Float[np.ndarray, " points"]]

SUMMARY, FAILED, CONFIG, NORMS = "summary.json", "failed.txt", "config/config.yaml", "groups.npz"
STAGES, LOCK = "stages.json", ".lock"
GONE_S = 6.0  # after which the workers of a run that was killed are gone, and its lock with them
# Folders that hold no runs: of one run, and of what is written about several.
ASIDE = {"config", "checkpoints", "report", "comparison"}
MOST_CHECKED = 4096  # bytes of an event; those of curves are far smaller
WHOLE_KEY = re.compile(r"\$\{([\w.]+)\}")  # an interpolation that is nothing but a key
# What Hydra writes before a job begins, beside its log.
_OF_HYDRA = {"config.yaml", "hydra.yaml", "overrides.yaml"}


@dataclass(frozen=True, eq=False)
class Run:
    """What is known of one run.

    folder: where it lies, as it was found.
    summary: of summary.json; empty unless the run is done or pruned.
    overrides: what was asked for on the command line, as Hydra keeps it, but the name that a sweep
        gave the run.
    recipe: the whole configuration, resolved; empty where the folder has none.
    message: why a run failed, or why its folder cannot be read.
    """

    folder: Path
    summary: dict[str, Any]
    overrides: list[str]
    recipe: dict[str, Any]
    status: Status
    message: str = ""

    @property
    def name(self) -> str:
        """Return the name that the run gave itself, else that of its folder."""
        return str(self.summary.get("name") or self.folder.name)


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read all runs in folders: of runs, of sweeps, of sweeps of sweeps.

    Each run comes once, in the order of the folders given, then of the names. A run whose files
    are broken is among them as failed, with a message that says so.

    Raises: InputError when a folder is none, or holds no run.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {what}; give folders of runs, such as runs/*.")
        here = {path.resolve(): path for path in run_folders(folder)}
        if not here:
            raise InputError(
                f"{folder} holds no run: no folder in it has a {SUMMARY}, a {FAILED} or a "
                f"{CONFIG}. {_what_lies_in(folder)}"
            )
        found |= {real: read_run(path) for real, path in here.items() if real not in found}
    return list(found.values())


def run_folders(folder: Path) -> Iterator[Path]:
    """Find the folders of runs in a folder, itself among them, in the order of their names.

    A folder that has no more than a configuration, and runs below it, is that of a path or of
    another whole, and no run.
    """
    finished = (folder / SUMMARY).is_file() or (folder / FAILED).is_file()
    if finished:
        yield folder
    below = False
    for inner in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        if inner not in ASIDE and not inner.startswith("."):
            for run in run_folders(folder / inner):
                below = True
                yield run
    if not finished and not below and (folder / CONFIG).is_file():
        yield folder


def read_run(folder: Path) -> Run:
    """Read one run; files that cannot be read make it a failed one that says which and why."""
    broken: list[str] = []

    def read(name: str, parse: Any, kind: type[Any]) -> Any:
        try:
            content = parse((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return kind()
        except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            broken.append(f"{name} cannot be read: {_first_line(error)}")
            return kind()
        if not isinstance(content, kind):
            broken.append(f"{name} cannot be read: it holds a {type(content).__name__}")
            return kind()
        return content

    summary = read(SUMMARY, json.loads, dict)
    asked = map(str, read("config/overrides.yaml", _yaml, list))
    overrides = [word for word in asked if not word.startswith("name=")]
    recipe = read(CONFIG, _resolved, dict)
    failed = read(FAILED, str, str)
    if broken:
        return Run(folder, {}, overrides, recipe, "failed", "; ".join(broken))
    if (folder / SUMMARY).is_file():
        status, message = ("pruned" if summary.get("pruned") else "done"), ""
    elif (folder / FAILED).is_file():
        status, message = "failed", failed.partition("Traceback (most recent")[0].strip()
    else:
        status, message = "unfinished", ""
    return Run(folder, summary, overrides, recipe, status, message)


def curves(run: Run) -> dict[str, Curve]:
    """Read the curves of a run: steps and values of each tag, in the order of the steps.

    Where a run was continued, the later event file takes over from the step that it started at,
    as TensorBoard shows it; what both have logged at one step comes once.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(run.folder.glob("events.out.tfevents.*")):
        for event in _events(path):
            if event.session_log.status == SessionLog.START:
                for curve in points.values():
                    for step in [step for step in curve if step >= event.step]:
                        del curve[step]
            for one in event.summary.value:
                if one.HasField("simple_value"):
                    points.setdefault(one.tag, {})[event.step] = one.simple_value
    return {
        tag: (np.array(list(curve), dtype=np.int64), np.array(list(curve.values()), dtype=float))
        for tag, curve in points.items()
        if curve
    }


def _events(path: Path) -> Iterator[Event]:
    """Read events up to the first that is not whole; pictures are not checked, which takes long.

    A record is its length (8 bytes), the checksum of that (4), itself, and its checksum (4).
    """
    content = path.read_bytes()
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        record = content[place + 12 : place + 12 + length]
        checksum = content[place + 12 + length : place + 16 + length]
        if len(checksum) < 4:
            return
        if length < MOST_CHECKED and struct.unpack("<I", checksum)[0] != masked_crc32c(record):
            return
        yield Event.FromString(record)
        place += 16 + length


def group_norms(run: Run) -> dict[str, Float[np.ndarray, " rows"]]:
    """Read the length of each output row of each weight at the end of training; dead ones are 0.

    Raises: InputError when the file is broken. A run without one has no norms: {}.
    """
    path = run.folder / NORMS
    if not path.is_file():
        return {}
    try:
        with np.load(path) as norms:
            return {name: norms[name] for name in norms.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}. Delete it.") from error


def _resolved(text: str) -> Any:
    """Return a configuration with values in the place of their keys.

    What a resolver would make stays as it is written: one of a stranger's could read the
    environment.
    """
    content = _yaml(text)
    if not isinstance(content, dict):
        return content or {}
    content.pop("name", None)  # it is made by a resolver that only train.py has
    return _looked_up(content, content)


def _looked_up(part: Any, whole: Any) -> Any:
    """Put values in the place of their keys, as OmegaConf does in a hundred times the time."""
    if isinstance(part, dict):
        return {key: _looked_up(inner, whole) for key, inner in part.items()}
    if isinstance(part, list):
        return [_looked_up(inner, whole) for inner in part]
    key = WHOLE_KEY.fullmatch(part) if isinstance(part, str) else None
    found = whole if key else None
    for name in key[1].split(".") if key else ():
        found = found.get(name) if isinstance(found, dict) else None
    return part if found is None or isinstance(found, dict | list) else found


def _yaml(text: str) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _what_lies_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = " ..." if len(names) > 5 else "."
    return f"It holds {', '.join(names[:5])}{more}" if names else "It is empty."


class FolderInUseError(InputError):
    """Another run is at work in the folder."""


class RunFolder:
    """Keep what a run leaves in its folder, so that it goes on where it was stopped.

    Stages: trained (`checkpoints/last.ckpt`, epoch by epoch), then those of `stages.json`, each
    with what the summary says of it, and done (`summary.json`). A job that failed leaves
    `failed.txt`.

    Attributes:
        start: the checkpoint to go on from; None where training begins.
    """

    def __init__(self, path: Path, ckpt_path: str | None = None) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.ckpt"
        if ckpt_path is not None:
            self.last = Path(ckpt_path).expanduser()
        self.start: Path | None = None
        self._record: dict[str, Any] = {}

    @contextmanager
    def owned(self, wait_s: float = 0.0) -> Iterator[None]:
        """Own the folder while this lasts; the lock goes with the process, however that ends.

        wait_s: for another run there; -1: as long as it takes.
        Raises: FolderInUseError. InputError when the folder cannot be written to.
        """
        make_folder(self.path, f"A run got the folder {self.path}")
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout as error:
            raise FolderInUseError(
                f"Another run is at work in {self.path}. Wait for it, or take another folder "
                "(hydra.run.dir=...)."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def refuse_if_owned(self) -> None:
        """Refuse a second run in this folder, and one that could write nothing there."""
        with self.owned(GONE_S):
            pass

    def checkpoint(self) -> dict[str, Any] | None:
        """Read the checkpoint to go on from; None where a run begins.

        Where the last one is damaged that is the best one, which is said.
        Raises: InputError when there is none that can be used.
        """
        broken = []
        for path in (self.last, self.last.with_name("best.ckpt")):
            if not path.is_file():
                continue
            try:
                checkpoint = read(path)
                checkpoint["hyper_parameters"]["recipe"]
            except Exception as error:
                broken.append(f"{path} ({one_line(error)})")
                continue
            self.start = path
            if broken:
                self._record = {}  # of what was trained after this one
                tell(
                    f"{broken[0]} is damaged. The run goes on from {path}, after step "
                    f"{checkpoint['global_step']}; what was trained since then is trained again."
                )
            return checkpoint
        if broken:
            raise InputError(
                f"{' and '.join(broken)}: no checkpoint of train.py, or damaged. Give another "
                "checkpoint of this run, as ckpt_path=..., or delete it to train anew."
            )
        return None

    def read_stages(self) -> dict[str, Any] | None:
        """Read what is over, and return the recipe that it was made by; None where nothing is.

        Raises: InputError when the file is damaged.
        """
        path = self.path / STAGES
        if not path.is_file():
            return None
        try:
            self._record = json.loads(path.read_text())
            return self._record["recipe"]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({one_line(error)}). Delete it: the run does again what "
                "comes after training."
            ) from error

    def is_of(self, recipe: Mapping[str, Any]) -> bool:
        """Say whether the stages that are over were of this recipe."""
        return bool(self._record) and _effective(self._record["recipe"]) == _effective(recipe)

    def forget_others(self, recipe: Mapping[str, Any]) -> None:
        """Forget the stages of another recipe, and what they left."""
        if self.is_of(recipe):
            return
        self._record = {}
        left = (STAGES, SUMMARY, "checkpoints/debiased.ckpt", "checkpoints/shrunk.ckpt")
        for name in left if is_first() else ():
            (self.path / name).unlink(missing_ok=True)

    def has(self, stage: str) -> bool:
        """Say whether a stage is over."""
        return stage in self._record.get("stages", {})

    def add(self, stage: str, found: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
        """Keep what a stage has found: it is over."""
        stages = {**self._record.get("stages", {}), stage: dict(found)}
        self._record = {"recipe": dict(recipe), "stages": stages}
        if is_first():
            write_json(self.path / STAGES, self._record)

    def summary(self) -> dict[str, Any]:
        """Return what all stages have found, as JSON has it."""
        parts = self._record["stages"].values()
        return finite({key: value for part in parts for key, value in part.items()})

    def finish(self) -> None:
        """Write the summary, last of all; one that is there and whole stays as it is."""
        if is_first() and not self._is_written():
            write_json(self.path / SUMMARY, self.summary())

    def _is_written(self) -> bool:
        try:
            return json.loads((self.path / SUMMARY).read_text()) == self.summary()
        except (OSError, ValueError):
            return False

    def fail(self, error: Exception) -> None:
        """Leave word of what stopped the job."""
        self.path.mkdir(parents=True, exist_ok=True)
        lines = "".join(traceback.format_exception(error))
        write_text(self.path / FAILED, f"{type(error).__name__}: {error}\n\n{lines}")

    def is_fresh(self) -> bool:
        """Say whether there is nothing yet but what Hydra leaves when a job begins."""
        config, here = self.path / "config", Path.cwd()
        names = {entry.name for entry in self.path.iterdir()}
        inner = {entry.name for entry in config.iterdir()} if config.is_dir() else set()
        ours = names <= {"config", "train.log", LOCK} and inner <= _OF_HYDRA
        return ours and not here.is_relative_to(self.path.absolute())

    def is_trained(self) -> bool:
        """Say whether there is a checkpoint of this run."""
        return any(self.path.rglob("*.ckpt"))

    def discard(self) -> None:
        """Remove all that a run has left which was refused, and the folder above if it is empty.

        Only of a run whose folder was fresh when it began.
        """
        logging.shutdown()  # Hydra's log file lies within
        shutil.rmtree(self.path)
        above = self.path.absolute().parent
        if not Path.cwd().is_relative_to(above) and not any(above.iterdir()):
            above.rmdir()

    def begin(self) -> None:
        """Take away the word of an earlier failure, and the drafts of a process that was killed."""
        (self.path / FAILED).unlink(missing_ok=True)
        for folder in (self.path, self.path / "checkpoints"):
            sweep_drafts(folder)


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder of a run that cannot be made, or not be written to."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise InputError(f"hydra.run.dir={folder} was given; give a folder to write to.")


def adopt(config: DictConfig, old: Mapping[str, Any]) -> None:
    """Take over the strengths that the run was given, where they are to be found again.

    Raises: InputError when the old run was made by another configuration.
    """
    for name, options in config.penalty.items():
        if options.get("lam") == AUTO and name in old["penalty"]:
            options.lam = _strength(old["penalty"][name]["lam"])
    if config.lam == AUTO:
        config.lam = _strength(old["lam"])
    check_unchanged(old, recipe_of(config))


def _strength(lam: Any) -> float:
    """Refuse a strength that is no number: what a checkpoint holds would become a plug."""
    if not isinstance(lam, int | float):
        raise InputError(f"The checkpoint of this run has lam={lam}, which is no number.")
    return lam


def _effective(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a recipe what changes no weight, in the form in which JSON returns it."""
    kept = {key: value for key, value in recipe.items() if not only_watches(key)}
    trainer = recipe["trainer"].items()
    kept["trainer"] = {k: v for k, v in trainer if not only_watches(f"trainer.{k}")}
    return json.loads(json.dumps(kept))
