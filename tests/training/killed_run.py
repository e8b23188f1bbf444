"""A run (CONFIG.yaml FOLDER) that kills itself at the moment that $KILL_AT names.

seconds:1.5, or before or after a call: the n-th step, file moved to its place, picture; half-way in
the n-th copy of a checkpoint; before the n-th checkpoint is written.
"""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from regkit.lightning.monitors import pictures
from regkit.training.checkpoints import WholeFiles
from regkit.training.fit import fit
from regkit.training.keep import KeepCheckpoints


def die(*_: Any) -> None:
    """End this process as it is; its loaders' workers see that and end too."""
    os.kill(os.getpid(), signal.SIGKILL)


def half_copied(source: Any, target: Any) -> None:
    """Copy half of a file, and die."""
    with open(source, "rb") as file, open(target, "wb") as half:
        half.write(file.read()[: os.path.getsize(source) // 2])
    die()


def at_call(owner: Any, name: str, number: int, act: Callable[..., Any], after: bool) -> None:
    """Act in place of, or after, the n-th call of a function."""
    whole, count = getattr(owner, name), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and not after:
            return act(*args)
        result = whole(*args, **options)
        if count == number:
            act()
        return result

    setattr(owner, name, counted)


CALLS: dict[str, tuple[Any, str, Callable[..., Any], bool]] = {
    "step": (KeepCheckpoints, "on_train_batch_end", die, False),
    "stepped": (KeepCheckpoints, "on_train_batch_end", die, True),
    "move": (os, "replace", die, False),
    "moved": (os, "replace", die, True),
    "copy": (shutil, "copyfile", half_copied, False),
    "checkpoint": (WholeFiles, "save_checkpoint", die, False),
    "picture": (pictures, "write_png", die, False),
    "drawn": (pictures, "write_png", die, True),
}


def aim(moment: str) -> None:
    """Have this process die then."""
    kind, _, when = moment.partition(":")
    if kind == "seconds":
        timer = threading.Timer(float(when), die)
        timer.daemon = True
        timer.start()
    else:
        owner, name, act, after = CALLS[kind]
        at_call(owner, name, int(when), act, after)


if __name__ == "__main__":
    if moment := os.environ.get("KILL_AT"):
        aim(moment)
    config = OmegaConf.load(sys.argv[1])
    assert isinstance(config, DictConfig)
    fit(config, Path(sys.argv[2]))
