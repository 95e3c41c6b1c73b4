"""
From documents to ids: on all cores, but in order, so that the same text gives the same bytes whatever the machine and
however often the work was interrupted.

A plan is a dict: files (those of val first), rule (how val is parted from train: files, hash or cut), val_fraction,
cut (by the rule cut, the part of each document that goes to train), vocabulary (what meta.json will say of the ids),
masked (whether some text does not count in the loss).
"""
import collections
import functools
import hashlib
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from common import bins, tokenizer
from shards import sync, write_whole

SHARD = 2**24  # characters of text between two entries in the manifest: a second of work
UNIT = 2**20   # characters that a thread tokenises at a time
CHUNK = 2**22  # numbers of a file that are looked at at a time
# GPT-2's pattern splits words here whatever stands around: the pieces of a long text give the ids of the whole
BOUNDARY = re.compile(r'(?<=\S)(?=[ \n])')


def split_of(document, file, plan):
    """Which of train and val a document, or each part of it, goes to: [(split, parts, whether it begins there)]."""
    begins = document.begin == 0.0
    if plan['rule'] == 'files':
        return [(file['split'], document.parts, begins)]
    if plan['rule'] == 'hash':  # of the text: it stays where it is when the corpus grows, and its copies go with it
        return [('val' if document.key < plan['val_fraction'] else 'train', document.parts, begins)]
    (text, _), = document.parts
    share = (plan['cut'] - document.begin) / (document.end - document.begin)
    place = int(len(text) * min(max(share, 0.0), 1.0))
    return [(split, [(piece, True)], begins if split == 'train' else share >= 0.0)
            for split, piece in (('train', text[:place]), ('val', text[place:])) if piece]


def cut_up(text):
    """The pieces of a text, of about UNIT characters."""
    start = 0
    while len(text) - start > UNIT:
        boundary = BOUNDARY.search(text, start + UNIT)
        end = boundary.start() if boundary else len(text)
        yield text[start:end]
        start = end
    yield text[start:]


class Encoder:
    """What a plan's vocabulary makes of text: arrays of ids, and what stands between two documents."""

    def __init__(self, plan):
        self.masked = plan['masked']
        kind = plan['vocabulary']['tokenizer']
        if kind == 'char':  # code points at first: which characters there are is known at the end
            self.dtype, self.suffix = np.dtype('<u4'), 'code_points'
            self.encode = lambda texts: [np.frombuffer(text.encode('utf-32-le'), self.dtype) for text in texts]
            self.separator = self.encode(['\n\n'])[0]
        else:
            known = tokenizer.from_meta(plan['vocabulary'])
            self.dtype, self.suffix = dtype_for(known.vocab_size), 'bin'
            self.encode = known.encode_corpus
            self.separator = np.array([known.end_id], self.dtype)

    def encode_unit(self, pieces):
        """{file name: its next content} of pieces (split, text, whether it counts, whether a separator is first)."""
        content = collections.defaultdict(list)
        for (split, _, counts, separate), ids in zip(pieces, self.encode([text for _, text, _, _ in pieces])):
            before = self.separator if separate else self.separator[:0]
            content[f'{split}.{self.suffix}'] += [before, ids.astype(self.dtype)]
            if self.masked:  # the end of an answer is part of it
                content[f'{split}_mask.bin'] += [np.ones(len(before), np.uint8), np.full(len(ids), counts, np.uint8)]
        return {name: np.concatenate(arrays) for name, arrays in content.items()}


def dtype_for(vocab_size):
    return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


def tokenise(shards, plan, read, skip_bad):
    """Write the ids of all that the shards do not have yet. Returns what meta.json says of the documents."""
    encoder = Encoder(plan)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    total, begin = sum(file['bytes'] for file in plan['files']), shards.last.get('bytes', 0)
    tokens, t0, state = 0, time.perf_counter(), shards.last
    with (ThreadPoolExecutor(threads) as pool,
          tqdm(desc='tokenising', total=total, initial=begin, unit='B', unit_scale=True, delay=2,
               mininterval=0.5 if sys.stderr.isatty() else 30) as bar):  # a log file needs no more
        for content, reached in in_order(pool, encoder.encode_unit, units(shards, plan, read, skip_bad), 2 * threads):
            for name, array in content.items():
                shards.append(name, array)
                tokens += len(array) * (not name.endswith('mask.bin'))
            if reached is None:
                continue
            state = reached
            bar.set_postfix_str(f'{tokens / (time.perf_counter() - t0) / 1e6:.2f}M tokens/s', refresh=False)
            bar.update(state['bytes'] - bar.n)
            if state['characters'] - shards.last.get('characters', 0) >= SHARD:
                shards.close(**state)
    shards.close(**state)
    counts = collections.Counter(state.get('counts', {}))
    meta = {'documents': {split: counts[split] for split in bins.SPLITS}, 'characters': state.get('characters', 0),
            'split': {'files': 'files of its own', 'hash': f'{100 * plan["val_fraction"]:g}% of the documents, by hash',
                      'cut': f'the last {100 * (1 - plan["cut"]):g}% of each document'}[plan['rule']],
            'left_out': {key: counts[key] for key in ('empty', 'unusable')}}
    return meta if plan['rule'] == 'cut' else {**meta, 'train_documents_in_val': counts['in_both']}


