"""
Where documents come from: .txt, .md, .jsonl and .parquet files, on this disk or on Hugging Face. They are read in
order, a block at a time and from any position on, so that memory stays flat however large they are. It knows no tokens.

A file is {'path', 'bytes', 'version'}; its version changes when its content does. A position in it is 0, or what read()
gave: a row number in parquet, a byte elsewhere, and within a long document also its first byte, its end and its key.
"""
import fnmatch
import functools
import glob
import hashlib
import io
import json
import os
import re
import time
from dataclasses import dataclass

SUFFIXES = ('.txt', '.md', '.jsonl', '.parquet')
END_OF_TEXT = b'<|endoftext|>'
LONGEST = 2**25  # bytes of a text file in one Document; a longer one comes in stretches, for the sake of memory
BLOCK = 2**20    # bytes of jsonl that are read at a time
ROWS = 1024      # rows of parquet that are decoded at a time
KEY_HINT = '; name the right one with --text_key=NAME'
WAITS = (1, 2, 5, 15, 30, 60)  # seconds before each new try when a network fails


class Gone(ValueError):
    """A dataset, or its files, are not where they were."""


@dataclass
class Document:
    """A document, or of one that is too long for memory a stretch of it."""
    parts: list             # [(text, whether it counts in the loss)]
    key: float              # in [0, 1), looks random, depends on the whole document's text alone
    begin: float = 0.0      # where in the whole document it begins and ends, 0 to 1
    end: float = 1.0

    @property
    def length(self):
        return sum(len(text) for text, _ in self.parts)


def hash_of(text):
    """A number in [0, 1) that looks random and depends on the text alone."""
    return key_from(hashlib.sha256(text.encode()))


def key_from(digest):
    return int.from_bytes(digest.digest()[:8], 'little') / 2**64


def find(pattern):
    """
    The files that a pattern names, in order: a file, a folder and all below it, a glob, or on Hugging Face
    hf://datasets/OWNER/NAME/GLOB (or NAME@REVISION). ValueError if there are none, or of no known kind.
    """
    if pattern.startswith('hf://'):
        return find_on_hub(pattern)
    named = os.path.expanduser(pattern)
    found = [named] if os.path.exists(named) else glob.glob(named, recursive=True)
    files = [path for path in found if os.path.isfile(path)]
    files += [os.path.join(place, name) for path in found if os.path.isdir(path)
              for place, _, names in os.walk(path) for name in names]
    paths = sorted({os.path.abspath(path) for path in files if suffix(path) in SUFFIXES})
    if not found:
        raise ValueError(f'there is no {pattern!r}')
    if not paths:
        raise ValueError(f'{pattern!r} is, or has, no file of {", ".join(SUFFIXES)}; of anything else make a .jsonl, '
                         'with a {"text": "..."} a line')
    return [{'path': path, 'bytes': os.path.getsize(path), 'version': os.stat(path).st_mtime_ns} for path in paths]


def suffix(path):
    return os.path.splitext(path)[1].lower()


def find_on_hub(url):
    """The same on Hugging Face. The paths name the revision that was found, so that a restart reads the same one."""
    import huggingface_hub
    from huggingface_hub import errors
    parsed = re.fullmatch(r'hf://datasets/([^/@]+/[^/@]+)(?:@(refs/\w+/\w+|[^/]+))?/(.+)', url)
    if not parsed:
        raise ValueError(f'{url} is not of the form hf://datasets/OWNER/NAME/GLOB, as in hf://datasets/me/mine/*.jsonl')
    name, revision, pattern = parsed.groups()
    waits = list(WAITS[:2])
    while True:
        try:
            info = huggingface_hub.HfApi().dataset_info(name, revision=revision, files_metadata=True)
            break
        except errors.GatedRepoError:
            raise ValueError(f'the dataset {name} wants its terms accepted, at https://huggingface.co/datasets/{name}, '
                             'and a login here: hf auth login') from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise Gone(f'Hugging Face has no dataset {name}' + (f' in revision {revision}' if revision else '') +
                       ': it was renamed or removed, or is private') from None
        except (OSError, errors.HTTPError) as error:
            if not try_again(error, waits):
                raise ValueError(f'cannot look up the dataset {name} ({type(error).__name__}: {error}).\nWithout a '
                                 f'network: bring {pattern} here from https://huggingface.co/datasets/{name}, and name '
                                 'the files with --input=FILES') from None
    files = [{'path': f'hf://datasets/{name}@{info.sha}/{file.rfilename}', 'bytes': file.size, 'version': file.blob_id}
             for file in sorted(info.siblings, key=lambda file: file.rfilename)
             if fnmatch.fnmatchcase(file.rfilename, pattern) and suffix(file.rfilename) in SUFFIXES]
    if not files:
        raise Gone(f'the dataset {name} has no files {pattern}')
    return files


