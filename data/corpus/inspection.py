"""A finished dataset: what it has, how it begins, how to train on it, and whether it is still as it was made."""
import contextlib
import json
import os
import random
import shlex
import sys

import numpy as np

from common import dataset, tokenizer
from common.console import visible
from corpus import ROOT
from corpus.encoding import chunks, ones_in, sha256_of

SMALL = 20_000_000  # tokens; with fewer, a model that a CPU can train is large enough
BLOCK = 256         # the block_size of train_shakespeare_char_fast.py, which a split must exceed
TINY = 1_000_000    # tokens; fewer are not enough to learn what each of GPT-2's 50,257 means
FIGURES = {'characters': int, 'documents': dict, 'split': str, 'left_out': dict, 'train_tokens': int, 'val_tokens': int}
MORE = {'train_documents_in_val': int, 'scored': dict, 'source': str, 'made_from': str}  # which not every dataset has
UNSUITED = 2.0  # bytes a token of GPT-2's; English has 4.4, Korean 1.3


def malformed(meta):
    """The keys of a meta.json whose values are not of the kind that a prepare script writes."""
    wrong = [key for key, kind in {**FIGURES, **MORE}.items() if key in meta and not isinstance(meta[key], kind)]
    tables = {key: meta.get(key, {}) for key in ('documents', 'left_out', 'scored') if key not in wrong}
    for split, scored in tables.pop('scored', {}).items():
        tables[f'scored: {split}'] = scored
    for name, table in tables.items():
        entries = table.items() if isinstance(table, dict) else [('tokens', None)]
        wrong += [f'{name}: {key}' for key, count in entries if not isinstance(count, int)]
    return wrong


def summarize(folder, meta, expected, config):
    """Print what the dataset in `folder` with this meta.json has, how it begins, and how to train on it."""
    missing = [key for key in FIGURES if key not in meta]
    missing += [f'documents: {split}' for split in dataset.SPLITS if split not in meta.get('documents', ())]
    if wrong := malformed(meta) or missing:
        raise ValueError(f'{os.path.join(folder, "meta.json")} is damaged, see its {wrong[0]!r}; to make the dataset '
                         'anew, delete that file and run the same command again')
    counts, cut = (meta['train_tokens'], meta['val_tokens']), 'train_documents_in_val' not in meta
    chars = ''.join(meta.get('chars', ''))
    print(f'{meta["characters"]:,} characters, ' + (
        f'{meta["vocab_size"]} distinct: {quoted(chars[:80])}' + ' ...' * (len(chars) > 80) if chars else
        f'in a vocabulary of {meta["vocab_size"]:,} tokens ({meta["tokenizer"]})'))
    for split, size in zip(dataset.SPLITS, counts):
        print(f'{split} has {size:,} tokens' + ('' if cut else f' of {meta["documents"][split]:,} documents'))
    print(f'val is {meta["split"]}' + (
        '' if cut else f'; {meta["train_documents_in_val"]:,} documents of train are in val, too'))
    if each := dataset.bytes_per_token(meta, 'val'):
        print(f'a token of val is {each:.2f} bytes of text, on average')
        if meta['tokenizer'] == 'gpt2' and each < UNSUITED:
            print("GPT-2's vocabulary is made for English, and cuts this text into small pieces: one that is learned "
                  'from it, --vocab_size=4096, needs several times fewer tokens')
    for reason, count in meta['left_out'].items():
        if count:
            print(f'left out: {count:,} {visible(reason)} documents')
    if expected and expected != counts:
        print(f'the usual text gives {expected[0]:,} and {expected[1]:,} tokens, so this is another one')
    print(f'it begins: {excerpt(folder, meta, 0, 50)}')
    name = os.path.basename(os.path.abspath(folder))
    inside = os.path.abspath(folder) == os.path.join(ROOT, 'data', name)
    small = 'train_shakespeare_char_fast.py' if counts[0] < SMALL else 'small.py'
    command = f'python train.py config/{config or small}'
    if not config or not os.path.exists(os.path.join(ROOT, 'data', name, 'prepare.py')) or not inside:
        command += f' --dataset={shlex.quote(name if inside else os.path.abspath(folder))}'
    if not config and min(counts) <= BLOCK:
        command += f' --block_size={min(counts) - 1}'
    if not config and meta['tokenizer'] == 'gpt2' and counts[0] < TINY:
        print('a text this short trains faster with a smaller vocabulary: --tokenizer=char, or --vocab_size=1024')
    print(f'to train on it: {command}' + ('' if config else f' --out_dir=out-{shlex.quote(name)}'))


def quoted(text):
    """A text in one line, in quotes: what does not print is escaped, as is U+FFFD, which looks like a fault of ours."""
    return tokenizer.quoted(text).replace('\ufffd', '\\ufffd')


def excerpt(folder, meta, start, count):
    """Some of train's text, quoted; or why it cannot be shown, which is no fault of the dataset."""
    try:
        ids = dataset.open_tokens(folder, 'train', meta)[start:start + count].tolist()
        return quoted(tokenizer.from_meta(meta).decode(ids))
    except (OSError, ValueError) as error:  # GPT-2's vocabulary may be a download
        return f'(not shown: {error})'


def check(folder):
    """Recount and re-hash a dataset, check every id, print its meta.json and a piece. Exit code 1 if it is damaged."""
    meta = dataset.read_meta(folder)
    wrong = [f'meta.json has a wrong {key!r}' for key in malformed(meta)]
    dtype = np.dtype(meta['dtype']).newbyteorder('<')
    for split in dataset.SPLITS:
        path = os.path.join(folder, f'{split}.bin')
        size, rest = divmod(os.path.getsize(path), dtype.itemsize)
        largest = max((int(ids.max()) for ids in chunks(path, dtype)), default=0)
        print(f'{split} has {size:,} tokens, the largest id is {largest} of {meta["vocab_size"]}')
        if rest:
            wrong.append(f'{path} has {size * dtype.itemsize + rest} bytes, which is no whole number of {dtype.name}')
        if not size:
            wrong.append(f'{path} has no tokens')
        if size != meta.get(f'{split}_tokens', size):
            wrong.append(f'{path} has {size:,} tokens, meta.json says {meta[f"{split}_tokens"]:,}')
        if largest >= meta['vocab_size']:
            wrong.append(f'{path} has the id {largest}, but vocab_size is {meta["vocab_size"]}')
        mask = os.path.join(folder, f'{split}_mask.bin')
        if os.path.exists(mask):
            print(f'{ones_in(mask):,} of them count in the loss')
            if os.path.getsize(mask) != size:
                wrong.append(f'{mask} has {os.path.getsize(mask):,} entries for {size:,} tokens')
    for name, known in meta.get('sha256', {}).items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            wrong.append(f'there is no {path}')
        elif sha256_of(path) != known:
            wrong.append(f'{path} does not have the sha256 that meta.json gives')
    with contextlib.suppress(RecursionError):
        print(json.dumps({key: value for key, value in meta.items() if key != 'tokenizer_json'}, indent=1))
    if wrong:
        print('\n'.join(['damaged:', *wrong]), file=sys.stderr)
        sys.exit(1)
    start = random.randrange(max(os.path.getsize(os.path.join(folder, 'train.bin')) // dtype.itemsize - 100, 1))
    print(f'from token {start:,} on: {excerpt(folder, meta, start, 100)}')
    print('everything is as meta.json says' if 'sha256' in meta else 'no meta.json has hashes to compare with')
