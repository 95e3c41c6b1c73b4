"""
The states of a run in its out_dir: saving them, finding the one to resume, and keeping what an earlier run left.
"""
import contextlib
import math
import os
import re
import shlex
import tempfile
from dataclasses import dataclass, field, fields

import torch

from common import files, settings
from common.checkpoint import load, peek, save

STATES = 'last.pt', 'last.pt.new', 'prev.pt'  # from the newest; last.pt.new was about to become last.pt


@dataclass
class Progress:
    """How far a run is: the loop updates it, a checkpoint keeps it, a resume restores it."""
    iter_num: int = 0               # updates so far
    tokens: int = 0                 # trained on so far
    train_s: float = 0.0            # seconds of training, without evaluations and saves
    best_val_loss: float = math.inf
    evaluated_at: int = -1          # iteration of the last evaluation; -1: none yet
    since_best: int = 0             # evaluations since the best one
    recent_losses: list = field(default_factory=list)  # of up to 100 updates, with spike_z

    @classmethod
    def of(cls, state):
        """The progress in a checkpoint, ours or the original's; that of a new run for None."""
        if state is None:
            return cls()
        progress = cls(**{one.name: state[one.name] for one in fields(cls) if one.name in state})
        progress.best_val_loss = float(progress.best_val_loss)  # a tensor in the original's
        if 'tokens' not in state:  # an older state, or the original's
            config = state.get('config', {})
            sizes = [config.get(key) for key in ('gradient_accumulation_steps', 'batch_size', 'block_size')]
            known = all(isinstance(size, int) for size in sizes)
            progress.tokens = progress.iter_num * math.prod(sizes) if known else 0
        return progress


def save_last(state, out_dir):
    """Save a full state as last.pt. The one before it stays as prev.pt, in case the newest is damaged later."""
    last = os.path.join(out_dir, 'last.pt')
    save(state, f'{last}.new')
    if files.exists(last):
        os.replace(last, os.path.join(out_dir, 'prev.pt'))
    os.replace(f'{last}.new', last)


def save_run(out_dir, weights, state, best, keep_interval):
    """
    Write last.pt, ckpt.pt if these are the `best` weights, and every keep_interval iterations iter_N.pt. Returns
    whether last.pt and ckpt.pt were written. On a full disk, or if the weights are not finite, the old files stay and a
    line is printed.
    """
    moments = [value for values in state['optimizer'].get('state', {}).values() for value in values.values()]
    if not all(torch.isfinite(value).all() for value in [*state['model'].values(), *moments]):
        print(f'not saved: the weights are no longer finite; the last good state stays in {out_dir}')
        return False, False
    best_saved = False
    try:
        if best:
            save(weights, os.path.join(out_dir, 'ckpt.pt'))
            best_saved = True
        if is_kept(weights['iter_num'], keep_interval):
            save(weights, os.path.join(out_dir, f'iter_{weights["iter_num"]:06d}.pt'))
        save_last(state, out_dir)  # last: a resume from it repeats neither the evaluation nor the other two files
    except OSError as error:
        shape, room = state['model_args'], ''
        needed = sum(settings.state_bytes(shape, shape['vocab_size'], state['config']['optimizer']))
        with contextlib.suppress(OSError):  # a disk that is gone does not tell
            room = f', the disk of {out_dir} has {files.free_bytes(out_dir) / 1e6:.1f} MB free'
        print(f'not saved: {error} (a full state needs about {needed / 1e6:.1f} MB{room}); earlier checkpoints are '
              'intact')
        return False, best_saved
    return True, best_saved


def is_kept(iter_num, keep_interval):
    """Whether the weights of this iteration are kept for good."""
    return keep_interval > 0 and iter_num > 0 and iter_num % keep_interval == 0


