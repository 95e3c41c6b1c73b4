"""
A prepared dataset on disk: train.bin and val.bin, raw little-endian token ids, and a meta.json that says what they
mean. This module finds, checks and opens them; data/ makes them. It knows no model and no settings.
"""
import contextlib
import hashlib
import json
import math
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np

from common import files
from common.tokenizer import check_meta, check_same

SPLITS = ('train', 'val')
DTYPES = ('uint16', 'uint32')  # of the ids in the bins
PART = 2**26  # ids at each end of a bin that are looked at
DATA = Path(__file__).resolve().parents[1] / 'data'


def find(root, dataset):
    """
    The folder of the dataset that a user names: a folder in data/, or the path of any other. It need not exist.
    ValueError, with what to type instead, for the name of a file, or none.
    """
    if not dataset or not isinstance(dataset, str):
        raise ValueError(f'dataset={dataset!r} names no folder; name one in data/, or the path of another')
    folder = os.path.join(root, 'data', dataset)
    if os.path.isdir(folder):
        return folder
    for path in (folder, dataset):
        if os.path.isfile(path):
            remedy = (f'try --dataset={shlex.quote(os.path.dirname(path) or ".")}' if path.endswith('.bin') else
                      f'to make one of a text: {own_text(os.path.splitext(path)[0], path)}')
            raise ValueError(f'dataset={dataset!r} is a file, not a folder with train.bin and val.bin; {remedy}')
    return dataset if os.path.isdir(dataset) else folder


def name_of(folder):
    """The name of a dataset as messages give it."""
    return os.path.basename(os.path.normpath(folder))


def size_of(path):
    """
    The bytes of a file, None if it is not there. Other OSErrors say why it cannot be read, FileNotFoundError also if it
    is a link to nothing, or no file.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise FileNotFoundError(f'{path} is a link to {os.readlink(path)}, which does not exist') from None
        return None
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(f'{path} is {"a folder" if stat.S_ISDIR(found.st_mode) else "no file"}, where a file '
                                'of the dataset should be')
    return found.st_size


def read_meta(folder):
    """
    The meta.json of the dataset in `folder`, which passes tokenizer.check_meta() and says the dtype of the bins. Bins
    without one are read as the original nanoGPT wrote them: GPT-2 BPE in uint16. FileNotFoundError if there is no
    dataset, ValueError if its meta.json is damaged, both with what to type; OSError if it cannot be read.
    """
    name, path = name_of(folder), os.path.join(folder, 'meta.json')
    missing = [f'{split}.bin' for split in SPLITS if size_of(os.path.join(folder, f'{split}.bin')) is None]
    if missing:
        raise FileNotFoundError(f'dataset {name!r} has no {" and no ".join(missing)}; {how_to_prepare(folder)}')
    if size_of(path) is None:
        if os.path.isfile(os.path.join(folder, 'meta.pkl')):
            has_script = os.path.isfile(os.path.join(folder, 'prepare.py'))
            remedy = how_to_prepare(folder) if has_script else f'run: {own_text(folder)} --tokenizer=char'
            raise FileNotFoundError(f'dataset {name!r} has a meta.pkl but no meta.json, and pickles are not loaded '
                                    f'here; made anew of the same text it has the same ids; {remedy}')
        return {'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16'}
    content = Path(path).read_bytes()  # an OSError here is no damage
    meta = None
    try:
        meta = json.loads(content)
        if isinstance(meta, dict) and meta.get('tokenizer') == 'bpe':
            meta['tokenizer_json'] = read_tokenizer(folder, meta)  # checkpoints keep the meta, and so need no dataset
        check_meta(meta)
        if meta.get('dtype') not in DTYPES:
            raise ValueError(f'its dtype is {meta.get("dtype")!r}, not one of {", ".join(DTYPES)}')
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged ({error}); {how_to_mend(folder, meta)}') from None
    return meta


def read_tokenizer(folder, meta):
    """The tokenizer.json of a dataset with a learned vocabulary, as a str; ValueError unless it is the one meant."""
    name, listed = meta.get('tokenizer_file'), meta.get('sha256')
    if not isinstance(name, str) or not isinstance(listed, dict):
        raise ValueError('a learned vocabulary needs tokenizer_file, a name, and sha256, a dict')
    path = os.path.join(folder, name)
    if size_of(path) is None:
        raise ValueError(f'there is no {name}, which it names')
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != listed.get(name):
        raise ValueError(f'{name} does not have the sha256 that it gives')
    return content.decode()


def bytes_per_token(meta, split):
    """
    Bytes of UTF-8 that a token of a split stands for, on average over what counts in the loss: meta['scored'] has the
    sums, {split: {'tokens': n, 'bytes': n}}. None if the dataset was made before these were counted.
    """
    try:
        ratio = meta['scored'][split]['bytes'] / meta['scored'][split]['tokens']
        return ratio if 0 < ratio < math.inf else None
    except (KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None


def identity(meta):
    """What two runs must have in common for their losses, or at least their bits per byte, to be comparable."""
    bytes_of_val = round(meta['scored']['val']['bytes']) if bytes_per_token(meta, 'val') else None
    return {'tokenizer': meta['tokenizer'], 'vocab_size': meta['vocab_size'],
            'val_sha256': meta.get('sha256', {}).get('val.bin'), 'val_bytes': bytes_of_val}


def meta_of(root, checkpoint, vocab_size):
    """
    The meta.json that a model's checkpoint (a dict, or None) has, or GPT-2's, or its dataset's. ValueError if there is
    none, or if it does not fit a model of vocab_size ids.
    """
    checkpoint = checkpoint or {}
    meta = checkpoint.get('meta')
    if not meta and vocab_size in (50257, 50304):
        meta = {'tokenizer': 'gpt2', 'vocab_size': 50257}
    if not meta:
        config = checkpoint.get('config')
        name = config.get('dataset') if isinstance(config, dict) else None
        if not name or not isinstance(name, str):
            raise ValueError(f'no tokenizer is known for these weights, which have {vocab_size} ids; if another '
                             'program trained an export further, copy the meta.json of that export to them')
        meta = read_meta(find(root, name))
    check_same(meta, None, vocab_size)
    return meta


def how_to_prepare(folder):
    """What to type if a dataset is missing or damaged."""
    script = os.path.join(folder, 'prepare.py')
    if os.path.isfile(script):
        return f'run: python {shlex.quote(short(script))}'
    beside = Path(os.path.normpath(folder)).parent
    known = {path.parent for name in ('prepare.py', 'train.bin') for path in beside.glob(f'*/{name}')} - {Path(folder)}
    in_data = beside.resolve() == DATA  # whose folders are known by name
    known = [shlex.quote(path.name if in_data else short(path)) for path in sorted(known)]
    return (f'there is no {short(script)} to make it' +
            (f'; known to --dataset are {", ".join(known)}' if known else '') +
            f'; of your own text: {own_text(folder)}')


def how_to_mend(folder, meta):
    """What to do about a dataset with this meta.json, whatever that is: ids of a user's own no script of ours makes."""
    own = isinstance(meta, dict) and meta.get('tokenizer') == 'ids'
    return 'docs/own_ids.md has the form' if own else how_to_prepare(folder)


