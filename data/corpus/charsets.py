"""Text files that are not UTF-8: a copy of one in UTF-8, and what to do about an unknown one. It knows no documents."""
import codecs
import difflib
import encodings.aliases
import os
import re
import shlex
import sys

from tqdm import tqdm

from common.charsets import PIECE, by_mark, decode_strictly, guesses, unicode_in
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
    found = lookup(name)
    if found is None:
        known = filter(lookup, {*encodings.aliases.aliases, *encodings.aliases.aliases.values()})
        near = difflib.get_close_matches(re.sub(r'\W+', '_', name.lower()), sorted(known), n=1)
        raise ValueError(f'--encoding={visible(name)} is no encoding of text that Python knows; ' +
                         (f'did you mean {near[0]}? Others' if near else 'some') + ' are cp949 (Korean), shift_jis '
                         '(Japanese), gb18030 and big5 (Chinese), utf-16, cp1252 (Western Europe)')
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
    all others that are no valid UTF-8. What is no character in them becomes a byte 0xff.
    """
    read_as = {}
    for number, file in enumerate(files):
        path = file['path']
        if sources.suffix(path) == '.parquet' or path.startswith('hf://') and encoding is None:
            continue
        with sources.open_file(path) as stream:
            head = stream.read(4)
        name = by_mark(head)
        if name is None and encoding and not is_utf8(path):
            name = encoding
        if name:
            file['copy'], file['encoding'] = f'input-{number}.utf8', name
            file['bytes'] = write_copy(path, name, os.path.join(folder, file['copy']))
        if name or encoding:
            why = name or 'utf-8, which is what it is in'
            read_as.setdefault(why + ', by its byte order mark' * (name != encoding and bool(name)), []).append(path)
    for name, paths in read_as.items():
        print(f'read as {name}: {sources.some(paths)}')


def is_utf8(path):
    """Whether a file has UTF-8's mark, or most of it beyond ASCII is valid UTF-8, which it hardly ever is by chance."""
    with sources.open_file(path) as stream:
        return mostly_utf8(iter(lambda: stream.read(BLOCK), b''))


def mostly_utf8(blocks):
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
    return valid > invalid


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
    if decode_strictly(content, tried) if tried else mostly_utf8([content]):
        return f'\nThe rest is {tried or "UTF-8"}, so this place is damaged: {otherwise}'
    controls = sum(byte < 32 and byte not in b'\t\n\f\r' for byte in content)
    if tried is None and controls > 0.1 * len(content) and not unicode_in(content):
        return '\nIt does not look like text, but like another kind of file: take it out, or leave it out by --skip_bad'
    found = [(name, text) for name, text in guesses(content) if name != tried]
    if not found:
        return f'\nIf you know its encoding: {same_command("--encoding=NAME")}\nOtherwise {otherwise}'
    shown = ''.join(f'\n  {name:10} {text}' for name, text in found)
    command = same_command(f'--encoding={found[0][0]}')
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