def load_to_resume(init_from, out_dir):
    """
    (state, path) of the newest full state in `out_dir` that is whole: one of STATES, else a ckpt.pt of the original
    nanoGPT. (None, None) unless init_from is resume or auto. Without a state (None, None) for auto, FileNotFoundError
    for resume. ValueError if none is whole. Another OSError if one cannot be read just now: an older one must not take
    its place.
    """
    if init_from not in ('resume', 'auto'):
        return None, None
    damaged = []
    for name in (*STATES, 'ckpt.pt'):
        path = os.path.join(out_dir, name)
        try:
            state = load(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            damaged.append(str(error))
            continue
        if {'optimizer', 'iter_num', 'best_val_loss'} <= state.keys():
            return state, path
    if damaged:
        best = os.path.join(out_dir, 'ckpt.pt')
        remedy = f'; to begin with its best weights: {shlex.join([f"--init_from={best}", f"--out_dir={out_dir}-2"])}'
        raise ValueError('nothing to resume: ' + '; '.join(damaged) + remedy * (peek(best) is not None))
    if init_from == 'auto':
        return None, None
    raise FileNotFoundError(f'nothing to resume: {out_dir} has no last.pt (with --init_from=auto a run starts from '
                            f'scratch where there is nothing yet)')


def claim_out_dir(out_dir, resumed=None):
    """
    Make the folder of a run and lock it; returns the lock, which is held as long as the process lives. `resumed` is the
    path from load_to_resume: if it stands in for a damaged state, that one is renamed, and it becomes last.pt. Without
    it the files of an earlier run are set aside. ValueError if another process is writing there, or nothing can.
    """
    files.check_folder(out_dir, 'out_dir')
    try:
        os.makedirs(out_dir, exist_ok=True)
        lock = files.lock_if_possible(os.path.join(out_dir, '.lock'), 'do not start a second run there')
        tempfile.TemporaryFile(dir=out_dir).close()
    except files.Locked:
        raise ValueError(f'another run is writing to out_dir={out_dir!r}; choose another one') from None
    except OSError as error:
        raise ValueError(f'out_dir={out_dir!r} cannot be written to ({error.strerror}); choose another one') from None
    last, name = os.path.join(out_dir, 'last.pt'), os.path.basename(resumed or '')
    if resumed is None:
        previous = set_aside(out_dir)
        if previous:
            print(f'{out_dir} held a run already; it is now in {previous}')
        return lock
    newer = STATES[:STATES.index(name)] if name in STATES else STATES
    for damaged in [os.path.join(out_dir, one) for one in newer]:
        if files.exists(damaged):
            aside = files.free_name(f'{damaged}.damaged')
            os.replace(damaged, aside)
            print(f'{damaged} is damaged; it is now {aside}')
    if name in STATES[1:]:
        print(f'last.pt is damaged or not there: {resumed} takes its place')
        os.replace(resumed, last)
    return lock


def describe_changes(state, now):
    """'; changed since then: ...', the settings that differ from those in a state; '' if none does."""
    then = state.get('config', {})
    differing = [f'{key} {then[key]!r} -> {now[key]!r}' for key in then
                 if key in now and key != 'init_from' and now[key] != then[key]]
    if 'format' in state:  # the original's has few of them
        differing += [f'{key} {now[key]!r}, which it did not have' for key in now if key not in then and now[key]]
    return '; changed since then: ' + ', '.join(differing) if differing else ''


def set_aside(out_dir):
    """
    Move the files of an earlier run and its exports from `out_dir` to out_dir/previous-1 (or -2, ...), so that a run
    that is started over by mistake loses nothing. Returns that folder; None if there was nothing to move.
    """
    checkpoints = r'(ckpt|last|prev|iter_\d+)\.pt(\.new)?(\.damaged(-\d+)?)?'
    logs = r'(metrics|spikes)(-damaged)?\.jsonl(\.damaged(-\d+)?)?|settings\.json|wandb_id|samples|tensorboard'
    exports = 'hf|onnx|safetensors'
    names = [name for name in sorted(os.listdir(out_dir)) if re.fullmatch(f'{checkpoints}|{logs}|{exports}', name)]
    if not names:
        return None
    number = 1
    while files.exists(os.path.join(out_dir, f'previous-{number}')):
        number += 1
    previous = os.path.join(out_dir, f'previous-{number}')
    os.makedirs(previous)
    moved = []
    try:
        for name in names:
            os.replace(os.path.join(out_dir, name), os.path.join(previous, name))
            moved.append(name)
    except OSError:  # all or none, or the next start would not find the state of that run
        for name in moved:
            os.replace(os.path.join(previous, name), os.path.join(out_dir, name))
        os.rmdir(previous)
        raise
    return previous
