"""The verb `bench`: options in, table, file and picture out."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from regkit.benchmarks.harness import machine, read
from regkit.benchmarks.step import report as reports
from regkit.benchmarks.step.candidates import (
    SYNTHETIC,
    make_net,
    make_penalties,
    misfits,
    model_names,
)
from regkit.benchmarks.step.report import Report, draw
from regkit.benchmarks.step.rounds import (
    HOST_TENSORS,
    Rounds,
    Training,
    contest,
    contest_of_hosts,
    measure_rate,
)
from regkit.cli.figures import add_file_options, check_files, check_least, keep, show
from regkit.errors import InputError
from regkit.timing import cpu_name, system_field

# What a file says that it was asked for.
ASKED = (
    *("model", "parameters", "penalties", "lam", "groups", "device"),
    *("rounds", "warmup", "train_rounds", "clip", "batch"),
)
# What the host's time is measured with: entries, and groups.
HOST_PENALTIES = ("l1", "group_lasso")
# Arrays as large as all weights that are alive at once: weights and two moments of four
# contestants, their gradients, the net and its own, and what foreach makes in between.
ARRAYS = 4 * 3 + 1 + 2 + 4


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add = parser.add_argument
    add("--model", default="r3d_18", help=f"{', '.join(model_names())} (default: %(default)s)")
    add(
        "--parameters",
        type=float,
        default=300e6,
        help=f"size of the {SYNTHETIC} model (default: 300e6)",
    )
    add(
        "--penalties",
        nargs="+",
        default=[],
        metavar="NAME",
        help="module names, such as l1 group_lasso (default: all that decompose no matrix)",
    )
    add("--lam", type=float, default=1e-6, help="strength of every penalty (default: %(default)s)")
    add(
        "--groups",
        nargs="+",
        default=["filter"],
        metavar="KIND",
        help="what the group penalties' groups are, one or more (default: filter)",
    )
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, help="of the CPU (default: as torch has it)")
    add("--rounds", type=int, default=9, help="steps that count (default: %(default)s)")
    add("--warmup", type=int, default=3, help="steps before them (default: %(default)s)")
    add(
        "--train-rounds",
        type=int,
        default=3,
        help="steps with forward and backward; 0 leaves that column out (default: %(default)s)",
    )
    add("--clip", default="8x64x64", help="frames x height x width (default: %(default)s)")
    add("--batch", type=int, default=2, help="clips in a batch (default: %(default)s)")
    add_file_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, and print while it goes on.

    Raises: InputError when an option is out of range.
    """
    check_files(args)
    if args.read is not None:
        found = read(Report, args.read)
        show(reports.everything(found))
    else:
        try:
            found = _measure(args)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"--device {args.device} has too little memory ({str(error).splitlines()[0]}); "
                "give a smaller --model, --parameters, --batch or --clip."
            ) from error
    keep(found, args, draw)


def _measure(args: argparse.Namespace) -> Report:
    device = find_device(args.device)
    rounds, clip_shape = _check_numbers(args)
    penalties = make_penalties(args.penalties, args.lam, args.groups)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = make_net(args.model, args.parameters).to(device)
    num_parameters = sum(p.numel() for p in net.parameters())
    _check_memory(num_parameters, device)
    clip = torch.randn(args.batch, 3, *clip_shape, device=device)
    if rounds.training:
        Training(net, clip)()  # refuses now what it would refuse then, and warms up
        net.zero_grad(set_to_none=True)
    left_out = misfits(net, penalties, clip[:1])
    if args.penalties and left_out:
        raise InputError(next(iter(left_out.values())))
    penalties = {name: p for name, p in penalties.items() if name not in left_out}
    found = Report(
        machine=machine(
            ["triton"],
            device=cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
            cuda=device.type == "cuda",
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        ),
        options={key: value for key, value in vars(args).items() if key in ASKED},
        num_parameters=num_parameters,
        num_tensors=len(list(net.parameters())),
        rate=measure_rate(num_parameters, device),
        left_out=left_out,
        rows=[],
    )
    show(reports.heading(found))
    names = ["baselines", *penalties, ""]
    _progress(0, names)
    for done, rows in enumerate(
        contest(net, clip, penalties, rounds, found.rate, args.lam), start=1
    ):
        _progress(None, names)
        show(map(reports.line, rows))
        found = replace(found, rows=[*found.rows, *rows])
        _progress(done, names)
    show(reports.host_heading())
    some = make_penalties(HOST_PENALTIES, args.lam, ["filter"])
    for num_tensors in HOST_TENSORS:
        host = contest_of_hosts(num_tensors, some, rounds, device)
        show(map(reports.host_line, host))
        found = replace(found, host=[*found.host, *host])
    show(reports.legend(found))
    return found


def _progress(done: int | None, names: list[str]) -> None:
    """Say on a terminal what is running; None takes it away."""
    if not sys.stderr.isatty():
        return
    running = "" if done is None else names[done]
    text = f"[{done}/{len(names) - 1}] {running} ..." if running else ""
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _check_numbers(args: argparse.Namespace) -> tuple[Rounds, tuple[int, int, int]]:
    least = {"rounds": 2, "warmup": 1, "train_rounds": 0, "batch": 1, "threads": 1}
    check_least(args, least)
    lengths = args.clip.split("x")
    if len(lengths) != 3 or not all(n.isdecimal() and int(n) > 0 for n in lengths):
        raise InputError(f"--clip got {args.clip!r}; give frames x height x width, as 8x64x64.")
    frames, height, width = (int(n) for n in lengths)
    return Rounds(args.rounds, args.warmup, args.train_rounds), (frames, height, width)


def find_device(name: str) -> torch.device:
    """Return a device that is here.

    Raises: InputError when it is not.
    """
    allowed = ["cpu"]
    if torch.cuda.is_available():
        allowed += ["cuda", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
    if name not in allowed:
        raise InputError(f"--device got {name!r}; here it is one of {', '.join(allowed)}.")
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _check_memory(num_parameters: int, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = _free_memory(Path("/proc/meminfo"))
    needed = 4 * ARRAYS * num_parameters
    if free is not None and needed > free:
        raise InputError(
            f"--model needs {needed / 2**30:.1f} GiB for {num_parameters:,} parameters, and "
            f"{free / 2**30:.1f} are free. Give a smaller one; {SYNTHETIC} takes --parameters."
        )


def _free_memory(path: Path) -> int | None:
    """Return what Linux could still give; None elsewhere."""
    found = system_field(path, "MemAvailable:")
    return None if found is None else int(found.split()[0]) * 1024
