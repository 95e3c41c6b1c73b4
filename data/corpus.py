"""
What the prepare scripts share: their command line, and the way from a text to train.bin, val.bin and meta.json.

    files -> documents (sources.py) -> ids (encoding.py) -> files that grow (shards.py) -> bins

python data/corpus.py check data/shakespeare    # recount and re-hash a dataset, show a piece of it
"""
import argparse
import errno
import functools
import hashlib
import http.client
import json
import os
import random
import shutil
import sys
import urllib.request

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import sources
from common import bins, tokenizer
from encoding import chunks, cut_up, finish, part, sha256_of, tokenise
from shards import Shards, write_whole

FORMAT = 1        # raised when the same text would give other bins
BPE_TEXT = 2**28  # bytes of the source that a vocabulary is learned from, spread over all of it
FEW = 10          # where val would get fewer documents than about this, each document is cut instead
ORDER = ('val_mask.bin', 'train_mask.bin', 'tokenizer.json', 'val.bin', 'meta.json', 'train.bin')


def prepare(folder, doc, source=None, val_source=None, sha256=None, tokenizer='gpt2', val_fraction=0.1, columns=None,
            to_parts=None, prompt=None, others='', expected=None, write_source=None):
    """
    A prepare script: its command line, and the dataset in `folder`. `source`, `val_source`: patterns as sources.find
    takes them, or the https address of one file with this `sha256`. Without val_source, val_fraction of the documents
    become val. `to_parts(row)` makes of the `columns` of a row the parts of a document, of which some count in the loss
    and some do not; `prompt` is the template behind it. `others`: what to say where the source is gone; `expected`: the
    numbers of tokens that the usual text gives; `write_source(path)` makes a source that is a file and not there.
    """
    args = parse(doc, source, tokenizer, val_fraction)
    folder = args.out or folder
    if to_parts is None:
        columns, to_parts = [args.text_key], lambda row: [(sources.text_of(row, args.text_key), True)]
    elif any(path.endswith(('.txt', '.md')) for path in args.input or []):
        stop(f'this corpus is made of {", ".join(columns)}: it takes .jsonl and .parquet files')
    usual = not args.input and args.source == source
    job = {'format': FORMAT, 'train': args.input or [args.source], 'val': args.val_input or [], 'prompt': prompt,
           **{key: getattr(args, key) for key in ('tokenizer', 'vocab_size', 'text_key', 'fraction', 'val_fraction')}}
    if usual and val_source and not args.val_input:
        job['val'] = [val_source]
    name = ' '.join(job['train'])
    read = functools.partial(sources.read, to_parts=to_parts, columns=columns, share=args.fraction)
    try:
        os.makedirs(folder, exist_ok=True)
        if usual and source.startswith('https://'):
            job['train'] = [download(folder, source, sha256)]
        elif usual and write_source and not os.path.exists(source):
            write_source(source)
        make(folder, job, name, read, args.skip_bad, others)
        report(folder, expected if usual and args.fraction == 1.0 else None)
    except KeyboardInterrupt:
        stop('stopped; the same command goes on from the last finished shard', code=75)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            stop(error)
        stop(f'no room to write ({error}). Make some and run the same command again: it goes on from the last shard')
    except ValueError as error:
        stop(error)


