"""
What a device can do at most: how fast it multiplies matrices, and reads memory. Measured, with PyTorch's own functions.
"""
import time

import torch

from common import hardware


def seconds(run, device):
    """How long a call of `run` takes the device."""
    hardware.synchronize(device)
    begin = time.perf_counter()
    run()
    hardware.synchronize(device)
    return time.perf_counter() - begin


def shortest(run, device):
    """The shortest of some calls, the first not counted, for a second or at least three times."""
    run()
    times, end = [], time.perf_counter() + 1.0
    while len(times) < 3 or time.perf_counter() < end:
        times.append(seconds(run, device))
    return min(times)


@torch.no_grad()
def matmul_flops(device, dtype, size=None):
    """FLOP/s of the product of two square matrices of `size` (8192 on a GPU, 1024 on a CPU) in `dtype`, a name."""
    size = size or (8192 if device.startswith('cuda') else 1024)
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return 2 * size**3 / shortest(lambda: a @ b, device)


@torch.no_grad()
def read_bytes_per_second(device, count=2**27):
    """Bytes/s that a sum over `count` numbers in float32 reads."""
    numbers = torch.randn(count, device=device)
    return numbers.nbytes / shortest(numbers.sum, device)
