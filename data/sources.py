"""
Where documents come from: .txt, .md, .jsonl and .parquet files, on this disk or on Hugging Face. They are read in
order, a block at a time and from any position on, so that memory stays flat however large they are. It knows no tokens.

A file is {'path', 'bytes', 'version'}; its version changes when its content does. A position in it is a row number in
parquet and a byte elsewhere.
"""
import fnmatch
import functools
import glob
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass

SUFFIXES = ('.txt', '.md', '.jsonl', '.parquet')
END_OF_TEXT = b'<|endoftext|>'
LONGEST = 2**25  # bytes of a text file in one document; a longer one comes in parts, for the sake of memory
BLOCK = 2**20    # bytes of jsonl that are read at a time
ROWS = 1024      # rows of parquet that are decoded at a time
WAITS = (1, 2, 5, 15, 30, 60)  # seconds before each new try when a network fails


class Gone(ValueError):
    """A dataset, or its files, are not where they were."""


@dataclass
class Document:
    parts: list          # [(text, whether it counts in the loss)]
    begins: bool = True  # False: it goes on where the one before it ended

    @property
    def length(self):
        return sum(len(text) for text, _ in self.parts)

    @functools.cached_property
    def key(self):
        """A number in [0, 1) that looks random and depends on the text alone."""
        return hash_of('\0'.join(text for text, _ in self.parts))


def hash_of(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'little') / 2**64


