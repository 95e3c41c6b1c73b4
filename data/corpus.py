"""
What the prepare scripts share: their command line, and the way from a text to train.bin, val.bin and meta.json.

    files -> documents (sources.py) -> ids (encoding.py) -> files that grow (shards.py) -> the dataset (report.py)

python data/corpus.py check data/shakespeare    # recount and re-hash a dataset, show a piece of it
"""
import argparse
import errno
import functools
import hashlib
import http.client
import json
import os
import shutil
import signal
import sys
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import sources
from common import bins
from common.tokenizer import BPETokenizer, GPT2Tokenizer, train_bpe
from encoding import complete, cut_up, split_of, tokenise
from report import check, report
from shards import Shards, write_whole

FORMAT = 1        # raised when the same text would give other bins
BPE_TEXT = 2**28  # characters that a vocabulary is learned from, of each file its share
FEW = 10          # where val would get fewer documents than about this, each document is cut instead
CUT = 0.9         # the part of each that then goes to train, as in nanoGPT
MASKS = ('val_mask.bin', 'train_mask.bin')


def prepare(folder, doc, source=None, val_source=None, sha256=None, tokenizer='gpt2', val_fraction=0.1, columns=None,
            to_parts=None, prompt=None, others='', expected=None, write_source=None, config=None):
    """
    A prepare script: its command line, and the dataset in `folder`. `source`, `val_source`: patterns as sources.find
    takes them, or the https address of one file with this `sha256`. Without val_source, val_fraction of the documents
    become val. `to_parts(row)` makes of the `columns` of a row the parts of a document, of which some count in the loss
    and some do not; `prompt` is the template behind it. `others`: what to say where the source is gone; `expected`: the
    numbers of tokens that the usual text gives; `write_source(path)` makes a source that is a file and not there;
    `config`: the file in config/ to train with, and what to type behind it.
    """
    args = parse(doc, source)
    folder = os.path.expanduser(args.out or folder)
    if to_parts is None:
        columns = [args.text_key]
        to_parts = lambda row: [(sources.text_of(row, args.text_key, sources.KEY_HINT), True)]
    usual = not args.input and args.source == source and not args.val_input
    job = {'format': FORMAT, 'train': args.input or [args.source], 'val': args.val_input or [], 'prompt': prompt,
           'tokenizer': args.tokenizer or tokenizer, 'vocab_size': args.vocab_size, 'text_key': args.text_key,
           'fraction': args.fraction, 'val_fraction': args.val_fraction or val_fraction,
           'cut': 1 - args.val_fraction if args.val_fraction else CUT}
    if usual and val_source:
        job['val'] = [val_source]
    name = ' '.join(job['train'])
    read = functools.partial(sources.read, to_parts=to_parts, columns=columns, share=args.fraction)
    if not usual or args.fraction < 1.0 or args.tokenizer or args.vocab_size:
        expected = None
    try:
        os.makedirs(folder, exist_ok=True)
        if usual and name.startswith('https://'):
            job['train'] = [download(folder, source, sha256)]
        elif usual and write_source and not os.path.exists(source):
            write_source(source)
        make(folder, job, name, read, args.skip_bad, others)
        report(folder, expected, config)
    except KeyboardInterrupt:
        stop('stopped; the same command goes on from the last finished shard, if there is one', code=75)
    except FileExistsError:
        stop(f'--out={folder} is a file, not a folder')
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            stop(error)
        stop(f'no room to write ({error}). Make some and run the same command again: it goes on from the last shard')
    except ValueError as error:
        stop(error)


