"""One job of Hydra, a run or a path, alone or of a sweep; and how one that was stopped goes on."""

import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regkit.errors import InputError
from regkit.sweeps.path import follow
from regkit.training.allowed import check_words
from regkit.training.fit import fit
from regkit.training.overrides import one_line, use_own
from regkit.training.progress import keep_lines_off_the_screen, tell
from regkit.training.runs import RunFolder

# What the libraries below tell all their users, and ours need not hear.
_CHATTY = ("lightning.pytorch", "fontTools", "tensorboard")
_KNOWN = (
    "does not have many workers",
    "LeafSpec",
    "Checkpoint directory .* exists",  # a run that goes on
    "Total length of `ClipLoader` across ranks is zero",  # a refit has no validation videos
)
WORD = "resume="
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
    swept = HydraConfig.get().mode == RunMode.MULTIRUN
    run = RunFolder(folder)
    fresh = run.is_fresh()
    try:
        if config.path is not None:
            follow(config, folder)
            return None
        summary = fit(config, folder)
    except InputError as error:
        if swept:
            run.fail(error)
            raise
        if _is_first():
            run.discard() if fresh and not run.is_trained() else run.fail(error)
        refuse(error)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C in `fit` into an exit.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if swept:
            raise KeyboardInterrupt from stop  # the sweep says how to go on
        tell_how_to_go_on(folder, HydraConfig.get())
    except Exception as error:
        run.fail(error)
        raise
    if _is_first():
        print_summary(summary, folder)
    return summary["test_accuracy"]


@contextmanager
def ending_in_one_line(config: Any) -> Iterator[None]:
    """End the program with one line when a sweep is refused or stopped in the block.

    config: of the sweep.
    """
    try:
        yield
    except InputError as error:
        refuse(error)
    except (HydraException, OmegaConfBaseException) as error:
        refuse(InputError(one_line(error)))
    except KeyboardInterrupt:
        tell_how_to_go_on(Path(config.hydra.sweep.dir), config.hydra)


def refuse(error: InputError) -> NoReturn:
    """End the program with one line; Hydra would print where the error came from."""
    if _is_first():
        print(error.line(), file=sys.stderr)
    sys.exit(2)


def tell_how_to_go_on(folder: Path, hydra: Any) -> NoReturn:
    """End the program after Ctrl-C, and say what continues the run or sweep in this folder."""
    if _is_first():
        here = Path.cwd()
        place = folder.absolute()
        place = place.relative_to(here) if place.is_relative_to(here) else place
        own = own_folder(hydra)
        words = [*(["--config-dir", own] if own else []), f"resume={place}"]
        print(f"\nregkit: stopped. To go on: regkit train {shlex.join(words)}", file=sys.stderr)
    sys.exit(130)


def _is_first() -> bool:
    """Say whether this process is the one, of all ranks, that speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


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
