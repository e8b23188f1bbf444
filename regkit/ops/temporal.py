"""How much a sequence of frame embeddings changes from frame to frame."""

import torch
from jaxtyping import Float
from torch import Tensor

Frames = Float[Tensor, "batch frames dim"]


def differences(frames: Frames, order: int = 1) -> Float[Tensor, "batch fewer dim"]:
    """Difference consecutive frames `order` times: z[t+1] - z[t], or z[t+2] - 2 z[t+1] + z[t]."""
    return torch.diff(frames, n=order, dim=1)


def spread(frames: Frames, power: int) -> Float[Tensor, ""]:
    """Average |z - mean|^power, the mean taken over clips and frames: the embeddings' own scale.

    Centred, so that a large constant offset does not pass for scale.
    """
    centred = frames - frames.mean(dim=(0, 1), keepdim=True)
    return centred.abs().pow(power).mean()


def roughness(frames: Frames) -> Float[Tensor, ""]:
    """Average squared step from frame to frame, relative to the embeddings' variance.

    mean (z[t+1] - z[t])^2 / mean (z - mean z)^2: 0 for constant, about 2 for unrelated frames.
    Source: von Neumann, Annals of Mathematical Statistics 12 (1941), 367-395.
    """
    tiny = torch.finfo(frames.dtype).tiny
    return differences(frames).square().mean() / spread(frames, 2).clamp_min(tiny)
