"""
The documents in a file: .txt, .md, .jsonl or .parquet. They are read in order, a block at a time and from any position,
so that memory use does not depend on the size of the file. It knows no tokens.
A position in a file is 0 or what read() yielded: a row number in parquet, a byte offset in the other formats, and
within a long document also its first byte, its end and its key.
"""
import functools
import hashlib
import json
import os
import re
import unicodedata
from dataclasses import dataclass

from common import download as network
from common.charsets import PIECE
from common.console import visible
from corpus import charsets, sources

END_OF_TEXT = b'<|endoftext|>'
LONGEST = 2**25  # bytes; a longer document in a text file comes in stretches, to save memory
BLOCK = 2**20    # bytes of jsonl that are read at a time
ROWS = 1024      # rows of parquet that are decoded at a time
BOM = '\ufeff'   # the byte order mark, which some programs put before a text
KEY_HINT = '; name the right one with --text_key=NAME'


@dataclass
class Document:
    """A document, or a stretch of one that is too long for memory."""
    parts: list         # [(text, whether it counts in the loss)]
    key: float          # pseudo-random in [0, 1), a hash of the whole document's text
    begin: float = 0.0  # where the stretch begins and ends in the whole document, 0 to 1
    end: float = 1.0

    @property
    def length(self):
        return sum(len(text) for text, _ in self.parts)


def hash_of(text):
    """A pseudo-random number in [0, 1) that depends on the text alone."""
    return key_from(hashlib.sha256(text.encode()))


def key_from(digest):
    return int.from_bytes(digest.digest()[:8], 'little') / 2**64


def read(file, position, to_parts, columns, share=1.0, bad_row=None, normalize=None, work=''):
    """
    Yields the documents of a file from a position on, a block at a time: ([Document], next position, fraction of the
    file that is read). `to_parts` makes a document's parts from a row, a dict; `columns` are the keys that it needs.
    `share` is the fraction of the documents to take, always the same ones; of parquet files with 100 or more row groups
    it takes whole groups, so that the others need not be read. An unusable row raises ValueError; with bad_row it is
    skipped after bad_row(describe), where describe() says what is wrong and where. `normalize`: the Unicode normal form
    of the text, or None: as it is. `work`: where the copy of a file is, if it has one. Network failures are retried.
    """
    path, errors, patience = file['path'], OSError, []
    opened = os.path.join(work, file['copy']) if 'copy' in file else path
    if opened.startswith('hf://'):
        from huggingface_hub.errors import HTTPError
        errors, patience = (OSError, HTTPError), network.WAITS
    waits = list(patience)
    while True:
        try:
            with sources.open_file(opened) as stream:
                for rows, following, done in read_rows(stream, file, position, columns, share):
                    documents = []
                    for place, row in rows:
                        try:
                            documents.append(to_document(row, to_parts, normalize))
                        except (ValueError, RecursionError) as error:
                            if bad_row is None:
                                raise ValueError(describe(file, opened, place, error) + remedy(file, error)) from None
                            bad_row(functools.partial(describe, file, opened, place, error))
                    position = following
                    yield documents, position, done
                    waits = list(patience)
            return
        except errors as error:
            network.wait(error, waits, f'cannot read {path} ({type(error).__name__}: {error})')


def read_rows(stream, file, position, columns, share):
    """Yields blocks of a file: ([(place, row)], next position, fraction read). to_document() takes the rows."""
    name = os.path.basename(file['path'])

    def taken(place):
        return share >= 1.0 or key_from(hashlib.sha256(os.fsencode(f'{name} {place}'))) < share
    if sources.suffix(name) == '.parquet':
        return parquet_rows(stream, file['path'], position, columns, taken)
    rows_of = jsonl_rows if sources.suffix(name) == '.jsonl' else text_rows
    return rows_of(stream, file['bytes'], position, taken)


