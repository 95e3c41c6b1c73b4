"""
A prepared dataset on disk: train.bin and val.bin, raw little-endian token ids, and a meta.json that says what they
mean. This module finds, checks and opens them; data/ makes them. It knows no model and no settings.
"""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SPLITS = ('train', 'val')


def find(root, dataset):
    """The folder of the dataset that a user names: a folder in data/, or the path of any other."""
    folder = os.path.join(root, 'data', dataset)
    return dataset if os.path.isdir(dataset) and not os.path.isdir(folder) else folder


def read_meta(folder):
    """
    The meta.json of the dataset in `folder`. Bins without one are read as the original nanoGPT wrote them: GPT-2 BPE in
    uint16. FileNotFoundError if there is no dataset, ValueError if it is damaged; the message says how to make one.
    """
    name = os.path.basename(os.path.normpath(folder))
    missing = [f'{split}.bin' for split in SPLITS if not os.path.isfile(os.path.join(folder, f'{split}.bin'))]
    if missing:
        raise FileNotFoundError(f'dataset {name!r} has no {" and no ".join(missing)}; {how_to_prepare(folder)}')
    path = os.path.join(folder, 'meta.json')
    if not os.path.isfile(path):
        if os.path.isfile(os.path.join(folder, 'meta.pkl')):
            raise FileNotFoundError(f'dataset {name!r} has a meta.pkl but no meta.json, and pickles are not loaded '
                                    f'here; {how_to_prepare(folder)}')
        return {'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16'}
    try:
        meta = json.loads(Path(path).read_text('utf-8'))
        np.dtype(meta['dtype']), int(meta['vocab_size']), str(meta['tokenizer'])
        if meta['tokenizer'] == 'bpe':  # checkpoints keep the meta, and so need no dataset
            content = Path(folder, meta['tokenizer_file']).read_bytes()
            if hashlib.sha256(content).hexdigest() != meta['sha256'][meta['tokenizer_file']]:
                raise ValueError(f'{meta["tokenizer_file"]} does not have the sha256 that it gives')
            meta['tokenizer_json'] = content.decode()
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        raise ValueError(f'{path} is damaged ({type(error).__name__}: {error}); {how_to_prepare(folder)}') from None
    return meta


def meta_of(root, checkpoint, vocab_size):
    """The meta.json that a model's checkpoint (a dict, or None) has, or GPT-2's, or its dataset's; else ValueError."""
    if checkpoint is not None and checkpoint.get('meta'):
        return checkpoint['meta']
    if vocab_size in (50257, 50304):
        return {'tokenizer': 'gpt2', 'vocab_size': 50257}
    if checkpoint is None or 'dataset' not in checkpoint.get('config', {}):
        raise ValueError(f'no tokenizer is known for these weights, which have {vocab_size} ids')
    return read_meta(find(root, checkpoint['config']['dataset']))


def how_to_prepare(folder):
    """What to type if a dataset is missing."""
    script = os.path.join(folder, 'prepare.py')
    if os.path.isfile(script):
        return f'run: python {os.path.relpath(script)}'
    beside = Path(os.path.normpath(folder)).parent
    known = sorted({path.parent.name for name in ('prepare.py', 'train.bin') for path in beside.glob(f'*/{name}')})
    return (f'there is no {os.path.relpath(script)} to make them' +
            (f'; known to --dataset are {", ".join(known)}' if known else ''))


def prepare(folder):
    """Run a dataset's prepare.py if it has no train.bin yet. FileNotFoundError or ValueError if that fails."""
    if os.path.exists(os.path.join(folder, 'train.bin')):
        return
    script = os.path.join(folder, 'prepare.py')
    if not os.path.isfile(script):
        raise FileNotFoundError(f'dataset {os.path.basename(folder)!r} is not there; {how_to_prepare(folder)}')
    print(f'no {os.path.basename(folder)}/train.bin yet: running {os.path.relpath(script)}', flush=True)
    if subprocess.run([sys.executable, script]).returncode != 0:
        raise ValueError(f'{script} did not finish')


def open_tokens(folder, split, meta):
    """The ids of a split, a read-only memory map."""
    return np.memmap(os.path.join(folder, f'{split}.bin'), np.dtype(meta['dtype']).newbyteorder('<'), mode='r')


def open_mask(folder, split):
    """Whether each token of a split counts in the loss, a read-only memory map of bool. None if all of them do."""
    path = os.path.join(folder, f'{split}_mask.bin')
    return np.memmap(path, dtype=np.bool_, mode='r') if os.path.isfile(path) else None


def check(folder, meta, block_size):
    """
    The number of tokens in each split, {'train': n, 'val': n}. ValueError if a split is damaged or has fewer than
    block_size + 1 tokens. Ids outside the vocabulary are looked for in its first and last 67 million tokens only.
    """
    sizes, listed = {}, meta.get('sha256', {})
    for split in SPLITS:
        path, mask_path = (os.path.join(folder, f'{split}{suffix}.bin') for suffix in ('', '_mask'))
        size = sizes[split] = os.path.getsize(path) // np.dtype(meta['dtype']).itemsize
        if size != meta.get(f'{split}_tokens', size):
            raise ValueError(f'{path} has {size} tokens, but its meta.json says {meta[f"{split}_tokens"]}; '
                             f'{how_to_prepare(folder)}')
        if size < block_size + 1:
            raise ValueError(f'{path} has {size} tokens, but block_size={block_size} needs {block_size + 1}; '
                             f'try --block_size={max(size - 1, 1)}, or more text')
        if f'{split}.bin' in listed and os.path.getsize(path) <= 2**28:  # hashing a larger one takes seconds
            with open(path, 'rb') as f:
                if hashlib.file_digest(f, 'sha256').hexdigest() != listed[f'{split}.bin']:
                    raise ValueError(f'{path} is not the file that its meta.json describes; {how_to_prepare(folder)}')
        tokens, mask = open_tokens(folder, split, meta), open_mask(folder, split)
        largest = max(tokens[:2**26].max(), tokens[-2**26:].max())
        if largest >= meta['vocab_size']:
            raise ValueError(f'{path} has the token id {largest}, which is not below its vocab_size='
                             f'{meta["vocab_size"]}; {how_to_prepare(folder)}')
        if mask is None and f'{split}_mask.bin' in listed:
            raise ValueError(f'there is no {mask_path}, but meta.json lists it; {how_to_prepare(folder)}')
        if mask is not None and len(mask) != size:
            raise ValueError(f'{mask_path} has {len(mask)} entries for {size} tokens; {how_to_prepare(folder)}')
        if mask is not None and not mask.any():
            raise ValueError(f'{mask_path} excludes every token from the loss; {how_to_prepare(folder)}')
    return sizes


def check_unchanged(meta, theirs, allowed):
    """ValueError if a run began with other bins (`theirs`: their meta.json, or None), unless that is `allowed`."""
    for name, sha256 in (theirs or {}).get('sha256', {}).items():
        if sha256 != meta.get('sha256', {}).get(name) and not allowed:
            raise ValueError(f'{name} has changed since this run began; to go on with the new one: '
                             '--allow_data_change=True')