def try_again(error, waits):
    """Sleep for the first of `waits`, which it takes away. False if there is none left, or waiting is of no use."""
    status = getattr(error, 'code', None) or getattr(getattr(error, 'response', None), 'status_code', 500)
    if not waits or isinstance(error, FileNotFoundError) or (status < 500 and status not in (408, 429)):
        return False
    print(f'{type(error).__name__}: {str(error)[:300]}; trying again in {waits[0]} s', flush=True)
    time.sleep(waits.pop(0))
    return True


def read(file, position, to_parts, columns, share=1.0, bad_row=None):
    """
    The documents of a file from a position on, in blocks: yields ([Document], the next position, how much of the file
    is read, 0 to 1). `to_parts` makes a document's parts of a row, a dict; `columns` are those that it needs. `share`
    takes that fraction of the documents, always the same ones (of parquet with a hundred row groups and more, of these,
    so that the others need not be read). A row that cannot be used is a ValueError that names file and line, or is left
    out: then bad_row(describe) is called, and describe() says what it is. A failing network is tried again.
    """
    path, errors, patience = file['path'], OSError, []
    if path.startswith('hf://'):
        from huggingface_hub.errors import HTTPError
        errors, patience = (OSError, HTTPError), WAITS
    waits = list(patience)
    while True:
        try:
            with open_file(path) as stream:
                for rows, following, done in read_rows(stream, file, position, columns, share):
                    documents = []
                    for place, row in rows:
                        try:
                            documents.append(to_document(row, to_parts))
                        except (ValueError, RecursionError) as error:
                            if bad_row is None:
                                raise ValueError(f'{describe(path, place, error)}\n'
                                                 'Mend it, or leave out what cannot be used: --skip_bad') from None
                            bad_row(functools.partial(describe, path, place, error))
                    position = following
                    yield documents, position, done
                    waits = list(patience)
            return
        except errors as error:
            if not try_again(error, waits):
                raise ValueError(f'cannot read {path} ({type(error).__name__}: {error})') from None


def open_file(path):
    if not path.startswith('hf://'):
        return open(path, 'rb')
    from huggingface_hub import HfFileSystem
    return io.BufferedReader(HfFileSystem().open(path.removeprefix('hf://')), BLOCK)  # its own readline is slow


def read_rows(stream, file, position, columns, share):
    """Blocks of a file: ([(place, row)], the next position, how much is read). What a row is, to_document knows."""
    name = os.path.basename(file['path'])

    def taken(place):
        return share >= 1.0 or hash_of(f'{name} {place}') < share
    if suffix(name) == '.parquet':
        yield from parquet_rows(stream, file['path'], position, columns, taken)
    elif suffix(name) == '.jsonl':
        yield from jsonl_rows(stream, file['bytes'], position, taken)
    else:
        yield from text_rows(stream, file['bytes'], position, taken)


def parquet_rows(stream, path, position, columns, taken):
    """A row is a dict. A row group is not read at once, but some rows at a time."""
    import pyarrow.parquet
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        known = [column for column in columns if column in table.schema_arrow.names]
        if not known:
            text_of(dict.fromkeys(table.schema_arrow.names), columns[0], KEY_HINT)
        row, total, by_group = 0, max(table.metadata.num_rows, 1), table.num_row_groups >= 100
        for group in range(table.num_row_groups):
            end = row + table.metadata.row_group(group).num_rows
            if end > position and (taken(row) or not by_group):
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=known):
                    rows = list(enumerate(batch.to_pylist(), row))
                    row += len(rows)
                    if row > position:
                        yield [pair for pair in rows if by_group or taken(pair[0])], row, row / total
            row = end
    except ValueError as error:  # pyarrow's own are ValueErrors, too
        raise ValueError(f'{path}: {error}') from None


def jsonl_rows(stream, size, position, taken):
    """A row is a line, bytes."""
    stream.seek(position)
    rows, begin = [], position
    for line in stream:
        if taken(position) and not line.isspace():
            rows.append((position, line))
        position += len(line)
        if position - begin >= BLOCK:
            yield rows, position, position / size
            rows, begin = [], position
    yield rows, position, 1.0


