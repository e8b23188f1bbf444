"""torchvision's MViTv2-S: attention over the whole clip, whose grid halves from stage to stage."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from regkit.models.torchvision_model import TorchvisionModel

# Of four, as in the video ResNets. Each block mixes neighbouring frames: at the end of the third
# stage, a frame's embedding is one of the whole clip.
LAST_OF_STAGE_2 = 2


@final
class MViTV2S(TorchvisionModel):
    """Multiscale vision transformer, small; takes clips of any size, two frames to one of its own.

    Its tables of relative positions are those of clips of 16x224x224, and are interpolated to the
    size of the clip. So published weights, and a user's own, fit clips of every size.

    With stochastic depth as published: of its 16 blocks, the last is left out of a training clip
    with probability 0.2, those before it more rarely.

    Source: Li et al., MViTv2: Improved Multiscale Vision Transformers, 2021.
    """

    architecture, last_layer = "mvit_v2_s", "head.1"
    frame_embeddings = "frames"

    def fit_head(self, dropout: float) -> None:
        """Set the dropout of `net`, and add what frame embeddings are read from."""
        self.net.head[0].p = dropout
        self.frames = _Frames()

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        # As net.forward, which takes the grid from its constructor; the layers take any.
        patches = self.net.conv_proj(clip)
        grid: tuple[int, ...] = tuple(patches.shape[2:])
        tokens = self.net.pos_encoding(patches.flatten(2).transpose(1, 2))
        for place, block in enumerate(self.net.blocks):
            tokens, grid = block(tokens, grid)
            if place == LAST_OF_STAGE_2:
                self.frames(tokens, grid)
        return self.net.head(self.net.norm(tokens)[:, 0])


class _Frames(nn.Module):
    """The mean over each frame's tokens, without the class token."""

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, ...]
    ) -> Float[Tensor, "batch frames dim"]:
        return tokens[:, 1:].unflatten(1, (grid[0], -1)).mean(2)
