"""Nets as people write their own: loops, concatenations, shuffles, attention by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CLIP = (1, 3, 4, 8, 8)


def block(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(into, out, 3, padding=1), nn.BatchNorm3d(out), nn.ReLU())


class ConvLSTM(nn.Module):
    """One convolution over [x_t, h] in a loop over time, gates by chunk."""

    def __init__(self, hidden: int = 6, split: bool = False):
        super().__init__()
        self.stem, self.hidden, self.split = nn.Conv2d(3, 5, 3, padding=1), hidden, split
        self.gates = nn.Conv2d(5 + hidden, 4 * hidden, 3, padding=1)
        self.head = nn.Linear(hidden, 3)

    def forward(self, clip: Tensor) -> Tensor:
        batch, _, frames, *size = clip.shape
        h = c = clip.new_zeros(batch, self.hidden, *size)
        for t in range(frames):
            made = self.gates(torch.cat([self.stem(clip[:, :, t]).relu(), h], 1))
            parts = made.split(self.hidden, 1) if self.split else made.chunk(4, 1)
            i, f, o, g = parts
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h.mean((2, 3)))


class ConvGRU(nn.Module):
    """Two convolutions over [x_t, h], whose outputs are kept in a tensor made before the loop."""

    def __init__(self, hidden: int = 6):
        super().__init__()
        self.hidden_dim = hidden
        self.gates = nn.Conv2d(3 + hidden, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv2d(3 + hidden, hidden, 3, padding=1)
        self.head = nn.Linear(hidden, 3)

    def forward(self, clip: Tensor) -> Tensor:
        batch, _, frames, *size = clip.shape
        h = clip.new_zeros(batch, self.hidden_dim, *size)
        kept = clip.new_zeros(batch, frames, self.hidden_dim, *size)
        for t in range(frames):
            x = clip[:, :, t]
            z, r = self.gates(torch.cat([x, h], 1)).sigmoid().split(self.hidden_dim, 1)
            h = (1 - z) * h + z * self.candidate(torch.cat([x, r * h], 1)).tanh()
            kept[:, t] = h
        return self.head(kept.mean((1, 3, 4)))


class UNet(nn.Module):
    """Down and up again, with skips that are concatenated."""

    def __init__(self, transposed: bool = True):
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 4), block(4, 6), block(6, 8)
        up = (lambda a, b: nn.ConvTranspose3d(a, b, 2, 2)) if transposed else self.upsample
        self.up2, self.up1 = up(8, 6), up(6, 4)
        self.join2, self.join1 = block(12, 6), block(8, 4)
        self.head = nn.Conv3d(4, 2, 1)

    @staticmethod
    def upsample(into: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv3d(into, out, 1))

    def forward(self, clip: Tensor) -> Tensor:
        a = self.down1(clip)
        b = self.down2(functional.max_pool3d(a, 2))
        x = self.bottom(functional.max_pool3d(b, 2))
        x = self.join2(torch.cat([self.up2(x), b], 1))
        return self.head(self.join1(torch.cat([self.up1(x), a], 1)))


class Shuffle(nn.Module):
    """Half of the channels goes past a branch; both are shuffled."""

    def __init__(self, grouped: bool = False):
        super().__init__()
        self.stem, self.grouped = block(3, 8), grouped
        groups = 2 if grouped else 1
        self.one = nn.Conv3d(4, 6, 1, groups=groups)
        self.deep = nn.Conv3d(6, 6, 3, padding=1, groups=6)
        self.two = nn.Conv3d(6, 4, 1, groups=groups)
        self.mix, self.head = block(8, 6), nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        a, b = self.stem(clip).chunk(2, 1)
        b = self.two(self.deep(self.one(b).relu())).relu()
        x = torch.cat([a, b], 1)
        x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(self.mix(x).mean((2, 3, 4)))


class Shift(nn.Module):
    """A part of the channels moves by a frame, as in the temporal shift module."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = block(3, 8), block(8, 6), nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.one(clip)
        fold = x.shape[1] // 4
        out = torch.zeros_like(x)
        out[:, :fold, :-1] = x[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return self.head(self.two(out).mean((2, 3, 4)))


class NonLocal(nn.Module):
    """Attention of each place to each, added to the stream."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 6)
        self.theta, self.phi, self.g = (nn.Conv3d(6, 4, 1) for _ in range(3))
        self.out, self.head = nn.Conv3d(4, 6, 1), nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip)
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        seen = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
        x = x + self.out(seen.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))
        return self.head(x.mean((2, 3, 4)))


class Attention(nn.Module):
    """Self-attention as it is written by hand: packed, apart, or keys shared by several queries."""

    def __init__(self, kind: str = "packed", fused: bool = True):
        super().__init__()
        self.num_heads, self.head_dim, self.kind, self.fused = 4, 3, kind, fused
        self.num_kv_heads = 2 if kind == "shared" else 4
        self.embed, self.norm = nn.Linear(3 * 64, 10), nn.LayerNorm(10)
        keys = self.num_kv_heads * 3
        if kind == "packed":
            self.qkv = nn.Linear(10, 36)
        else:
            self.q, self.k, self.v = nn.Linear(10, 12), nn.Linear(10, keys), nn.Linear(10, keys)
        self.proj, self.fc1, self.fc2 = nn.Linear(12, 10), nn.Linear(10, 14), nn.Linear(14, 10)
        self.head = nn.Linear(10, 3)

    def queries_keys_values(self, x: Tensor) -> Sequence[Tensor]:
        batch, tokens, _ = x.shape
        if self.kind == "packed":
            found = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
            return found.permute(2, 0, 3, 1, 4).unbind(0)
        found = [
            layer(x).view(batch, tokens, -1, self.head_dim) for layer in (self.q, self.k, self.v)
        ]
        q, k, v = (part.transpose(1, 2) for part in found)
        if self.kind == "shared":
            k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        return q, k, v

    def forward(self, clip: Tensor) -> Tensor:
        x = self.embed(clip.transpose(1, 2).flatten(2))
        q, k, v = self.queries_keys_values(self.norm(x))
        if self.fused:
            seen = functional.scaled_dot_product_attention(q, k, v)
        else:
            seen = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1) @ v
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        x = x + self.fc2(functional.gelu(self.fc1(x)))
        return self.head(x.mean(1))


class Mixer(nn.Module):
    """Linear layers over tokens and over channels in turn, with norms over channels."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv3d(3, 6, (1, 4, 4), stride=(1, 4, 4))
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.token1, self.token2 = nn.Linear(16, 10), nn.Linear(10, 16)
        self.channel1, self.channel2 = nn.Linear(6, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.embed(clip).flatten(2).transpose(1, 2)
        mixed = self.token2(functional.gelu(self.token1(self.norm1(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)
        x = x + self.channel2(functional.gelu(self.channel1(self.norm2(x))))
        return self.head(x.mean(1))


class Gated(nn.Module):
    """Channel and place attention from means and maxima (CBAM), on a concatenation."""

    def __init__(self):
        super().__init__()
        self.left, self.right = block(3, 4), block(3, 6)
        self.down, self.up = nn.Linear(10, 5), nn.Linear(5, 10)
        self.place = nn.Conv3d(2, 1, 3, padding=1)
        self.after, self.head = block(10, 6), nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        x = torch.cat([self.left(clip), self.right(clip)], 1)
        gate = self.up(self.down(x.mean((2, 3, 4))).relu()).sigmoid()
        x = x * gate[:, :, None, None, None]
        where = torch.cat([x.mean(1, True), x.amax(1, True)], 1)
        return self.head(self.after(x * self.place(where).sigmoid()).mean((2, 3, 4)))


class Pyramid(nn.Module):
    """Side and top-down ways (FPN), several outputs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = block(3, 4), block(4, 6)
        self.side1, self.side2 = nn.Conv3d(4, 5, 1), nn.Conv3d(6, 5, 1)
        self.smooth, self.head = block(5, 6), nn.Conv3d(6, 2, 1)

    def forward(self, clip: Tensor) -> list[Tensor]:
        a = self.one(clip)
        b = self.two(functional.avg_pool3d(a, 2))
        top = self.side2(b)
        low = self.side1(a) + functional.interpolate(top, scale_factor=2.0)
        return [self.head(self.smooth(level)) for level in (low, top)]


class Edits(nn.Module):
    """Takes a list of two pathways, and writes into the list and into its tensors."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast, self.head = block(3, 6), block(3, 4), nn.Linear(10, 3)

    def forward(self, paths: list[Tensor]) -> Tensor:
        paths[0] = self.slow(paths[0])
        paths[1].mul_(0.5)
        paths.append(self.fast(paths.pop(1)))
        return self.head(torch.cat([p.mean((2, 3, 4)) for p in paths], 1))


class Cells(nn.Module):
    """Recurrent cells in a loop, and attention over what they said."""

    def __init__(self, kind: type[nn.RNNCellBase] = nn.LSTMCell):
        super().__init__()
        self.embed, self.cell = nn.Linear(3, 5), kind(5, 6)
        self.score, self.head = nn.Linear(6, 1), nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        state, said = None, []
        for x in self.embed(clip.mean((3, 4)).transpose(1, 2)).unbind(1):
            state = self.cell(x, state)
            said.append(state[0] if isinstance(state, tuple) else state)
        stacked = torch.stack(said, 1)
        return self.head((self.score(stacked).softmax(1) * stacked).sum(1))


class Temporal(nn.Module):
    """Frames go through 2-D layers as a batch, then dilated convolutions over time."""

    def __init__(self):
        super().__init__()
        self.frame = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.time1 = nn.Conv1d(6, 6, 3, padding=1)
        self.time2 = nn.Conv1d(6, 6, 3, padding=2, dilation=2)
        self.head = nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        batch, _, frames, *_ = clip.shape
        x = self.frame(clip.transpose(1, 2).flatten(0, 1)).mean((2, 3))
        x = x.view(batch, frames, -1).transpose(1, 2)
        x = x + self.time1(x).relu()
        return self.head((x + self.time2(x).relu()).mean(2))


# name: (model, what the example is made of)
OWN: dict[str, Callable[[], nn.Module]] = {
    "conv_lstm": ConvLSTM,
    "conv_lstm_split": lambda: ConvLSTM(split=True),
    "conv_gru": ConvGRU,
    "unet": UNet,
    "unet_upsampled": lambda: UNet(transposed=False),
    "shuffle": Shuffle,
    "shuffle_grouped": lambda: Shuffle(grouped=True),
    "shift": Shift,
    "non_local": NonLocal,
    "attention_packed": Attention,
    "attention_apart": lambda: Attention("apart"),
    "attention_shared": lambda: Attention("shared"),
    "attention_by_hand": lambda: Attention("packed", fused=False),
    "mixer": Mixer,
    "gated": Gated,
    "pyramid": Pyramid,
    "edits": Edits,
    "lstm_cells": Cells,
    "gru_cells": lambda: Cells(nn.GRUCell),
    "temporal": Temporal,
}


def example_of(name: str) -> object:
    """Return an input for one of the nets."""
    return [[torch.randn(CLIP), torch.randn(CLIP)]] if name == "edits" else torch.randn(CLIP)
