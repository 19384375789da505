"""PyTorch Lightning with two optimizers: manual optimization."""

# ruff: noqa: D101, D102 - the hooks are Lightning's

import pytorch_lightning as pl
import torch
from geoopt import ManifoldParameter
from torch.utils.data import DataLoader

from givens.optim import SRCD, Block
from givens.rnn import OrthogonalRNN, SequenceModel
from givens.rnn.tasks import CopyingMemory

TASK = CopyingMemory(length=5, letters=2, batch_size=32)
BATCHES = 80


class Copying(pl.LightningModule):
    def __init__(self):
        super().__init__()
        rnn = OrthogonalRNN(TASK.input_size, 24)
        self.model = SequenceModel(rnn, TASK.output_size)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        input, target = batch
        loss = TASK.loss(self.model(input), target)
        self.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            self.clip_gradients(optimizer, 1.0, "norm")  # each by the norm of its own parameters
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        orthogonal = [p for p in self.parameters() if isinstance(p, ManifoldParameter)]
        others = [p for p in self.parameters() if not isinstance(p, ManifoldParameter)]
        optimizers = [
            SRCD(orthogonal, lr=0.01, selection=Block(fraction=0.1)),
            torch.optim.Adam(others, lr=0.01),
        ]
        return optimizers, [
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BATCHES)
            for optimizer in optimizers
        ]


if __name__ == "__main__":
    torch.manual_seed(0)
    module = Copying()
    trainer = pl.Trainer(
        max_epochs=1,
        default_root_dir="runs/lightning-manual",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([TASK[n] for n in range(BATCHES)], batch_size=None))
    loss = float(trainer.callback_metrics["loss"])
    weight = module.model.rnn.weight_hh_l0
    print(f"loss {loss:.4f}, no memory {TASK.baseline:.4f}; {weight.manifold}")