def parse(doc, source):
    """The command line of a prepare script; exit code 2 if it cannot work."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--input', nargs='+', action='extend', metavar='PATH',
        help='the text: files, folders or globs of .txt, .md, .jsonl and .parquet')
    add('--val_input', nargs='+', action='extend', metavar='PATH', help='text to validate on, not a part of the rest')
    add('--source', default=source, metavar='URL', help='take hf://datasets/OWNER/NAME/GLOB from Hugging Face' +
        (', instead of %(default)s' if source else ''))
    add('--out', metavar='FOLDER', help='where to write the dataset; else beside this script')
    add('--tokenizer', metavar='NAME', help='gpt2, char, or the folder of a dataset whose vocabulary to take')
    add('--vocab_size', type=int, default=0, metavar='N', help='learn a byte-level BPE of N tokens from the text')
    add('--text_key', default='text', metavar='NAME', help='the field or column that has the text (%(default)s)')
    add('--fraction', type=float, default=1.0, metavar='X', help='take this part of the documents, the same each time')
    add('--val_fraction', type=float, metavar='X', help='validate on this part of the documents, or of each of a few')
    add('--skip_bad', action='store_true', help='leave out rows that cannot be used, instead of stopping at them')
    args = parser.parse_args()
    if not args.input and not args.source:
        parser.error('name your text: --input=FILE, or several, folders, globs')
    if args.vocab_size and args.tokenizer:
        parser.error(f'--vocab_size={args.vocab_size} learns a vocabulary, --tokenizer={args.tokenizer} names one')
    if args.vocab_size and args.vocab_size < 257:
        parser.error(f'--vocab_size={args.vocab_size} is below 257: the 256 bytes and <|endoftext|>')
    if not 0 < args.fraction <= 1:
        parser.error(f'--fraction={args.fraction} is not above 0 and up to 1')
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        parser.error(f'--val_fraction={args.val_fraction} is not between 0 and 1')
    return args


def stop(message, code=2):
    """End the script with a message."""
    script = os.path.abspath(sys.argv[0])
    print(f'{os.path.basename(os.path.dirname(script))}/{os.path.basename(script)}: {message}', file=sys.stderr)
    sys.exit(code)


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
    named = named_vocabulary(job)
    made_from = hashlib.sha256(json.dumps([job, local, named]).encode()).hexdigest()
    work = os.path.join(folder, f'unfinished-{made_from[:8]}')  # of its own: no other job's work is thrown away
    earlier = whole_meta(folder)
    if earlier.get('made_from') == made_from:
        shutil.rmtree(work, ignore_errors=True)
        print(f'{folder} has this dataset already; to make it anew, delete its train.bin')
        return
    if earlier:
        print(f'this replaces the dataset in {folder}, made of {earlier.get("source", "?")}; --out=FOLDER keeps both')
    shards = Shards(work)
    if shards.manifest['plan'] is None:
        try:
            shards.manifest['plan'] = make_plan(folder, job, named, read, others)
        except BaseException:
            shards.remove()
            raise
        shards.write_manifest()
    elif shards.manifest['shards']:
        print(f'going on after {shards.last["characters"]:,} characters')
    if shards.manifest['ready'] is None:
        plan = shards.manifest['plan']
        meta = tokenise(shards, plan, read, skip_bad)
        meta = {**complete(shards, plan), **meta, 'source': name, 'made_from': made_from}
        if job['prompt']:
            meta['prompt'] = job['prompt']
        write_whole(shards.folder, 'meta.json', json.dumps(meta, indent=1).encode())
    names = (*MASKS, 'tokenizer.json', 'val.bin', 'meta.json', 'train.bin')  # where the last is, all is there
    shards.deliver(folder, names, obsolete=MASKS)


def whole_meta(folder):
    """The meta.json of the dataset in a folder; {} if there is none, or not all of it."""
    try:
        meta = bins.read_meta(folder)
        bins.check(folder, meta, block_size=0)
        return meta
    except (OSError, ValueError):
        return {}


def named_vocabulary(job):
    """Of the dataset that --tokenizer names, what its meta.json says of the ids; None if it names no dataset."""
    if job['tokenizer'] in ('gpt2', 'char'):
        return None
    folder = dataset_folder(job['tokenizer'])
    if not os.path.isdir(folder):
        raise ValueError(f'--tokenizer={job["tokenizer"]} is neither gpt2 nor char nor the folder of a dataset')
    meta = bins.read_meta(folder)
    return {key: meta[key] for key in ('tokenizer', 'vocab_size', 'chars', 'tokenizer_file', 'tokenizer_json')
            if key in meta}


def dataset_folder(name):
    """The folder that a user means: a path, or a name in data/."""
    return name if os.path.isdir(name) else bins.find(ROOT, name.removeprefix('data/'))


def make_plan(folder, job, named, read, others):
    """What is decided before the first id is written: the files, how val is parted from train, the vocabulary."""
    files = {}
    for split in ('val', 'train'):  # val first: then its documents are known when train's come
        for pattern in job[split]:
            try:
                found = sources.find(pattern)
            except sources.Gone as error:
                raise ValueError(f'{error}\n{others}'.strip()) from None
            for file in found:
                files.setdefault(file['path'], {**file, 'split': split})  # what is named twice is taken once
    plan = {'files': list(files.values()), 'val_fraction': job['val_fraction'], 'cut': job['cut'],
            'masked': job['prompt'] is not None}
    for path in files:
        if plan['masked'] and sources.suffix(path) not in ('.jsonl', '.parquet'):
            raise ValueError(f'{path} is plain text; instructions and answers come in .jsonl and .parquet files')
    plan['rule'] = 'files'
    if not job['val']:
        many = plan['masked'] or has_documents(plan, read, FEW / job['val_fraction'])
        plan['rule'] = 'hash' if many else 'cut'
    check_disk(folder, job, plan)
    plan['vocabulary'] = named or find_vocabulary(job, plan, read)
    return plan


def has_documents(plan, read, enough):
    """Whether the files have at least so many documents."""
    seen = 0
    for file in plan['files']:
        for documents, _, _ in read(file, 0, bad_row=lambda describe: None):
            seen += sum(document.begin == 0.0 for document in documents)
            if seen >= enough:
                return True
    return False


def check_disk(folder, job, plan):
    """ValueError if the disk has less room than the dataset will about need."""
    kind = 'bpe' if job['vocab_size'] else job['tokenizer']
    # bytes to write for one of text: 2 for a token of 4.4 bytes, or 3.6 of a smaller vocabulary; 4 + 2 for a character
    density = {'gpt2': 0.45, 'char': 6.0}.get(kind, 0.55) + 0.25 * plan['masked']
    # parquet packs 1.6 bytes of text into one: fineweb-edu's 28.5 GB become 10 billion tokens, 20 GB
    text = sum(file['bytes'] * (1.6 if sources.suffix(file['path']) == '.parquet' else 1) for file in plan['files'])
    needed, free = text * job['fraction'] * density, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f'the dataset needs about {needed / 1e9:.1f} GB, but the disk of {folder} has '
                         f'{free / 1e9:.1f} GB free; make room, or choose another --out=FOLDER')


def find_vocabulary(job, plan, read):
    """The part of meta.json that says what the ids mean. The characters of a text are known only at its end."""
    if job['vocab_size']:
        print(f'learning a vocabulary of {job["vocab_size"]:,} tokens', flush=True)
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would wait until all is learned
        content = train_bpe(train_texts(plan, read), job['vocab_size'])
        signal.signal(signal.SIGINT, before)
        size = BPETokenizer(content).vocab_size
        if size < job['vocab_size']:
            print(f'the text has no more than {size:,} tokens to learn')
        return {'tokenizer': 'bpe', 'vocab_size': size, 'tokenizer_file': 'tokenizer.json', 'tokenizer_json': content}
    if job['tokenizer'] == 'gpt2':
        GPT2Tokenizer()  # a ValueError now, if its files are not here
        return {'tokenizer': 'gpt2', 'vocab_size': GPT2Tokenizer.vocab_size}
    return {'tokenizer': 'char'}


def train_texts(plan, read):
    """Texts of train to learn a vocabulary from, in pieces: of each file the beginning, its share of BPE_TEXT."""
    total = sum(file['bytes'] for file in plan['files'])
    for file in plan['files']:
        left = BPE_TEXT * file['bytes'] / max(total, 1)
        for documents, _, _ in read(file, 0, bad_row=lambda describe: None):
            for document in documents:
                for split, parts, _ in split_of(document, file, plan):
                    if split == 'train':
                        yield from (piece for text, _ in parts for piece in cut_up(text))
                        left -= document.length
            if left <= 0:
                break


if __name__ == '__main__':
    if len(sys.argv) != 3 or sys.argv[1] != 'check':
        stop('to look whether a dataset is as it was made: python data/corpus.py check data/NAME')
    try:
        check(dataset_folder(sys.argv[2]))
    except (OSError, ValueError) as error:
        stop(error)
