"""Pictures of the weights: density over training, first filters, what survives in each layer."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.loggers import show
from regkit.lightning.monitors import density_map, filters, survivors
from regkit.lightning.monitors.canvas import pixels, short_names, write_png
from regkit.structure.distributed import full_tensor
from regkit.structure.selectors import clean_name, weights

log = logging.getLogger(__name__)


class Pictures(pl.Callback):
    """Show what a run's penalties left of its weights, in TensorBoard and in files.

        L.Trainer(callbacks=[RegularizerCallback([L1(lam=1e-4)]), Pictures("runs/mine")])

    Writes, at the end of training, density.png (share of non-zero weights, layers by epochs),
    filters.png (the first convolution, filter by filter) and survivors.png (channels, filters and
    time taps that are left in each layer) into `folder`, and shows the same under pictures/ in the
    loggers that take pictures (TensorBoard's IMAGES, W&B, MLflow). What a net lacks is left out:
    filters.png without a 2-D or 3-D convolution.

    Of the parameters that the trainer's RegularizerCallback penalises, else of all weights.

    every_n_epochs: draw after so many epochs too, to watch a run that goes on.
    Raises: InputError when every_n_epochs < 1.
    """

    def __init__(self, folder: str | Path, every_n_epochs: int | None = None) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise InputError(
                f"Pictures got every_n_epochs={every_n_epochs}; allowed: 1 or more, or None to "
                "draw at the end of training only."
            )
        self._folder = Path(folder)
        self._every_n_epochs = every_n_epochs
        self._history = density_map.History()
        self._saved: dict[str, Any] | None = None
        self._drawn_step = -1
        self._told = False

    def state_dict(self) -> dict[str, Any]:
        """Return the density of each layer so far."""
        return vars(self._history).copy()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until `fit` starts."""
        self._saved = state_dict or None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the record of a checkpoint, or start anew."""
        self._history = density_map.History(**(self._saved or {}))
        self._saved, self._drawn_step = None, -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the density; draw if it is time."""
        epoch = trainer.current_epoch
        self._history.add(epoch, _chosen(trainer, pl_module))
        if self._every_n_epochs is not None and (epoch + 1) % self._every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what training ended with, also where it had ended before a stop."""
        if trainer.global_step != self._drawn_step:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn_step = trainer.global_step
        chosen = _chosen(trainer, pl_module)
        layers = survivors.measure(pl_module, chosen)
        first = first_filters(pl_module, chosen)
        if not trainer.is_global_zero:
            return
        if self._history.names and self._history.epochs:
            self._show(trainer, "density", density_map.draw(self._history))
        if layers:
            self._show(trainer, "survivors", survivors.draw(layers))
        if first is not None:
            self._show(trainer, "filters", filters.draw(*first))
        elif not self._told:
            self._told = True
            name = type(pl_module).__name__
            log.info("filters.png is left out: %s has no 2-D or 3-D convolution.", name)

    def _show(self, trainer: pl.Trainer, name: str, figure: Figure) -> None:
        picture = pixels(figure)
        write_png(picture, self._folder / f"{name}.png")
        show(trainer, f"pictures/{name}", picture)


@torch.no_grad()
def first_filters(
    model: nn.Module, chosen: dict[str, Tensor]
) -> tuple[Float[np.ndarray, "filters channels taps height width"], str] | None:
    """Return the weights of the first 2-D or 3-D convolution, and its name (a collective).

    chosen: parameters by name, in the form that training holds them in.
    """
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            name = clean_name(f"{module_name}.weight".lstrip("."))
            weight = full_tensor(chosen.get(name, module.weight).detach()).float().cpu().numpy()
            weight = weight if weight.ndim == 5 else weight[:, :, None]
            return weight, short_names([name, *chosen])[0]
    return None


def _chosen(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Return the parameters that count for density."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]: set by a connector
        if isinstance(callback, RegularizerCallback) and callback.regularizer is not None:
            return dict(callback.regularizer.counted_parameters())
    return dict(weights(pl_module))