def in_order(pool, encode, work, ahead):
    """Run `encode` in the pool on what `work` yields first; yields each result with what it yields second, in order."""
    waiting = collections.deque()
    for pieces, reached in work:
        waiting.append((pool.submit(encode, pieces), reached))
        if len(waiting) > ahead:  # no more, or all of the text would be in memory
            future, reached = waiting.popleft()
            yield future.result(), reached
    for future, reached in waiting:
        yield future.result(), reached


def units(shards, plan, read, skip_bad):
    """
    The work from where the last shard ended: yields lists of pieces as Encoder.encode_unit takes them, each with None,
    or behind a block of the source with the state from which to go on after it.
    """
    state = shards.last
    counts, characters, before = collections.Counter(state.get('counts', {})), state.get('characters', 0), 0
    val_keys = set(np.fromfile(os.path.join(shards.folder, 'val_keys')) if 'val_keys' in state['lengths'] else ())

    def bad_row(describe):
        counts['unusable'] += 1
        if counts['unusable'] <= 10:
            print(f'left out: {describe()}')

    for number, file in enumerate(plan['files']):
        if number < state.get('file', 0):
            before += file['bytes']
            continue
        position = state['position'] if number == state.get('file') else 0
        for documents, position, done in read(file, position, bad_row=bad_row if skip_bad else None):
            pieces, size = [], 0
            for document in documents:
                if not document.length:
                    counts['empty'] += 1
                    continue
                if plan['rule'] == 'files' and file['split'] == 'val':
                    val_keys.add(document.key)
                    shards.append('val_keys', np.array([document.key]))
                counts['in_both'] += file['split'] == 'train' and document.begin == 0.0 and document.key in val_keys
                for split, parts, begins in split_of(document, file, plan):
                    separate = begins and counts[split] > 0
                    counts[split] += begins
                    for text, counts_in_loss in parts:
                        for piece in cut_up(text):
                            pieces.append((split, piece, counts_in_loss, separate))
                            separate, size, characters = False, size + len(piece), characters + len(piece)
                            if size >= UNIT:
                                yield pieces, None
                                pieces, size = [], 0
            yield pieces, {'file': number, 'position': position, 'bytes': before + int(done * file['bytes']),
                           'characters': characters, 'counts': dict(counts)}
        before += file['bytes']


def complete(shards, plan):
    """Complete the files in the work folder; returns what meta.json says of them."""
    meta = dict(plan['vocabulary'])
    path = functools.partial(os.path.join, shards.folder)
    if meta['tokenizer'] == 'char':
        meta.update(number_characters(path, meta.get('chars')))
    for split in bins.SPLITS:
        open(path(f'{split}.bin'), 'ab').close()  # without a document there is no file yet
    if 'tokenizer_json' in meta:
        write_whole(shards.folder, 'tokenizer.json', meta.pop('tokenizer_json').encode())
    dtype = dtype_for(meta['vocab_size'])
    sizes = {split: os.path.getsize(path(f'{split}.bin')) // dtype.itemsize for split in bins.SPLITS}
    if not all(sizes.values()):
        raise ValueError(f'too little text: {sizes["train"]} tokens to train on and {sizes["val"]} to validate; take '
                         'more of it, or another --val_fraction or --fraction')
    meta.update(dtype=dtype.name, train_tokens=sizes['train'], val_tokens=sizes['val'],
                sha256={name: sha256_of(path(name)) for name in sorted(os.listdir(shards.folder))
                        if name.endswith('.bin') or name == 'tokenizer.json'})
    return meta


def number_characters(path, chars):
    """Write the bins of code points. The characters' ids are their places in `chars`; None: all there are, in order."""
    found = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for split in bins.SPLITS:
        for code_points in chunks(path(f'{split}.code_points'), '<u4'):
            found += np.bincount(code_points, minlength=len(found))
    text = ''.join(map(chr, np.flatnonzero(found)))
    chars = text if chars is None else chars
    if unknown := sorted(set(text) - set(chars)):
        raise ValueError(f'the vocabulary that --tokenizer names lacks the characters {"".join(unknown)!r:.200}')
    ids = np.zeros(len(found), dtype=dtype_for(len(chars)))
    ids[[ord(char) for char in chars]] = np.arange(len(chars))
    for split in bins.SPLITS:
        with open(path(f'{split}.bin'), 'wb') as f:
            for code_points in chunks(path(f'{split}.code_points'), '<u4'):
                f.write(ids[code_points])
            sync(f)
    return {'vocab_size': len(chars), 'chars': chars}


def chunks(path, dtype):
    """The numbers in a file, some at a time; none if there is no file."""
    if os.path.exists(path):
        with open(path, 'rb') as f:
            while len(numbers := np.fromfile(f, dtype, CHUNK)):
                yield numbers


def sha256_of(path):
    digest = hashlib.sha256()
    with tqdm(desc=f'sha256 of {os.path.basename(path)}', total=os.path.getsize(path), unit='B', unit_scale=True,
              delay=2) as bar:
        for numbers in chunks(path, np.uint8):
            digest.update(numbers)
            bar.update(len(numbers))
    return digest.hexdigest()
