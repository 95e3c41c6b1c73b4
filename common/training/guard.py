"""
What keeps a run from harm: settings that cannot work, signals to stop, harmful updates, a disk that is too small. It
detects and reports; train.py decides what to do.
"""
import contextlib
import math
import os
import signal
import sys
import time

import torch

from common import files, settings
from common.console import stop
from common.dataset import check_unchanged
from common.distributed import differing, print0, world_size
from common.tokenizer import check_same

WINDOW = 100  # updates whose losses decide what a spike is


def check_modern(wanted, is_modern, source):
    """ValueError if the modern model is wanted, but the weights from `source` are those of a classic one."""
    if wanted and not is_modern:
        raise ValueError(f'modern=True, but the weights of {source} are those of a classic GPT-2; '
                         'use --modern=False, or start with --init_from=scratch')


def check_resumed(state, config, shape, meta, allow_data_change, out_dir):
    """
    ValueError if the run in `state`, with this GPTConfig, cannot continue on the dataset that `meta` describes or with
    the settings in `shape` (n_layer, ...). These may also equal the settings at its beginning: the n_layer of a run
    that started from gpt2-xl does not describe its model.
    """
    if 'meta' not in state:  # the original's
        print0('the checkpoint does not say what its ids mean: they are taken for those of this dataset, which must be '
               'the one that it was trained on')
    check_same(meta, state.get('meta'), config.vocab_size)
    check_unchanged(meta, state.get('meta'), allow_data_change)
    then = state.get('config', {})
    differing = [key for key, value in shape.items() if value != getattr(config, key) and value != then.get(key)]
    if differing:
        raise ValueError(f'the run in {out_dir} has another model: resume it with '
                         + ' '.join(f'--{key}={getattr(config, key)}' for key in differing)
                         + ', or start another run in another out_dir')


def check_same_on_all_ranks(iter_num, data_size, dtype, device, out_dir):
    """ValueError if the ranks would resume at different iterations, or train on different data or in another dtype."""
    numbers = {'iteration': iter_num, **data_size, 'dtype': torch.finfo(getattr(torch, dtype)).max}
    problems = {'iteration': f'found different states in {out_dir}; it must be on a disk that all share',
                'train': 'have different datasets', 'val': 'have different datasets',
                'dtype': f'have GPUs of different kinds (dtype={dtype} on this one); try --dtype=float16'}
    different = differing(numbers, device)
    if different:
        raise ValueError(f'the processes {problems[different[0]]}')


def check_model(config, device, dtype, gradient_checkpointing):
    """
    Print a line if the head size is not a multiple of 8, which attention kernels in 16 bits want. ValueError for what
    the device would compute wrong.
    """
    if device == 'mps' and gradient_checkpointing and config.dropout > 0:  # torch.utils.checkpoint saves no MPS seed
        raise ValueError('on device=mps the recomputed activations would have another dropout: use --dropout=0.0 or '
                         '--gradient_checkpointing=False')
    head_dim = config.n_embd // config.n_head
    if device.startswith('cuda') and dtype != 'float32' and head_dim % 8 != 0:
        print0(f'heads of {head_dim} channels, not a multiple of 8: attention takes more time and memory; try '
               f'--n_embd={config.n_head * -(-head_dim // 8) * 8}')


def mean_scores(split, loss, correct, counted):
    """(loss, accuracy) of an evaluation from the sums over its `counted` targets. If there is none the run ends."""
    if counted == 0:
        stop(f'the mask of {split} excludes all evaluated tokens; use a higher --eval_iters, or --eval_iters=0')
    return loss / counted, correct / counted


class StopSignal:
    """
    Turns SIGTERM, Ctrl-C and SIGUSR1 (which Slurm can send ahead of a time limit) into `on_any_rank`: whether any rank
    has been told to stop. A rank tells the others with a tensor that is reduced anyway, and all learn it in the same
    iteration.
    """

    def __init__(self):
        self.name, self.interrupted = None, None  # name of the first signal; time of the first Ctrl-C
        self.on_any_rank = False

    def install(self, saves):
        """Catch the signals. A second Ctrl-C kills at once; without `saves` the first signal does."""
        for name in ('SIGTERM', 'SIGINT', 'SIGUSR1'):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), self.note if saves else signal.SIG_DFL)
        if saves and hasattr(signal, 'SIGHUP'):  # the terminal was closed. torchrun ends its processes then
            signal.signal(signal.SIGHUP, signal.SIG_IGN if world_size() == 1 else self.note)

    def note(self, number, frame):
        """The signal handler."""
        if number == signal.SIGINT:
            self.interrupted = self.interrupted or time.monotonic()
            # torchrun forwards a Ctrl-C that the terminal has sent to all processes already: within a second it is one
            if time.monotonic() - self.interrupted > 1:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        if not self.name:
            self.name = signal.Signals(number).name
            self.on_any_rank = world_size() == 1
            when = 'this iteration' if self.on_any_rank else 'the next iteration'
            again = ' (Ctrl-C again: stop at once)' if number == signal.SIGINT else ''
            print0(f'{self.name}: saving after {when}{again}')

    def requested(self):
        """1.0 if this rank has been told to stop, else 0.0: what the ranks add up."""
        return float(self.name is not None)

    def update(self, requests):
        """Learn what requested() gives on all ranks together. All ranks must call it in the same place."""
        self.on_any_rank = self.on_any_rank or requests > 0


