"""PyTorch Lightning: a callback that averages on the manifold, in place of Lightning's own two."""

# ruff: noqa: D102 - the hooks are Lightning's

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, AveragedModel, Matching

GENERATOR = torch.Generator().manual_seed(0)
ROTATION = OrthogonalGroup().random(6, 6, det=1, generator=GENERATOR)
INPUTS, NOISE = torch.randn(2, 60, 16, 6, generator=GENERATOR)
PAIRS = list(zip(INPUTS, INPUTS @ ROTATION.T + NOISE, strict=True))


class Averaging(pl.Callback):
    """Averages a module in a copy: `averaged`, which checkpoints hold, too.

    Parameters
    ----------
    every : int
        Steps of the optimizer between two updates.
    kwargs
        For :class:`givens.optim.AveragedModel`: ``multi_avg_fn=get_ema_multi_avg_fn(0.999)``.
    """

    def __init__(self, every=1, **kwargs):
        self.every, self.kwargs = every, kwargs

    def setup(self, trainer, pl_module, stage):
        if stage == "fit":
            self.averaged = AveragedModel(pl_module, device=pl_module.device, **self.kwargs)
            self.updated = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= self.updated + self.every:
            self.averaged.update_parameters(pl_module)
            self.updated = trainer.global_step

    def state_dict(self):
        return {"averaged": self.averaged.state_dict(), "updated": self.updated}

    def load_state_dict(self, state_dict):
        self.averaged.load_state_dict(state_dict["averaged"])
        self.updated = state_dict["updated"]


class Rotation(pl.LightningModule):
    """A rotation from noisy pairs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)
        nn.init.eye_(self.layer.weight)
        constrain(self.layer, "weight", OrthogonalGroup())

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.layer(x) - y).square().sum(-1).mean()

    def configure_optimizers(self):
        return SRCD(self.parameters(), lr=0.1, selection=Matching())


def fit(module, averaging, epochs, checkpoint=None):
    """Train until so many epochs are done."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[averaging],
        default_root_dir="runs/lightning-averaging",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(PAIRS, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    return trainer


if __name__ == "__main__":
    module, averaging = Rotation(), Averaging(every=3, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    fit(module, averaging, epochs=4)
    weights = {
        "last": module.layer.weight,
        "averaged": averaging.averaged.module.layer.weight,
    }
    off = {name: (weight - ROTATION).norm().item() for name, weight in weights.items()}
    for name, weight in weights.items():
        print(f"{name:>8}: off by {off[name]:.3f}, on {weight.manifold}")
