"""Time on a device, and the most that the device can do: how fast it multiplies matrices and reads memory."""
import time

import torch

from common.device import synchronize


class Clock:
    """Measures the parts of a step on the device, without waiting for a GPU until the shares are read."""

    def __init__(self, device):
        self.device, self.marks = device, []  # (part, an event or a time)

    def mark(self, part):
        """A part of the step ends here; 'begin' marks the beginning of a step."""
        if self.device.startswith('cuda'):
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            synchronize(self.device)
            moment = time.perf_counter()
        self.marks.append((part, moment))

    def shares(self):
        """The share of the time that each part took."""
        synchronize(self.device)
        parts = {}
        for (_, before), (part, after) in zip(self.marks, self.marks[1:]):
            ms = before.elapsed_time(after) if self.device.startswith('cuda') else 1000 * (after - before)
            parts[part] = parts.get(part, 0.0) + ms
        parts.pop('begin', None)  # from the end of one step to the beginning of the next
        return {part: ms / sum(parts.values()) for part, ms in parts.items()}


def shares(train, run, device):
    """
    {part: share of the time} of train_step() in `train`, the globals of train.py. run(step) is to call it a few times.
    """
    clock = Clock(device)
    model, unscale, train_step = train['model'], train['scaler'].unscale_, train['train_step']

    def forward(*batch):
        clock.mark('data' if clock.marks[-1][0] == 'begin' else 'backward')  # ends here
        result = model(*batch)
        clock.mark('forward')
        return result

    def unscale_(optimizer):
        clock.mark('backward')
        unscale(optimizer)

    def step(i):
        clock.mark('begin')
        train_step(i)
        clock.mark('optimizer')

    train['model'], train['scaler'].unscale_ = forward, unscale_  # which train_step() looks up in its globals
    run(step)
    return clock.shares()


def seconds(run, device):
    """How long one call of `run` takes on the device."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def shortest(run, device):
    """The shortest of the calls of `run` within a second, at least three, after one that does not count."""
    run()
    times, end = [], time.perf_counter() + 1.0
    while len(times) < 3 or time.perf_counter() < end:
        times.append(seconds(run, device))
    return min(times)


@torch.no_grad()
def matmul_flops(device, dtype):
    """FLOP/s of a matmul of two square matrices in `dtype`, a name."""
    size = 1024 if device == 'cpu' else 8192
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return 2 * size**3 / shortest(lambda: a @ b, device)


@torch.no_grad()
def read_bytes_per_second(device):
    """Bytes/s at which a sum over float32 numbers reads memory."""
    numbers = torch.randn(2**27, device=device)
    return numbers.nbytes / shortest(numbers.sum, device)