class StepGuard:
    """
    Finds harmful updates: those whose loss or gradient is not finite and, if spike_z is above 0, those whose loss is
    more than spike_z standard deviations above the mean of the last 100. `losses`, a list that may have some of these
    already, is updated in place. What it reads back from the device tells the `stop_signal` of other ranks, too.
    """

    def __init__(self, spike_z, losses, stop_signal):
        self.spike_z, self.losses, self.stop_signal = spike_z, losses, stop_signal
        self.pending = None  # of the last update: iteration, [skip, loss, requests] on the way to the host, CUDA event
        self.last_loss = None
        self.in_a_row = 0    # skipped updates

    def check_update(self, iter_num, loss, requests, grad_norm, scaled):
        """
        Whether to skip this update: a bool tensor on the device. Reading it on the host waits for the device, so
        fetch_skipped() does that one iteration later. With loss scaling (`scaled`) overflowing gradients are left to
        GradScaler. `requests`: above 0 if any rank has been told to stop.
        """
        skip = ~torch.isfinite(loss)
        if not scaled:
            skip = skip | ~torch.isfinite(grad_norm)
        if self.spike_z > 0 and len(self.losses) == WINDOW:
            mean = sum(self.losses) / WINDOW
            deviation = math.sqrt(sum((x - mean)**2 for x in self.losses) / WINDOW)
            skip = skip | (loss > mean + self.spike_z * deviation)
        values = torch.stack((skip.float(), loss.float(), requests.float())).to('cpu', non_blocking=loss.is_cuda)
        arrival = torch.cuda.Event() if loss.is_cuda else None
        self.pending = iter_num, values, arrival
        if arrival is not None:
            arrival.record()
        return skip

    def fetch_skipped(self):
        """The iteration of the last update if it was skipped, else None. A second call returns None."""
        if self.pending is None:
            return None
        iter_num, values, arrival = self.pending
        self.pending = None
        if arrival is not None:
            arrival.synchronize()  # waits for the last update, not for what was queued after it
        skip, self.last_loss, requests = values.tolist()
        self.stop_signal.update(requests)
        if skip:
            self.in_a_row += 1
            return iter_num
        self.in_a_row = 0
        if self.spike_z > 0:
            self.losses.append(self.last_loss)
            del self.losses[:-WINDOW]
        return None

    def give_up_after(self, max_skips, out_dir):
        """End the process after that many skipped updates in a row."""
        if self.in_a_row >= max_skips:
            print0(f'stopped: {max_skips} updates in a row had to be skipped. The last good state is in {out_dir}; '
                   'resume it with a lower --learning_rate and --min_lr, and --muon_lr with Muon')
            sys.exit(1)


def update(optimizer, skip, grad_norm):
    """
    A step of the optimizer with unscaled gradients, unless `skip` (a bool tensor), or they are not finite. A fused
    optimizer reads found_inf on the device and changes nothing where it is 1: no host sync. GradScaler.step() would
    overwrite found_inf, but its update() does not need it. Other optimizers ignore found_inf: the host waits for it.
    """
    harmful = skip | ~torch.isfinite(grad_norm)
    if optimizer.defaults['fused']:
        optimizer.found_inf = harmful.float()
    elif harmful:
        return
    optimizer.step()


def check_disk(out_dir, config, vocab_size):
    """Print a warning if the disk is too small for the checkpoints of a run with the settings `config`."""
    needed, free = settings.disk_bytes(config, vocab_size), math.inf
    with contextlib.suppress(OSError):  # it cannot be told just now
        replaced = sum(entry.stat().st_size for entry in os.scandir(out_dir) if entry.name.endswith('.pt'))
        free = files.free_bytes(out_dir) + replaced
    if free < needed:
        print0(f'warning: this run may write {needed / 1e9:.1f} GB into {out_dir}, whose disk has '
               f'{free / 1e9:.1f} GB free')
