"""
Checkpoints on disk: saved whole or not at all, loaded without executing anything in them, and checked. It knows dicts
and files, no model and no settings.

    ckpt.pt              the best weights so far by validation loss: what sample.py takes
    last.pt, prev.pt     the newest full state and the one before it: what resume takes
    iter_010000.pt       weights kept on the way

A checkpoint is a dict of plain values with the keys of the original nanoGPT: model, optimizer, model_args, iter_num,
best_val_loss, config; and our own: the other fields of Progress (training/states.py), scaler, meta (the dataset's
meta.json), format.
"""
import contextlib
import errno
import json
import math
import os
import pickle
import zipfile

import torch

from common import files
from common.console import say
from common.device import is_out_of_memory
from common.settings import SMEARED
from common.tokenizer import check_meta

FORMAT = 2  # raised when the layout of a checkpoint changes so that older code cannot read it


class NewerFormat(OSError):
    """A newer version of this project wrote this checkpoint: it is whole, and no older one may take its place."""


def save(checkpoint, path):
    """Write a checkpoint whole, or leave the old file."""
    try:
        with files.write_whole(path, 'wb') as f:
            torch.save({**checkpoint, 'format': FORMAT}, f)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__  # such as a full disk, which torch.save turns into a RuntimeError
        raise


def load(path):
    """
    The checkpoint in a file, with its tensors on the CPU. Reads ours and the original nanoGPT's, whose keys it cleans:
    no '_orig_mod.' or 'module.' prefix, no attention masks.
    FileNotFoundError if there is none; another OSError if it cannot be read just now, though it may be whole;
    ValueError if it is damaged or not a checkpoint. Nothing in the file is executed (weights_only=True): a pickle that
    would run code is refused.
    """
    try:
        with open(path, 'rb') as f:
            checkpoint = load_safetensors(path) if path.endswith('.safetensors') else read(f)
        if isinstance(checkpoint.get('format'), int) and checkpoint['format'] > FORMAT:
            raise NewerFormat(errno.ENOTSUP, 'a newer version of this project wrote this checkpoint: update it', path)
        upgrade(checkpoint)
        check(checkpoint)
        return checkpoint
    except NewerFormat:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'no checkpoint {path}') from None
    except Exception as error:  # what random bytes raise has no common base class
        cause = error if isinstance(error, OSError) else error.__context__  # zipfile hides it
        # EINVAL: a damaged offset; EISDIR: a folder of that name
        if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL, errno.EISDIR):
            reason = f'this checkpoint cannot be read now: {os.strerror(cause.errno)}'
            raise OSError(cause.errno, reason, path) from None
        reason = str(error).strip().split('\n')[0]
        if is_out_of_memory(error):
            raise OSError(errno.ENOMEM, 'there is not enough memory to load this checkpoint', path) from None
        if isinstance(error, pickle.UnpicklingError):  # its text advises to load the file unsafely
            reason = 'it holds more than plain values, or none that can be read'
        raise ValueError(f'{path} is damaged or not a checkpoint, and was not loaded ({reason})') from None


def read(file):
    """The checkpoint in an open file, with clean keys. Raises whatever its content leads to."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()  # torch.load does not check the checksums that torch.save wrote
    if damaged:
        raise ValueError(f'{damaged} does not match its checksum')
    file.seek(0)
    checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get('model'), dict):
        raise ValueError('it has no model and model_args')
    checkpoint['model'] = {clean_key(key): value for key, value in checkpoint['model'].items()
                           if not key.endswith(('.attn.bias', '.attn.masked_bias'))}
    return checkpoint


def upgrade(checkpoint):
    """Give a modern model that was saved before 2026-11-27 today's shape: its smear reached one token back."""
    smear = checkpoint['model'].get('smear')
    if isinstance(smear, torch.Tensor) and smear.dim() == 1:
        checkpoint['model']['smear'] = torch.nn.functional.pad(smear[None], (0, 0, 0, SMEARED - 1))


