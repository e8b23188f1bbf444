"""How many devices a run may ask for."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed import is_available, is_torchelastic_launched

from regkit.errors import InputError

# Processes that the CPU of any machine may run: two ranks are tried out on a single core.
ALWAYS = 2


def refuse_missing_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse more devices than there are: Lightning would start a process for each, and hang.

    trainer: the options of Lightning's Trainer.
    Raises: InputError. Other accelerators than CPU and GPU are left to Lightning.
    """
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    num_gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and num_gpus > 0):
        # Whoever starts the ranks may let each see its own GPU alone.
        one_each = num_gpus == 1 and is_available() and is_torchelastic_launched()
        there = None if one_each else num_gpus
        says = "there is no GPU" if num_gpus == 0 else f"GPUs there are: {num_gpus}"
    elif accelerator in ("cpu", "auto"):
        there = max(ALWAYS, os.cpu_count() or 1)
        says = f"on this CPU there is room for {there} processes"
    else:
        return
    if there is None or _num_wanted(devices) <= there:
        return
    ways = [f"trainer.devices={there} or less"] if there > 0 else []
    ways += ["trainer.accelerator=cpu"] if there == num_gpus else []
    raise InputError(
        f"trainer.devices={devices} was given with trainer.accelerator={accelerator}, and {says}. "
        f"Give {' or '.join(ways)}."
    )


def _num_wanted(devices: Any) -> int:
    """Return how many devices there have to be, 0 where Lightning is to find out."""
    if isinstance(devices, str) and "," in devices:
        devices = [part.strip() for part in devices.split(",") if part.strip()]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return 1 + max((_num_wanted(index) for index in devices), default=-1)
    return int(devices) if str(devices).strip().isdigit() else 0
