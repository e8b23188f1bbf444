"""Models with a twist each, for which a careless reading of the graph gives wrong groups."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

CLIP = (1, 3, 4, 6, 6)


class Twist(nn.Module):
    """conv1, a twist given as a function of the model and its features, conv2, mean, linear."""

    def __init__(self, twist: Callable, between: int = 8, width: int = 8, **layers: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.conv2 = nn.Conv3d(between, 6, 1)
        self.head = nn.Linear(6, 5)
        self.twist = twist

    def forward(self, clip: Tensor) -> Tensor:
        features = self.conv2(self.twist(self, self.conv1(clip)))
        return self.head(features.relu().mean((2, 3, 4)))


class Flattened(nn.Module):
    """A convolution flattened into a linear layer, channels first or last."""

    def __init__(self, last: bool):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, stride=3)
        self.last = last
        self.fc1 = nn.Linear(4 * 4, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, clip: Tensor) -> Tensor:
        features = self.conv(clip).relu()
        features = features.movedim(1, -1) if self.last else features
        return self.fc2(self.fc1(features.flatten(1)).relu())


class Squeezed(nn.Module):
    """Squeeze and excitation: a gate for each channel, computed from all."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, 8, 1, bias=False), nn.BatchNorm3d(8)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.norm(self.conv(clip)).relu()
        gate = self.up(self.down(x.mean((2, 3, 4))).relu()).sigmoid()
        return self.head((x * gate[:, :, None, None, None]).mean((2, 3, 4)))


class Recurrent(nn.Module):
    """A recurrent layer of any kind, read by its outputs or its last state."""

    def __init__(self, kind: type[nn.RNNBase], read: str, start: bool = False, **options):
        super().__init__()
        self.project = nn.Linear(3, 6)
        self.rnn = kind(6, 8, batch_first=True, **options)
        directions = 2 if self.rnn.bidirectional else 1
        self.head = nn.Linear((self.rnn.proj_size or 8) * directions, 3)
        self.read, self.start = read, start

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.project(clip.mean((3, 4)).transpose(1, 2))
        first = torch.ones(1, len(clip), 8).to(clip) if self.start else None
        outputs, state = self.rnn(frames, first)
        if self.read == "outputs":
            return self.head(outputs[:, -1])
        last = state[0] if isinstance(state, tuple) else state
        return self.head(last[-1])


class Cell(nn.Module):
    """A recurrent cell in a loop."""

    def __init__(self):
        super().__init__()
        self.project, self.cell, self.head = nn.Linear(3, 6), nn.GRUCell(6, 8), nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        state = torch.zeros(len(clip), 8).to(clip)
        for frame in self.project(clip.mean((3, 4)).transpose(1, 2)).unbind(1):
            state = self.cell(frame, state)
        return self.head(state)


class Single(nn.Module):
    """A loop that starts from zeros in single precision, so it does not run in double."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv3d(3, 6, 1), nn.GRU(6, 8), nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.conv(clip).relu().mean((3, 4)).permute(2, 0, 1)
        start = torch.zeros(1, len(clip), self.rnn.hidden_size, dtype=torch.float32)
        return self.head(self.rnn(frames, start)[0][-1])


class Auxiliary(nn.Module):
    """A head that runs in training alone reads the trunk's channels too."""

    def __init__(self):
        super().__init__()
        self.conv, self.inner = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1)
        self.head, self.aux = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        features = self.conv(clip).relu()
        extra = self.aux(features.mean((2, 3, 4))) if self.training else 0
        return self.head(self.inner(features).relu().mean((2, 3, 4))) + extra


class Shared(nn.Module):
    """One convolution used twice, and one whose weight another holds too."""

    def __init__(self, tied: bool):
        super().__init__()
        self.stem, self.conv, self.other = (nn.Conv3d(c, 8, 1) for c in (3, 8, 8))
        if tied:
            self.other.weight = self.conv.weight
        self.tied = tied
        self.head = nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.conv(self.stem(clip).relu()).relu()
        return self.head((self.other if self.tied else self.conv)(x).relu().mean((2, 3, 4)))


