"""An Optuna sweep of the RNN on the copying task: stepsize, selection and scaling."""

import optuna
import torch
from geoopt import ManifoldParameter

from givens.optim import SRCD, Adam, Block, Matching, Momentum, Uniform
from givens.rnn import DivergenceError, OrthogonalRNN, SequenceModel, Trainer
from givens.rnn.tasks import CopyingMemory

TASK = CopyingMemory(length=5, letters=2, batch_size=16)
REPORTS = range(40, 161, 40)
SELECTIONS = {"uniform": Uniform(), "matching": Matching(), "block": Block(fraction=0.05)}
SCALINGS = {"none": None, "momentum": Momentum(), "adam": Adam()}


def objective(trial):
    """Train with what the trial suggests, and return the test loss."""
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    selection = SELECTIONS[trial.suggest_categorical("selection", list(SELECTIONS))]
    scaling = SCALINGS[trial.suggest_categorical("scaling", list(SCALINGS))]

    torch.manual_seed(0)
    model = SequenceModel(OrthogonalRNN(TASK.input_size, 24), TASK.output_size)
    orthogonal = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizers = [SRCD(orthogonal, lr, selection, scaling), torch.optim.Adam(others, lr=0.01)]
    trainer = Trainer(model, optimizers, TASK, f"runs/sweep/{trial.number}", progress=False)
    try:
        for step in REPORTS:
            loss = trainer.train(step, overwrite=True)["test loss"]
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
    except DivergenceError as error:
        raise optuna.TrialPruned(str(error)) from error
    return loss


def sweep(trials):
    """Run a study, in memory; the seed makes it the same every time."""
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=REPORTS[0]),
    )
    study.optimize(objective, n_trials=trials)
    return study


if __name__ == "__main__":
    best = sweep(8).best_trial
    print(f"test loss {best.value:.4f}, {TASK.baseline_name} {TASK.baseline:.4f}: {best.params}")