def parquet_rows(stream, path, position, columns, taken):
    """A row is a dict. A row group is decoded ROWS at a time, because it may be large."""
    import pyarrow.parquet
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        if not set(columns) & set(table.schema_arrow.names):
            text_of(dict.fromkeys(table.schema_arrow.names), columns[0], KEY_HINT)
        row, total, by_group = 0, max(table.metadata.num_rows, 1), table.num_row_groups >= 100
        for group in range(table.num_row_groups):
            end = row + table.metadata.row_group(group).num_rows
            if end > position and (taken(row) or not by_group):
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=columns):
                    rows = list(enumerate(rows_of(batch), row))
                    row += len(rows)
                    if row > position:
                        yield [pair for pair in rows if by_group or taken(pair[0])], row, row / total
            row = end
    except ValueError as error:  # pyarrow's errors are ValueErrors, too
        raise ValueError(f'{path}: {error}') from None


def rows_of(batch):
    """The rows of a batch as dicts; in place of one with text that is not UTF-8 the error."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [error]
        return [row for i in range(len(batch)) for row in rows_of(batch.slice(i, 1))]


def jsonl_rows(stream, size, position, taken):
    """A row is a line, in bytes."""
    stream.seek(position)
    rows, begin = [], position
    for line in stream:
        if taken(position) and not line.isspace():
            rows.append((position, line))
        position += len(line)
        if position - begin >= BLOCK:
            yield rows, position, position / size
            rows, begin = [], position
    if position < size:
        raise OSError('it has become shorter while it was read')
    yield rows, position, 1.0


def text_rows(stream, size, position, taken):
    """
    A row is (bytes, key, begin, end, trimmed): a document, or a stretch of one that is longer than LONGEST. Documents
    are separated by <|endoftext|>, and line ends around them are trimmed; a file without it is one document.
    """
    # a document begins at `start`, the next block at `at`; of a long document, survey() finds `end` and `key`
    start, at, end, key = position if isinstance(position, list) else (position, position, None, None)
    while at < size:
        block = read_block(stream, at, size)
        if at == start:
            *whole, rest = block.split(END_OF_TEXT)
            if at + len(block) == size:
                whole.append(rest)
            if whole:  # some documents end in this block
                rows = []
                for text in whole:
                    if taken(at):
                        rows.append((at, (text, None, 0.0, 1.0, (at, len(text)) != (0, size))))
                    at += len(text) + len(END_OF_TEXT)
                start = at = min(at, size)
                yield rows, at, at / size
                continue
            end, key = survey(stream, start, size)
        stretch = block[:end - at]
        if at + len(stretch) < end:
            stretch = stretch[:place_to_cut(stretch)]
        begin, until = ((place - start) / (end - start) for place in (at, at + len(stretch)))
        rows = [(at, (stretch, key, begin, until, end - start != size))] if taken(start) else []
        at += len(stretch)
        if at == end:
            start = at = min(end + len(END_OF_TEXT), size)
        yield rows, at if at == start else [start, at, end, key], at / size


def read_block(stream, at, size):
    """At most LONGEST bytes of the file. OSError if it ends before `size`."""
    stream.seek(at)
    block = stream.read(min(LONGEST, size - at))
    if len(block) < min(LONGEST, size - at):
        raise OSError('it has become shorter while it was read')
    return block


def survey(stream, start, size):
    """The end and the key of the document at `start`, found without holding it in memory."""
    digest, at, is_end = hashlib.sha256(), start, False
    while not is_end:
        block = read_block(stream, at, size)
        text, separator, _ = block.partition(END_OF_TEXT)
        is_end = separator or at + len(block) == size
        if not is_end:  # <|endoftext|> may begin in the last bytes
            text = text[:1 - len(END_OF_TEXT)]
        digest.update(text)
        at += len(text)
    return at, key_from(digest)


def place_to_cut(text):
    """Where to cut UTF-8, in its second half: after a line, else after a word, else before a character."""
    half = len(text) // 2
    if cut := text.rfind(b'\n', half) + 1 or text.rfind(b' ', half) + 1:
        return cut
    cut = max(len(text) - 8, half)  # whole characters follow, which show whether they belong to those before
    while cut > half and not begins_a_character(text, cut):
        cut -= 1
    return cut


def begins_a_character(text, cut):
    """Whether a character begins there in UTF-8 which composes with none before it, as an accent with its letter."""
    if text[cut] & 0xc0 == 0x80:
        return False
    before, after = (part.decode(errors='ignore') for part in (text[max(cut - 100, 0):cut], text[cut:cut + 100]))
    compose = functools.partial(unicodedata.normalize, 'NFC')
    return compose(before + after) == compose(before) + compose(after)


def to_document(row, to_parts, normalize):
    """The Document in a row. ValueError if it is not UTF-8 or not a JSON object, or if to_parts() cannot use it."""
    if isinstance(row, UnicodeDecodeError):
        raise row
    if isinstance(row, tuple):
        text, key, begin, end, trimmed = row
        text = charsets.decode(text)
        if BOM in text:  # files that were put together have it in the middle, too
            text = re.sub(f'^{BOM}+', '', text, flags=re.MULTILINE)
        if begin == 0.0 and trimmed:
            text = text.lstrip('\r\n')
        if end == 1.0 and trimmed:
            text = text.rstrip('\r\n')
        parts = [(text, True)]
    else:
        key, begin, end = None, 0.0, 1.0
        if isinstance(row, bytes):
            row = json.loads(charsets.decode(row).removeprefix(BOM))
            if not isinstance(row, dict):
                raise ValueError('this is JSON, but not an object: {"text": ...}')
        parts = to_parts(row)
    if normalize:
        parts = [(unicodedata.normalize(normalize, text), counts) for text, counts in parts]
    # hash_of() raises ValueError for half a surrogate pair, which JSON can spell but UTF-8 cannot
    return Document(parts, hash_of('\0'.join(text for text, _ in parts)) if key is None else key, begin, end)


def describe(file, opened, place, error):
    """
    What is wrong with a row of a file, and where it is: `place` is its row number in parquet, else its byte offset in
    the file at `opened`, which may be a copy.
    """
    path = file['path']
    if isinstance(error, UnicodeDecodeError):
        place += error.start if isinstance(place, int) and sources.suffix(path) in ('.txt', '.md') else 0
        error = f'not {file.get("encoding") or "UTF-8"}' + ('' if 'copy' in file else f': {error.reason} '
                f'({error.object[error.start:error.start + 1]!r})')
    elif isinstance(error, json.JSONDecodeError):
        error = f'not JSON: {error.msg}, character {error.pos + 1} of the line'
    if sources.suffix(path) == '.parquet':
        return visible(f'{path}, row {place}: {error}')
    lines = 1
    with sources.open_file(opened) as stream:
        while place > 0 and (block := stream.read(min(place, BLOCK))):
            place, lines = place - len(block), lines + block.count(b'\n')
    return visible(f'{path}, line {lines}: {error}')


def remedy(file, error):
    """What to do about a row that cannot be used, the rest of a message that began with describe()."""
    if isinstance(error, UnicodeDecodeError) and sources.suffix(file['path']) != '.parquet':
        with sources.open_file(file['path']) as stream:
            piece = stream.read(PIECE)
        if piece.isascii() and 0 not in piece:  # what is wrong comes later
            begin = error.object.rfind(b'\n', 0, error.start) + 1
            piece = error.object[begin:begin + PIECE]
        return charsets.advice(piece, file.get('encoding'))
    return '\nFix it, or skip such rows with --skip_bad'


def text_of(row, key, hint=''):
    """The text in a row. ValueError if there is none, with a `hint` if the key is missing."""
    if key not in row:
        raise ValueError(f'no {key!r} here, but {", ".join(map(str, row))}{hint}')
    if not isinstance(row[key], str):
        raise ValueError(f'{key!r} is {row[key]!r:.50}, not text')
    return row[key]
