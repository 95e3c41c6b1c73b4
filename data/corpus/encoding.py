"""Documents to ids, on all cores but in order: the same bytes on any machine and after any number of interruptions."""
import collections
import hashlib
import os
import re
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from common import dataset, tokenizer
from common.charsets import iconv_name
from common.files import write_whole
from common.processes import cores

SHARD = 2**24  # characters of text in a shard: a second of work
UNIT = 2**20   # characters that a thread tokenises at a time
CHUNK = 2**22  # numbers that are read from a file at a time
# the state before the first shard
START = {'file': 0, 'position': 0, 'bytes': 0, 'characters': 0, 'counts': {}, 'decomposed': ''}
# GPT-2's pattern always splits words here, so the pieces of a long text give the same ids as the whole
BOUNDARY = re.compile(r'(?<=\S)(?=[ \n])')


def cut_up(text):
    """Yields a text in pieces of about UNIT characters."""
    start = 0
    while boundary := BOUNDARY.search(text, start + UNIT):
        yield text[start:boundary.start()]
        start = boundary.start()
    yield text[start:]


class Encoder:
    """Encodes text with a plan's vocabulary."""

    def __init__(self, plan):
        self.masked = plan.masked
        if plan.vocabulary['tokenizer'] == 'char':  # number_characters() makes ids once all characters are known
            self.dtype, self.suffix = np.dtype('<u4'), 'code_points'
            self.encode = lambda texts: [np.frombuffer(text.encode('utf-32-le'), self.dtype) for text in texts]
            self.separator = self.encode(['\n\n'])[0]
        else:
            known = tokenizer.from_meta(plan.vocabulary)
            self.dtype, self.suffix, self.encode = dtype_for(known.vocab_size), 'bin', known.encode_corpus
            self.separator = np.array([known.end_id], self.dtype)

    def encode_unit(self, pieces):
        """The ids of [(split, text, counts in the loss, follows a separator)] as {file name: array to append}."""
        content = collections.defaultdict(list)
        for (split, _, counts, separate), ids in zip(pieces, self.encode([text for _, text, _, _ in pieces])):
            before = self.separator if separate else self.separator[:0]
            content[f'{split}.{self.suffix}'] += [before, ids.astype(self.dtype)]
            if self.masked:  # <|endoftext|> after an answer counts, too
                content[f'{split}_mask.bin'] += [np.ones(len(before), np.uint8), np.full(len(ids), counts, np.uint8)]
        return {name: np.concatenate(arrays) for name, arrays in content.items()}


def dtype_for(vocab_size):
    return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


