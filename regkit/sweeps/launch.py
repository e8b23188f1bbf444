"""Launch jobs, whatever becomes of one of them, and wherever it runs."""

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf, open_dict

log = logging.getLogger(__name__)


def job_folder(config: Any, number: int) -> Path:
    """Return the folder that Hydra will give a job of a sweep.

    config: of the job, composed by Hydra (`load_sweep_config`).
    number: of the job.
    """
    setup_globals()
    own = copy.deepcopy(config)
    with open_dict(own):
        own.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(own)
    try:
        return Path(own.hydra.sweep.dir) / str(own.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before


def launch(
    launcher: Launcher, jobs: Sequence[list[str]], first: int, folders: Sequence[Path]
) -> list[JobReturn]:
    """Launch jobs and say what became of each, in their order.

    A launcher gives up on all when the process of one is lost (killed, or the memory was full):
    joblib takes the others down, submitit and Ray let them end, and none says which it was. So
    whatever has left neither a summary nor a failure is launched again, each job alone.

    first: number of the first job.
    folders: of the jobs; each is there for one job only.
    """
    before = [_failed_at(folder) for folder in folders]
    try:
        return list(launcher.launch(jobs, initial_job_idx=first))
    except Exception as error:
        if len(jobs) == 1:
            log.error("job %d was lost: %s", first, _first_line(error))
            return [_failure(jobs[0], error)]
        log.warning(
            "jobs %d to %d: the process of one was lost (%s); those that are not done are "
            "launched again, one at a time",
            *(first, first + len(jobs) - 1, _first_line(error)),
        )
    results = []
    for number, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
        if (folder / "summary.json").is_file():
            results.append(JobReturn(job, status=JobStatus.COMPLETED))
        elif _failed_at(folder) != before[number]:
            message = (folder / "failed.txt").read_text().partition("\n")[0]
            results.append(_failure(job, RuntimeError(message)))
        else:
            results += launch(launcher, [job], first + number, [folder])
    return results


def own_gpu(number: int) -> str:
    """Return the GPU of a job of a sweep, for CUDA_VISIBLE_DEVICES: jobs take turns.

    A process that has already computed on a GPU stays with that one.

    number: of the job.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = [str(index) for index in range(torch.cuda.device_count())]
    else:
        gpus = [gpu for gpu in visible.split(",") if gpu]
    return gpus[number % len(gpus)] if gpus else ""


def register_launches() -> None:
    """Make `${own_gpu:}` known, for configs/hydra/launcher."""
    OmegaConf.register_new_resolver("own_gpu", own_gpu, replace=True)


def _failure(job: list[str], error: Exception) -> JobReturn:
    return JobReturn(job, status=JobStatus.FAILED, _return_value=error)


def _failed_at(folder: Path) -> int | None:
    path = folder / "failed.txt"
    return path.stat().st_mtime_ns if path.is_file() else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
