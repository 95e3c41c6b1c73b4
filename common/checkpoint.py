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
import pickle
import re
import zipfile

import torch

FORMAT = 1  # raised when a checkpoint's layout changes in a way that older code cannot read


def save(checkpoint, path):
    """Write a checkpoint so that `path` is at every moment either the old file or the new one, both whole."""
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        os.unlink(temporary)
        raise
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
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums that torch.save wrote
        if damaged:
            raise ValueError(f'{damaged} does not match its checksum')
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what random bytes raise has no common base
        reason = str(error).strip().split('\n')[0]
        if isinstance(error, pickle.UnpicklingError):  # whose text advises to load it unsafely
            reason = 'it holds more than plain values, or none that can be read'
        raise ValueError(f'{path} is damaged or not a checkpoint, and was not loaded ({reason})') from None
    if not isinstance(checkpoint, dict) or not {'model', 'model_args'} <= checkpoint.keys():
        raise ValueError(f'{path} is damaged or not a checkpoint: it has no model and model_args')
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
    (checkpoint, path) of the newest full state in `out_dir` that loads: last.pt, else prev.pt, else a ckpt.pt that the
    original wrote. FileNotFoundError if there is none; ValueError if none loads. keep_good makes `path` the last.pt.
    """
    damaged = []
    for name in ('last.pt', 'last.pt.new', 'prev.pt', 'ckpt.pt'):
        path = os.path.join(out_dir, name)
        try:
            checkpoint = load(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            damaged.append(str(error))
            continue
        if {'optimizer', 'iter_num', 'best_val_loss'} <= checkpoint.keys():
            return checkpoint, path
    if damaged:
        raise ValueError('nothing to resume: ' + '; '.join(damaged))
    raise FileNotFoundError(f'nothing to resume: {out_dir} has no last.pt (with --init_from=auto a run starts from '
                            f'scratch where there is nothing yet)')


def keep_good(out_dir, path):
    """After load_newest: a prev.pt that stood in for a damaged last.pt takes its place, before the next save does."""
    last = os.path.join(out_dir, 'last.pt')
    if path != last and os.path.basename(path) != 'ckpt.pt':
        os.replace(path, last)


def check_same_model(shape, checkpoint, out_dir):
    """
    ValueError if the settings in `shape` (n_layer, ...) ask for another model than the run to resume has. They may also
    be what they were when it began: a run that started from gpt2-xl has a model that its n_layer does not name.
    """
    then, model_args = checkpoint.get('config', {}), checkpoint['model_args']
    differing = [key for key, value in shape.items()
                 if key in model_args and value != model_args[key] and value != then.get(key)]
    if differing:
        raise ValueError(f'the run in {out_dir} has another model: resume it with '
                         + ' '.join(f'--{key}={model_args[key]}' for key in differing)
                         + ', or start another run in another out_dir')


def load_optimizer(optimizer, scaler, checkpoint):
    """Load the optimizer's and the loss scaler's state; settings (betas, weight decay, ...) stay those of this run."""
    state = checkpoint['optimizer']
    for theirs, ours in zip(state['param_groups'], optimizer.param_groups):
        theirs.update({key: value for key, value in ours.items() if key != 'params'})
    optimizer.load_state_dict(state)
    if scaler.is_enabled() and checkpoint.get('scaler'):
        scaler.load_state_dict(checkpoint['scaler'])


def weights_path(path):
    """The file with the weights: `path` itself, or in a run's out_dir its ckpt.pt, else its newest state."""
    if not os.path.isdir(path):
        return path
    for name in ('ckpt.pt', 'last.pt', 'prev.pt'):
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise FileNotFoundError(f'no checkpoint in {path} (looked for ckpt.pt, last.pt and prev.pt)')


def set_aside(out_dir):
    """
    Move what an earlier run wrote in `out_dir` to out_dir/previous-1 (or -2, ...) and return that folder; None if there
    was nothing. So a run that is started over by mistake loses nothing.
    """
    names = [name for name in sorted(os.listdir(out_dir))
             if re.fullmatch(r'(ckpt|last|prev|iter_\d+)\.pt|last\.pt\.new|metrics\.jsonl|samples', name)]
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