def tokenise(shards, plan, read, skip_bad):
    """
    Write all ids that the shards do not have yet. Returns what meta.json says about the documents; 'scored' are here
    the bytes of the text that counts in the loss.
    """
    encoder, state = Encoder(plan), {**START, **shards.last}
    threads, tokens, t0 = cores(), 0, time.perf_counter()
    for split in dataset.SPLITS:
        shards.append(f'{split}.{encoder.suffix}', b'')  # a split without documents has a file, too
    with (ThreadPoolExecutor(threads) as pool,
          tqdm(desc='tokenising', total=sum(file['bytes'] for file in plan.files), initial=state['bytes'], unit='B',
               unit_scale=True, delay=2, mininterval=0.5 if sys.stderr.isatty() else 30) as bar):  # few lines in a log
        work = units(shards, state, plan, read, skip_bad)
        for content, reached in in_order(pool, encoder.encode_unit, work, 2 * threads):
            for name, array in content.items():
                shards.append(name, array)
                tokens += len(array) * (not name.endswith('mask.bin'))
            if reached:
                state = reached
                bar.set_postfix_str(f'{tokens / (time.perf_counter() - t0) / 1e6:.2f}M tokens/s', refresh=False)
                bar.update(state['bytes'] - bar.n)
                if state['characters'] - shards.last.get('characters', 0) >= SHARD:
                    shards.close(**state)
    shards.close(**state)
    counts = collections.Counter(state['counts'])
    meta = {'documents': {split: counts[split] for split in dataset.SPLITS}, 'characters': state['characters'],
            'split': {'files': 'files of its own', 'hash': f'{100 * plan.val_fraction:g}% of the documents, by hash',
                      'cut': f'the last {100 * (1 - plan.cut):g}% of each document'}[plan.rule],
            'left_out': {key: counts[key] for key in ('empty', 'unusable')},
            'scored': {split: counts[f'{split}_bytes'] for split in dataset.SPLITS}}
    if counts['decomposed']:
        print(f'{counts["decomposed"]:,} characters of the text only complete the one before them' +
              f', as in {state["decomposed"]}' * bool(state['decomposed']) + ': words that look the same '
              'differ, and mostly it has more tokens than it needs. --normalize=NFC composes them')
    if counts['crlf']:
        other = next((file['encoding'] for file in plan.files if 'encoding' in file), None)
        utf8 = f'iconv -f {iconv_name(other)} -t utf-8 FILE |' if other else 'cat FILE |'
        print(f'{counts["crlf"]:,} lines end as on Windows, and their \\r is a character of the vocabulary; to make a '
              f"file without: {utf8} tr -d '\\r' > NEW_FILE")
    return meta if plan.rule == 'cut' else {**meta, 'train_documents_in_val': counts['in_both']}


def in_order(pool, encode, work, ahead):
    """For each (pieces, state) in `work`, yields (encode(pieces), state), in order; the pool works `ahead` of that."""
    waiting = collections.deque()
    for pieces, reached in work:
        waiting.append((pool.submit(encode, pieces), reached))
        if len(waiting) > ahead:  # or the whole text would be in memory
            future, reached = waiting.popleft()
            yield future.result(), reached
    yield from ((future.result(), reached) for future, reached in waiting)


def units(shards, state, plan, read, skip_bad):
    """Yields (pieces for Encoder.encode_unit, the state to go on from; None except at the end of a source's block)."""
    counts, characters = collections.Counter(state['counts']), state['characters']
    decomposed = state['decomposed']
    is_char = plan.vocabulary['tokenizer'] == 'char'
    written = chunks(shards.path('val_keys'), np.float64) if 'val_keys' in state['lengths'] else ()
    val_keys = {key for keys in written for key in keys.tolist()}

    def bad_row(describe):
        counts['unusable'] += 1
        if counts['unusable'] <= 10:
            print(f'left out: {describe()}')
    for number, file in enumerate(plan.files[state['file']:], state['file']):
        bytes_before = sum(earlier['bytes'] for earlier in plan.files[:number])
        position = state['position'] if number == state['file'] else 0
        for documents, position, done in read(file, position, bad_row=bad_row if skip_bad else None):
            pieces, size = [], 0
            for document in documents:
                if not document.length:
                    counts['empty'] += 1
                    continue
                if file['split'] == 'val':
                    val_keys.add(document.key)
                    shards.append('val_keys', np.array([document.key]))
                counts['in_both'] += file['split'] == 'train' and document.begin == 0.0 and document.key in val_keys
                for split, parts, begins in plan.split_of(document, file):
                    separate = begins and counts[split] > 0
                    counts[split] += begins
                    for text, counts_in_loss in parts:
                        if is_char:  # counting takes time
                            counts['crlf'] += text.count('\r\n')
                        if not unicodedata.is_normalized('NFC', text):
                            composed = unicodedata.normalize('NFC', text)
                            counts['decomposed'] += max(len(text) - len(composed), 0)
                            decomposed = decomposed or example(text, composed)
                        for piece in cut_up(text):
                            pieces.append((split, piece, counts_in_loss, separate))
                            if counts_in_loss:
                                counts[f'{split}_bytes'] += len(piece.encode())
                            separate, size, characters = False, size + len(piece), characters + len(piece)
                            if size >= UNIT:
                                yield pieces, None
                                pieces, size = [], 0
            yield pieces, {'file': number, 'position': position, 'bytes': bytes_before + int(done * file['bytes']),
                           'characters': characters, 'counts': dict(counts), 'decomposed': decomposed}


