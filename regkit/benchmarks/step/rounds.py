"""The contest: clocks, rounds in which all take turns, and the figures they leave."""

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from regkit.benchmarks.harness import Sample, quartiles, ratios, run_rounds
from regkit.benchmarks.step.candidates import (
    ADAMW_BYTES,
    FOREACH,
    FUSED,
    Contestant,
    baselines,
    draw_gradients,
    make_small_layers,
    naive,
    penalised,
)
from regkit.benchmarks.step.report import HostRow, Rate, Row
from regkit.errors import InputError
from regkit.penalties import WeightPenalty
from regkit.timing import seconds, take_turns

Step = Callable[[], Any]
# Entries of the arrays that the rate is measured on: as the net has, within these.
LEAST_ENTRIES, MOST_ENTRIES = 1 << 16, 1 << 26
RATE_ROUNDS = 12
# Tensors of the nets that the host's time is measured on.
HOST_TENSORS = (400, 2000)
# Cycles of a GPU's clock in a millisecond, at 2 GHz.
CYCLES_PER_MS = 2_000_000
# Names in a trace of the host's calls that put a kernel on a queue.
LAUNCH = re.compile(r"cu(da)?(GraphLaunch|Launch(Cooperative)?Kernel)")
SYNCHRONIZING = "synchronizing CUDA operation"


class Training:
    """Forward and backward of one net on one random clip."""

    def __init__(self, net: nn.Module, clip: Tensor) -> None:
        self.net = net
        self.clip = clip

    def __call__(self) -> None:
        """Fill the gradients of the net.

        Raises: InputError when the net does not take the clip.
        """
        self.net.zero_grad(set_to_none=True)
        try:
            scores = self.net(self.clip)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            shape = "x".join(str(length) for length in self.clip.shape[2:])
            raise InputError(
                f"--clip got {shape}, which the model does not take ({error}). Give the size it "
                "was made for, for instance --clip 16x224x224; --train-rounds 0 leaves forward "
                "and backward out."
            ) from error
        label = torch.zeros(len(self.clip), dtype=torch.long, device=self.clip.device)
        cross_entropy(scores, label).backward()


def time_step(step: Step, device: torch.device) -> dict[str, float]:
    """Return the time of a step in ms, by clock; on a GPU it is taken twice.

    wall: until all is done. host: until the call is back. gpu: between two marks on the queue,
    behind a pause that lets the host run ahead, so that its time is not in this one.
    """
    began = time.perf_counter()
    step()
    if device.type == "cpu":
        return {"wall": (time.perf_counter() - began) * 1e3}
    host = (time.perf_counter() - began) * 1e3
    torch.cuda.synchronize(device)
    wall = (time.perf_counter() - began) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int((host + 0.1) * CYCLES_PER_MS))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return {"gpu": start.elapsed_time(end), "host": host, "wall": wall}


def time_training(training: Step, step: Step, device: torch.device) -> float:
    """Return the time of forward, backward and step together, in ms."""
    return 1e3 * seconds(lambda: (training(), step()), [device])


