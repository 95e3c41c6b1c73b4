"""A prepare script: its command line, and the way from text to train.bin, val.bin and meta.json."""
import errno
import functools
import hashlib
import json
import os
import shutil
from argparse import RawDescriptionHelpFormatter
from dataclasses import asdict

from common import dataset
from common.console import exit_on_error, stop, visible
from common.files import check_folder, write_whole
from common.options import Parser
from corpus import begin, charsets, documents, sources
from corpus.encoding import complete, tokenise
from corpus.inspection import summarize
from corpus.plan import Job, Plan, make_plan, named_vocabulary
from corpus.shards import Shards, name_leftovers

CUT = 0.9  # the part of each document that goes to train, if there are few, as in nanoGPT
MASKS = ('val_mask.bin', 'train_mask.bin')
LARGEST = 2**20  # tokens in a vocabulary to learn; the learning reserves memory for all of them


def prepare(script, doc, source=None, val_source=None, sha256=None, tokenizer='gpt2', val_fraction=0.1, columns=None,
            to_parts=None, prompt=None, others='', expected=None, write_source=None, config=None):
    """
    Run a prepare script: parse its command line, whose --help begins with `doc`, and make the dataset beside `script`.
    source, val_source: patterns as sources.find takes them; source may also be the https address of one file with this
        sha256. Without val_source, val_fraction of the documents become val.
    to_parts(row): the parts of a document, [(text, whether it counts in the loss)], from the `columns` of a row
    prompt: the template that to_parts uses for the text that does not count
    others: what to suggest if the source is gone
    expected: the numbers of tokens in train and val if no option changes them
    write_source(path): writes the source, a file, if it does not exist
    config: the file in config/ to train with, and further options for train.py
    """
    begin()
    args = parse(doc, source)
    folder = os.path.dirname(os.path.abspath(script)) if args.out is None else os.path.expanduser(args.out)
    to_parts = to_parts or (lambda row: [(documents.text_of(row, args.text_key, documents.KEY_HINT), True)])
    read = functools.partial(documents.read, to_parts=to_parts, columns=columns or [args.text_key], share=args.fraction,
                             normalize=args.normalize)
    usual = not args.input and not args.val_input and args.source == source
    job = Job(train=args.input or [args.source], val=args.val_input or ([val_source] if usual and val_source else []),
              prompt=prompt, tokenizer=args.tokenizer or tokenizer, vocab_size=args.vocab_size, text_key=args.text_key,
              fraction=args.fraction, val_fraction=args.val_fraction or val_fraction,
              cut=1 - args.val_fraction if args.val_fraction else CUT, encoding=args.encoding, normalize=args.normalize)
    if not usual or args.fraction < 1.0 or args.tokenizer or args.vocab_size:
        expected = None
    try:
        check_folder(folder, '--out')
        os.makedirs(folder, exist_ok=True)
        if usual and source.startswith('https://'):
            job.train = [sources.download(folder, source, sha256)]
        elif usual and write_source and not os.path.exists(source):
            write_source(source)
        meta = make(folder, job, ' '.join(args.input or [args.source]), read, args.skip_bad)
        summarize(folder, meta, expected, config)
        name_leftovers(folder)
    except KeyboardInterrupt:
        stop('stopped; the same command goes on from the last finished shard, if there is one', code=75)
    except sources.Gone as error:
        stop(f'{error}\n{others}'.strip())
    except ValueError as error:
        stop(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            limit = ', or lift the limit on the size of a file (ulimit -f),' * (error.errno == errno.EFBIG)
            stop(f'no room to write ({error}). Make some{limit} and run the same command again: it goes on from the '
                 'last shard')
        if not os.access(folder, os.W_OK | os.X_OK):
            stop(f'--out={folder} cannot be written to ({error}); name another folder')
        stop(f'{error}. Nothing that was finished is lost: when that is mended, run the same command again')


def parse(doc, source):
    """The command line of a prepare script. Exit code 2 if it cannot work."""
    parser = Parser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.loose = '--input'
    add = parser.add_argument
    add('--input', nargs='+', action='extend', metavar='PATH',
        help='the text: files, folders or globs of .txt, .md, .jsonl and .parquet')
    add('--val_input', nargs='+', action='extend', metavar='PATH', help='text for validation, separate from the rest')
    add('--source', default=source, metavar='URL', help='use hf://datasets/OWNER/NAME/GLOB on Hugging Face' +
        (' instead of %(default)s' if source else ''))
    add('--out', metavar='FOLDER', help='where to write the dataset (default: beside this script)')
    add('--tokenizer', metavar='NAME', help='gpt2, char, or the folder of a dataset whose vocabulary to use')
    add('--vocab_size', type=int, default=0, metavar='N', help='learn a byte-level BPE of N tokens from the text')
    add('--text_key', default='text', metavar='NAME', help='the field or column with the text (%(default)s)')
    add('--encoding', metavar='NAME', help='read text files that are not UTF-8 as this: cp949, shift_jis, utf-16, ...')
    add('--normalize', metavar='NFC', help='compose characters that are written as several, such as e and an accent')
    add('--fraction', type=float, default=1.0, metavar='X', help='use this part of the documents, the same each time')
    add('--val_fraction', type=float, metavar='X',
        help='validate on this part of the documents or, if there are few, of each document')
    add('--skip_bad', action='store_true', help='skip rows that cannot be used instead of stopping at them')
    args = parser.parse_args()
    if not args.input and not args.source:
        parser.error('name your text: --input=FILE, or several, folders, globs')
    if args.vocab_size and args.tokenizer:
        parser.error(f'--vocab_size={args.vocab_size} learns a vocabulary, --tokenizer={args.tokenizer} names one')
    if args.vocab_size and args.vocab_size < 257:
        parser.error(f'--vocab_size={args.vocab_size} is below 257: the 256 bytes and <|endoftext|>')
    if args.vocab_size > LARGEST:
        parser.error(f'--vocab_size={args.vocab_size} is above {LARGEST}; common are 4096 to 65536')
    if args.tokenizer == '':
        parser.error('--tokenizer is empty; leave it out, or name gpt2, char or the folder of a dataset')
    if not 0 < args.fraction <= 1:
        parser.error(f'--fraction={args.fraction} must be above 0 and at most 1')
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        parser.error(f'--val_fraction={args.val_fraction} must be between 0 and 1')
    if args.normalize is not None:
        if args.normalize.upper() != 'NFC':
            parser.error(f'--normalize={args.normalize} is not known; --normalize=NFC composes characters')
        args.normalize = 'NFC'
    if args.encoding is not None:
        with exit_on_error():
            args.encoding = charsets.canonical(args.encoding)
    return args


def make(folder, job, source_name, read, skip_bad):
    """
    Make the dataset that `job` describes in `folder`, or go on where an interrupted preparation of it stopped. Returns
    its meta.json.
    """
    local = [pattern for pattern in job.val + job.train if not pattern.startswith('hf://')]
    found = {pattern: sources.find(pattern) for pattern in dict.fromkeys(local)}
    named = named_vocabulary(job)
    identity = [job.identity(), [found[pattern] for pattern in local], named]
    made_from = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    work = os.path.join(folder, f'unfinished-{made_from[:8]}')  # one folder per job: no other job's work is lost
    earlier = find_dataset(folder)
    if earlier.get('made_from') == made_from:
        shutil.rmtree(work, ignore_errors=True)
        print(f'{folder} has this dataset already; to make it anew, delete its train.bin')
        return earlier
    if earlier:
        source = visible(str(earlier.get('source', '?')))
        print(f'when it is done, this replaces the dataset in {folder}, made of {source}; --out=FOLDER keeps both')
    read = functools.partial(read, work=work)
    shards = Shards(work)
    if shards.manifest['plan'] is None:
        try:
            plan = make_plan(work, job, found, named, read)
        except BaseException:
            shards.remove()
            raise
        shards.manifest['plan'] = asdict(plan)
        shards.last['lengths'].update({file['copy']: file['bytes'] for file in plan.files if 'copy' in file})
        shards.write_manifest()
    elif shards.manifest['shards']:
        print(f'going on after {shards.last["characters"]:,} characters')
    if shards.manifest['ready'] is None:
        plan = Plan(**shards.manifest['plan'])
        try:
            about = tokenise(shards, plan, read, skip_bad)
        except ValueError:
            if not shards.manifest['shards'] and not job.vocab_size:  # nothing is done that a restart could go on from
                shards.remove()
            raise
        try:
            done = complete(shards, plan)
        except ValueError:  # a restart would come to the same
            shards.remove()
            raise
        tokens, text_bytes = done.pop('scored'), about.pop('scored')
        meta = {**done, **about, 'source': source_name, 'made_from': made_from,
                'scored': {split: {'tokens': tokens[split], 'bytes': text_bytes[split]} for split in tokens}}
        for key in ('prompt', 'encoding', 'normalize'):
            if getattr(job, key):
                meta[key] = getattr(job, key)
        with write_whole(shards.path('meta.json'), 'wb') as f:
            f.write(json.dumps(meta, indent=1).encode())
    obsolete = [*MASKS, *(['tokenizer.json'] if earlier.get('tokenizer_file') == 'tokenizer.json' else [])]
    shards.deliver(folder, (*MASKS, 'tokenizer.json', 'val.bin', 'meta.json', 'train.bin'), obsolete)
    delivered = find_dataset(folder)
    if delivered.get('made_from') != made_from:  # after a kill in deliver(), another job may have delivered there
        raise ValueError(f'the dataset in {folder} is not whole, perhaps because another preparation wrote '
                         'there; run the same command again')
    return delivered


def find_dataset(folder):
    """The meta.json of the dataset in `folder`; {} if there is none that is whole. OSError if it cannot be read now."""
    try:
        meta = dataset.read_meta(folder)
        dataset.check(folder, meta, block_size=0)
    except (FileNotFoundError, ValueError):
        return {}
    return meta