def example(text, composed):
    """The first character that is written as several in a text, which is `composed` in NFC; '' if that is not seen."""
    char = next((char for written, char in zip(text, composed) if written != char), '')
    parts = unicodedata.normalize('NFD', char)
    return f'{char} ({" ".join(f"U+{ord(part):04X}" for part in parts)})' if len(parts) > 1 else ''


def complete(shards, plan):
    """
    Complete the files in the work folder. Returns what meta.json says about them; 'scored' are here the tokens that
    count in the loss.
    """
    meta = dict(plan.vocabulary)
    if meta['tokenizer'] == 'char':
        meta.update(number_characters(shards.path, meta.get('chars')))
    if 'tokenizer_json' in meta:
        with write_whole(shards.path('tokenizer.json'), 'wb') as f:
            f.write(meta.pop('tokenizer_json').encode())
    dtype = dtype_for(meta['vocab_size'])
    sizes = {split: os.path.getsize(shards.path(f'{split}.bin')) // dtype.itemsize for split in dataset.SPLITS}
    used = {split: ones_in(shards.path(f'{split}_mask.bin')) if size and plan.masked else size
            for split, size in sizes.items()}
    if min(used.values()) == 0 or min(sizes.values()) < 2:  # a token is predicted from those before it
        raise ValueError(f'too little text: {used["train"]} tokens to train on and {used["val"]} to validate; use more '
                         'text, a larger --fraction, another --val_fraction, or --val_input=FILE')
    return {**meta, 'dtype': dtype.name, 'train_tokens': sizes['train'], 'val_tokens': sizes['val'],
            'sha256': {name: sha256_of(shards.path(name)) for name in sorted(os.listdir(shards.folder))
                       if name.endswith('.bin') or name == 'tokenizer.json'}, 'scored': used}


def number_characters(path, chars):
    """Make the bins from code points. An id is an index in `chars` or, if that is None, in all characters, sorted."""
    found = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for split in dataset.SPLITS:
        for code_points in chunks(path(f'{split}.code_points'), '<u4'):
            found += np.bincount(code_points, minlength=len(found))
    text = ''.join(map(chr, np.flatnonzero(found)))
    chars = text if chars is None else chars
    if unknown := sorted(set(text) - set(chars)):
        raise ValueError(f'the vocabulary that --tokenizer names lacks the characters {"".join(unknown)!r:.200}')
    ids = np.zeros(len(found), dtype=dtype_for(len(chars)))
    ids[[ord(char) for char in chars]] = np.arange(len(chars))
    for split in dataset.SPLITS:
        with write_whole(path(f'{split}.bin'), 'wb') as f:
            for code_points in chunks(path(f'{split}.code_points'), '<u4'):
                f.write(ids[code_points])
    return {'vocab_size': len(chars), 'chars': chars}


def chunks(path, dtype):
    """Yields the numbers in a file, CHUNK at a time. Bytes at its end that are no whole number are left out."""
    size = np.dtype(dtype).itemsize
    with open(path, 'rb') as f:
        while len(content := f.read(CHUNK * size)) >= size:  # np.fromfile takes a read that fails for the end
            yield np.frombuffer(content, dtype, len(content) // size)


def ones_in(path):
    """How many tokens count in the loss, by the mask in a file."""
    return sum(int(np.count_nonzero(mask)) for mask in chunks(path, np.uint8))


def sha256_of(path):
    digest = hashlib.sha256()
    with tqdm(desc=f'sha256 of {os.path.basename(path)}', total=os.path.getsize(path), unit='B', unit_scale=True,
              delay=2) as bar:
        for numbers in chunks(path, np.uint8):
            digest.update(numbers)
            bar.update(len(numbers))
    return digest.hexdigest()
