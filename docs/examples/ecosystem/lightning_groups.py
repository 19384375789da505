"""PyTorch Lightning, the recommended way: one optimizer with groups, and Lightning does the rest."""

# ruff: noqa: D101, D102 - the hooks are Lightning's

import pytorch_lightning as pl
import torch
from geoopt import ManifoldParameter
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from givens.optim import SRCD, Adam, Block
from givens.rnn import OrthogonalRNN, SequenceModel
from givens.rnn.tasks import CopyingMemory

TASK = CopyingMemory(length=5, letters=2, batch_size=32)
EPOCHS, BATCHES, ACCUMULATED = 4, 40, 2
FOLDER = "runs/lightning"


class Copying(pl.LightningModule):
    def __init__(self):
        super().__init__()
        rnn = OrthogonalRNN(TASK.input_size, 24)
        self.model = SequenceModel(rnn, TASK.output_size)

    def training_step(self, batch, batch_idx):
        input, target = batch
        loss = TASK.loss(self.model(input), target)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        orthogonal = [p for p in self.parameters() if isinstance(p, ManifoldParameter)]
        others = [p for p in self.parameters() if not isinstance(p, ManifoldParameter)]
        optimizer = SRCD(
            [
                {"params": orthogonal, "selection": Block(fraction=0.1)},
                {"params": others, "scaling": Adam()},  # on plain parameters: torch's Adam
            ],
            lr=0.01,
        )
        steps = EPOCHS * BATCHES // ACCUMULATED
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fit(module, epochs, checkpoint=None, **options):
    """Train until so many epochs are done; a checkpoint resumes, with its data read as data only."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATED,
        gradient_clip_val=1.0,
        default_root_dir=FOLDER,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    batches = DataLoader([TASK[n] for n in range(BATCHES)], batch_size=None)
    trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    return trainer


if __name__ == "__main__":
    torch.manual_seed(0)
    saving = ModelCheckpoint(FOLDER, filename="{epoch}", save_top_k=-1)
    module = Copying()
    loss = float(fit(module, EPOCHS, callbacks=[saving]).callback_metrics["loss"])

    resumed = Copying()  # other numbers, which the checkpoint replaces
    fit(resumed, EPOCHS, f"{FOLDER}/epoch=1.ckpt", enable_checkpointing=False)

    weight = module.model.rnn.weight_hh_l0
    same = torch.equal(weight, resumed.model.rnn.weight_hh_l0)
    print(
        f"loss {loss:.4f}, no memory {TASK.baseline:.4f}; {weight.manifold}; resumed alike: {same}"
    )
