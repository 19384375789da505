"""A manifold parameter beside parametrized ones: one model, one optimizer, a group for each kind."""

from collections import OrderedDict

import torch
from geoopt import ManifoldParameter
from torch import nn
from torch.nn.utils import parametrizations

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, Adam, Matching

D = 16


def make_model():
    """One layer of each kind; geotorch's where it is installed."""
    layers = {
        "givens": constrain(nn.Linear(D, D), "weight", OrthogonalGroup()),
        "orthogonal": parametrizations.orthogonal(nn.Linear(D, D)),
        "weight norm": parametrizations.weight_norm(nn.Linear(D, D)),
    }
    try:
        import geotorch
    except ModuleNotFoundError:
        pass
    else:
        layers["geotorch"] = nn.Linear(D, D)
        geotorch.orthogonal(layers["geotorch"], "weight")
    return nn.Sequential(OrderedDict(layers))


def make_optimizer(model):
    """A parametrized layer's parameters are those that its weight is computed from: plain ones."""
    points = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    return SRCD(
        [
            {"params": points, "lr": 0.05, "selection": Matching("greedy")},
            {"params": others, "scaling": Adam()},
        ],
        lr=0.01,
    )


def train(model, optimizer, steps):
    """Fit random vectors to others, and return the losses."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, D, generator=generator)
    losses = []
    for _ in range(steps):
        loss = (model(x) - y).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    model = make_model()
    losses = train(model, make_optimizer(model), 300)
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    for name, layer in model.named_children():
        defect = (layer.weight.T @ layer.weight - torch.eye(D)).abs().max().item()
        print(f"{name:>11}: max |WᵀW − I| = {defect:.1e}")
