"""The nets whose weights are stepped: those of torchvision, and one of any size."""

import math

from torch import nn
from torchvision.models import get_model, list_models, video

from regkit.errors import InputError

SYNTHETIC = "synthetic"
# Kernels of the synthetic net, in turns: from 27 taps down to 1, as factorised conv nets mix them.
KERNELS = ((3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1))
NUM_STAGES = 4
NUM_CLASSES = 400
# Layers a stage: the first that leaves the narrowest stage this wide. 25 are 303 tensors.
DEPTHS = (25, 12, 6, 3, 1)
LEAST_WIDTH = 16


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
    low, high = 0, 1 << 16
    while high - low > 1:
        width = (low + high) // 2
        head = (width << (NUM_STAGES - 1)) * _num_classes(num_parameters)
        size = head + sum(
            (before * math.prod(kernel) + 2) * channels
            for before, channels, kernel, _ in _convolutions(depth, width)
        )
        low, high = (width, high) if size <= num_parameters else (low, width)
    return low


def _num_classes(num_parameters: float) -> int:
    """Return Kinetics' number of classes, fewer where the head would be most of the net."""
    return NUM_CLASSES if num_parameters >= 1e6 else 10
