"""FSDP2: sharded matrices, a sharded batch of rotations, and a rotation that every process holds.

torchrun --nproc-per-node=2 fsdp.py
"""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, Adam, Matching
from givens.optim.distributed import clip_grad_norm_

HEADS, WIDTH, BATCH = 6, 16, 48
DEVICE = torch.device("cpu")
if torch.cuda.is_available():
    DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(DEVICE)


class Network(nn.Module):
    """Rotates its input, rotates that once more by every head, and mixes what the heads see."""

    def __init__(self):
        super().__init__()
        self.rotation = nn.Parameter(torch.eye(WIDTH))
        self.heads = nn.Parameter(torch.randn(HEADS, WIDTH, WIDTH))
        self.mix = nn.Linear(HEADS * WIDTH, WIDTH)

    def forward(self, x):
        """Map a batch of vectors, shape ``(…, WIDTH)``, to vectors."""
        seen = (x @ self.rotation)[:, None, None] @ self.heads
        return self.mix(seen.tanh().flatten(1))


def build():
    """Return the sharded network and its optimizers."""
    torch.manual_seed(0)  # the same start in all processes
    group = OrthogonalGroup()
    net = constrain(Network().to(DEVICE), "rotation", group)
    fully_shard(net, ignored_params={net.rotation})
    constrain(net, "heads", group)  # after fully_shard, which loses a manifold
    optimizers = [
        # Every process has a gradient of its own by the rotation.
        SRCD([net.rotation], 0.1, Matching(), process_group=dist.group.WORLD),
        SRCD([net.heads], 0.01, Matching(), Adam()),
        torch.optim.Adam(net.mix.parameters(), 0.01),
    ]
    return net, optimizers


def batch(step):
    """Return this process's share of a batch: to be rotated by a fixed rotation."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, WIDTH, generator=generator)
    y = x.roll(1, 1)
    return (z.chunk(dist.get_world_size())[dist.get_rank()].to(DEVICE) for z in (x, y))


def update(net, optimizers, step):
    """Do one step, and return the loss of this process's share."""
    x, y = batch(step)
    loss = (net(x) - y).square().mean()
    loss.backward()
    clip_grad_norm_(net.parameters(), 1.0, process_group=dist.group.WORLD)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def main():
    """Train for 100 steps."""
    net, optimizers = build()
    for step in range(100):
        loss = update(net, optimizers, step)
        if step % 20 == 0 and dist.get_rank() == 0:
            print(f"step {step}: loss {loss:.4f}")
    assert net.heads.manifold.check_point_on_manifold(net.heads.to_local(), atol=1e-5)


if __name__ == "__main__":
    dist.init_process_group()
    main()
    time.sleep(0.1)  # as in ddp.py
    dist.destroy_process_group()