def parse(doc, source, tokenizer, val_fraction):
    """The command line of a prepare script; exit code 2 if it cannot work."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--input', nargs='+', action='extend', metavar='PATH',
        help='take this text instead: files, folders or globs of .txt, .md, .jsonl and .parquet')
    add('--val_input', nargs='+', action='extend', metavar='PATH', help='text to validate on, not a part of the rest')
    add('--source', default=source, metavar='URL',
        help='take hf://datasets/OWNER/NAME/GLOB from Hugging Face instead of %(default)s')
    add('--out', metavar='FOLDER', help='where to write the dataset; default: beside this script')
    add('--tokenizer', default=tokenizer, metavar='NAME',
        help='gpt2, char, or the folder of a dataset whose vocabulary to take (%(default)s)')
    add('--vocab_size', type=int, default=0, metavar='N', help='learn a byte-level BPE of N tokens from the text')
    add('--text_key', default='text', metavar='NAME', help='the field or column that has the text (%(default)s)')
    add('--fraction', type=float, default=1.0, metavar='X',
        help='take this part of the source, always the same one (%(default)s)')
    add('--val_fraction', type=float, default=val_fraction, metavar='X',
        help='the part of the documents to validate on (%(default)s)')
    add('--skip_bad', action='store_true', help='leave out rows that cannot be used, instead of stopping at them')
    args = parser.parse_args()
    if not args.input and not args.source:
        parser.error('name your text: --input=FILE, or several, folders, globs')
    if args.vocab_size and args.tokenizer != tokenizer:
        parser.error(f'--vocab_size={args.vocab_size} learns a vocabulary, --tokenizer={args.tokenizer} names one')
    for key in ('fraction', 'val_fraction'):
        if not 0 < getattr(args, key) <= 1:
            parser.error(f'--{key}={getattr(args, key)} is not above 0 and up to 1')
    if args.vocab_size and args.vocab_size < 257:
        parser.error(f'--vocab_size={args.vocab_size} is below 257: the 256 bytes and <|endoftext|>')
    return args


def stop(message, code=2):
    """End the script with a message."""
    sys.exit(print(f'{os.path.relpath(sys.argv[0])}: {message}', file=sys.stderr) or code)


def download(folder, url, sha256):
    """The path of a file that is downloaded once, to input.txt, and only if it is complete and has this sha256."""
    path = os.path.join(folder, 'input.txt')
    waits = list(sources.WAITS[:2])
    while not os.path.exists(path):
        print(f'downloading {url}')
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            if not sources.try_again(error, waits):
                raise ValueError(f'cannot download {url} ({error}).\nWithout a network: put that file at {path}, or '
                                 'name it with --input=FILE, or train on text that Python brings along: '
                                 'python train.py config/quickstart.py') from None
            continue
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f'{url} is not the file it was: its sha256 is {hashlib.sha256(content).hexdigest()}, not '
                             f'{sha256}. If you trust it, save it and name it with --input=FILE')
        write_whole(folder, 'input.txt', content)
    return path


def make(folder, job, name, read, skip_bad, others):
    """Make the dataset that `job` describes in `folder`, or go on where earlier work on it stopped."""
    local = [sources.find(pattern) for pattern in job['val'] + job['train'] if not pattern.startswith('hf://')]
    made_from = hashlib.sha256(json.dumps([job, local]).encode()).hexdigest()
    if is_made(folder, made_from):
        print(f'{folder} has this dataset already; to make it anew, delete its train.bin')
        return
    shards = Shards(os.path.join(folder, 'work'), made_from)
    if 'ready' not in shards.manifest:
        if shards.last['lengths']:
            print(f'going on after {shards.last["characters"]:,} characters')
        else:
            shards.manifest['plan'] = make_plan(job, read, others)
            check_disk(folder, shards.manifest['plan'], job['fraction'])
        plan = shards.manifest['plan']
        meta = tokenise(shards, plan, read, skip_bad)
        meta = {**finish(shards, plan), **meta, 'source': name, 'made_from': made_from}
        if job['prompt']:
            meta['prompt'] = job['prompt']
        write_whole(shards.folder, 'meta.json', json.dumps(meta, indent=1).encode())
    shards.deliver(folder, ORDER)


def is_made(folder, made_from):
    """Whether the dataset is there, and was made from the same text with the same settings."""
    try:
        return bins.read_meta(folder).get('made_from') == made_from
    except (OSError, ValueError):
        return False


def make_plan(job, read, others):
    """What is decided before the first id is written: the files, how val is parted from train, the vocabulary."""
    files = []
    for split in ('val', 'train'):  # val first: then its documents are known when train's come
        for pattern in job[split]:
            try:
                files += [{**file, 'split': split} for file in sources.find(pattern)]
            except sources.Gone as error:
                raise ValueError(f'{error}\n{others}') from None
    plan = {'files': files, 'val_fraction': job['val_fraction'], 'masked': job['prompt'] is not None}
    if job['val']:
        plan['rule'] = 'files'
    else:
        many = plan['masked'] or has_documents(files, read, FEW / job['val_fraction'])
        plan['rule'] = 'hash' if many else 'cut'
    plan['vocabulary'] = find_vocabulary(job, plan, read)
    return plan


def has_documents(files, read, enough):
    """Whether the files have at least so many documents."""
    seen = 0
    for file in files:
        for documents, _, _ in read(file, 0, bad_row=lambda message: None):
            seen += sum(document.begins for document in documents)
            if seen >= enough:
                return True
    return False


def find_vocabulary(job, plan, read):
    """The part of meta.json that says what the ids mean. The characters of a text are known only at its end."""
    if job['vocab_size']:
        share = min(1.0, BPE_TEXT / max(sum(file['bytes'] for file in plan['files']), 1))
        print(f'learning a vocabulary of {job["vocab_size"]:,} tokens from ' +
              (f'{share:.1%} of the text' if share < 1 else 'the text'), flush=True)
        texts = train_texts(plan, functools.partial(read, share=share * job['fraction']))
        content = tokenizer.train_bpe(texts, job['vocab_size'])
        size = tokenizer.BPETokenizer(content).vocab_size
        if size < job['vocab_size']:
            print(f'the text has no more than {size:,} tokens to learn')
        return {'tokenizer': 'bpe', 'vocab_size': size, 'tokenizer_file': 'tokenizer.json', 'tokenizer_json': content}
    if job['tokenizer'] == 'gpt2':
        tokenizer.GPT2Tokenizer()  # a ValueError now, if its files are not here
        return {'tokenizer': 'gpt2', 'vocab_size': tokenizer.GPT2Tokenizer.vocab_size}
    if job['tokenizer'] == 'char':
        return {'tokenizer': 'char'}
    folder = bins.find(ROOT, job['tokenizer'])
    if not os.path.isdir(folder):
        raise ValueError(f'--tokenizer={job["tokenizer"]} is neither gpt2 nor char nor the folder of a dataset')
    meta = bins.read_meta(folder)
    return {key: meta[key] for key in ('tokenizer', 'vocab_size', 'chars', 'tokenizer_file', 'tokenizer_json')
            if key in meta}


def train_texts(plan, read):
    """The texts of train, in pieces."""
    for file in plan['files']:
        for documents, _, _ in read(file, 0, bad_row=lambda message: None):
            for document in documents:
                for split, parts in part(document, file, plan):
                    if split == 'train':
                        yield from (piece for text, _ in parts for piece in cut_up(text))


def check_disk(folder, plan, fraction):
    """ValueError if the disk has less room than the dataset will about need."""
    # bytes to write for one of text: 2 for a token of 4.4 bytes, or 3.6 of a smaller vocabulary; 4 + 1 for a character
    density = {'gpt2': 0.45, 'bpe': 0.55, 'char': 5}[plan['vocabulary']['tokenizer']] + 0.25 * plan['masked']
    # parquet packs 1.6 bytes of text into one: fineweb-edu's 28.5 GB become 10 billion tokens, 20 GB
    text = sum(file['bytes'] * (1.6 if file['path'].endswith('.parquet') else 1) for file in plan['files'])
    needed, free = text * fraction * density, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f'the dataset needs about {needed / 1e9:.1f} GB, but the disk of {folder} has '
                         f'{free / 1e9:.1f} GB free; make room, or choose another --out=FOLDER')


def report(folder, expected):
    """Print what a dataset has, how it begins, and how to train on it."""
    meta = bins.read_meta(folder)
    counts = meta['train_tokens'], meta['val_tokens']
    print(f'{meta["characters"]:,} characters, ' + (
        f'{meta["vocab_size"]} distinct: {meta["chars"]!r:.200}' if 'chars' in meta else
        f'in a vocabulary of {meta["vocab_size"]:,} tokens ({meta["tokenizer"]})'))
    for split, size in zip(bins.SPLITS, counts):
        print(f'{split} has {size:,} tokens of {meta["documents"][split]:,} documents')
    print(f'val is {meta["split"]}; {meta["train_documents_in_val"]:,} documents of train are in val, too')
    for reason, count in meta['left_out'].items():
        if count:
            print(f'left out: {count:,} {reason} documents')
    if expected and expected != counts:
        print(f'the usual text gives {expected[0]:,} and {expected[1]:,} tokens, so this is another one')
    begin = tokenizer.from_meta(meta).decode(bins.open_tokens(folder, 'train', meta)[:50].tolist())
    print(f'it begins: {begin!r}')
    name = os.path.basename(os.path.abspath(folder))
    config = os.path.join(ROOT, 'config', f'train_{name}.py')
    inside = os.path.abspath(folder) == os.path.join(ROOT, 'data', name)
    print('to train on it: python train.py ' + (f'config/train_{name}.py' if inside and os.path.exists(config) else
                                                f'--dataset={name if inside else folder}'))


def check(folder):
    """Recount and re-hash a dataset, look at every id, print its meta.json and a piece; exit code 1 if damaged."""
    try:
        meta = bins.read_meta(folder)
    except (OSError, ValueError) as error:
        stop(error)
    wrong = []
    for split in bins.SPLITS:
        path = os.path.join(folder, f'{split}.bin')
        size = largest = 0
        for ids in chunks(path, np.dtype(meta['dtype']).newbyteorder('<')):
            size, largest = size + len(ids), max(largest, int(ids.max()))
        print(f'{split} has {size:,} tokens, the largest id is {largest} of {meta["vocab_size"]}')
        if size != meta.get(f'{split}_tokens', size):
            wrong.append(f'{path} has {size:,} tokens, meta.json says {meta[f"{split}_tokens"]:,}')
        if largest >= meta['vocab_size']:
            wrong.append(f'{path} has the id {largest}, but vocab_size is {meta["vocab_size"]}')
        mask = os.path.join(folder, f'{split}_mask.bin')
        if os.path.exists(mask) and os.path.getsize(mask) != size:
            wrong.append(f'{mask} has {os.path.getsize(mask):,} entries for {size:,} tokens')
    for name, known in meta.get('sha256', {}).items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            wrong.append(f'there is no {path}')
        elif sha256_of(path) != known:
            wrong.append(f'{path} has not the sha256 that meta.json says')
    print(json.dumps({key: value for key, value in meta.items() if key != 'tokenizer_json'}, indent=1))
    if wrong:
        stop('\n'.join(['damaged', *wrong]), code=1)
    tokens = bins.open_tokens(folder, 'train', meta)
    start = random.randrange(max(len(tokens) - 100, 1))
    print(f'from token {start:,} on: {tokenizer.from_meta(meta).decode(tokens[start:start + 100].tolist())!r}')


if __name__ == '__main__':
    if len(sys.argv) != 3 or sys.argv[1] != 'check':
        sys.exit(print(__doc__.strip(), file=sys.stderr) or 2)
    check(sys.argv[2] if os.path.isdir(sys.argv[2]) else bins.find(ROOT, sys.argv[2].removeprefix('data/')))
