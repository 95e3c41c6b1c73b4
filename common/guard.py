"""
What keeps a run from harm: settings that cannot work, signals to stop, updates that would do damage, too little disk or
memory. It finds and says; what to do about it is train.py's.
"""
import collections
import math
import os
import shutil
import signal
import sys
import time

import torch
import torch.distributed as dist

from common import hardware, planner


def check_modern(asked, is_modern, source):
    """ValueError if the modern model was `asked` for, but the weights from `source` are a classic one's."""
    if asked and not is_modern:
        raise ValueError(f'modern=True, but the weights of {source} are those of a classic GPT-2; '
                         'take --modern=False, or start with --init_from=scratch')


def check_model(config, device, dtype, gradient_checkpointing):
    """
    Print a line if the heads do not fit the kernels of attention in 16 bits, which want a multiple of 8 channels.
    ValueError for what the device would compute wrong.
    """
    if device == 'mps' and gradient_checkpointing and config.dropout > 0:  # torch.utils.checkpoint keeps no seed there
        raise ValueError('on device=mps the recomputed activations would have another dropout: take --dropout=0.0 or '
                         '--gradient_checkpointing=False')
    head_dim = config.n_embd // config.n_head
    if device.startswith('cuda') and dtype != 'float32' and head_dim % 8 != 0:
        hardware.print0(f'heads of {head_dim} channels, not a multiple of 8: attention takes more time and memory; try '
                        f'--n_embd={config.n_head * -(-head_dim // 8) * 8}')


def mean_scores(split, loss, correct, counted):
    """(loss, accuracy) of an evaluation from the sums over its `counted` tokens; without any the run ends here."""
    if counted == 0:
        hardware.stop(f'the tokens of {split} that are evaluated are all left out by its mask; take more of them, with '
                      'a higher --eval_iters or --eval_iters=0')
    return loss / counted, correct / counted


class StopSignal:
    """
    Notes SIGTERM, Ctrl-C and SIGUSR1 (what Slurm sends ahead of a time limit, if asked) instead of dying of them. A
    second Ctrl-C ends the process at once, and so does the first of a process that saves nothing.
    """

    def __init__(self, saves=True):
        self.name, self.interrupted = None, None  # the first signal's name; when the first Ctrl-C came
        # a group that waits for no GPU: asking it each iteration costs a fraction of a millisecond
        self.group = dist.new_group(backend='gloo') if hardware.world_size() > 1 else None
        for name in ('SIGTERM', 'SIGINT', 'SIGUSR1'):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), self.note if saves else signal.SIG_DFL)

    def note(self, number, frame):
        if number == signal.SIGINT:
            self.interrupted = self.interrupted or time.monotonic()
            # torchrun passes a Ctrl-C on to processes that the terminal has told already: within a second it is one
            if time.monotonic() - self.interrupted > 1:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        if not self.name:
            self.name = signal.Signals(number).name
            again = ' (Ctrl-C again: stop at once)' if number == signal.SIGINT else ''
            hardware.print0(f'{self.name}: saving after this iteration{again}')

    def agreed(self):
        """True in all processes, in the same iteration, once one of them has been told to stop."""
        told = self.name is not None
        if self.group is None:
            return told
        flag = torch.tensor(int(told))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag)


class StepGuard:
    """
    Finds updates that would do harm: those whose loss or gradient is not finite, and, with spike_z above 0, those whose
    loss lies more than spike_z standard deviations above the mean of the last 100, which `losses` may hold already.
    """

    def __init__(self, spike_z=0.0, losses=()):
        self.spike_z = spike_z
        self.losses = collections.deque(losses, maxlen=100)
        self.last = None  # of the last update: iteration, [skipped?, loss] on its way from the device, its arrival
        self.last_loss = None
        self.in_a_row = 0  # skipped updates

    def judge(self, iter_num, loss, grad_norm, scaled):
        """
        Whether to skip this update, a bool tensor. To look at it is to wait for the device, so settle() does that one
        iteration later. With loss scaling (`scaled`) a gradient that overflows is left to GradScaler, which puts its
        own found_inf in the place of this one and knows nothing of the loss: there the caller has to look.
        """
        skip = ~torch.isfinite(loss)
        if not scaled:
            skip = skip | ~torch.isfinite(grad_norm)
        if self.spike_z > 0 and len(self.losses) == self.losses.maxlen:
            mean = sum(self.losses) / len(self.losses)
            deviation = math.sqrt(sum((x - mean)**2 for x in self.losses) / len(self.losses))
            skip = skip | (loss > mean + self.spike_z * deviation)
        values = torch.stack((skip.float(), loss.float())).to('cpu', non_blocking=loss.is_cuda)
        arrival = torch.cuda.Event() if loss.is_cuda else None
        self.last = iter_num, values, arrival
        if arrival is not None:
            arrival.record()
        return skip

    def settle(self):
        """The last iteration's number if its update was skipped, else None. Asked again, None."""
        if self.last is None:
            return None
        iter_num, values, arrival = self.last
        self.last = None
        if arrival is not None:
            arrival.synchronize()  # with the last update, not with what was given to the device since
        skip, self.last_loss = values.tolist()
        if skip:
            self.in_a_row += 1
            return iter_num
        self.in_a_row = 0
        if self.spike_z > 0:
            self.losses.append(self.last_loss)
        return None

    def give_up_after(self, max_skips, out_dir):
        """End the process if that many updates in a row were skipped."""
        if self.in_a_row >= max_skips:
            hardware.print0(f'stopped: {max_skips} updates in a row had to be skipped. The last good state is in '
                            f'{out_dir}; resume it with a lower --learning_rate and --min_lr, and --muon_lr with Muon')
            sys.exit(1)


def check_disk(out_dir, model, optimizer, kept):
    """A printed warning if the disk is too small for what a run saves, `kept` weights for good among it."""
    needed = planner.disk_bytes(model, optimizer, kept)
    there = [entry.stat().st_size for entry in os.scandir(out_dir) if entry.name.endswith('.pt')]  # to be replaced
    free = shutil.disk_usage(out_dir).free + sum(there)
    if free < needed:
        hardware.print0(f'warning: this run may write {needed / 1e9:.1f} GB into {out_dir}, whose disk has '
                        f'{free / 1e9:.1f} GB free')


def explain_out_of_memory(batch_size, gradient_accumulation_steps, gradient_checkpointing):
    """From here on a process that dies for want of memory says what to change, instead of a traceback."""
    usual = sys.excepthook

    def explain(kind, error, traceback):
        if not issubclass(kind, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # the CPU's
            return usual(kind, error, traceback)
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        smaller = (f'--batch_size={batch_size // 2} --gradient_accumulation_steps={gradient_accumulation_steps * 2} '
                   f'(the same batch in smaller pieces), ') if batch_size % 2 == 0 else ''
        print(f'out of memory with batch_size={batch_size}: '
              + f'{allocated / 1e9:.1f} GB were allocated at most; ' * (allocated > 0)
              + f'{str(error).split(chr(10))[0]}\n'
              f'try {smaller}{"" if gradient_checkpointing else "--gradient_checkpointing=True, "}'
              'or a smaller --block_size', file=sys.stderr, flush=True)
    sys.excepthook = explain
