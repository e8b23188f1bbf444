"""The parts of the check: each yields rows that say of one case whether it is right.

A row has `case` and `ok`: True, False, or None where the device at hand has no such thing, or
where a figure is only told. What else it has are numbers and words.
"""

import copy
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.benchmarks.gpu import fake_device
from regkit.benchmarks.gpu.cases import (
    EXAMPLE,
    FORMATS,
    LAM,
    LR,
    OPTIMIZERS,
    PAIRS,
    Case,
    Chain,
    Shapes,
    cases,
)
from regkit.benchmarks.gpu.fake_device import Counts, draw_fake_gradients, fake_gpu, to_fake
from regkit.benchmarks.harness import machine
from regkit.benchmarks.step.candidates import make_net, make_penalties, misfits
from regkit.benchmarks.step.rounds import Rounds, contest, count_syncs, measure_rate
from regkit.inference.export.two_four import two_four as to_two_four
from regkit.ops import prox_pass
from regkit.optim.schedule import Schedule
from regkit.penalties import L1, GroupLasso, NMSparsity, TopK
from regkit.pruning.latency import latency
from regkit.pruning.shrink import shrink
from regkit.regularizer.regularizer import Regularizer

Row = dict[str, Any]
# Distances from the reference in float64 after three steps, in units of the weight or of a step.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# Entries that may fall to the other side of a jump, where a rounding decides.
MOST_APART = 1e-3
PACKAGES = (
    *("av", "beartype", "filelock", "hydra", "jaxtyping", "jinja2", "lightning", "matplotlib"),
    *("omegaconf", "PIL", "tensorboard", "torchmetrics", "torchvision", "tqdm", "triton"),
)
HALF = ("l1", "elastic_net", "group_lasso filter")
COUNTED = ("l1", "group_lasso filter", "group_lasso channel", "group_l0 filter", "group_mcp filter")
COUNTED += ("n_m", "temporal_kernel", "nuclear")
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "plain": Schedule,
    "ramp": lambda: Schedule(ramp="cubic", num_steps=100),
    "kept zeros": lambda: Schedule(settle=0.0, num_steps=100),
}


@dataclass(frozen=True)
class Where:
    """A device to be checked; on a CPU the check is a rehearsal of what needs no GPU."""

    device: torch.device

    @property
    def is_gpu(self) -> bool:
        """Say whether it is a GPU."""
        return self.device.type == "cuda"


Part = Callable[[Where], Iterable[Row]]


def environment(where: Where) -> Iterator[Row]:
    """Say what machine this is, and which packages it lacks."""
    if where.is_gpu:
        found = torch.cuda.get_device_properties(where.device)
        yield {
            "case": found.name,
            "ok": True,
            "capability": f"{found.major}.{found.minor}",
            "memory_gib": round(found.total_memory / 2**30, 1),
            "num_processors": found.multi_processor_count,
        }
    yield {"case": "machine", "ok": True, **machine(["torch", "triton", "numpy"])}
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    yield {"case": "packages that are not there", "ok": None, "lacking": lacking}


def values(where: Where) -> Iterator[Row]:
    """Take three steps of every penalty, and compare with torch's operations in float64."""
    for case in cases(("AdamW(fused)", "ProxAdamW")):
        yield _compared(case, where)
    for case in cases(("SGD(foreach)", "ProxSGD")):
        if case.name.startswith(("l1,", "mcp,", "group_lasso filter")):
            yield _compared(case, where)
    for case in cases(("AdamW(fused)", "ProxAdamW", "ProxSGD")):
        if case.name.startswith(("l1,", "group_lasso")):
            yield _compared(case, where, layout="channels_last")
        if where.is_gpu and case.name.startswith(tuple(f"{name}," for name in HALF)):
            for dtype in (torch.bfloat16, torch.float16):
                yield _compared(case, where, dtype)


