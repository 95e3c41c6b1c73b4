"""
Time on a device, and what it can do at most: how fast it multiplies matrices, and reads memory.
"""
import time

import torch

from common import hardware


class Clock:
    """Marks the ends of a step's parts on the device; a GPU is not waited for."""

    def __init__(self, device):
        self.device, self.marks = device, []  # (part, an event or a time)

    def mark(self, part):
        """A part of the step ends here; 'begin' is where a step begins."""
        if self.device.startswith('cuda'):
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            hardware.synchronize(self.device)
            moment = time.perf_counter()
        self.marks.append((part, moment))

    def shares(self):
        """The share of the time that each part took."""
        hardware.synchronize(self.device)
        parts = {}
        for (_, before), (part, after) in zip(self.marks, self.marks[1:]):
            ms = before.elapsed_time(after) if self.device.startswith('cuda') else 1000 * (after - before)
            parts[part] = parts.get(part, 0.0) + ms
        parts.pop('begin', None)  # from the end of a step to the beginning of the next
        return {part: ms / sum(parts.values()) for part, ms in parts.items()}


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
    size = size or (1024 if device == 'cpu' else 8192)
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return 2 * size**3 / shortest(lambda: a @ b, device)


@torch.no_grad()
def read_bytes_per_second(device, count=2**27):
    """Bytes/s that a sum over `count` numbers in float32 reads."""
    numbers = torch.randn(count, device=device)
    return numbers.nbytes / shortest(numbers.sum, device)
