"""Averages of the weights (SWA, EMA) that stay on the manifold: a rotation from noisy pairs."""

import torch
from geoopt import ManifoldParameter
from torch import nn
from torch.optim.swa_utils import SWALR, get_ema_multi_avg_fn

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, AveragedModel, Matching

D, STEPS, START, EVERY = 6, 400, 200, 5

if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    rotation = OrthogonalGroup().random(D, D, det=1, generator=generator)
    model = nn.Linear(D, D, bias=False)
    nn.init.eye_(model.weight)
    constrain(model, "weight", OrthogonalGroup())
    optimizer = SRCD(model.parameters(), lr=0.2, selection=Matching())
    scheduler = SWALR(optimizer, swa_lr=0.1, anneal_epochs=20)
    averages = {
        "SWA": AveragedModel(model),
        "EMA": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    }
    for step in range(STEPS):
        x = torch.randn(16, D, generator=generator)
        y = x @ rotation.T + torch.randn(16, D, generator=generator)
        loss = (model(x) - y).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= START:
            scheduler.step()
            if step % EVERY == 0:
                for averaged in averages.values():
                    averaged.update_parameters(model)

    weights = {"last": model.weight} | {name: a.module.weight for name, a in averages.items()}
    off = {name: (weight - rotation).norm().item() for name, weight in weights.items()}
    for name, weight in weights.items():
        assert isinstance(weight, ManifoldParameter)
        print(f"{name:>4}: off by {off[name]:.3f}, on {weight.manifold}")
