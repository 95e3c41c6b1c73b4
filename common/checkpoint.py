"""
Checkpoints on disk: saved whole or not at all, and loaded without executing anything in them. It knows dicts and files,
no model and no settings.

    ckpt.pt              the best weights so far by validation loss: what sample.py takes
    last.pt, prev.pt     the newest full state and the one before it: what resume takes
    iter_010000.pt       weights kept on the way

A checkpoint is a dict of plain values with the keys of the original nanoGPT: model, optimizer, model_args, iter_num,
best_val_loss, config; and our own: the other fields of Progress, scaler, meta (the dataset's meta.json), format.
"""
import json
import math
import os
import pickle
import re
import zipfile
from dataclasses import dataclass, field, fields

import torch

from common import files, settings

FORMAT = 1  # raised when the layout of a checkpoint changes so that older code cannot read it


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
            sizes = ('gradient_accumulation_steps', 'batch_size', 'block_size')
            progress.tokens = progress.iter_num * math.prod(state.get('config', {}).get(size, 0) for size in sizes)
        return progress


def save(checkpoint, path):
    """Write a checkpoint whole, or leave the old file."""
    try:
        with files.write_whole(path, 'wb') as f:
            torch.save({**checkpoint, 'format': FORMAT}, f)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__  # such as a full disk, which torch.save turns into a RuntimeError
        raise


def save_last(state, out_dir):
    """Save a full state as last.pt. The one before it stays as prev.pt, in case the newest is damaged later."""
    last = os.path.join(out_dir, 'last.pt')
    save(state, f'{last}.new')
    if os.path.exists(last):
        os.replace(last, os.path.join(out_dir, 'prev.pt'))
    os.replace(f'{last}.new', last)


def save_run(out_dir, weights, state, best, keep_interval):
    """
    Write last.pt, ckpt.pt if these are the `best` weights, and every keep_interval iterations iter_N.pt. Returns
    whether last.pt and ckpt.pt were written. On a full disk, or if the weights are not finite, the old files stay and a
    line is printed.
    """
    if not all(torch.isfinite(value).all() for value in state['model'].values()):
        print(f'not saved: the weights are no longer finite; the last good state stays in {out_dir}', flush=True)
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
        shape = state['model_args']
        needed = sum(settings.state_bytes(shape, shape['vocab_size'], state['config']['optimizer']))
        print(f'not saved: {error} (a full state needs about {needed / 1e6:.1f} MB, the disk of {out_dir} has '
              f'{files.free_bytes(out_dir) / 1e6:.1f} MB free); earlier checkpoints are intact', flush=True)
        return False, best_saved
    return True, best_saved


def is_kept(iter_num, keep_interval):
    """Whether the weights of this iteration are kept for good."""
    return keep_interval > 0 and iter_num > 0 and iter_num % keep_interval == 0


def load(path):
    """
    The checkpoint in a file, with its tensors on the CPU. Reads ours and the original nanoGPT's, whose keys it cleans:
    no '_orig_mod.' or 'module.' prefix, no attention masks.
    FileNotFoundError if there is none; ValueError if it is damaged or not a checkpoint. Nothing in the file is executed
    (weights_only=True): a pickle that would run code is refused.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint {path}')
    if path.endswith('.safetensors'):
        return load_safetensors(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not check the checksums that torch.save wrote
        if damaged:
            raise ValueError(f'{damaged} does not match its checksum')
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what random bytes raise has no common base class
        reason = str(error).strip().split('\n')[0]
        if isinstance(error, pickle.UnpicklingError):  # its text advises to load the file unsafely
            reason = 'it holds more than plain values, or none that can be read'
        raise ValueError(f'{path} is damaged or not a checkpoint, and was not loaded ({reason})') from None
    if not isinstance(checkpoint, dict) or not {'model', 'model_args'} <= checkpoint.keys():
        raise ValueError(f'{path} is damaged or not a checkpoint: it has no model and model_args')
    if checkpoint.get('format', 0) > FORMAT:
        raise ValueError(f'{path} was written by a newer version of this project (format {checkpoint["format"]})')
    checkpoint['model'] = {clean_key(key): value for key, value in checkpoint['model'].items()
                           if not key.endswith(('.attn.bias', '.attn.masked_bias'))}
    return checkpoint


def save_safetensors(model, checkpoint, path):
    """The weights of a model alone, with the rest of the checkpoint as JSON in the metadata of the file."""
    from safetensors.torch import save_file
    about = {key: checkpoint[key] for key in ('model_args', 'config', 'meta', 'iter_num') if key in checkpoint}
    if 'best_val_loss' in checkpoint:  # a tensor in the original's
        about['best_val_loss'] = float(checkpoint['best_val_loss'])
    weights = {name: p.detach() for name, p in model.named_parameters()}  # a tied head once
    save_file(weights, path, metadata={'format': 'pt', 'checkpoint': json.dumps(about)})


def load_safetensors(path):
    """What save_safetensors wrote, as a checkpoint. ValueError if it is damaged or was written by something else."""
    from safetensors import safe_open
    try:
        with safe_open(path, 'pt') as f:
            checkpoint = json.loads(f.metadata()['checkpoint'])
            weights = {name: f.get_tensor(name) for name in f.keys()}
    except Exception as error:  # SafetensorError has no base class of its own
        raise ValueError(f'{path} is damaged, or was not written by export.py ({error})') from None
    if not checkpoint['model_args'].get('modern'):
        weights['lm_head.weight'] = weights['transformer.wte.weight']
    return {**checkpoint, 'model': weights}


def clean_key(key):
    """A parameter's name without the prefixes of torch.compile and DistributedDataParallel."""
    return key.removeprefix('module.').removeprefix('_orig_mod.').removeprefix('module.')


