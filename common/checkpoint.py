"""
Checkpoints on disk: saved so that no file is ever half written, loaded without running anything in them.
It knows dicts and files, no model and no settings.

    ckpt.pt              the best weights so far by validation loss: what sample.py takes
    last.pt, prev.pt     the newest full state and the one before it: what resume takes
    iter_010000.pt       weights kept on the way

A checkpoint is a dict of plain values, with the original nanoGPT's keys: model, optimizer, model_args, iter_num,
best_val_loss, config; and of ours: scaler, meta (the dataset's meta.json), train_s, format.
"""
import os
import re
import shutil
import sys

import torch

FORMAT = 1  # raised when a checkpoint's layout changes in a way that older code cannot read


def save(checkpoint, path):
    """Write a checkpoint so that `path` is at every moment either the old file or the new one, both whole."""
    temporary = f'{path}.tmp'
    with open(temporary, 'wb') as f:
        torch.save(checkpoint, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def save_last(checkpoint, out_dir):
    """Save a full state as last.pt; the one before it stays as prev.pt, should the newest turn out damaged."""
    last = os.path.join(out_dir, 'last.pt')
    save(checkpoint, f'{last}.new')
    if os.path.exists(last):
        os.replace(last, os.path.join(out_dir, 'prev.pt'))
    os.replace(f'{last}.new', last)


def load(path):
    """
    The checkpoint in a file, its tensors on the CPU. Reads ours and the original nanoGPT's, whose keys it cleans: no
    '_orig_mod.' or 'module.' prefix, no attention masks.
    FileNotFoundError if there is none; ValueError if it is damaged, or not a checkpoint. Nothing in the file is ever
    executed (weights_only=True): a pickle that would run code is refused.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what random bytes raise has no common base
        reason = str(error).strip().split('\n')[0]
        raise ValueError(f'{path} is damaged or not a checkpoint, and was not loaded ({reason})') from None
    missing = {'model', 'model_args'} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise ValueError(f'{path} is not a GPT checkpoint: it has no {" and no ".join(sorted(missing))}')
    if checkpoint.get('format', 0) > FORMAT:
        raise ValueError(f'{path} was written by a newer version of this project (format {checkpoint["format"]})')
    checkpoint['model'] = {clean_key(key): value for key, value in checkpoint['model'].items()
                           if not key.endswith(('.attn.bias', '.attn.masked_bias'))}
    return checkpoint


def clean_key(key):
    """A parameter's own name, without what torch.compile and DistributedDataParallel put in front of it."""
    return key.removeprefix('module.').removeprefix('_orig_mod.').removeprefix('module.')


def load_newest(out_dir):
    """
    The newest full state in `out_dir` that loads: last.pt, else prev.pt, else a ckpt.pt that the original wrote.
    A damaged one is passed over with a printed line. FileNotFoundError if there is none; ValueError if none loads.
    """
    damaged = []
    for name in ('last.pt', 'prev.pt', 'ckpt.pt'):
        path = os.path.join(out_dir, name)
        try:
            checkpoint = load(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            damaged.append(str(error))
            continue
        if 'optimizer' in checkpoint:
            for problem in damaged:
                print(f'{problem}; resuming from {path} instead', file=sys.stderr)
            return checkpoint
    if damaged:
        raise ValueError('nothing to resume: ' + '; '.join(damaged))
    raise FileNotFoundError(f'nothing to resume: {out_dir} has no last.pt (with --init_from=auto a run starts from '
                            f'scratch where there is nothing yet)')


def load_optimizer(optimizer, state):
    """Load an optimizer's saved state; its settings (betas, weight decay, fused, ...) stay those of this run."""
    for theirs, ours in zip(state['param_groups'], optimizer.param_groups):
        theirs.update({key: value for key, value in ours.items() if key != 'params'})
    optimizer.load_state_dict(state)


def weights_path(place):
    """The file with the weights: `place` itself, or in a run's out_dir its ckpt.pt, else its newest state."""
    if not os.path.isdir(place):
        return place
    for name in ['ckpt.pt', 'last.pt', 'prev.pt']:
        if os.path.isfile(os.path.join(place, name)):
            return os.path.join(place, name)
    raise FileNotFoundError(f'no checkpoint in {place} (looked for ckpt.pt, last.pt and prev.pt)')


def set_aside(out_dir):
    """
    Move what an earlier run wrote in `out_dir` to out_dir/previous, in place of what is there, and return that
    folder; None if there was nothing. A run started over by mistake costs nothing that way.
    """
    names = [name for name in sorted(os.listdir(out_dir))
             if re.fullmatch(r'(ckpt|last|prev|iter_\d+)\.pt|metrics\.jsonl|samples', name)]
    if not names:
        return None
    previous = os.path.join(out_dir, 'previous')
    shutil.rmtree(previous, ignore_errors=True)
    os.makedirs(previous)
    for name in names:
        os.replace(os.path.join(out_dir, name), os.path.join(previous, name))
    return previous
