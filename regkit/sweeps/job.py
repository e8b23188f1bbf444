"""One job of Hydra, a run or a path, alone or of a sweep; and how one that was stopped goes on."""

import errno
import logging
import multiprocessing
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regkit.errors import InputError
from regkit.sweeps.path import follow
from regkit.training.allowed import check_words
from regkit.training.checkpoints import one_line as line_of
from regkit.training.fit import fit
from regkit.training.overrides import one_line, use_own
from regkit.training.progress import is_first, keep_lines_off_the_screen, tell
from regkit.training.runs import FolderInUseError, RunFolder
from regkit.training.stop import Stopped, heeding_signals, requeue

# What the libraries below tell all their users, and ours need not hear.
_CHATTY = ("lightning.pytorch", "fontTools", "tensorboard")
_KNOWN = (
    "does not have many workers",
    "LeafSpec",
    "Checkpoint directory .* exists",  # a run that goes on
    "Total length of `ClipLoader` across ranks is zero",  # a refit has no validation videos
)
WORD = "resume="
# What a disk says that is full, read-only, broken, or another's.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
# Of Hydra's own overrides, what says where and how the jobs of a sweep ran.
_OF_SWEEPS = ("hydra.sweep", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
_PLACES = ("hydra.mode", "hydra.run.dir", "hydra.sweep.dir")


def run_job(config: DictConfig, folder: Path) -> float | None:
    """Run one job, and leave word in its folder when it fails.

    Returns the test accuracy; of a path, none. A mistake in the input ends the program with one
    line, and leaves no folder if nothing was trained; in a sweep it ends this job alone.
    """
    quieten()
    use_own(own_folder(HydraConfig.get()))  # a launcher may run this in a process of its own
    with heeding_signals():
        try:
            return _run_job(config, folder)
        finally:
            _end_workers()


def _run_job(config: DictConfig, folder: Path) -> float | None:
    run = RunFolder(folder)
    fresh = run.is_fresh()
    try:
        if config.path is not None:
            follow(config, folder)
            return None
        summary = fit(config, folder)
    except (KeyboardInterrupt, SystemExit) as stop:
        _end_stopped(stop, folder)
    except Exception as error:
        _end_failed(error, run, fresh)
    if is_first():
        print_summary(summary, folder)
    return summary["test_accuracy"]


def _end_workers() -> None:
    """End the processes that still read videos: for one that was stopped, an exit would wait."""
    for worker in multiprocessing.active_children():
        with suppress(RuntimeError):  # torch tells that it has lost one
            worker.kill()
            worker.join()


def _end_stopped(stop: BaseException, folder: Path) -> NoReturn:
    """End a job that was told to; in a sweep, which says how to go on, the sweep too."""
    swept = HydraConfig.get().mode == RunMode.MULTIRUN
    if isinstance(stop, Stopped):
        if swept:
            raise stop
        again = stop.signum != signal.SIGTERM and is_first() and requeue()
        tell_how_to_go_on(folder, HydraConfig.get(), stop.code, " SLURM starts it again." * again)
    # Lightning turns Ctrl-C in `fit` into an exit.
    if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
        raise stop
    if swept:
        raise KeyboardInterrupt from stop
    tell_how_to_go_on(folder, HydraConfig.get())


def _end_failed(error: Exception, run: RunFolder, fresh: bool) -> NoReturn:
    """End a job that failed, with one line where the user can mend it."""
    swept = HydraConfig.get().mode == RunMode.MULTIRUN
    if isinstance(error, OSError) and error.errno in _DISK:
        error = InputError(f"{line_of(error)}. {_how(run.path, HydraConfig.get())}")
    elif not isinstance(error, FolderInUseError) and is_first():
        discards = fresh and isinstance(error, InputError) and not swept and not run.is_trained()
        run.discard() if discards else run.fail(error)
    if swept or not isinstance(error, InputError):
        raise error
    refuse(error)


@contextmanager
def ending_in_one_line(config: Any) -> Iterator[None]:
    """End the program with one line when a sweep is refused or stopped in the block.

    config: of the sweep.
    """
    try:
        with heeding_signals():
            yield
    except InputError as error:
        refuse(error)
    except Stopped as stop:
        tell_how_to_go_on(Path(config.hydra.sweep.dir), config.hydra, stop.code)
    except (HydraException, OmegaConfBaseException) as error:
        refuse(InputError(one_line(error)))
    except KeyboardInterrupt:
        tell_how_to_go_on(Path(config.hydra.sweep.dir), config.hydra)


def refuse(error: InputError) -> NoReturn:
    """End the program with one line; Hydra would print where the error came from."""
    if is_first():
        print(error.line(), file=sys.stderr)
    sys.exit(2)


def tell_how_to_go_on(folder: Path, hydra: Any, code: Any = 130, more: str = "") -> NoReturn:
    """End the program, and say what continues the run or sweep in this folder.

    code: to exit with; by default that of Ctrl-C.
    """
    if is_first():
        print(f"\nregkit: stopped. {_how(folder, hydra)}{more}", file=sys.stderr)
    sys.exit(code)


def _how(folder: Path, hydra: Any) -> str:
    here, place, own = Path.cwd(), folder.absolute(), own_folder(hydra)
    place = place.relative_to(here) if place.is_relative_to(here) else place
    words = [*(["--config-dir", own] if own else []), f"resume={place}"]
    return f"To go on: regkit train {shlex.join(words)}"


def quieten() -> None:
    """Silence what is not the user's to mend, in this process."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", f".*{message}")
    keep_lines_off_the_screen()


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print what a user looks for first, and write it to the run's log."""
    keys = ("test_accuracy", "val_accuracy", "debiased_accuracy", "density", "objective")
    known = {key: summary.get(key) for key in (*keys, "roughness", "train_s")}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in known.items() if value is not None)
    if not summary.get("settled", True):
        shown += f"  (zeros not settled: {summary['flips']:.2%} flip in a step)"
    print()
    tell(f"{summary['name']}: {shown}")
    print(f"curves: tensorboard --logdir '{folder.parent}'\n", flush=True)