def text_rows(stream, size, position, taken):
    """
    A row is (bytes, key, begin, end, trimmed): what stands between two <|endoftext|> or is all of a file that has none,
    or of what is longer than LONGEST a stretch. With <|endoftext|> in the file, documents are trimmed of line ends.
    """
    start, at, end, key = position if isinstance(position, list) else (position, position, None, None)
    while at < size:
        block = read_block(stream, at, size)
        *whole, rest = block.split(END_OF_TEXT) if at == start else [block]
        if at + len(block) == size and at == start:
            whole.append(rest)
        if whole:  # documents that end within the block
            rows = []
            for text in whole:
                if taken(at):
                    rows.append((at, (text, None, 0.0, 1.0, (at, len(text)) != (0, size))))
                at += len(text) + len(END_OF_TEXT)
            start = at = min(at, size)
            yield rows, at, at / size
            continue
        if at == start:
            end, key = survey(stream, start, size)
        stretch = block[:end - at]
        stretch = stretch if at + len(stretch) == end else stretch[:place_to_cut(stretch)]
        after = at + len(stretch)
        begin, until = ((place - start) / (end - start) for place in (at, after))
        rows = [(at, (stretch, key, begin, until, end - start != size))] if taken(start) else []
        at = after
        if at == end:
            start = at = min(end + len(END_OF_TEXT), size)
        yield rows, at if at == start else [start, at, end, key], at / size


def read_block(stream, at, size):
    """The bytes from a place on, LONGEST at most. OSError if they end before the file's `size`."""
    stream.seek(at)
    block = stream.read(min(LONGEST, size - at))
    if len(block) < min(LONGEST, size - at):
        raise OSError('it has become shorter while it was read')
    return block


def survey(stream, start, size):
    """Where the document that starts there ends, and its key, without holding it in memory."""
    digest, at = hashlib.sha256(), start
    while True:
        block = read_block(stream, at, size)
        found = block.find(END_OF_TEXT)
        if found >= 0 or at + len(block) == size:
            block = block[:found] if found >= 0 else block
            digest.update(block)
            return at + len(block), key_from(digest)
        block = block[:1 - len(END_OF_TEXT)]  # <|endoftext|> may begin in the rest
        digest.update(block)
        at += len(block)


def place_to_cut(text):
    """Where to cut bytes of UTF-8, in their second half: behind a line, else behind a word, else behind a character."""
    half = len(text) // 2
    cut = text.rfind(b'\n', half) + 1 or text.rfind(b' ', half) + 1 or len(text) - 1
    while cut < len(text) and text[cut] & 0xc0 == 0x80:  # a byte within a character
        cut -= 1
    return cut


def to_document(row, to_parts):
    """The Document that a row is. ValueError if it is not UTF-8, not a JSON object, or not what to_parts wants."""
    if isinstance(row, tuple):
        text, key, begin, end, trimmed = row
        text = text.decode()
        if begin == 0.0:
            text = text.lstrip('\r\n') if trimmed else text.removeprefix('\ufeff')
        if end == 1.0 and trimmed:
            text = text.rstrip('\r\n')
        return Document([(text, True)], hash_of(text) if key is None else key, begin, end)
    if isinstance(row, bytes):
        row = json.loads(row.decode().removeprefix('\ufeff'))
        if not isinstance(row, dict):
            raise ValueError('this is JSON, but no object: {"text": ...}')
    parts = to_parts(row)
    # a ValueError here if JSON spells what no text may contain, half a surrogate pair
    return Document(parts, hash_of('\0'.join(text for text, _ in parts)))


def describe(path, place, error):
    """What is wrong with a row, and where it stands."""
    if isinstance(error, UnicodeDecodeError):
        place += error.start if suffix(path) != '.jsonl' else 0
        error = (f'not UTF-8: {error.reason} ({error.object[error.start:error.start + 1]!r}); to convert it: '
                 'iconv -f latin1 -t utf-8')
    elif isinstance(error, json.JSONDecodeError):
        error = f'not JSON: {error.msg}, character {error.pos + 1} of the line'
    if suffix(path) == '.parquet':
        return f'{path}, row {place}: {error}'
    lines = 1
    with open_file(path) as stream:
        while place > 0 and (block := stream.read(min(place, BLOCK))):
            place, lines = place - len(block), lines + block.count(b'\n')
    return f'{path}, line {lines}: {error}'


def text_of(row, key, hint=''):
    """The text in a row; ValueError if there is none, with a `hint` if the row has no such key."""
    if key not in row:
        raise ValueError(f'no {key!r} here, but {", ".join(map(str, row))}{hint}')
    if not isinstance(row[key], str):
        raise ValueError(f'{key!r} is {row[key]!r:.50}, no text')
    return row[key]
