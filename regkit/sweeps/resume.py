"""resume=FOLDER: the words with which a run or a sweep was started, once more in its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from regkit.errors import InputError

WORD = "resume="
# Of Hydra's own overrides, what says where and how the jobs of a sweep ran.
_OF_SWEEPS = ("hydra.sweep", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
_PLACES = ("hydra.mode", "hydra.run.dir", "hydra.sweep.dir")


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
        started = _started(sweep, _PLACES, own is not None)
        return ["-m", *started, f"hydra.sweep.dir='{folder}'", *rest]
    if run.is_file():
        if {"-m", "--multirun"} & set(rest):
            raise InputError(f"resume={folder} is one run, and no sweep; take it up without -m.")
        started = _started(run, (*_PLACES, *_OF_SWEEPS), own is not None)
        return [*started, f"hydra.run.dir='{folder}'", *rest]
    raise InputError(
        f"resume={folder} was given, where no run and no sweep was started: it has neither "
        "multirun.yaml nor config/hydra.yaml. Give a folder below runs."
    )


def own_folder(hydra: Any) -> str | None:
    """Return the folder of --config-dir that a run or sweep was started with."""
    sources = hydra.runtime.config_sources
    return next((str(s.path) for s in sources if s.provider == "command-line"), None)


def _started(path: Path, without: tuple[str, ...], own_given: bool) -> list[str]:
    """Return the words of a run or sweep, but those that begin so.

    own_given: whether a folder with the user's own plugs is; the one that is noted there is not
        taken, for Python would run what lies in it, and the run may be somebody else's.
    """
    try:
        hydra: Any = OmegaConf.load(path).hydra
        words = [*hydra.overrides.hydra, *hydra.overrides.task]
        name, own = hydra.job.config_name, own_folder(hydra)
    except Exception as error:
        raise InputError(f"{path} cannot be read as Hydra wrote it: {error}.") from error
    if own is not None and not own_given:
        raise InputError(
            f"The run in {path.parent} was started with --config-dir {own}, whose Python files it "
            "needs. If you trust them, give that folder again."
        )
    kept = [word for word in words if not word.lstrip("+~").startswith(without)]
    return ["-cn", name, *kept]