def measure_rate(num_entries: int, device: torch.device) -> Rate:
    """Return the best rate of simple kernels on arrays as large as a net of so many entries.

    On a GPU a copy from device to device. On a CPU a copy reads what it only writes, so the
    ceiling is the best kernel that works in place.
    """
    n = min(max(num_entries, LEAST_ENTRIES), MOST_ENTRIES)
    if device.type == "cuda":
        source = torch.empty(n * ADAMW_BYTES // 8, device=device)
        target = torch.empty_like(source)
        kernels = {"a copy on the device": (lambda: target.copy_(source), 8 * len(source))}
    else:
        p = nn.Parameter(torch.zeros(n))
        p.grad = torch.ones(n)
        adamw = AdamW([p], fused=True)
        kernels = {
            "mul_ in place on one array": (lambda: p.data.mul_(0.999), 8 * n),
            "AdamW(fused=True) on one array": (adamw.step, ADAMW_BYTES * n),
        }
    best = Rate(0.0, "")
    for what, (step, num_bytes) in kernels.items():
        for turn in range(RATE_ROUNDS):
            times = time_step(step, device)
            gb_s = num_bytes / times.get("gpu", times["wall"]) / 1e6
            if turn > 0 and gb_s > best.gb_s:
                best = Rate(gb_s, what)
    return best


def count_launches(step: Step) -> int:
    """Return how many kernels a step puts on the GPU's queue."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return num_launches(event.name for event in profile.events() or ())


def num_launches(names: Iterable[str]) -> int:
    """Return how many of these calls put a kernel on a queue."""
    return sum(LAUNCH.match(name) is not None for name in names)


def count_syncs(step: Step) -> int:
    """Return how often a step makes the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return num_syncs([str(warning.message) for warning in caught])


def num_syncs(messages: Sequence[str]) -> int:
    """Return how many of these warnings tell of a wait for the GPU."""
    return sum(SYNCHRONIZING in message for message in messages)


@dataclass(frozen=True)
class Rounds:
    """How often: steps that count, steps before them, and whole training steps."""

    steps: int
    warmup: int
    training: int


def contest(
    net: nn.Module,
    clip: Tensor,
    penalties: Mapping[str, WeightPenalty],
    rounds: Rounds,
    rate: Rate,
    lam: float,
) -> Iterator[list[Row]]:
    """Time the baselines, then the penalties one after the other against them.

    Only four copies of the weights and their states are alive at a time.
    """
    training = Training(net, clip)
    gradients = draw_gradients(net)
    plain = baselines(net, gradients)
    yield _heat(None, plain, naive(net, gradients, lam), training, rounds, rate)
    for name, penalty in penalties.items():
        entrants = penalised(net, gradients, penalty, clip[:1])
        yield _heat(name, plain, entrants, training, rounds, rate)


def _heat(
    penalty: str | None,
    plain: Sequence[Contestant],
    entrants: Sequence[Contestant],
    training: Training,
    rounds: Rounds,
    rate: Rate,
) -> list[Row]:
    device = training.clip.device
    everyone = [*plain, *entrants]
    samples = run_rounds(
        everyone, rounds.warmup, rounds.steps, lambda c, _: time_step(c.step, device)
    )
    shown = everyone if penalty is None else entrants
    whole = take_turns(shown, rounds.training, lambda c, _: time_training(training, c.step, device))
    training.net.zero_grad(set_to_none=True)
    return [row_of(penalty, c, samples, whole[c.name], rate, device) for c in shown]


def contest_of_hosts(
    num_tensors: int, penalties: Mapping[str, WeightPenalty], rounds: Rounds, device: torch.device
) -> list[HostRow]:
    """Time what the host does in a step, on tensors that cost nothing and with new gradients.

    The penalties take turns with plain AdamW, all in the same rounds.
    """
    net = make_small_layers(num_tensors).to(device)
    gradients = draw_gradients(net)
    everyone = [(None, baselines(net, gradients)[0])]
    for name, penalty in penalties.items():
        entrants = penalised(net, gradients, penalty, torch.zeros(1, 4, device=device))
        everyone += [(name, replace(c, name=f"{name}, {c.name}")) for c in entrants]
    samples = run_rounds(
        [c for _, c in everyone],
        rounds.warmup,
        rounds.steps,
        lambda c, _: time_host(c),
    )
    found = []
    for penalty, contestant in everyone:
        own = samples[contestant.name]
        us = quartiles([{"host": sample["host"] * 1e3 / num_tensors} for sample in own])["host"]
        to_fused = ratios(own, samples[FUSED])["host"]
        name = contestant.name.rpartition(", ")[2]
        found.append(HostRow(num_tensors, penalty, name, us, to_fused))
    return found


def time_host(contestant: Contestant) -> Sample:
    """Return the time in ms that the calling thread works on a step with new gradients."""
    for p in contestant.net.parameters():
        p.grad = torch.ones_like(p)
    began = time.thread_time()
    contestant.step()
    return {"host": (time.thread_time() - began) * 1e3}


def row_of(
    penalty: str | None,
    contestant: Contestant,
    samples: Mapping[str, Sequence[Sample]],
    whole: Sequence[float],
    rate: Rate,
    device: torch.device,
) -> Row:
    """Sum up what one contestant's clocks have shown, against the baselines of its rounds."""
    own, fused, foreach = (samples[name] for name in (contestant.name, FUSED, FOREACH))
    clock = next(iter(own[0]))
    ms = quartiles(own)
    gb_s = contestant.num_bytes / ms[clock].median / 1e6
    training_ms = median(whole) if whole else None
    on_gpu = device.type == "cuda"
    return Row(
        penalty=penalty,
        contestant=contestant.name,
        ms=ms,
        to_fused=ratios(own, fused),
        to_foreach=ratios(own, foreach),
        fused_ms=median(sample[clock] for sample in fused),
        foreach_ms=median(sample[clock] for sample in foreach),
        num_bytes=contestant.num_bytes,
        gb_s=gb_s,
        of_rate=gb_s / rate.gb_s,
        training_ms=training_ms,
        share=None if training_ms is None else ms[clock].median / training_ms,
        launches=count_launches(contestant.step) if on_gpu else None,
        syncs=count_syncs(contestant.step) if on_gpu else None,
    )
