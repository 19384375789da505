"""TensorBoard: a run with events, read back."""

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from givens.optim import SRCD, Adam, Block
from givens.rnn import OrthogonalRNN, SequenceModel, Trainer
from givens.rnn.tasks import CopyingMemory

FOLDER = Path("runs/tensorboard")

if __name__ == "__main__":
    torch.manual_seed(0)
    task = CopyingMemory(length=5, letters=2, batch_size=32)
    model = SequenceModel(OrthogonalRNN(task.input_size, 24), task.output_size)
    optimizer = SRCD(model.parameters(), 0.01, Block(fraction=0.1), Adam())
    Trainer(
        model, optimizer, task, FOLDER, evaluate_every=50, tensorboard=True, progress=False
    ).train(150)

    # Or look at them: tensorboard --logdir runs/tensorboard
    events = EventAccumulator(str(FOLDER / "tensorboard"))
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, shown in scalars.items():
        print(f"{tag:>18}: {len(shown):2} values, the last {shown[-1].value:.4f}")
