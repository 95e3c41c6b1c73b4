"""Prompts as users give them: on the command line, in a file, through a pipe. It knows no model."""
import ast
import shlex
import sys
import unicodedata

from common import charsets
from common.console import say

COMPOSED = 'decomposed characters (NFD): taken in NFC, which suits this vocabulary better'


def read(start):
    """
    The prompts that `start` means, a list of str: a text, or a list of texts as Python writes it; FILE:PATH, the text
    of a file; LINES:PATH, a file with one a line; or -, standard input. ValueError if it is no text.
    """
    if start.startswith('FILE:'):
        return [read_file(start)]
    if start.startswith('LINES:'):
        return read_lines(start)
    if start == '-':
        try:
            return [decode(sys.stdin.buffer.read(), start).removesuffix('\n')]  # of echo, or of the last Enter
        except OSError as error:
            raise ValueError(f"start='-' cannot be read: {error.strerror}") from None
    texts = None
    if start.startswith('['):
        try:
            texts = ast.literal_eval(start.encode(errors='backslashreplace').decode())  # as configurator.py does
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass  # a text that begins with a bracket
    is_list = texts and isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return texts if is_list else [start]


def read_lines(source, key='start'):
    """The lines of a file without empty ones, a list; else like read_file(). ValueError if there are none."""
    lines = [line for line in read_file(source, key).split('\n') if line]
    if not lines:
        raise ValueError(f'{key}={source!r} is empty; it should have a prompt a line')
    return lines


def read_file(source, key='start'):
    """The text of FILE:PATH or LINES:PATH, which is what the setting `key` says. ValueError if it cannot be read."""
    try:
        with open(source.partition(':')[2], 'rb') as f:
            content = f.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise ValueError(f'{key}={source!r} cannot be read: {getattr(error, "strerror", error)}') from None
    return decode(content, source, key)


def decode(content, source, key='start'):
    """
    Bytes as text with \\n at the ends of lines: UTF-8, or what a byte order mark says, which a line on stderr repeats.
    ValueError if it is no text, with the command that converts it.
    """
    name, head, mark = f'{key}={source!r}', content[:charsets.PIECE], charsets.by_mark(content)
    kind = (mark or 'utf-8').upper()
    if not mark and charsets.unicode_in(head):
        raise ValueError(f'{name} is not UTF-8 text, at byte {content.index(0)}: it has a NUL there'
                         f'{advice(charsets.guesses(head), source, key)}')
    try:
        text = content.decode(mark or 'utf-8-sig')
    except UnicodeDecodeError as error:
        at = error.start + len(content) - len(error.object)  # utf-8-sig counts from behind its mark
        found = charsets.guesses(content[max(0, at - 100):at + charsets.PIECE]) if content[:at].isascii() else []
        is_cut = not found and ('unexpected end' in error.reason or 'truncated' in error.reason)
        raise ValueError(f'{name} is not {kind} text, at byte {at}' + (
            ': it ends within a character, as if it had been cut off' if is_cut else advice(found, source, key)
            )) from None
    if mark:
        say(f'{name} is {kind}, as its byte order mark says')
    return text.replace('\r\n', '\n').replace('\r', '\n')


def advice(found, source, key):
    """What bytes that are not UTF-8 may be, as charsets.guesses() has `found`, and what to type."""
    if not found:
        return f'; {conversion("ENCODING", source, key)}'
    readings = ''.join(f'. As {encoding} it reads {piece}' for encoding, piece in found)
    right = 'the first' if len(found) > 1 else 'that'
    return f'{readings}. If {right} is right, {conversion(found[0][0], source, key)}'


def conversion(encoding, source, key):
    """The command that makes a file of UTF-8 of `source`, and the option that names this file."""
    kind, _, path = ('FILE:FILE' if source == '-' else source).partition(':')
    return (f'to convert it: iconv -f {charsets.iconv_name(encoding)} -t utf-8 {shlex.quote(path)} > '
            f'{shlex.quote(f"{path}.utf8")}, then {shlex.quote(f"--{key}={kind}:{path}.utf8")}')


def encode(tokenizer, texts):
    """
    The prompts as [(text, ids)]. A text with decomposed characters (Hangul from macOS) is taken in NFC where only that
    is in the vocabulary, or takes fewer tokens; a line on stderr says so. ValueError for what cannot be encoded.
    """
    found = []
    for i, text in enumerate(texts):
        try:
            found.append(encode_one(tokenizer, text))
        except ValueError as error:
            raise ValueError(f'prompt {i + 1} of {len(texts)}: {error}' if len(texts) > 1 else str(error)) from None
    composed = sum(text != given for given, (text, _) in zip(texts, found))
    if composed:
        which = 'the prompt has' if len(texts) == 1 else f'{composed} of {len(texts)} prompts have'
        say(f'{which} {COMPOSED}')
    return found


def encode_one(tokenizer, text):
    """(text or its NFC, ids): what takes fewer tokens, the text as it is if both take the same."""
    nfc = unicodedata.normalize('NFC', text)
    forms, failures = [], []
    for form in [text, nfc] if len(nfc) < len(text) else [text]:  # else NFC would only replace whole characters
        try:
            forms.append((form, tokenizer.encode(form)))
        except ValueError as error:
            failures.append(error)
    if not forms:
        raise failures[0]
    return min(forms, key=lambda form: len(form[1]))
