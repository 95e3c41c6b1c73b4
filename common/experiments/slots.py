"""What experiments that run at the same time on one machine have for themselves: GPUs, and threads of the CPU."""
import os
import re
import subprocess

from common.processes import cores


def find(gpus, processes):
    """For each slot its GPUs, as in CUDA_VISIBLE_DEVICES, or [None] for any. ValueError if there are none such."""
    if processes < 1:
        raise ValueError(f'--nproc_per_node={processes} is below 1')
    if not gpus:
        return [None]
    if not re.fullmatch('[0-9]+(,[0-9]+)*', gpus):
        raise ValueError(f'--gpus={gpus} is not like 0,1')
    numbers = [str(int(number)) for number in gpus.split(',')]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f'--gpus={gpus} names a GPU twice; to have two experiments on each: --jobs=2')
    count = sum(line.startswith('GPU ') for line in subprocess.getoutput('nvidia-smi -L').splitlines())
    if any(int(number) >= count for number in numbers):
        raise ValueError(f'--gpus={gpus}, but nvidia-smi knows {count} GPUs here')
    if len(numbers) % processes:
        raise ValueError(f'--gpus={gpus}: {len(numbers)} GPUs are not a multiple of --nproc_per_node={processes}')
    return [','.join(numbers[i:i + processes]) for i in range(0, len(numbers), processes)]


def overlap(slot, other):
    """Whether two slots share a GPU; None may use any."""
    return slot is None or other is None or bool(set(slot.split(',')) & set(other.split(',')))


def threads(processes):
    """How many threads each of so many processes should have, or None if the user has set that. At least 1."""
    if 'OMP_NUM_THREADS' in os.environ:
        return None
    return max(1, cores() // processes)