def _compared(
    case: Case, where: Where, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> Row:
    made = _seeded(case.net).to(dtype=dtype, memory_format=FORMATS[layout])  # pyright: ignore[reportCallIssue]: Module.to takes both
    net, twin = made.to(where.device), copy.deepcopy(made).to("cpu", torch.float64)
    step, _ = _stepper(case, net, 3)
    with patch.dict(prox_pass.BACKENDS, clear=True):
        twins, _ = _stepper(case, twin, 3)
        for _ in range(3):
            twins()
    for _ in range(3):
        step()
    largest, apart, num = 0.0, 0, 0
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        distance = (ours.detach().double().cpu() - theirs.detach()).abs()
        distance /= theirs.detach().abs().clamp(min=LR)
        distance = distance.nan_to_num(nan=float("inf"))
        far = distance > TOLERANCE[dtype]
        apart, num = apart + int(far.sum()), num + far.numel()
        largest = max(largest, float(distance.masked_fill(far, 0.0).max()))
    share = apart / num
    name = f"{case.name}, {str(dtype)[6:]}, {layout}"
    return {"case": name, "ok": share <= MOST_APART, "apart": share, "largest_of_the_rest": largest}


def neutral(where: Where) -> Iterator[Row]:
    """Train 200 steps by the fused optimizers at a strength of 0, and by torch's own."""
    for torchs, own in PAIRS:
        nets = [_seeded(Shapes).to(where.device) for _ in range(2)]
        steps = [
            _stepper(Case("", (L1(0.0),), own), nets[0], 200)[0],
            _plain_stepper(torchs, nets[1], 200),
        ]
        for _ in range(200):
            for step in steps:
                step()
        largest = _distance(*nets)
        yield {"case": f"{own} as {torchs}", "ok": largest < 1e-4, "largest": largest}


def asked(where: Where) -> Iterator[Row]:
    """Count what a step asks of the device: planned on a fake one, found on this one."""
    known = {case.name: case for case in cases(OPTIMIZERS)}
    with fake_gpu() as count:
        planned = {
            (name, how): _counted(case, make(), count)
            for how, make in SCHEDULES.items()
            for name, case in known.items()
            if name.rpartition(",")[0] in (COUNTED if how == "plain" else COUNTED[:2])
        }
    for (name, how), counts in planned.items():
        decomposes = any(getattr(penalty, "joint", False) for penalty in known[name].penalties)
        row: Row = {"case": f"{name}, {how}", "ok": decomposes or not counts.waits}
        row |= _told(counts)
        if where.is_gpu:
            row |= _found(known[name], SCHEDULES[how](), where)
            as_planned = row["found"] == row["launches"]
            row["ok"] = as_planned and (decomposes or row["found_waits"] == 0)
        yield row


def _counted(case: Case, schedule: Schedule, count: Callable[..., Counts]) -> Counts:
    net = case.net()
    reg = Regularizer(net, case.penalties, schedule=schedule, example=EXAMPLE)
    optimizer = case.make_optimizer(to_fake(net))
    reg.attach(optimizer)
    for _ in range(3):
        draw_fake_gradients(net)
        count(optimizer.step)
    _slow_down(optimizer)
    draw_fake_gradients(net)
    return count(optimizer.step)


def _told(counts: Counts) -> Row:
    return {
        "launches": dict(counts.launches),
        "ops": counts.ops.total(),
        "copies": dict(counts.copies),
        "waits": counts.waits,
    }


def _found(case: Case, schedule: Schedule, where: Where) -> Row:
    net = _seeded(case.net).to(where.device)
    step, optimizer = _stepper(case, net, 6, schedule)
    for _ in range(3):
        step()
    _slow_down(optimizer)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize(where.device)
    events = [event for event in profile.events() or () if event.device_type.name == "CUDA"]
    names = [name for _, name in fake_device.KERNELS]
    found = Counter(name for event in events for name in names if event.name.startswith(name))
    return {"found": dict(found), "found_kernels": len(events), "found_waits": count_syncs(step)}


def graphs(where: Where) -> Iterator[Row]:
    """Capture a step, and replay it with other gradients and learning rates."""
    for optimizer in ("AdamW(capturable)", "ProxAdamW"):
        for penalty in (L1(LAM), GroupLasso(LAM)):
            name = f"{type(penalty).__name__}, {optimizer}"
            if not where.is_gpu:
                yield {"case": name, "ok": None, "needs": "a GPU"}
                continue
            yield _replayed(Case(name, (penalty,), optimizer), where)


def _replayed(case: Case, where: Where) -> Row:
    nets = [_seeded(Shapes).to(where.device) for _ in range(2)]
    gradients = _Gradients(nets[0], 20)
    optimizers = []
    for net in nets:
        lr = torch.tensor(LR, device=where.device)
        optimizer = case.make_optimizer(net, lr=lr)
        Regularizer(net, case.penalties, schedule=Schedule(holds_zeros=False)).attach(optimizer)
        optimizers.append(optimizer)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(where.device)
    stream.wait_stream(torch.cuda.current_stream(where.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients.draw()
            for net, optimizer in zip(nets, optimizers, strict=True):
                gradients.give(net)
                optimizer.step()
    torch.cuda.current_stream(where.device).wait_stream(stream)
    before = [p.detach().clone() for p in nets[0].parameters()]
    with torch.cuda.graph(graph, stream=stream):
        optimizers[0].step()
    still = all(map(torch.equal, before, nets[0].parameters()))
    for _ in range(5):
        gradients.draw()
        for net, optimizer in zip(nets, optimizers, strict=True):
            gradients.give(net)
            optimizer.param_groups[0]["lr"].mul_(0.7)
        graph.replay()
        optimizers[1].step()
    largest = _distance(*nets)
    return {"case": case.name, "ok": still and largest < 1e-4, "largest": largest}


def scaling(where: Where) -> Iterator[Row]:
    """Let a loss scaler skip a step whose gradients are not finite, and divide by its scale."""
    for optimizer in ("AdamW(fused)", "ProxAdamW", "ProxSGD"):
        case = Case(f"L1, {optimizer}", (L1(LAM),), optimizer)
        options = {"amp_scaling": True} if optimizer.startswith("Prox") else {}
        nets = [_seeded(Shapes).to(where.device) for _ in range(2)]
        gradients = _Gradients(nets[0], 10)
        made = [case.make_optimizer(nets[0], **options), case.make_optimizer(nets[1])]
        for net, one in zip(nets, made, strict=True):
            Regularizer(net, case.penalties).attach(one)
        scaler = torch.amp.GradScaler(where.device.type, init_scale=1024.0, growth_interval=1000)
        scaler.scale(torch.zeros((), device=where.device))  # begins its state
        for place in range(6):
            gradients.draw()
            gradients.give(nets[0])
            gradients.give(nets[1])
            grads = [p.grad for p in nets[0].parameters() if p.grad is not None]
            torch._foreach_mul_(grads, float(scaler.get_scale()))  # pyright: ignore[reportPrivateImportUsage]: no public name
            if skipped := place in (2, 3):
                grads[0].view(-1)[0] = float("inf")
            scaler.step(made[0])
            scaler.update()
            if not skipped:
                made[1].step()
        largest = _distance(*nets)
        yield {"case": case.name, "ok": largest < 1e-4, "largest": largest}


def streams(where: Where) -> Iterator[Row]:
    """Step on one stream after the other, without a wait of the host in between."""
    case = Case("L1 and GroupLasso, ProxAdamW", (L1(LAM), GroupLasso(LAM)), "ProxAdamW", Chain)
    if not where.is_gpu:
        yield {"case": case.name, "ok": None, "needs": "a GPU"}
        return
    nets = [_seeded(case.net).to(where.device) for _ in range(2)]
    steps = [_stepper(case, net, 10)[0] for net in nets]
    for _ in range(10):
        steps[1]()
    used = [torch.cuda.Stream(where.device) for _ in range(2)]
    torch.cuda.synchronize(where.device)
    for turn in range(10):
        now, before = used[turn % 2], used[1 - turn % 2]
        now.wait_stream(before)
        with torch.cuda.stream(now):
            steps[0]()
    torch.cuda.synchronize(where.device)
    largest = _distance(*nets)
    yield {"case": case.name, "ok": largest == 0.0, "largest": largest}


def memory(where: Where) -> Iterator[Row]:
    """Look at what is still held between two steps."""
    for optimizer in ("AdamW(fused)", "ProxAdamW", "ProxSGD"):
        case = Case(f"L1, {optimizer}", (L1(LAM),), optimizer)
        net = _seeded(case.net).to(where.device)
        step, made = _stepper(case, net, 30)
        for _ in range(25):
            step()
        kept = [weakref.ref(p.grad) for p in net.parameters() if p.grad is not None]
        made.zero_grad(set_to_none=True)
        alive = sum(grad() is not None for grad in kept)
        row: Row = {"case": case.name, "ok": alive == 0, "gradients_held": alive}
        if where.is_gpu:
            num = sum(p.numel() for p in net.parameters())
            row["bytes_a_weight"] = round(torch.cuda.memory_allocated(where.device) / num, 2)
        yield row
        del step, made, net


def speed(where: Where) -> Iterator[Row]:
    """Time steps against torch's own optimizers, in turns; on a GPU of r3d_18."""
    torch.manual_seed(0)
    net = make_net("r3d_18" if where.is_gpu else "synthetic", 3e4).to(where.device)
    clip = torch.randn(2, 3, 8, 64, 64, device=where.device)
    num = sum(p.numel() for p in net.parameters())
    rate = measure_rate(num, where.device)
    yield {"case": f"rate of {rate.what}", "ok": None, "gb_s": rate.gb_s}
    names = ["l1", "elastic_net", "mcp", "group_lasso", "group_l0", "group_mcp", "n_m"]
    wanted = make_penalties(names, 1e-6, ["filter", "in_channel"])
    left_out = misfits(net, wanted, clip[:1])
    fitting = {name: penalty for name, penalty in wanted.items() if name not in left_out}
    rounds = Rounds(30, 5, 3) if where.is_gpu else Rounds(2, 1, 0)
    for rows in contest(net, clip, fitting, rounds, rate, 1e-6):
        for row in rows:
            name = f"{row.penalty or 'no penalty'}, {row.contestant}"
            yield {"case": name, "ok": None, **asdict(row)}


def shrunk(where: Where) -> Iterator[Row]:
    """Zero half of the channels, cut them out, and measure both nets."""
    name = "r3d_18" if where.is_gpu else "synthetic"
    torch.manual_seed(0)
    net = make_net(name, 3e4).to(where.device)
    clip = torch.randn(4, 3, 8, 64, 64, device=where.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    reg = Regularizer(net, TopK(0.5, groups="channel"), example=clip[:1])
    reg.attach(optimizer)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    reg.detach()
    net.eval()
    small, report = shrink(net, clip[:1])
    found = latency({"dense": net, "shrunk": small.eval()}, clip)
    ratio = found["dense"].median / found["shrunk"].median
    yield {
        "case": f"{name}, half of its channels",
        "ok": report.max_difference <= 1e-4 * report.max_output,
        "difference": report.max_difference,
        "dense_ms": 1e3 * found["dense"].median,
        "shrunk_ms": 1e3 * found["shrunk"].median,
        "times_faster": ratio,
    }


def two_four(where: Where) -> Iterator[Row]:
    """Convert a linear layer of 2:4 sparsity, and time it beside the dense one."""
    case = "linear 4096 x 4096, 2:4"
    if not where.is_gpu:
        yield {"case": case, "ok": None, "needs": "a GPU"}
        return
    layer = nn.Linear(4096, 4096, bias=False, device=where.device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.weight.grad = torch.zeros_like(layer.weight)
    Regularizer(layer, NMSparsity(1e3)).attach(optimizer)
    optimizer.step()
    net = nn.Sequential(layer).to(torch.bfloat16)
    x = torch.randn(2048, 4096, device=where.device, dtype=torch.bfloat16)
    found = to_two_four(net)
    with torch.inference_mode():
        far = float((found.model(x) - net(x)).abs().max() / net(x).abs().max())
    times = latency({"dense": net, "sparse": found.model}, x, 1.0)
    ratio = times["dense"].median / times["sparse"].median
    yield {"case": case, "ok": bool(found.sparse) and far < 1e-2, "times_faster": ratio, "far": far}


def training(where: Where) -> Iterator[Row]:
    """Train the main job for an epoch, with augmentation on the device."""
    case = "one epoch of the main job"
    lacking = [n for n in ("av", "hydra", "lightning", "omegaconf", "torchmetrics") if _lacks(n)]
    if lacking:
        yield {"case": case, "ok": None, "needs": lacking}
        return
    words = ["penalty=l1", "trainer.max_epochs=1", "data.num_train=48", "data.num_test=12"]
    words += ["data.num_val=12", f"trainer.accelerator={'gpu' if where.is_gpu else 'cpu'}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "regkit", "train", *words, f"hydra.run.dir={folder}/run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        wrote = (Path(folder) / "run" / "summary.json").is_file()
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:]
    yield {"case": case, "ok": done.returncode == 0 and wrote, "said": last}


def sanitizer(where: Where) -> Iterator[Row]:
    """Run a few steps under compute-sanitizer, where it is installed."""
    case, program = "L1 and GroupLasso, ProxAdamW", shutil.which("compute-sanitizer")
    if not where.is_gpu or program is None:
        yield {"case": case, "ok": None, "needs": "a GPU and compute-sanitizer"}
        return
    script = "from regkit.benchmarks.gpu.parts import few_steps; few_steps()"
    command = [program, "--error-exitcode", "9", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    yield {"case": case, "ok": done.returncode == 0, "said": done.stdout.splitlines()[-1:]}


def few_steps() -> None:
    """Take a few steps on a GPU; for `sanitizer`."""
    case = Case("", (L1(LAM), GroupLasso(LAM)), "ProxAdamW", Chain)
    step, _ = _stepper(case, Chain().cuda(), 3)
    for _ in range(3):
        step()
    torch.cuda.synchronize()


class _Gradients:
    """Gradients of unlike scale, drawn on the CPU, so that all devices get the same.

    They keep their memory, as `zero_grad(set_to_none=False)` does; `give` copies them.
    """

    def __init__(self, net: nn.Module, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes = [p.shape for p in net.parameters()]
        self.values: list[Tensor] = []

    def draw(self) -> None:
        self.values = [
            torch.randn(shape, generator=self.generator) * 1e-2 * 2.0 ** (place % 5)
            for place, shape in enumerate(self.shapes)
        ]

    def give(self, net: nn.Module) -> None:
        for p, value in zip(net.parameters(), self.values, strict=True):
            if p.grad is None:
                p.grad = torch.empty_like(p)
            p.grad.copy_(value.to(p.grad.device))


def _stepper(
    case: Case, net: nn.Module, num_steps: int, schedule: Schedule | None = None
) -> tuple[Callable[[], None], Optimizer]:
    """Return what takes the next of some steps, with gradients that all devices share.

    They are on the device before the first step, rounded to float16 so that every type has them.
    """
    optimizer = case.make_optimizer(net)
    with _quiet():
        example = EXAMPLE.to(next(net.parameters()))
        Regularizer(net, case.penalties, schedule=schedule, example=example).attach(optimizer)
    return _prepared(net, optimizer, num_steps), optimizer


def _plain_stepper(optimizer: str, net: nn.Module, num_steps: int) -> Callable[[], None]:
    return _prepared(net, OPTIMIZERS[optimizer](net.parameters()), num_steps)


def _prepared(net: nn.Module, optimizer: Optimizer, num_steps: int) -> Callable[[], None]:
    gradients, drawn = _Gradients(net, 10), []
    parameters = list(net.parameters())
    for _ in range(min(num_steps, 10)):
        gradients.draw()
        drawn.append(
            [
                torch.empty_like(p).copy_(value.half())
                for p, value in zip(parameters, gradients.values, strict=True)
            ]
        )
    turns = iter(range(1 << 30))

    def step() -> None:
        for p, value in zip(parameters, drawn[next(turns) % len(drawn)], strict=True):
            p.grad = value.clone()
        with _quiet():
            optimizer.step()

    return step


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings of weights in half precision, which are wanted here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def _slow_down(optimizer: Optimizer) -> None:
    """Change the learning rate, as a scheduler does at every step."""
    for group in optimizer.param_groups:
        group["lr"] *= 0.99


def _distance(one: nn.Module, other: nn.Module) -> float:
    """Return the largest distance of two nets' weights, in units of the weight or of a step."""
    largest = 0.0
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        distance = (a.detach() - b.detach()).abs() / b.detach().abs().clamp(min=LR)
        largest = max(largest, float(distance.nan_to_num(nan=float("inf")).max()))
    return largest


def _lacks(package: str) -> bool:
    return importlib.util.find_spec(package) is None


# The parts in their order, each with the seconds that it may take.
PARTS: Mapping[str, tuple[Part, float]] = {
    "environment": (environment, 30.0),
    "values": (values, 150.0),
    "neutral": (neutral, 30.0),
    "asked": (asked, 90.0),
    "graphs": (graphs, 40.0),
    "scaling": (scaling, 30.0),
    "streams": (streams, 30.0),
    "memory": (memory, 30.0),
    "speed": (speed, 120.0),
    "shrunk": (shrunk, 60.0),
    "two_four": (two_four, 30.0),
    "training": (training, 90.0),
    "sanitizer": (sanitizer, 60.0),
}