class Returns(nn.Module):
    """Returns scores and features."""

    def __init__(self):
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        features = self.conv(clip).relu()
        return {"x": features, "y": self.head(self.inner(features).relu().mean((2, 3, 4)))}


class Bare(nn.Module):
    """A convolution of a parameter that no layer owns."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = functional.conv3d(self.conv(clip).relu(), self.weight)
        return self.head(x.relu().mean((2, 3, 4)))


class Dense(nn.Module):
    """Concatenation, and a norm over the concatenated."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 4, 1), nn.Conv3d(4, 6, 1)
        self.norm, self.mix, self.head = nn.BatchNorm3d(14), nn.Conv3d(14, 5, 1), nn.Linear(5, 3)

    def forward(self, clip: Tensor) -> Tensor:
        a = self.a(clip).relu()
        both = torch.cat([a, self.b(a), a], 1)
        return self.head(self.mix(self.norm(both).relu()).relu().mean((2, 3, 4)))


class Transformer(nn.Module):
    """Tokens with positions and a class token through torch's own encoder layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv3d(3, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 19, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, clip: Tensor) -> Tensor:
        tokens = self.patch(clip).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(clip), -1, -1), tokens], 1) + self.place
        return self.head(self.layer(tokens)[:, 0])


def gram(_: nn.Module, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return ((flat @ flat.transpose(1, 2)).softmax(-1) @ flat).view_as(x)


def attended(_: nn.Module, x: Tensor) -> Tensor:
    flat = 30 * x.flatten(2).transpose(1, 2)  # so large that the softmax hides what goes in
    return ((flat @ flat.mT).softmax(-1) @ flat).transpose(1, 2).view_as(x)


def folded(_: nn.Module, x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).sum(1)


def shuffled(_: nn.Module, x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2).relu()


def gated(_: nn.Module, x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a * b.sigmoid()


def unrolled(_: nn.Module, x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 4)).flatten(2, 3)


def shaken(_: nn.Module, x: Tensor) -> Tensor:
    return x * torch.rand(x.shape[2:]).to(x)


def noisy(_: nn.Module, x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def shifted(_: nn.Module, x: Tensor) -> Tensor:
    return x + torch.arange(8.0).to(x).view(-1, 1, 1, 1)


ODD: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    # name: (model, sets that can be removed, those of them by their readers alone)
    "plain": (lambda: Twist(lambda m, x: x.relu()), {"conv1", "conv2"}, set()),
    "sigmoid": (lambda: Twist(lambda m, x: x.sigmoid()), {"conv1", "conv2"}, {"conv1"}),
    "shifted": (lambda: Twist(shifted), {"conv2"}, set()),
    "softmax": (lambda: Twist(lambda m, x: x.softmax(1)), {"conv2"}, set()),
    "centered": (lambda: Twist(lambda m, x: x - x.mean(1, True)), {"conv2"}, set()),
    "flipped": (lambda: Twist(lambda m, x: x.flip(1)), {"conv2"}, set()),
    "rolled": (lambda: Twist(lambda m, x: x.roll(1, 1)), {"conv2"}, set()),
    "gram": (lambda: Twist(gram), {"conv2"}, set()),
    "attended": (lambda: Twist(attended), {"conv2"}, set()),
    "folded": (lambda: Twist(folded, between=4), {"conv1", "conv2"}, set()),
    "shuffled": (lambda: Twist(shuffled), {"conv2"}, set()),
    "gated": (lambda: Twist(gated, between=4), {"conv1", "conv2"}, set()),
    "noisy": (lambda: Twist(noisy), {"conv2"}, set()),
    "shaken": (lambda: Twist(shaken), {"conv1", "conv2"}, set()),
    "muted": (lambda: Twist(lambda m, x: x * 0), {"conv2"}, set()),
    "detached": (lambda: Twist(lambda m, x: x.detach()), {"conv2"}, set()),
    "unrolled": (lambda: Twist(unrolled, between=2), {"conv2"}, set()),
    "loops": (
        lambda: Twist(lambda m, x: checkpoint(torch.relu, x, use_reentrant=False)),
        {"conv1", "conv2"},
        set(),
    ),
    "group_norm": (
        lambda: Twist(lambda m, x: m.norm(x).relu(), norm=nn.GroupNorm(2, 8)),
        {"conv2"},
        set(),
    ),
    "instance_norm": (
        lambda: Twist(lambda m, x: m.norm(x), norm=nn.InstanceNorm3d(8, affine=True)),
        {"conv1", "conv2"},
        set(),
    ),
    "norm_without_scale": (
        lambda: Twist(lambda m, x: m.norm(x), norm=nn.BatchNorm3d(8, affine=False)),
        {"conv1", "conv2"},
        {"conv1"},
    ),
    "depthwise": (
        lambda: Twist(lambda m, x: m.depth(x), depth=nn.Conv3d(8, 8, 3, padding=1, groups=8)),
        {"conv1", "conv2"},
        set(),
    ),
    "multiplied": (
        lambda: Twist(lambda m, x: m.depth(x), 16, depth=nn.Conv3d(8, 16, 1, groups=8)),
        {"conv1", "conv2"},
        set(),
    ),
    "grouped": (
        lambda: Twist(lambda m, x: m.group(x), group=nn.Conv3d(8, 8, 1, groups=2)),
        {"conv1", "group", "conv2"},
        set(),
    ),
    "transposed": (
        lambda: Twist(lambda m, x: m.up(x), 5, up=nn.ConvTranspose3d(8, 5, 2, stride=2)),
        {"conv1", "up", "conv2"},
        set(),
    ),
    "slopes": (
        lambda: Twist(lambda m, x: m.slope(x), slope=nn.PReLU(8)),
        {"conv1", "conv2"},
        set(),
    ),
    "one_slope": (
        lambda: Twist(lambda m, x: m.slope(x), slope=nn.PReLU()),
        {"conv1", "conv2"},
        set(),
    ),
    "weight_norm": (
        lambda: Twist(lambda m, x: m.more(x).relu(), 5, more=weight_norm(nn.Conv3d(8, 5, 1))),
        {"conv1", "more", "conv2"},
        {"conv1", "more"},  # a norm over all inputs; that of a zero filter divides by zero
    ),
    "flattened": (lambda: Flattened(last=False), {"conv", "fc1"}, set()),
    "flattened_last": (lambda: Flattened(last=True), {"conv", "fc1"}, set()),
    "squeezed": (Squeezed, {"conv", "down"}, set()),
    "dense": (Dense, {"a", "b", "mix"}, set()),
    "cell": (Cell, {"project"}, set()),
    "single": (Single, {"conv", "rnn.l0"}, set()),
    "auxiliary": (Auxiliary, {"conv", "inner"}, set()),
    "shared": (lambda: Shared(tied=False), {"stem"}, set()),
    "tied": (lambda: Shared(tied=True), set(), set()),
    "returns": (Returns, {"inner"}, set()),
    "bare": (Bare, {"conv", "weight"}, set()),
    "transformer": (Transformer, {"layer.linear1"}, set()),
    "gru": (lambda: Recurrent(nn.GRU, "outputs"), {"project", "rnn.l0"}, set()),
    "lstm_state": (lambda: Recurrent(nn.LSTM, "state"), {"project", "rnn.l0"}, set()),
    "rnn_relu": (
        lambda: Recurrent(nn.RNN, "outputs", nonlinearity="relu", num_layers=2, bias=False),
        {"project", "rnn.l0", "rnn.l1"},
        set(),
    ),
    "lstm_two_ways": (
        lambda: Recurrent(nn.LSTM, "outputs", bidirectional=True),
        {"project", "rnn.l0", "rnn.l0_reverse"},
        set(),
    ),
    "lstm_projected": (
        lambda: Recurrent(nn.LSTM, "outputs", proj_size=5),
        {"project"},
        set(),
    ),
    "gru_started": (lambda: Recurrent(nn.GRU, "outputs", start=True), {"project"}, set()),
}
