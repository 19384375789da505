"""Checkpoints of sharded training, from which any number of processes goes on.

Run it with torchrun --standalone --nproc-per-node 4 --max-restarts 10 checkpoint.py FOLDER, in an
environment with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. A process that dies ends the others, and torchrun
starts all of them again. One that hangs is given up after TIMEOUT by those that wait for it.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsdp import build, update
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

STEPS, EVERY, TIMEOUT = 30, 5, timedelta(minutes=10)


def save(folder, step, net, optimizers):
    """Write a checkpoint, all processes together, into a folder of its own."""
    model, optimizer = get_state_dict(net, optimizers)
    state = {"model": model, "optimizer": optimizer, "step": step}
    dcp.save(state, checkpoint_id=folder / f"{step:08d}")


def load_last(folder, net, optimizers):
    """Go back to the last checkpoint, and return how many steps were done."""
    # The file with this name is written when all others are.
    found = [sorted(path.parent for path in folder.glob("*/.metadata"))[-1:]]
    dist.broadcast_object_list(found)  # all processes take the one that the first one sees
    if not found[0]:
        return 0
    model, optimizer = get_state_dict(net, optimizers)  # what is there now, to be filled
    state = {"model": model, "optimizer": optimizer, "step": 0}
    dcp.load(state, checkpoint_id=found[0][0])
    set_state_dict(net, optimizers, model_state_dict=model, optim_state_dict=optimizer)
    return state["step"]


def main(folder):
    """Train to the end, from wherever the last checkpoint is."""
    dist.init_process_group(timeout=TIMEOUT)
    net, optimizers = build()
    for step in range(load_last(folder, net, optimizers), STEPS):
        update(net, optimizers, step)
        if (step + 1) % EVERY == 0:
            save(folder, step + 1, net, optimizers)
    time.sleep(0.1)  # as in ddp.py
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
