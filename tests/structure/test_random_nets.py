"""Whatever a net does with its channels: zeroed sets are cut with equal outputs, or refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regkit
from regkit.structure.coupling import couple

CLIP = (1, 3, 2, 4, 4)
WIDTHS = st.sampled_from([4, 6, 8])
PLACES = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["conv", "up", "loop", "linear"]), WIDTHS),
    st.tuples(
        st.sampled_from(["norm", "group_norm", "relu", "sigmoid", "pool", "gate", "grouped"]),
        st.just(0),
    ),
    st.tuples(
        st.sampled_from(["depthwise", "halves", "first", "shuffle", "flip", "shift", "scale"]),
        st.just(0),
    ),
    st.tuples(st.sampled_from(["join", "add", "back", "again", "attend"]), PLACES),
)


class Drawn(nn.Module):
    """A net that follows a drawn list of steps; what came before can be joined in, or added."""

    def __init__(self, steps: list[tuple[str, int]]):
        super().__init__()
        self.steps: list[tuple[str, int]] = []
        self.layers = nn.ModuleList()
        widths, size = [4], 4
        self.stem = nn.Conv3d(3, size, 1)
        for kind, number in steps:
            made = self._layer(kind, number, size, widths)
            if made is None:
                continue
            layer, size = made
            widths.append(size)
            self.steps.append((kind, number))
            self.layers.append(layer)
        self.head = nn.Linear(size, 3)

    @staticmethod
    def _layer(
        kind: str, number: int, size: int, widths: list[int]
    ) -> tuple[nn.Module, int] | None:
        """Return the layer of a step and its number of channels; None where it does not fit."""
        other = widths[number % len(widths)]
        if kind in ("shuffle", "halves", "first", "grouped", "group_norm") and size % 4:
            return None
        if (kind in ("add", "again") and other != size) or size > 24:
            return None
        layers = {
            "conv": lambda: (nn.Conv3d(size, number, 3, padding=1), number),
            "up": lambda: (nn.ConvTranspose3d(size, number, 1), number),
            "loop": lambda: (nn.Conv3d(size + number, number, 1), number),
            "linear": lambda: (nn.Linear(size, number), number),
            "norm": lambda: (nn.BatchNorm3d(size), size),
            "group_norm": lambda: (nn.GroupNorm(2, size), size),
            "gate": lambda: (nn.Linear(size, size), size),
            "grouped": lambda: (nn.Conv3d(size, size, 1, groups=2), size),
            "depthwise": lambda: (nn.Conv3d(size, 2 * size, 3, padding=1, groups=size), 2 * size),
            "halves": lambda: (nn.Identity(), size // 2),
            "first": lambda: (nn.Identity(), size // 2),
            "scale": lambda: (Scale(size), size),
            "join": lambda: (nn.Identity(), size + other),
            "back": lambda: (nn.Identity(), other),
            "again": lambda: (nn.Conv3d(size, size, 1), size),
        }
        return layers.get(kind, lambda: (nn.Identity(), size))()

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip)
        seen = [x]
        for (kind, number), layer in zip(self.steps, self.layers, strict=True):
            x = self._step(kind, number, layer, x, seen)
            seen.append(x)
        return self.head(x.mean((2, 3, 4)))

    @staticmethod
    def _step(kind: str, number: int, layer: nn.Module, x: Tensor, seen: list[Tensor]) -> Tensor:
        other = seen[number % len(seen)]
        steps = {
            "relu": lambda: x.relu(),
            "sigmoid": lambda: x.sigmoid(),
            "pool": lambda: nn.functional.max_pool3d(x, 3, 1, 1),
            "gate": lambda: x * layer(x.mean((2, 3, 4))).sigmoid()[:, :, None, None, None],
            "halves": lambda: torch.mul(*x.chunk(2, 1)),
            "first": lambda: x[:, : x.shape[1] // 2],
            "shuffle": lambda: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
            "flip": lambda: x.flip(1),
            "shift": lambda: x.roll(1, 2),
            "linear": lambda: layer(x.movedim(1, -1)).movedim(-1, 1),
            "join": lambda: torch.cat([x, other], 1),
            "add": lambda: x + other,
            "back": lambda: other.clone(),
            "again": lambda: layer(layer(x).relu()),
            "attend": lambda: attended(x),
            "loop": lambda: looped(layer, x, number),
        }
        return steps.get(kind, lambda: layer(x))()


class Scale(nn.Module):
    """A scale and a shift of its own for each channel."""

    def __init__(self, size: int):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.rand(size)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x.movedim(1, -1) * self.scale + self.shift).movedim(-1, 1)


def attended(x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    return ((flat @ flat.mT).softmax(-1) @ flat).transpose(1, 2).view_as(x)


def looped(layer: nn.Module, x: Tensor, width: int) -> Tensor:
    h = x.new_zeros(len(x), layer.out_channels, *x.shape[2:])
    for _ in range(2):
        h = layer(torch.cat([x, h], 1)).tanh() * h.sigmoid()
    return h


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(steps=st.lists(STEPS, min_size=2, max_size=8), seed=st.integers(0, 99))
def test_zeroed_sets_shrink_with_equal_outputs_or_are_refused(
    steps: list[tuple[str, int]], seed: int
):
    torch.manual_seed(seed)
    model, clip = Drawn(steps).double().eval(), torch.randn(CLIP, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    before = clip.clone()
    coupling = couple(model, clip)
    assert not any("search failed" in note for note in coupling.notes)
    kind = ("channel", "channel_inputs")[seed % 2]
    dead = 0
    for group_set in coupling.group_sets(kind):
        mask = torch.rand(group_set.num_groups) < 0.4
        dead += int(mask[1:].sum())
        group_set.write(group_set.rows().masked_fill(mask[:, None], 0))
    _, report = regkit.shrink(model, clip, coupling=coupling, tolerance=1e-9, timed=False)
    assert torch.equal(clip, before)
    assert report.after.parameters < report.before.parameters or not dead
