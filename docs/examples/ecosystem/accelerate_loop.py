"""Hugging Face Accelerate: prepare, accumulate, clip, save and load."""

import torch
from accelerate import Accelerator
from geoopt import ManifoldParameter
from torch.utils.data import DataLoader

from givens.optim import SRCD, Adam, Block
from givens.rnn import OrthogonalRNN, SequenceModel
from givens.rnn.tasks import CopyingMemory

TASK = CopyingMemory(length=5, letters=2, batch_size=32)
EPOCHS, BATCHES, ACCUMULATED = 4, 40, 2


def prepared(accelerator):
    """Make model, optimizer, batches and scheduler, and hand them to Accelerate."""
    rnn = OrthogonalRNN(TASK.input_size, 24)
    model = SequenceModel(rnn, TASK.output_size)
    orthogonal = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizer = SRCD(
        [
            {"params": orthogonal, "selection": Block(fraction=0.1)},
            {"params": others, "scaling": Adam()},  # on plain parameters: torch's Adam
        ],
        lr=0.01,
    )
    steps = EPOCHS * BATCHES // ACCUMULATED
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = DataLoader([TASK[n] for n in range(BATCHES)], batch_size=None)
    return accelerator.prepare(model, optimizer, batches, scheduler)


def train_epoch(accelerator, model, optimizer, batches, scheduler):
    """Train on every batch once, and return the last loss."""
    for input, target in batches:
        with accelerator.accumulate(model):
            loss = TASK.loss(model(input), target)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATED)
    parts = model, *_ = prepared(accelerator)
    for epoch in range(EPOCHS):
        if epoch == EPOCHS // 2:
            accelerator.save_state("runs/accelerate")
        loss = train_epoch(accelerator, *parts)
    weight = accelerator.unwrap_model(model).rnn.weight_hh_l0

    accelerator.free_memory()
    parts = again, *_ = prepared(accelerator)  # other numbers, which the saved ones replace
    accelerator.load_state("runs/accelerate")
    for _ in range(EPOCHS // 2, EPOCHS):
        train_epoch(accelerator, *parts)

    same = torch.equal(weight, accelerator.unwrap_model(again).rnn.weight_hh_l0)
    print(
        f"loss {loss:.4f}, no memory {TASK.baseline:.4f}; {weight.manifold}; resumed alike: {same}"
    )
