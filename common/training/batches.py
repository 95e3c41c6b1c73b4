"""
The batches of a run: which positions an evaluation scores, the random numbers that place training sequences, and the
reader of their tokens. A split is kept on the device if it is small, else read from disk in a thread, ahead of time.
"""
import functools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common import dataset
from common.distributed import world_size

# streams of random numbers; each rank has its own for dropout, DROPOUT + rank
TRAIN, DROPOUT, SHUFFLE = 0, 1, 2**63
ON_DEVICE = 2**28  # bytes; a larger split is read from disk. 134 million tokens in uint16


def random_numbers(seed, stream, i, count):
    """
    (count,) uint64, a function of (seed, stream, i) alone. There is no generator whose state a resume would need or an
    evaluation could disturb, and every rank of any number draws the same. Philox: Salmon et al. 2011.
    """
    return np.random.Philox(key=[seed, stream], counter=[0, 0, 0, i]).random_raw(count)


def train_starts(seed, i, shape, places, block_size, shuffle):
    """
    Where the sequences of the global batch of iteration i start, int64 of this shape: random numbers below `places`.
    With `shuffle` an epoch is all adjacent windows of block_size tokens, from a random token on, in random order.
    """
    count = math.prod(shape)
    if not shuffle:
        return (random_numbers(seed, TRAIN, i, count) % np.uint64(places)).astype(np.int64).reshape(shape)
    windows = max(1, places // block_size)
    starts = []
    for k in range(i * count, (i + 1) * count):
        order, first = shuffled(seed, k // windows, windows, block_size)
        starts.append((order[k % windows] * block_size + first) % places)
    return np.array(starts, dtype=np.int64).reshape(shape)


@functools.lru_cache(maxsize=2)  # a batch may have the end of one epoch and the beginning of the next
def shuffled(seed, epoch, windows, block_size):
    """The order of the windows of an epoch, (windows,) int64, and the token below block_size where they begin."""
    numbers = random_numbers(seed, SHUFFLE, epoch, windows + 1)
    return np.argsort(numbers[:-1], kind='stable'), int(numbers[-1]) % block_size


def eval_starts(split, sizes, eval_iters, batch_size, block_size, gradient_checkpointing):
    """
    Where the sequences of an evaluation start, the same every time: (batches, rows) int64, with a multiple of
    world_size batches. `sizes`: tokens of each split. With gradient_checkpointing memory is short: batches are smaller.
    """
    size = sizes[split]
    if eval_iters > 0:  # evenly spaced: a better estimate of the whole split than random places
        starts = np.linspace(0, size - block_size - 1, eval_iters * batch_size)
    else:  # adjacent windows over the whole validation split, and over an equally long piece of train
        starts = np.arange(0, min(size, sizes['val']) - 1, block_size)
    rows = max(1, 1024 // block_size) if gradient_checkpointing else batch_size
    # pad with windows past the end, whose targets are all -1: under FSDP every rank must run the same number of batches
    starts = np.append(starts, np.full(-len(starts) % (rows * world_size()), size))
    return starts.astype(np.int64).reshape(-1, rows)


class Reader:
    """Reads sequences of `length` tokens from one split."""

    def __init__(self, folder, split, meta, length, device):
        self.open = lambda: dataset.open_tokens(folder, split, meta)
        self.open_mask = lambda: dataset.open_mask(folder, split)
        self.masked = self.open_mask() is not None
        self.length, self.device = length, device
        self.size = len(self.open())  # in tokens
        self.tokens = self.thread = None
        self.ahead = None, None  # starts, and the future of their sequences
        if self.size * np.dtype(meta['dtype']).itemsize > ON_DEVICE:
            # a new thread uses the first GPU, not the one of this process
            own_gpu = (torch.cuda.set_device, (device,)) if device.startswith('cuda:') else (None, ())
            self.thread = ThreadPoolExecutor(1, 'read ahead', *own_gpu)
            return
        # PyTorch has few ops for uint16/32: store the bytes as signed, and mask the sign extension away with `bits`
        unsigned = np.dtype(meta['dtype'])
        self.bits = 2**(8 * unsigned.itemsize) - 1
        self.tokens = torch.from_numpy(np.array(self.open()).view(f'int{8 * unsigned.itemsize}')).to(device)
        if self.masked:
            self.mask = torch.from_numpy(np.array(self.open_mask())).to(device)

    def sequences(self, starts):
        """
        (ids, is_target) from each of `starts` (int64 array of any shape) on: int64 and bool, both (*shape, length). A
        token past the end is no target, nor is one that the mask of the split excludes.
        """
        starts = np.ascontiguousarray(starts)  # a rank's slice of the micro-batches is strided, which copies slowly
        if self.tokens is not None:
            steps = torch.arange(self.length, device=self.device)
            positions = to_device_async(torch.from_numpy(starts), self.device)[..., None] + steps
            inside = positions < self.size
            positions = positions.clamp(max=self.size - 1)
            return self.tokens[positions].long() & self.bits, inside & self.mask[positions] if self.masked else inside
        expected, future = self.ahead
        read = future.result() if expected is not None and np.array_equal(expected, starts) else self.read(starts)
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in read)

    def read_ahead(self, starts):
        """Start to read what sequences() will be called with next."""
        if self.thread is not None:
            self.ahead = starts, self.thread.submit(self.read, starts)

    def read(self, starts):
        """sequences(), read from disk, on the CPU."""
        tokens = self.open()  # open it each time: a mapping keeps in memory every page that it ever touched
        positions = starts[..., None] + np.arange(self.length)
        inside = positions < self.size
        positions = np.minimum(positions, self.size - 1)
        is_target = inside & self.open_mask()[positions] if self.masked else inside
        read = torch.from_numpy(tokens[positions].astype(np.int64)), torch.from_numpy(is_target)
        return tuple(tensor.pin_memory() for tensor in read) if self.device.startswith('cuda') else read


def to_device_async(tensor, device):
    """A tensor on a device, without waiting for the work that a GPU is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith('cuda') else tensor.to(device)
