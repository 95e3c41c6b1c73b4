"""
The processes of a run, as torchrun starts them: ranks, collectives, and FSDP. Without torchrun there is one process,
and everything here does nothing or returns its argument. It knows no model and no settings.
"""
import contextlib
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

TORCHRUN = 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'
UNSET = f'for one process: unset {" ".join(TORCHRUN)}'


def environment():
    """
    (rank, world size, local rank): what torchrun sets, (0, 1, 0) without it. ValueError for variables that do not fit
    together, because a rank that some other program left behind would make a run silent, or two of them use one GPU.
    """
    found = {}
    for name in TORCHRUN:
        text = os.environ.get(name, '').strip()  # empty: as if it were not set
        if text and not text.isdecimal():
            raise ValueError(f'{name}={text!r} in the environment is not a number; {UNSET}')
        if text:
            found[name] = int(text)
    world_size, missing = found.get('WORLD_SIZE', 1), {'RANK', 'LOCAL_RANK'} - found.keys()
    if world_size > 1 and missing:
        raise ValueError(f'WORLD_SIZE={world_size} in the environment, but no {" and no ".join(sorted(missing))}: '
                         f'torchrun sets all of them; {UNSET}')
    rank, local_rank = found.get('RANK', 0), found.get('LOCAL_RANK', 0)
    if not local_rank <= rank < world_size or local_rank >= found.get('LOCAL_WORLD_SIZE', world_size):
        given = ', '.join(f'{name}={found[name]}' if name in found else f'no {name}' for name in TORCHRUN)
        raise ValueError(f'the environment has {given}, which do not fit together; {UNSET}')
    return rank, world_size, local_rank


def rank():
    """This process's rank among all that torchrun started; 0 without torchrun."""
    return environment()[0]


def world_size():
    """How many processes torchrun started; 1 without torchrun."""
    return environment()[1]


def local_rank():
    """This process's rank on its own machine, which is also the number of its GPU."""
    return environment()[2]


def print0(*args):
    """Print on rank 0 only, at once even when stdout is a file."""
    if rank() == 0:
        print(*args)


def start_processes(backend, device, compressed=''):
    """
    Join the process group: NCCL between GPUs, gloo between CPUs, unless `backend` names one. `compressed`: the dtype of
    a run whose gradients are to travel in 16 bits. ValueError for what cannot work.
    """
    if backend not in ('auto', 'nccl', 'gloo'):
        raise ValueError(f'backend={backend!r} is not one of auto, nccl, gloo')
    if world_size() == 1:
        return
    address, port = (os.environ.get(name, '') for name in ('MASTER_ADDR', 'MASTER_PORT'))
    if not address or not port.isdecimal():
        raise ValueError(f'MASTER_ADDR={address!r} and MASTER_PORT={port!r} in the environment name no place where the '
                         f'{world_size()} processes could meet: torchrun sets them; {UNSET}')
    on_cuda = device.startswith('cuda')
    if backend == 'nccl' and not on_cuda:
        raise ValueError(f"backend='nccl' needs GPUs, but the device is {device!r}; use --backend=auto")
    if compressed and compressed != 'float16' and not on_cuda:
        raise ValueError(f'compress_gradients=True in {compressed} needs GPUs; try --compress_gradients=False')
    if backend == 'auto':
        backend = 'nccl' if on_cuda else 'gloo'
    # an hour, not NCCL's 10 minutes: the others wait while rank 0 prepares a dataset or saves a large state
    dist.init_process_group(backend, device_id=torch.device(device) if backend == 'nccl' else None,
                            timeout=timedelta(hours=1))


@contextlib.contextmanager
def with_all_ranks():
    """A collective before a run begins: ValueError if another rank has ended, which has said why."""
    try:
        yield
    except RuntimeError:
        raise ValueError('another process of this run has ended, see its message') from None


def barrier():
    """Wait for all ranks. ValueError if one has ended."""
    if world_size() > 1:
        with with_all_ranks():
            dist.barrier()


def once_per_disk(action):
    """Call action() on rank 0, then on the first rank of each machine, which finds it done where they share a disk."""
    for first in (rank(), local_rank()):
        if first == 0:
            action()
        barrier()


def differing(numbers, device):
    """Which of `numbers`, {name: number}, are not the same on all ranks. ValueError if one has ended."""
    if world_size() == 1:
        return []
    lowest = torch.tensor([float(number) for number in numbers.values()], dtype=torch.float64, device=device)
    highest = lowest.clone()
    with with_all_ranks():
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return [name for name, low, high in zip(numbers, lowest.tolist(), highest.tolist()) if low != high]


def shut_down(code):
    """Wait for all ranks, destroy the process group, exit. From here on no signal changes the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
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


def mean_over_ranks(value, *more):
    """The means over all ranks of scalars, as one tensor on the device of `value`, a tensor; without a host sync."""
    means = torch.stack([value, *(torch.full_like(value, number) for number in more)])
    if world_size() > 1:
        dist.all_reduce(means)
        means = means / world_size()
    return means


def micro_batch_weights(targets, masked=True):
    """
    The weight of each micro-batch of this rank in the loss, which is the mean over all targets of all ranks: targets
    (n, B, T), where -1 does not count, which is nowhere unless the data are `masked`; returns (n,) float32. DDP and
    FSDP average gradients over the ranks, so the sums of these weights have the mean 1 over the ranks.
    """
    if not masked:  # without asking the other ranks
        return targets.new_full((len(targets),), 1 / len(targets), dtype=torch.float32)
    counted = (targets >= 0).sum(dim=(1, 2)).float()
    return counted / mean_over_ranks(counted.sum()).clamp(min=1.0)  # a tensor of one element


def data_parallel(model, device, dtype='float32', compress=False):
    """
    DDP: the whole model on every rank, and gradients averaged over the ranks in the backward pass. With `compress` they
    travel in 16 bits: in float16 if that is the `dtype` of the run, whose loss scaling notices an overflow, else in
    bfloat16, which needs NCCL.
    """
    # a compiled graph is cut at each bucket of gradients: 5 for GPT-2 124M, where PyTorch's 25 MB would make 20
    parallel = DistributedDataParallel(model, device_ids=[device] if device.startswith('cuda') else None,
                                       gradient_as_bucket_view=True,  # or gradients would take twice the memory
                                       bucket_cap_mb=100)
    if compress:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks as hooks
        parallel.register_comm_hook(None, hooks.fp16_compress_hook if dtype == 'float16' else hooks.bf16_compress_hook)
    # one token, whose loss counts for nothing, gives gradients their places in the buckets. Else the first iteration
    # would keep those of its unsynchronized micro-batches beside them, and a resumed run might not have that memory
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    parallel(token, token)[1].backward()
    parallel.zero_grad(set_to_none=False)
    return parallel


def shard(model, blocks, device, dtype='float32'):
    """
    FSDP: split the model's parameters over the ranks and move them to their devices. Each block is gathered when it is
    used, in `dtype` (a name). Gradients are split and added up in float32 after each micro-batch, which costs time and
    saves memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    mesh = init_device_mesh(device.partition(':')[0], (world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, dtype), reduce_dtype=torch.float32,
                                  cast_forward_inputs=False)
    for block in [*blocks, model]:
        fully_shard(block, mesh=mesh, mp_policy=policy)


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
