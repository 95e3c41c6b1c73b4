"""
The processes of a run, as torchrun starts them: ranks, collectives, and FSDP. Without torchrun there is one process,
and everything here does nothing or returns its argument. It knows no model and no settings.
"""
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common.console import print_flush


def rank():
    """This process's rank among all that torchrun started; 0 without torchrun."""
    return int(os.environ.get('RANK', 0))


def world_size():
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get('WORLD_SIZE', 1))


def local_rank():
    """This process's rank on its own machine, which is also the number of its GPU."""
    return int(os.environ.get('LOCAL_RANK', 0))


def print0(*args):
    """Print on rank 0 only, at once even when stdout is a file."""
    if rank() == 0:
        print_flush(*args)


def start_processes(backend, device):
    """Join the process group: NCCL between GPUs, gloo between CPUs, unless `backend` names one."""
    if backend not in ('auto', 'nccl', 'gloo'):
        raise ValueError(f'backend={backend!r} is not one of auto, nccl, gloo')
    if world_size() == 1:
        return
    on_cuda = device.startswith('cuda')
    if backend == 'nccl' and not on_cuda:
        raise ValueError(f"backend='nccl' needs GPUs, but the device is {device!r}; use --backend=auto")
    if backend == 'auto':
        backend = 'nccl' if on_cuda else 'gloo'
    # an hour, not NCCL's 10 minutes: the others wait while rank 0 prepares a dataset or saves a large state
    dist.init_process_group(backend, device_id=torch.device(device) if backend == 'nccl' else None,
                            timeout=timedelta(hours=1))


def barrier():
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def shut_down(code):
    """Wait for all ranks, destroy the process group, exit."""
    if world_size() > 1:
        dist.barrier()  # or the first rank to leave closes connections that the others still use
        dist.destroy_process_group()
        # exit now: gloo's threads may still hold tensors, and tidying up aborts the process (PyTorch pull 179291)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def all_reduce(values, device):
    """The sum over all ranks of a list of numbers, as a list of floats."""
    if world_size() == 1:
        return [float(value) for value in values]
    # MPS has no float64, but runs in one process only (device.resolve_device)
    total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def mean_over_ranks(value):
    """The mean of a tensor over all ranks, on its device and without a host sync."""
    if world_size() > 1:
        dist.all_reduce(value)
        value = value / world_size()
    return value


def micro_batch_weights(targets):
    """
    The weight of each micro-batch of this rank in the loss, which is the mean over all targets of all ranks: targets
    (n, B, T), where -1 does not count; returns (n,) float32. DDP and FSDP average gradients over the ranks, so the sums
    of these weights have the mean 1 over the ranks.
    """
    counted = (targets >= 0).sum(dim=(1, 2)).float()
    return counted / mean_over_ranks(counted.sum()).clamp(min=1.0)


def data_parallel(model, device):
    """DDP: the whole model on every rank, and gradients averaged over the ranks in the backward pass."""
    return DistributedDataParallel(model, device_ids=[device] if device.startswith('cuda') else None,
                                   gradient_as_bucket_view=True)  # or gradients would take twice the memory


def shard(model, blocks, device):
    """
    FSDP: split the model's parameters over the ranks and move them to their devices. Each block is gathered when it is
    used. Gradients are split after each micro-batch, which costs time and saves memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(device.partition(':')[0], (world_size(),))
    for block in [*blocks, model]:
        fully_shard(block, mesh=mesh)


def gather(value, seen=None):
    """
    A state dict with the tensors that FSDP split put together again, one at a time, on the CPU of rank 0; other ranks
    get None for them. All ranks must call it.
    """
    seen = {} if seen is None else seen
    if isinstance(value, dict):
        return {key: gather(item, seen) for key, item in value.items()}
    if not hasattr(value, 'full_tensor'):
        return value
    whole = value.full_tensor()
    if dist.get_rank() > 0:
        return None
    storage = value.to_local().data_ptr()  # the same for tied weights, which the file must hold once
    return seen.setdefault(storage, whole.cpu())
