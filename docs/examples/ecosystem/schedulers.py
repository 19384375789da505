"""Learning-rate schedulers: a rotation from noisy pairs, where a constant rate never arrives."""

import torch
from geoopt import ManifoldParameter
from torch.optim import lr_scheduler as schedulers

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, Matching, RobbinsMonroLR

STEPS, LR = 300, 0.2
SCHEDULES = {
    "constant": lambda o: schedulers.ConstantLR(o, factor=1.0),
    # Robbins and Monro: the rates add up to infinity, their squares do not.
    "1/(1 + t/50)": lambda o: RobbinsMonroLR(o, delay=50),
    "step": lambda o: schedulers.StepLR(o, STEPS // 4, gamma=0.3),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, STEPS),
    # There is no "momentum" or "betas" in a group of SRCD that could be cycled.
    "one cycle": lambda o: schedulers.OneCycleLR(o, LR, total_steps=STEPS, cycle_momentum=False),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=20),
    "warm-up, then cosine": lambda o: schedulers.SequentialLR(
        o,
        [
            schedulers.LinearLR(o, start_factor=0.1, total_iters=50),
            schedulers.CosineAnnealingLR(o, STEPS - 50),
        ],
        milestones=[50],
    ),
}


def fit(schedule):
    """Fit a rotation to noisy pairs (x, Rx + noise), 16 a step, and return how far it is from R."""
    generator = torch.Generator().manual_seed(0)
    manifold = OrthogonalGroup()
    rotation = manifold.random(6, 6, det=1, generator=generator)
    weight = ManifoldParameter(torch.eye(6), manifold=manifold)
    optimizer = SRCD([weight], lr=LR, selection=Matching())
    scheduler = SCHEDULES[schedule](optimizer)
    for _ in range(STEPS):
        x = torch.randn(16, 6, generator=generator)
        y = x @ rotation.T + torch.randn(16, 6, generator=generator)
        loss = (x @ weight.T - y).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            scheduler.step(loss.item())
        else:
            scheduler.step()
    assert manifold.check_point_on_manifold(weight, atol=1e-6)
    return (weight - rotation).norm().item()


if __name__ == "__main__":
    for schedule in SCHEDULES:
        print(f"{schedule:>22}: off by {fit(schedule):.3f}")