def find(pattern):
    """
    The files that a pattern names, in order: a file, a folder and all below it, a glob, or on Hugging Face
    hf://datasets/OWNER/NAME/GLOB (or NAME@REVISION). ValueError if there are none, or of no known kind.
    """
    if pattern.startswith('hf://'):
        return find_on_hub(pattern)
    if os.path.isdir(pattern):
        paths = [os.path.join(place, name) for place, _, names in os.walk(pattern) for name in names]
        paths = [path for path in paths if path.endswith(SUFFIXES)]
    else:
        paths = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    if not paths:
        inside = f', or no {", ".join(SUFFIXES)} file in it' if os.path.isdir(pattern) else ''
        raise ValueError(f'there is no {pattern}{inside}')
    for path in paths:
        if not path.endswith(SUFFIXES):
            raise ValueError(f'{path} is none of {", ".join(SUFFIXES)}')
    return [{'path': os.path.abspath(path), 'bytes': os.path.getsize(path), 'version': os.stat(path).st_mtime_ns}
            for path in sorted(paths)]


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
                raise ValueError(f'cannot look up the dataset {name} ({type(error).__name__}: {error}).\n'
                                 'Without a network: bring its files here, and name them with --input=FILES') from None
    files = [{'path': f'hf://datasets/{name}@{info.sha}/{file.rfilename}', 'bytes': file.size, 'version': file.blob_id}
             for file in sorted(info.siblings, key=lambda file: file.rfilename)
             if fnmatch.fnmatchcase(file.rfilename, pattern) and file.rfilename.endswith(SUFFIXES)]
    if not files:
        raise Gone(f'the dataset {name} has no files {pattern} any more')
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
    takes that fraction of the rows (in parquet of the row groups), always the same ones. A row that cannot be used is a
    ValueError that names file and line, or is told to bad_row(message) and left out. A failing network is tried again.
    """
    network_errors, waits = (), list(WAITS)
    if file['path'].startswith('hf://'):
        from huggingface_hub.errors import HTTPError
        network_errors = OSError, HTTPError
    while True:
        try:
            with open_file(file['path']) as stream:
                for rows, position, done in read_rows(stream, file, position, columns, share):
                    documents = []
                    for place, row in rows:
                        try:
                            documents.append(to_document(row, to_parts))
                        except ValueError as error:
                            complain(file['path'], place, error, bad_row)
                    yield documents, position, done
                    waits = list(WAITS)
            return
        except network_errors as error:
            if not try_again(error, waits):
                raise ValueError(f'cannot read {file["path"]} ({type(error).__name__}: {error})') from None


def open_file(path):
    if not path.startswith('hf://'):
        return open(path, 'rb')
    from huggingface_hub import HfFileSystem
    return HfFileSystem().open(path.removeprefix('hf://'))


def read_rows(stream, file, position, columns, share):
    """Blocks of a file: ([(place, row)], the next position, how much is read). What a row is, to_document knows."""
    name = os.path.basename(file['path'])

    def taken(place):
        return share >= 1.0 or hash_of(f'{name} {place}') < share
    if name.endswith('.parquet'):
        yield from parquet_rows(stream, file['path'], position, columns, taken)
    else:
        for rows, position in jsonl_rows(stream, position) if name.endswith('.jsonl') else text_rows(stream, position):
            yield [row for row in rows if taken(row[0])], position, position / max(file['bytes'], 1)


def parquet_rows(stream, path, position, columns, taken):
    """Of the row groups that are taken, and of each only some rows at a time; a row is a dict."""
    import pyarrow.parquet
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        known = [column for column in columns if column in table.schema_arrow.names]
        if not known:
            raise ValueError(f'no column {columns[0]!r}, but {", ".join(table.schema_arrow.names)}')
        row, total = 0, max(table.metadata.num_rows, 1)
        for group in range(table.num_row_groups):
            end = row + table.metadata.row_group(group).num_rows
            if end > position and taken(row):
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=known):
                    rows = list(enumerate(batch.to_pylist(), row))
                    row += len(rows)
                    if row > position:
                        yield rows, row, row / total
            row = end
    except ValueError as error:  # pyarrow's own are ValueErrors, too
        raise ValueError(f'{path}: {error}') from None


def jsonl_rows(stream, position):
    """A row is a line, bytes."""
    stream.seek(position)
    rows, size = [], 0
    for line in stream:
        if not line.isspace():
            rows.append((position, line))
        position, size = position + len(line), size + len(line)
        if size >= BLOCK:
            yield rows, position
            rows, size = [], 0
    yield rows, position


def text_rows(stream, position):
    """
    A row is (bytes, begins, alone): what stands between two <|endoftext|>; the whole of a file that has none, alone is
    True then; or a part of a document that is too long, of which all but the first do not begin one.
    """
    stream.seek(max(position - len(END_OF_TEXT), 0))
    before = stream.read(position - stream.tell())
    begins, alone = before in (b'', END_OF_TEXT), before != END_OF_TEXT
    rest, at_end = b'', False
    while not at_end:
        rest += stream.read(LONGEST - len(rest))
        at_end = len(rest) < LONGEST
        *whole, rest = rest.split(END_OF_TEXT)
        rows = []
        for document in whole:
            rows.append((position, (document, begins, False)))
            position, begins, alone = position + len(document) + len(END_OF_TEXT), True, False
        if rest and (at_end or not whole):
            cut = len(rest) if at_end else place_to_cut(rest)
            rows.append((position, (rest[:cut], begins, alone)))
            position, begins, rest = position + cut, False, rest[cut:]
        yield rows, position


def place_to_cut(text):
    """Where to cut bytes of UTF-8, as late as possible: behind a line, else behind a word, else behind a character."""
    cut = text.rfind(b'\n') + 1 or text.rfind(b' ') + 1 or len(text) - 1
    while cut < len(text) and text[cut] & 0xc0 == 0x80:  # a byte within a character
        cut -= 1
    return cut


def to_document(row, to_parts):
    """The Document that a row is. ValueError if it is not UTF-8, not a JSON object, or not what to_parts wants."""
    if isinstance(row, tuple):
        text, begins, alone = row
        text = text.decode().removeprefix('\ufeff')
        return Document([(text if alone else text.strip('\r\n'), True)], begins)
    if isinstance(row, bytes):
        row = json.loads(row.decode())
        if not isinstance(row, dict):
            raise ValueError('this is JSON, but no object: {"text": ...}')
    document = Document(to_parts(row))
    document.key  # a ValueError where JSON spells what no text may contain, half a surrogate pair
    return document


def complain(path, place, error, bad_row):
    """Tell what is wrong with a row and where it stands: to bad_row, or if that is None as a ValueError."""
    if isinstance(error, UnicodeDecodeError):
        place = place + error.start if not path.endswith('.jsonl') else place
        error = f'not UTF-8: {error.reason} ({error.object[error.start:error.start + 1]!r})'
    elif isinstance(error, json.JSONDecodeError):
        error = f'not JSON: {error.msg}, character {error.pos + 1} of the line'
    where = f'row {place}'
    if not path.endswith('.parquet'):
        with open_file(path) as stream:
            lines = 1
            while place > 0 and (block := stream.read(min(place, BLOCK))):
                place, lines = place - len(block), lines + block.count(b'\n')
        where = f'line {lines}'
    if bad_row is None:
        raise ValueError(f'{path}, {where}: {error}\nMend it, or leave out what cannot be used: --skip_bad')
    bad_row(f'{path}, {where}: {error}')


def text_of(row, key):
    """The text in a row; ValueError if there is none."""
    if key not in row:
        raise ValueError(f'no {key!r} here, but {", ".join(map(str, row))}')
    if not isinstance(row[key], str):
        raise ValueError(f'{key!r} is {row[key]!r:.50}, no text')
    return row[key]
