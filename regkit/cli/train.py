"""The verbs `train` and `sweep`, and train.py: Hydra's command line, from any folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from regkit.errors import InputError
from regkit.sweeps.job import resumed, run_job
from regkit.sweeps.sweeper import register_sweepers
from regkit.training.config import check, register, run_dir
from regkit.training.overrides import (
    CONFIGS,
    checked,
    composed_run,
    name_several,
    quote_paths,
    use_own,
)
from regkit.training.progress import is_first
from regkit.training.runs import RunFolder, refuse_unwritable

RUNS = Path("runs")  # as in configs/train.yaml


def train(words: Sequence[str]) -> int:
    """Run what the words ask for, as Hydra does, and return the exit code.

    What can be refused before there is a folder is: names, types and ranges. `sys.argv` is not
    touched: Lightning starts further ranks by it.

    Raises: InputError when a word is wrong. SystemExit when a run is refused or stopped.
    """
    parser = get_args_parser()
    args = _arguments(parser, resumed(quote_paths(words)))
    own, name = use_own(args.config_dir), args.config_name or "train"
    register()
    register_sweepers()
    if not (args.help or args.hydra_help or args.shell_completion):
        args.overrides = checked(args.overrides, name, own, args.multirun)
        # Words of several values have passed, so that the configuration is one of a sweep.
        if not (args.multirun or args.cfg or args.info or name_several(args.overrides)):
            _check_run(composed_run(args.overrides, name, own))
    version.setbase("1.3")
    _run_hydra(args, parser, job, str(CONFIGS), "train")
    return 0


def job(config: DictConfig) -> float | None:
    """Run one job."""
    return run_job(config, Path(HydraConfig.get().runtime.output_dir))


def _check_run(config: DictConfig) -> None:
    """Refuse what a run would; of a path and a sweep, each run is checked by itself."""
    swept = config.hydra.mode is not None and config.hydra.mode.name == "MULTIRUN"
    if config.path is None and not swept:
        check(config)
        folder = _folder(config)  # before Hydra writes to it
        refuse_unwritable(folder)
        if is_first() and folder != RUNS and folder.is_dir():  # the first of all ranks owns it
            RunFolder(folder).refuse_if_owned()


def _folder(config: DictConfig) -> Path:
    """Return the folder that was asked for, else the one that a new run's is made in."""
    run: Any = OmegaConf.to_container(config.hydra.run, resolve=False)
    given = str(run["dir"])
    if "${" not in given:
        return Path(given)
    return Path(run_dir(config.ckpt_path, str(RUNS)))


def _arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Read Hydra's flags; words may stand on either side of them.

    Raises: InputError when a flag is unknown, or a word is no key=value.
    """
    parser.exit_on_error = False
    try:
        args, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise InputError(f"train got {' '.join(words)}: {error}.") from error
    for word in rest:
        if word.startswith("-"):
            key = word.lstrip("-").partition("=")[0]
            raise InputError(
                f"train got {word}; options of a run are words without dashes, as {key}=..., and "
                "`regkit train --hydra-help` lists the others."
            )
    shown = [f"--{flag}" for flag in ("run", "multirun", "cfg", "info") if getattr(args, flag)]
    if len(shown) > 1:
        raise InputError(f"train got {' and '.join(shown)}, of which it takes one at a time.")
    args.overrides += rest
    for word in args.overrides:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"train got {word}, which is no key=value, as penalty=l1 is.")
    return args