def own_text(folder, text='FILE'):
    """The command that makes a dataset of a text in `folder`."""
    script = DATA / 'text' / 'prepare.py'
    return shlex.join(['python', short(script), f'--input={text}', f'--out={short(folder)}'])


def short(path):
    """A path below the working directory as relative to it, any other as absolute."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith('..') else relative


def prepare(folder):
    """
    Run a dataset's prepare.py if it has no train.bin yet, or wait for another run that does. FileNotFoundError or
    ValueError if that fails.
    """
    made, script = os.path.join(folder, 'train.bin'), os.path.join(folder, 'prepare.py')
    if size_of(made) is not None:
        return
    if size_of(script) is None:
        raise FileNotFoundError(f'dataset {name_of(folder)!r} is not there; {how_to_prepare(folder)}')
    with files.turn(os.path.join(folder, '.lock'), f'another run is preparing {name_of(folder)}; waiting for it'):
        if size_of(made) is not None:
            return
        print(f'no {name_of(folder)}/train.bin yet: running {short(script)}')
        code = subprocess.run([sys.executable, script]).returncode
    if code != 0:
        raise ValueError(f'{short(script)} did not finish (exit code {code}), see above; to try it alone, '
                         f'{how_to_prepare(folder)}')


def open_tokens(folder, split, meta):
    """The ids of a split, a read-only memory map."""
    return np.memmap(os.path.join(folder, f'{split}.bin'), np.dtype(meta['dtype']).newbyteorder('<'), mode='r')


def validation_tokens(root, settings, meta):
    """
    The ids of the validation split of a run with these settings, if it is here and still what meta, the model's
    meta.json, says; else no ids.
    """
    with contextlib.suppress(KeyError, TypeError, ValueError, OSError):  # TypeError: settings of another program
        folder = find(root, settings['dataset'])
        if read_meta(folder).get('sha256') == meta['sha256']:
            return open_tokens(folder, 'val', meta)
    return np.empty(0, dtype=np.uint16)


def open_mask(folder, split):
    """Whether each token of a split counts in the loss, a read-only memory map of bool. None if all of them do."""
    path = os.path.join(folder, f'{split}_mask.bin')
    return None if size_of(path) is None else np.memmap(path, dtype=np.bool_, mode='r')


def check(folder, meta, block_size):
    """
    The number of tokens in each split, {'train': n, 'val': n}. ValueError if a split is damaged or has fewer than
    block_size + 1 tokens. What is wrong within a bin is looked for in its first and last 67 million tokens only.
    """
    sizes = {split: count_tokens(folder, split, meta) for split in SPLITS}
    shortest = min(sizes.values())
    for split, size in sizes.items():
        if size < block_size + 1:
            smaller = f'try --block_size={shortest - 1}, or more text' if shortest > 1 else 'it needs more text'
            raise ValueError(f'{os.path.join(folder, split)}.bin has {size} tokens, but block_size={block_size} needs '
                             f'{block_size + 1}; {smaller}')
    for split, size in sizes.items():
        try:
            check_content(folder, split, meta, size)
        except ValueError as error:
            raise ValueError(f'{error}; {how_to_mend(folder, meta)}') from None
    return sizes


def count_tokens(folder, split, meta):
    """The number of tokens in a split. ValueError if its file has another size than it should."""
    path, each = os.path.join(folder, f'{split}.bin'), np.dtype(meta['dtype']).itemsize
    count, rest = divmod(os.path.getsize(path), each)
    if rest:
        number = 'an odd number of bytes' if each == 2 else f'{each * count + rest} bytes, no multiple of {each}'
        raise ValueError(f'{path} has {number}, as a copy that was cut off: copy it again, or make it anew; '
                         f'{how_to_prepare(folder)}')
    if count != meta.get(f'{split}_tokens', count):
        raise ValueError(f'{path} has {count} tokens, but its meta.json says {meta[f"{split}_tokens"]}; '
                         f'{how_to_prepare(folder)}')
    return count


def check_content(folder, split, meta, size):
    """ValueError if the ids or the mask of a split, which has `size` tokens, are not as they should be."""
    path, mask_path = (os.path.join(folder, f'{split}{suffix}.bin') for suffix in ('', '_mask'))
    listed = meta.get('sha256', {})
    if f'{split}.bin' in listed and os.path.getsize(path) <= 2**28:  # hashing a larger one takes seconds
        with open(path, 'rb') as f:
            if hashlib.file_digest(f, 'sha256').hexdigest() != listed[f'{split}.bin']:
                raise ValueError(f'{path} is not the file that its meta.json describes')
    largest = largest_at_its_ends(open_tokens(folder, split, meta))
    if largest >= meta['vocab_size']:
        whose = 'its' if size_of(os.path.join(folder, 'meta.json')) is not None else (
            "GPT-2's (without a meta.json they are taken for GPT-2's ids; docs/own_ids.md has one for your own)")
        raise ValueError(f'{path} has the token id {largest}, which is not below {whose} vocab_size='
                         f'{meta["vocab_size"]}')
    entries = size_of(mask_path)
    if entries is None:
        if f'{split}_mask.bin' in listed:
            raise ValueError(f'there is no {mask_path}, but meta.json lists it')
        return
    if entries != size:
        raise ValueError(f'{mask_path} has {entries} entries for {size} tokens')
    mask = open_mask(folder, split)
    if not mask.any():
        raise ValueError(f'{mask_path} excludes every token from the loss')
    if largest_at_its_ends(mask.view(np.uint8)) > 1:
        raise ValueError(f'{mask_path} is no mask, which has no other bytes than 0 and 1')


def largest_at_its_ends(numbers):
    """The largest of the first and the last PART numbers: to read all of a corpus takes minutes."""
    return max(numbers[:PART].max(), numbers[-PART:].max())


def check_unchanged(meta, theirs, allowed):
    """ValueError if a run began with other bins (`theirs`: their meta.json, or None), unless that is `allowed`."""
    for name, sha256 in (theirs or {}).get('sha256', {}).items():
        if sha256 != meta.get('sha256', {}).get(name) and not allowed:
            raise ValueError(f'{name} has changed since this run began; to go on with the new one: '
                             '--allow_data_change=True')
