"""Who takes part: nets, and optimizers with and without a penalty, each on weights of its own."""

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchvision.models import get_model, list_models, video

import regkit.penalties
from regkit.errors import InputError
from regkit.optim.fused_optimizers import ProxAdamW
from regkit.penalties import GroupPenalty, WeightPenalty
from regkit.regularizer.regularizer import Regularizer
from regkit.structure.groups import KINDS

SYNTHETIC = "synthetic"
# Kernels of the synthetic net, in turns: from 27 taps down to 1, as factorised conv nets mix them.
KERNELS = ((3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1))
NUM_STAGES = 4
NUM_CLASSES = 400
# Layers a stage: the first that leaves the narrowest stage this wide. 25 are 303 tensors.
DEPTHS = (25, 12, 6, 3, 1)
LEAST_WIDTH = 16
LR = 1e-3
# Bytes a weight has to move, float32, every array once in and once out.
ADAMW_BYTES = 28  # reads weight, gradient and both moments; writes weight and both moments
PASS_BYTES = 8  # a prox in a pass of its own: reads and writes the weight
GROUP_PASS_BYTES = 12  # of groups: reads for the length, then reads and writes
COUNT_BYTES = 4  # reads the weight

FUSED, FOREACH = "AdamW(fused=True)", "AdamW(foreach=True)"
NAIVE, NAIVE_ITEM = "fused, then blog L1", "fused, then blog L1 + .item()"
HOOK, PROX = "hook", "prox"
# What penalties are attached to: torch's optimizer, and ours of one pass.
REGULARIZED: dict[str, Callable[..., Optimizer]] = {
    HOOK: partial(AdamW, fused=True),
    PROX: ProxAdamW,
}


def model_names() -> list[str]:
    """Return what `make_net` knows."""
    return [*list_models(module=video), SYNTHETIC]


def make_net(name: str, num_parameters: float) -> nn.Module:
    """Make a net with fresh weights.

    num_parameters: of the synthetic net, about.
    Raises: InputError when the name is unknown or the number is below 1e4.
    """
    if name not in model_names():
        raise InputError(f"--model got {name!r}; it is one of {', '.join(model_names())}.")
    if name != SYNTHETIC:
        return get_model(name)
    if not 1e4 <= num_parameters < math.inf:
        raise InputError(f"--parameters got {num_parameters:g}; give a number >= 1e4.")
    return _synthetic(num_parameters)


def _synthetic(num_parameters: float) -> nn.Module:
    """Stack convolutions in stages of doubling width, about this many parameters in all."""
    widths = {depth: max(_width(depth, num_parameters), 1) for depth in DEPTHS}
    depth = next((d for d, width in widths.items() if width >= LEAST_WIDTH), DEPTHS[-1])
    width = widths[depth]
    layers: list[nn.Module] = []
    for before, channels, kernel, stride in _convolutions(depth, width):
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        layers += [
            nn.Conv3d(before, channels, kernel, stride, padding, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
        ]
    head = nn.Linear(width << (NUM_STAGES - 1), _num_classes(num_parameters))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), head)


def _convolutions(depth: int, width: int) -> list[tuple[int, int, tuple[int, int, int], int]]:
    """Return channels in and out, kernel and stride of every convolution."""
    found, before = [], 3
    for stage in range(NUM_STAGES):
        channels = width << stage
        for place in range(depth):
            kernel = KERNELS[place % len(KERNELS)]
            found.append((before, channels, kernel, 1 if place else 2))
            before = channels
    return found


def _width(depth: int, num_parameters: float) -> int:
    """Return the largest width whose net has no more than this many parameters."""

    def size(width: int) -> int:
        head = (width << (NUM_STAGES - 1)) * _num_classes(num_parameters)
        return head + sum(
            (before * math.prod(kernel) + 2) * channels
            for before, channels, kernel, _ in _convolutions(depth, width)
        )

    return bisect_right(range(1 << 16), num_parameters, key=size) - 1


def _num_classes(num_parameters: float) -> int:
    """Return Kinetics' number of classes, fewer where the head would be most of the net."""
    return NUM_CLASSES if num_parameters >= 1e6 else 10


