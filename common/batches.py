"""
What a run reads, and the random numbers that say where. A split's tokens are kept on the device while they are few,
else read from disk in a thread, ahead of when they are needed. Which positions to read is the caller's.
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common import bins

ON_DEVICE = 2**28  # bytes of a split that is kept on the device, 134 million tokens in uint16


def random_numbers(seed, stream, i, count):
    """
    (count,) uint64, a function of (seed, stream, i) alone: there is no generator whose state a resume would need or an
    evaluation could disturb, and any number of processes draws the same. Philox: Salmon et al. 2011.
    """
    return np.random.Philox(key=[seed, stream], counter=[0, 0, 0, i]).random_raw(count)


class Reader:
    """Windows of one split, `length` tokens long."""

    def __init__(self, folder, split, meta, length, device):
        self.open = lambda: bins.open_tokens(folder, split, meta)
        self.open_mask = lambda: bins.open_mask(folder, split)
        self.masked = self.open_mask() is not None
        self.length, self.device = length, device
        self.size = len(self.open())  # in tokens
        self.tokens = self.thread = None
        self.ahead = None, None  # starts, and the future of their windows
        if self.size * np.dtype(meta['dtype']).itemsize > ON_DEVICE:
            # a thread begins on the first GPU, whichever this process has
            own_gpu = (torch.cuda.set_device, (device,)) if device.startswith('cuda:') else (None, ())
            self.thread = ThreadPoolExecutor(1, 'read ahead', *own_gpu)
            return
        # PyTorch does little in unsigned integers: the same bytes as signed ones, of which `bits` takes the sign away
        unsigned = np.dtype(meta['dtype'])
        self.bits = 2**(8 * unsigned.itemsize) - 1
        self.tokens = torch.from_numpy(np.array(self.open()).view(f'int{8 * unsigned.itemsize}')).to(device)
        if self.masked:
            self.mask = torch.from_numpy(np.array(self.open_mask())).to(device)

    def windows(self, starts):
        """
        (ids, counts) from each of `starts` (int64 array of any shape) on: int64 and bool, both (*shape, length). No
        token counts that is past the end, or of which the split's mask says so.
        """
        starts = np.ascontiguousarray(starts)  # every second micro-batch of two processes is not, and copies slowly
        if self.tokens is not None:
            steps = torch.arange(self.length, device=self.device)
            positions = on(self.device, torch.from_numpy(starts))[..., None] + steps
            inside = positions < self.size
            positions = positions.clamp(max=self.size - 1)
            return self.tokens[positions].long() & self.bits, inside & self.mask[positions] if self.masked else inside
        expected, future = self.ahead
        read = future.result() if expected is not None and np.array_equal(expected, starts) else self.read(starts)
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in read)

    def read_ahead(self, starts):
        """Begin to read what windows() will be asked for next."""
        if self.thread is not None:
            self.ahead = starts, self.thread.submit(self.read, starts)

    def read(self, starts):
        tokens = self.open()  # anew each time: a mapping keeps every page that it ever touched
        positions = starts[..., None] + np.arange(self.length)
        inside = positions < self.size
        positions = np.minimum(positions, self.size - 1)
        counts = inside & self.open_mask()[positions] if self.masked else inside
        read = torch.from_numpy(tokens[positions].astype(np.int64)), torch.from_numpy(counts)
        return tuple(tensor.pin_memory() for tensor in read) if self.device.startswith('cuda') else read


def on(device, tensor):
    """A tensor on a device, without waiting for what a GPU is doing at the time."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith('cuda') else tensor.to(device)
