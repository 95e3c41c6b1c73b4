"""
What the prepare scripts share: fetch a text, turn it into token ids, write train.bin, val.bin and meta.json, say what
came out. A prepare script says what its corpus is; everything else is here.
"""
import argparse
import hashlib
import http.client
import json
import os
import sys
import urllib.request

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from common import tokenizer


def parse_input(description):
    """The command line of a prepare script: the file named by --input, or None."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', metavar='FILE', help='a text file to take instead of downloading it')
    return parser.parse_args().input


def stop(message):
    """End the script with one line and exit code 2."""
    print(f'{os.path.basename(os.path.dirname(os.path.abspath(sys.argv[0])))}/prepare.py: {message}', file=sys.stderr)
    sys.exit(2)


def read_text(path):
    """A UTF-8 text file, newlines as they are."""
    try:
        with open(path, encoding='utf-8', newline='') as f:
            return f.read()
    except UnicodeDecodeError as error:
        stop(f'{path} is not UTF-8 text: {error.reason} at byte {error.start}')
    except OSError as error:
        stop(f'cannot read {path}: {error.strerror}')


def fetch(folder, url, sha256, given=None):
    """
    A corpus's text: of the file `given`, or of input.txt in `folder`, downloaded once. A download counts only if it is
    complete: right status, right sha256, written under another name first.
    """
    if given:
        return read_text(given)
    path = os.path.join(folder, 'input.txt')
    if not os.path.exists(path):
        print(f'downloading {url}')
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            stop(f'cannot download {url} ({error}).\n'
                 f'Without a network: put that file at {path}, or name it with --input=FILE, or train on text that '
                 f'Python brings along: python train.py config/quickstart.py')
        if hashlib.sha256(content).hexdigest() != sha256:
            stop(f'{url} is not the file it was: its sha256 is {hashlib.sha256(content).hexdigest()}, not {sha256}. '
                 f'If you trust it, save it and name it with --input=FILE')
        write_whole(folder, {'input.txt': content})
    return read_text(path)


def write_whole(folder, contents):
    """Write files, {name: bytes}, none of which is ever half a file; they take their places in the order given."""
    for name, content in contents.items():
        with open(os.path.join(folder, f'{name}.tmp'), 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    for name in contents:
        os.replace(os.path.join(folder, f'{name}.tmp'), os.path.join(folder, name))


def write_char(folder, text, source, rare=0, expected=None):
    """
    A character-level dataset: the first 90% of the text to train on, the rest to validate. Characters that occur fewer
    than `rare` times are dropped. `expected`: the tokens of train and val that the usual text gives.
    """
    characters, counts = np.unique(np.frombuffer(text.encode('utf-32-le'), dtype='<u4'), return_counts=True)
    chars = ''.join(chr(code) for code in characters[counts >= rare])
    if len(chars) < len(characters):
        text = text.translate({int(code): None for code in characters[counts < rare]})
        print(f'dropped {len(characters) - len(chars)} characters that occur fewer than {rare} times')
    print(f'{len(text):,} characters, {len(chars)} distinct: {chars!r}')
    encode = tokenizer.CharTokenizer(chars).encode
    cut = int(len(text) * 0.9)
    write(folder, encode(text[:cut]), encode(text[cut:]),
          {'tokenizer': 'char', 'vocab_size': len(chars), 'chars': chars, 'source': source}, expected)


def write_gpt2(folder, text, source, expected=None):
    """A dataset in GPT-2's byte-pair encoding: the first 90% of the text to train on, the rest to validate."""
    print(f'{len(text):,} characters')
    try:
        encode = tokenizer.GPT2Tokenizer().encode
    except ValueError as error:
        stop(error)
    cut = int(len(text) * 0.9)
    write(folder, encode(text[:cut]), encode(text[cut:]),
          {'tokenizer': 'gpt2', 'vocab_size': tokenizer.GPT2Tokenizer.vocab_size, 'source': source}, expected)


def write(folder, train_ids, val_ids, meta, expected=None):
    """
    Write the bins and meta.json, and print the counts. All are written before any takes its place, train.bin last:
    where it stands for the first time, the dataset is whole.
    """
    if not len(train_ids) or not len(val_ids):
        stop(f'too little text: {len(train_ids)} tokens to train on and {len(val_ids)} to validate')
    dtype = 'uint16' if meta['vocab_size'] <= 2**16 else 'uint32'
    contents = {f'{split}.bin': np.array(ids, dtype=np.dtype(dtype).newbyteorder('<')).tobytes()
                for split, ids in (('val', val_ids), ('train', train_ids))}
    meta = {**meta, 'dtype': dtype, 'train_tokens': len(train_ids), 'val_tokens': len(val_ids),
            'sha256': {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}}
    write_whole(folder, {'meta.json': json.dumps(meta, indent=1).encode(), **contents})
    print(f'train has {len(train_ids):,} tokens\nval has {len(val_ids):,} tokens')
    if expected and expected != (len(train_ids), len(val_ids)):
        print(f'the usual text gives {expected[0]:,} and {expected[1]:,}, so this is another one')