def resumed(arguments: Sequence[str]) -> list[str]:
    """Replace resume=FOLDER by the words that started what lies in that folder.

    A run, a path, or a sweep, whose finished jobs are then not run again. Further words are kept.
    Raises: InputError when nothing was started in that folder.
    """
    given = [word for word in arguments if word.startswith(WORD)]
    if not given:
        return list(arguments)
    rest = [word for word in arguments if not word.startswith(WORD)]
    own = next((w for w in rest if w.startswith(("--config-dir", "-cd"))), None)
    folder = Path(given[-1].removeprefix(WORD).strip("'\"")).expanduser().absolute()
    sweep, run = folder / "multirun.yaml", folder / "config" / "hydra.yaml"
    if sweep.is_file():
        started = _started(sweep, _PLACES, own is not None, rest)
        return ["-m", *started, f"hydra.sweep.dir='{folder}'", *rest]
    if run.is_file():
        if {"-m", "--multirun"} & set(rest):
            raise InputError(f"resume={folder} is one run, and no sweep; take it up without -m.")
        started = _started(run, (*_PLACES, *_OF_SWEEPS), own is not None, rest)
        return [*started, f"hydra.run.dir='{folder}'", *rest]
    raise InputError(
        f"resume={folder} was given, where no run and no sweep was started: it has neither "
        "multirun.yaml nor config/hydra.yaml. Give a folder below runs."
    )


def own_folder(hydra: Any) -> str | None:
    """Return the folder of --config-dir that a run or sweep was started with."""
    sources = hydra.runtime.config_sources
    return next((str(s.path) for s in sources if s.provider == "command-line"), None)


def _started(
    path: Path, without: tuple[str, ...], own_given: bool, again: Sequence[str]
) -> list[str]:
    """Return the words of a run or sweep, but those that begin so.

    own_given: whether a folder with the user's own plugs is; the one that is noted there is not
        taken, for Python would run what lies in it, and the run may be somebody else's.
    again: words that the user has given once more, and so vouches for.
    """
    try:
        hydra: Any = OmegaConf.load(path).hydra
        noted: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
        words = [str(word) for word in (*noted["hydra"], *noted["task"])]
        name, own = hydra.job.config_name, own_folder(hydra)
    except Exception as error:
        raise InputError(f"{path} cannot be read as Hydra wrote it: {error}.") from error
    if own is not None and not own_given:
        raise InputError(
            f"The run in {path.parent} was started with --config-dir {own}, whose Python files it "
            "needs. If you trust them, give that folder again."
        )
    kept = [word for word in words if not word.lstrip("+~").startswith(without)]
    check_words([word for word in kept if word not in again], name, f"The run in {path.parent}")
    return ["-cn", name, *kept]
