"""Data-parallel training of orthogonal weights: run it with torchrun --nproc-per-node 2 ddp.py."""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, Adam, Matching
from givens.optim.distributed import clip_grad_norm_, leave_out_of_ddp


def main():
    """Train a layer whose weight is a rotation, each process on its share of every batch."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    constrain(model[0], "weight", OrthogonalGroup())
    model.to(device)

    # The rotation leaves DDP, and its optimizer averages 32 derivatives a step instead of 4,096 entries.
    leave_out_of_ddp(model)
    ddp = DistributedDataParallel(model)
    rotation = model[0].weight
    others = [p for p in model.parameters() if p is not rotation]
    srcd = SRCD([rotation], 0.03, Matching(), Adam(), process_group=dist.group.WORLD)
    adam = torch.optim.Adam(others, lr=0.003)

    data = torch.randn(4096, 64, generator=torch.Generator().manual_seed(1)).to(device)
    teacher = torch.randn(64, 10, generator=torch.Generator().manual_seed(2)).to(device)
    labels = (data @ teacher).argmax(1)
    for step in range(100):
        batch = torch.arange(step * 256, (step + 1) * 256) % 4096  # the same in all processes,
        mine = batch[rank::world]  # of which each takes its share
        loss = nn.functional.cross_entropy(ddp(data[mine]), labels[mine])
        srcd.zero_grad()
        adam.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0, process_group=dist.group.WORLD)
        srcd.step()
        adam.step()

    srcd.check_replicas()  # raises where processes have drifted apart
    w = rotation.detach()
    defect = float((w.T @ w - torch.eye(64, device=device)).abs().max())
    if rank == 0:
        print(f"loss {loss.item():.4f}, max |WᵀW − I| {defect:.0e}")


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    main()
    # Gloo's threads let go of the last tensors, for which they need the interpreter once more: a process
    # that ends in this moment is aborted.
    time.sleep(0.1)
    dist.destroy_process_group()