def make_small_layers(num_tensors: int) -> nn.Module:
    """Make a net of so many tensors, with a few weights in each."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(num_tensors // 2)))


@dataclass(frozen=True)
class Contestant:
    """One way to step, on weights of its own.

    num_bytes: what one step has to move.
    """

    name: str
    net: nn.Module
    step: Callable[[], Any]
    num_bytes: int


def penalty_types() -> dict[str, type[WeightPenalty]]:
    """Return the weight penalties by the name of their module, those of groups at the end."""
    exported = (getattr(regkit.penalties, name) for name in regkit.penalties.__all__)
    found = {
        kind.__module__.rpartition(".")[2]: kind
        for kind in exported
        if issubclass(kind, WeightPenalty) and not inspect.isabstract(kind)
    }
    order = sorted(found, key=lambda name: (issubclass(found[name], GroupPenalty), name))
    return {name: found[name] for name in order}


def make_penalties(
    names: Sequence[str], lam: float, groups: Sequence[str]
) -> dict[str, WeightPenalty]:
    """Make penalties by name, those of groups once for each kind; no names: all but the joint.

    A joint penalty decomposes matrices, which takes longer than all others together.
    Raises: InputError when a name or a kind of groups is unknown.
    """
    known = penalty_types()
    for name in names:
        if name not in known:
            raise InputError(f"--penalties got {name!r}; give any of {', '.join(known)}.")
    for kind in groups:
        if kind not in KINDS:
            raise InputError(f"--groups got {kind!r}; give any of {', '.join(KINDS)}.")
    made = {}
    for name in names or [name for name, penalty in known.items() if not penalty.joint]:
        penalty = known[name]
        if issubclass(penalty, GroupPenalty):
            made |= {f"{name} {kind}": penalty(lam=lam, groups=kind) for kind in groups}
        else:
            made[name] = penalty(lam=lam)
    return made


def draw_gradients(net: nn.Module) -> list[Tensor]:
    """Draw gradients of unlike scale, as layers have them, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(p.shape, generator=generator).mul_(1e-3 * 2.0 ** (place % 5)).to(p.device)
        for place, p in enumerate(net.parameters())
    ]


def baselines(net: nn.Module, gradients: Sequence[Tensor]) -> list[Contestant]:
    """Return plain AdamW, fused and foreach."""
    return [
        _plain(name, net, gradients, **{option: True})
        for name, option in ((FUSED, "fused"), (FOREACH, "foreach"))
    ]


def naive(net: nn.Module, gradients: Sequence[Tensor], lam: float) -> list[Contestant]:
    """Return what is written after the step where no toolkit is at hand: tensor by tensor."""
    return [
        _with_blog_l1(_plain(name, net, gradients, fused=True), name, lam, counted)
        for name, counted in ((NAIVE, False), (NAIVE_ITEM, True))
    ]


def penalised(
    net: nn.Module, gradients: Sequence[Tensor], penalty: WeightPenalty, example: Tensor
) -> list[Contestant]:
    """Return the penalty behind torch's fused AdamW, and within our own."""
    made = []
    for name, make in REGULARIZED.items():
        copy = _copy(net, gradients)
        optimizer = make(copy.parameters(), lr=LR, weight_decay=0.0)
        regularizer = Regularizer(copy, penalty, example=example).attach(optimizer)
        entries = sum(p.numel() for p in regularizer.penalised())
        extra = GROUP_PASS_BYTES if isinstance(penalty, GroupPenalty) else PASS_BYTES
        # The update of ProxAdamW is in one pass with a prox that kernels know.
        apart = name == HOOK or penalty.kernel is None
        num_bytes = _adamw_bytes(copy) + (extra * entries if apart else 0)
        made.append(Contestant(name, copy, optimizer.step, num_bytes))
    return made


def misfits(
    net: nn.Module, penalties: Mapping[str, WeightPenalty], example: Tensor
) -> dict[str, str]:
    """Return the penalties that do not fit the net, each with the reason."""
    found = {}
    for name, penalty in penalties.items():
        try:
            regularizer = Regularizer(net, penalty, example=example)
            for make in REGULARIZED.values():
                regularizer.attach(make(net.parameters(), lr=LR))
        except InputError as error:
            found[name] = str(error)
    return found


def _plain(name: str, net: nn.Module, gradients: Sequence[Tensor], **options: Any) -> Contestant:
    copy = _copy(net, gradients)
    optimizer = AdamW(copy.parameters(), lr=LR, weight_decay=0.0, **options)
    return Contestant(name, copy, optimizer.step, _adamw_bytes(copy))


def _with_blog_l1(plain: Contestant, name: str, lam: float, counted: bool) -> Contestant:
    parameters = list(plain.net.parameters())

    @torch.no_grad()
    def step() -> int:
        plain.step()
        zeros = 0
        for p in parameters:
            p.copy_(p.sign() * (p.abs() - LR * lam).clamp(min=0))
            if counted:
                zeros += int((p == 0).sum().item())
        return zeros

    extra = PASS_BYTES + (COUNT_BYTES if counted else 0)
    entries = sum(p.numel() for p in parameters)
    return Contestant(name, plain.net, step, plain.num_bytes + extra * entries)


def _copy(net: nn.Module, gradients: Sequence[Tensor]) -> nn.Module:
    """Copy the net; the gradients are only read, so that all may share them."""
    copy = deepcopy(net)
    for p, gradient in zip(copy.parameters(), gradients, strict=True):
        p.grad = gradient
    return copy


def _adamw_bytes(net: nn.Module) -> int:
    return ADAMW_BYTES * sum(p.numel() for p in net.parameters())
