"""Text files that are not UTF-8: a copy of one in UTF-8, and what to do about an unknown one. It knows no documents."""
import codecs
import os
import re
import shlex
import sys

from tqdm import tqdm

from common.charsets import PIECE, UNICODE, by_mark, decode_mostly, escaped_in, guesses, is_clear, unicode_in
from common.console import visible
from common.files import write_whole
from corpus import sources

NOT_ASCII = bytes(range(128, 256))
BLOCK = 2**20  # bytes that are decoded at a time
NO_TEXT = ('idna', 'punycode', 'raw-unicode-escape', 'undefined', 'unicode-escape')


def mark(error):
    """An error handler for codecs: what is no character becomes a byte that no UTF-8 has, and is found there."""
    return ('\udcff' if isinstance(error, UnicodeDecodeError) else b'\xff'), error.end


codecs.register_error('corpus.mark', mark)


def canonical(name):
    """Python's own name of an encoding; None for UTF-8, which needs no word. ValueError for one that it lacks."""
    page = re.fullmatch(r'(?:x-)?(?:windows|ms|ibm|cp)[-_ ]?(\d+)', name.lower())  # as in windows-949
    found = lookup(name) or page and lookup(f'cp{page[1]}')
    if not found:
        raise ValueError(f'--encoding={visible(name)} is no encoding of text that Python knows; some are cp949 '
                         '(Korean), shift_jis (Japanese), gb18030 and big5 (Chinese), utf-16, cp1252 (Western Europe)')
    return None if found.name in ('utf-8', 'utf-8-sig') else found.name


def lookup(name):
    """Python's codec of that name, if it is one of text; else None."""
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    return found if found._is_text_encoding and found.incrementaldecoder and found.name not in NO_TEXT else None


def decode(content):
    """bytes as UTF-8. UnicodeDecodeError also for UTF-16 and UTF-32 without a mark, whose bytes may be valid UTF-8."""
    if content.count(0) * 10 > len(content) and (name := unicode_in(content[:PIECE])):
        at = content.index(0)
        raise UnicodeDecodeError('utf-8', content, at, at + 1, f'many bytes are 0, as in {name.upper()}')
    return content.decode()


def copy_others(files, encoding, folder):
    """
    Those of the files (as sources.find returns them) that are not UTF-8 get a UTF-8 copy in `folder`, whose name and
    size become their 'copy' and 'bytes': text files with the mark of UTF-16 or UTF-32 and, if `encoding` is given,
    all others that are no valid UTF-8. What is no character in them becomes a byte 0xff. ValueError for a file in an
    encoding that its bytes do not tell from ASCII or, without a mark, for one in UTF-16 or UTF-32 of unknown order.
    """
    read_as = {}
    for number, file in enumerate(files):
        path = file['path']
        if sources.suffix(path) == '.parquet' or path.startswith('hf://') and encoding is None:
            continue
        with sources.open_file(path) as stream:
            piece = stream.read(PIECE)
        if name := by_mark(piece):
            how = f'{name}, by its byte order mark'
        elif encoding is None:
            if escaped := escaped_in(piece):
                raise ValueError(f'{visible(path)} is not plain text but {escaped}; to read it as what it is:\n'
                                 f'{same_command(f"--encoding={escaped}")}\nTo take its bytes as they are: '
                                 '--encoding=ascii')
            continue
        elif is_utf8(path, encoding):
            how = 'utf-8, which is what it is in'
        else:
            name = how = with_order(encoding, piece, path)
        if name:
            file['copy'], file['encoding'] = f'input-{number}.utf8', name
            file['bytes'] = write_copy(path, name, os.path.join(folder, file['copy']))
        read_as.setdefault(how, []).append(path)
    for how, paths in read_as.items():
        print(f'read as {how}: {sources.some(paths)}')


def with_order(encoding, piece, path):
    """An encoding; of UTF-16 or UTF-32 the form that the first piece of a file is in. ValueError if in neither."""
    if encoding not in ('utf-16', 'utf-32'):
        return encoding
    found = next((name for name, _ in guesses(piece) if name in UNICODE), None)
    if found is None:
        raise ValueError(f'{visible(path)} has no byte order mark and does not look like {encoding}; if it is, name '
                         f'--encoding={encoding}-le or {encoding}-be')
    return found


def is_utf8(path, encoding):
    """
    Whether a file has UTF-8's mark, or most of it beyond ASCII is valid UTF-8, which it hardly ever is by chance. One
    of ASCII is UTF-8 where `encoding` would make something else of it.
    """
    with sources.open_file(path) as stream:
        return mostly_utf8(iter(lambda: stream.read(BLOCK), b''), 'a'.encode(encoding) != b'a')


def mostly_utf8(blocks, if_ascii=False):
    decoder, valid, invalid = codecs.getincrementaldecoder('utf-8')('replace'), 0, 0
    for block in blocks:
        if block.startswith(codecs.BOM_UTF8):
            return True
        if block.count(0) * 10 > len(block):
            return False
        text = decoder.decode(block)
        found = text.count('\ufffd')
        invalid += found
        valid += len(text) - found - len(block.translate(None, NOT_ASCII))
        if invalid > max(valid, 1000):
            return False
    return valid > invalid or if_ascii and valid == invalid == 0


def write_copy(path, encoding, target):
    """Write a file as UTF-8 and return its size. It is read a block at a time."""
    decoder, block = codecs.getincrementaldecoder(encoding)('corpus.mark'), True
    with (sources.open_file(path) as stream, write_whole(target, 'wb') as f,
          tqdm(desc=f'{os.path.basename(path)} to UTF-8', unit='B', unit_scale=True, delay=2) as bar):
        while block:
            block = stream.read(BLOCK)
            f.write(decoder.decode(block, final=not block).encode('utf-8', 'corpus.mark'))
            bar.update(len(block))
        return f.tell()


def advice(content, tried):
    """What to do about a text that is not in the encoding `tried` (None: UTF-8), by a piece of it."""
    otherwise = 'mend the file, or leave out what cannot be read: --skip_bad'
    if decode_mostly(content, tried) if tried else mostly_utf8([content]):
        return f'\nThe rest is {tried or "UTF-8"}, so this place is damaged: {otherwise}'
    controls = sum(byte < 32 and byte not in b'\t\n\f\r' for byte in content)
    if tried is None and controls > 0.1 * len(content) and not unicode_in(content):
        return '\nIt does not look like text, but like another kind of file: take it out, or leave it out by --skip_bad'
    found = [(name, text) for name, text in guesses(content) if name != tried]
    if not found:
        return f'\nIf you know its encoding: {same_command("--encoding=NAME")}\nOtherwise {otherwise}'
    shown = ''.join(f'\n  {name:10} {text}' for name, text in found)
    command = same_command(f'--encoding={found[0][0] if is_clear(content, found[0][0]) else "NAME"}')
    return f'\nIn other encodings it reads:{shown}\nIf one is right, name it:\n{command}\nOtherwise {otherwise}'


def same_command(option):
    """The command line of this process with an option, such as --encoding=cp949, in place of what it says there."""
    key = option.partition('=')[0]
    words, skip = [], False
    for word in sys.argv:
        if not skip and word.partition('=')[0] != key:
            words.append(word)
        skip = word == key
    return shlex.join(['python', *words, option])