def load_to_resume(init_from, out_dir):
    """
    (state, path) of the newest full state in `out_dir` that loads: last.pt, else last.pt.new, which was about to become
    it, else prev.pt, else a ckpt.pt of the original nanoGPT. (None, None) unless init_from is resume or auto. Without a
    state (None, None) for auto, FileNotFoundError for resume. ValueError if none loads.
    """
    if init_from not in ('resume', 'auto'):
        return None, None
    damaged = []
    for name in ('last.pt', 'last.pt.new', 'prev.pt', 'ckpt.pt'):
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
        raise ValueError('nothing to resume: ' + '; '.join(damaged))
    if init_from == 'auto':
        return None, None
    raise FileNotFoundError(f'nothing to resume: {out_dir} has no last.pt (with --init_from=auto a run starts from '
                            f'scratch where there is nothing yet)')


def claim_out_dir(out_dir, resumed=None):
    """
    Make the folder of a run and lock it; returns the lock, which is held as long as the process lives. `resumed` is the
    path from load_to_resume: if it stands in for a damaged last.pt, it takes its place before the next save. Without it
    the files of an earlier run are set aside. ValueError if another process is writing there.
    """
    os.makedirs(out_dir, exist_ok=True)
    try:
        lock = files.lock_if_possible(os.path.join(out_dir, '.lock'), 'do not start a second run there')
    except files.Locked:
        raise ValueError(f'another run is writing to out_dir={out_dir!r}; choose another one') from None
    if resumed is None:
        previous = set_aside(out_dir)
        if previous:
            print(f'{out_dir} held a run already; it is now in {previous}', flush=True)
    elif os.path.basename(resumed) in ('last.pt.new', 'prev.pt'):
        print(f'last.pt is damaged or not there: {resumed} takes its place', flush=True)
        os.replace(resumed, os.path.join(out_dir, 'last.pt'))
    return lock


def describe_changes(state, now):
    """'; changed since then: ...', the settings that differ from those in a state; '' if none does."""
    then = state.get('config', {})
    differing = [f'{key} {then[key]!r} -> {now[key]!r}' for key in then
                 if key in now and key != 'init_from' and now[key] != then[key]]
    return '; changed since then: ' + ', '.join(differing) if differing else ''


def load_optimizer(optimizer, scaler, checkpoint):
    """Restore optimizer and loss scaler. Settings of the optimizer (betas, weight decay, ...) stay this run's."""
    state = checkpoint['optimizer']
    counts = [[len(group['params']) for group in groups] for groups in (state['param_groups'], optimizer.param_groups)]
    if counts[0] != counts[1]:
        then = checkpoint.get('config', {}).get('optimizer', 'adamw')
        raise ValueError(f'this run began with another optimizer: resume it with --optimizer={then}, '
                         'or start another one in another out_dir')
    params = [p for group in optimizer.param_groups for p in group['params']]
    for i, moments in state['state'].items():
        if hasattr(params[i], 'device_mesh'):  # split by FSDP
            from torch.distributed.tensor import distribute_tensor
            # in the same order on all ranks, as this is a collective
            for key in [key for key in ('exp_avg', 'exp_avg_sq', 'momentum_buffer') if key in moments]:
                moments[key] = distribute_tensor(moments[key].to(params[i].device), params[i].device_mesh,
                                                 params[i].placements)
    for theirs, ours in zip(state['param_groups'], optimizer.param_groups):
        theirs.update({key: value for key, value in ours.items() if key != 'params'})
    optimizer.load_state_dict(state)
    if scaler.is_enabled() and checkpoint.get('scaler'):
        scaler.load_state_dict(checkpoint['scaler'])


def weights_path(path):
    """The file with the weights: `path` itself; in a run's out_dir ckpt.pt, else the newest state, else an export."""
    if not os.path.isdir(path):
        return path
    for name in ('ckpt.pt', 'last.pt', 'prev.pt', 'model.safetensors'):
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise FileNotFoundError(f'no checkpoint in {path} (looked for ckpt.pt, last.pt and prev.pt)')


def set_aside(out_dir):
    """
    Move the files of an earlier run and its exports from `out_dir` to out_dir/previous-1 (or -2, ...), so that a run
    that is started over by mistake loses nothing. Returns that folder; None if there was nothing to move.
    """
    written = r'(ckpt|last|prev|iter_\d+)\.pt|last\.pt\.new|(metrics|spikes)\.jsonl|settings\.json|samples|tensorboard'
    exported = 'hf|onnx|safetensors'
    names = [name for name in sorted(os.listdir(out_dir)) if re.fullmatch(f'{written}|{exported}', name)]
    if not names:
        return None
    number = 1
    while os.path.exists(os.path.join(out_dir, f'previous-{number}')):
        number += 1
    previous = os.path.join(out_dir, f'previous-{number}')
    os.makedirs(previous)
    for name in names:
        os.replace(os.path.join(out_dir, name), os.path.join(previous, name))
    return previous