def check(checkpoint):
    """ValueError unless a checkpoint has what all scripts rely on, in the right types, and finite weights of a GPT."""
    if not isinstance(checkpoint.get('model_args'), dict):
        raise ValueError('it has no model and model_args')
    types = {'optimizer': dict, 'scaler': dict, 'config': dict, 'recent_losses': list, 'format': int, 'iter_num': int,
             'tokens': int, 'since_best': int, 'train_s': (int, float), 'evaluated_at': int}
    for key, expected in types.items():
        value = checkpoint.get(key, expected() if isinstance(expected, type) else 0)
        if not isinstance(value, expected):
            raise ValueError(f'its {key} is a {type(value).__name__}')
        lowest = -1 if key == 'evaluated_at' else 0  # -1: none yet
        if isinstance(value, (int, float)) and not lowest <= value < math.inf:
            raise ValueError(f'its {key} is {value}')
    for value in [checkpoint.get('best_val_loss', 0.0), *checkpoint.get('recent_losses', [])]:
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
            value = value.item()  # best_val_loss of the original
        if not isinstance(value, (int, float)) or math.isnan(value):
            raise ValueError(f'{value!r:.80} is no loss')
    weights, shape = checkpoint['model'], checkpoint['model_args']
    for key in ('n_layer', 'n_head', 'n_embd', 'block_size', 'vocab_size'):
        if type(shape.get(key)) is not int or shape[key] < 1:
            raise ValueError(f'its model_args have {key}={shape.get(key)!r}')
    if shape['n_embd'] % (shape['n_head'] * (2 if shape.get('modern') else 1)):
        raise ValueError(f'its model_args have n_head={shape["n_head"]} for n_embd={shape["n_embd"]}')
    for key, expected in (('bias', bool), ('modern', bool), ('activation', str), ('dropout', (int, float)),
                          ('softcap', (int, float))):
        limit = {'dropout': 1, 'softcap': math.inf}.get(key)
        if key in shape and (not isinstance(shape[key], expected) or limit and not 0 <= shape[key] < limit):
            raise ValueError(f'its model_args have {key}={shape[key]!r}')
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise ValueError(f'{name} is no tensor of floating-point numbers')
        if not torch.isfinite(value).all():
            raise ValueError(f'{name} is not finite: this model has diverged')
    expected = {'transformer.wte.weight': (shape['vocab_size'], shape['n_embd'])}
    if not shape.get('modern'):
        expected['transformer.wpe.weight'] = shape['block_size'], shape['n_embd']
        expected['lm_head.weight'] = expected['transformer.wte.weight']
    for name, size in expected.items():  # before a model of that size is made
        found = tuple(weights[name].shape) if name in weights else 'missing'
        if found != size:
            raise ValueError(f'{name} is {found}, and should be {size}')
    blocks = {name.split('.')[2] for name in weights if name.startswith('transformer.h.')}
    if len(blocks) != shape['n_layer']:
        raise ValueError(f'it has {len(blocks)} blocks, and n_layer={shape["n_layer"]}')
    if not shape.get('modern') and not torch.equal(weights['lm_head.weight'], weights['transformer.wte.weight']):
        raise ValueError('lm_head.weight differs from transformer.wte.weight, which this GPT has in common')
    if checkpoint.get('meta') is not None:
        check_meta(checkpoint['meta'])


def save_safetensors(model, checkpoint, path):
    """The weights of a model alone, with the rest of the checkpoint as JSON in the metadata of the file."""
    from safetensors.torch import save_file
    about = {key: checkpoint[key] for key in ('model_args', 'config', 'meta', 'iter_num') if key in checkpoint}
    if 'best_val_loss' in checkpoint:  # a tensor in the original's
        about['best_val_loss'] = float(checkpoint['best_val_loss'])
    weights = {name: p.detach() for name, p in model.named_parameters()}  # a tied head once
    save_file(weights, path, metadata={'format': 'pt', 'checkpoint': json.dumps(about)})


def load_safetensors(path):
    """What save_safetensors wrote, as a checkpoint. Raises whatever its content leads to."""
    from safetensors import safe_open
    with safe_open(path, 'pt') as f:
        if 'checkpoint' not in (f.metadata() or {}):
            raise ValueError('it was not written by export.py')
        checkpoint = json.loads(f.metadata()['checkpoint'])
        weights = {name: f.get_tensor(name) for name in f.keys()}
    if not checkpoint['model_args'].get('modern'):
        weights['lm_head.weight'] = weights['transformer.wte.weight']
    return {**checkpoint, 'model': weights}


def clean_key(key):
    """A parameter's name without the prefixes of torch.compile and DistributedDataParallel."""
    return key.removeprefix('module.').removeprefix('_orig_mod.').removeprefix('module.')


def weights_path(path):
    """
    The file with the weights: `path` itself; in a run's out_dir ckpt.pt, else the newest state, else an export. Says
    which iteration the best weights are of. If they are those of the untrained model, the newest are taken instead.
    """
    if not os.path.isdir(path):
        return path
    names = ['ckpt.pt', 'last.pt', 'prev.pt', 'model.safetensors']
    best, newest = (peek(os.path.join(path, name)) for name in names[:2])
    come = f'; the run has come to iteration {newest["iter_num"]}' if newest else ''
    untrained = best and best['iter_num'] == 0 and best['config']['init_from'] in ('scratch', 'auto')
    if untrained and newest and newest['iter_num'] > 0:
        names.remove('ckpt.pt')
        say(f'{path}: the newest weights, as the best are still those of the untrained model{come}')
    elif best:
        say(f'{path}: the best weights, of iteration {best["iter_num"]}{come}')
    elif newest and not files.exists(os.path.join(path, 'ckpt.pt')):
        say(f'{path}: the newest weights, as there are no best ones yet{come}')
    for name in names:
        if files.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    if files.exists(os.path.join(path, 'model.onnx')):
        raise ValueError(f'{path} is an export for onnxruntime, which is not read here; name the folder of the run')
    raise FileNotFoundError(f'no checkpoint in {path} (looked for ckpt.pt, last.pt and prev.pt)')


def peek(path):
    """A checkpoint of ours without reading its tensors, and unchecked; None if there is none, or if it is damaged."""
    with contextlib.suppress(Exception):  # load() tells what is wrong
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        return {'iter_num': int(checkpoint['iter_num']), 'config': {'init_from': checkpoint['config']['init_from']}}
