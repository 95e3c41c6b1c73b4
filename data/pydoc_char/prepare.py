"""
Python's own documentation, one id a character: the language reference that help() shows (pydoc_data.topics) and the
docstrings of the standard library. It comes with Python, so it needs no download.

python data/pydoc_char/prepare.py                 # a few seconds
python data/pydoc_char/prepare.py --input=FILE    # any other text in its place

Sources are read with ast; nothing is imported or run. What comes out depends on the version of Python.
"""
import ast
import collections
import hashlib
import inspect
import os
import sys
import sysconfig

folder = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(folder))
import corpus
import shards

SKIPPED = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'pydoc_data'}
RARE = 50  # a character that occurs fewer times teaches nothing, but costs a row of the vocabulary


def parse(path):
    """The syntax tree of a source file; an empty one for the few that are not meant to parse."""
    try:
        with open(path, 'rb') as f:
            return ast.parse(f.read())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def source_files(top):
    """Every .py file of the standard library without its tests, always in the same order."""
    for place, folders, files in os.walk(top):
        folders[:] = sorted(set(folders) - SKIPPED)
        yield from (os.path.join(place, name) for name in sorted(files) if name.endswith('.py'))


def documents(top):
    """Each topic of the reference, and each source file's docstrings in order as one document."""
    topics = os.path.join(top, 'pydoc_data', 'topics.py')
    if os.path.exists(topics):  # it is one assignment: topics = {'assert': 'text', ...}
        yield from ast.literal_eval(parse(topics).body[-1].value).values()
    for path in source_files(top):
        with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) for node in ast.walk(parse(path)) if isinstance(node, with_docstring)]
        yield '\n\n'.join(text for text in docstrings if text)


def write_text(path):
    """Write all documents to one file."""
    top = sysconfig.get_path('stdlib')
    print(f'reading the docstrings of {top}')
    texts = {inspect.cleandoc(text) for text in documents(top)} - {''}
    # by hash: an order that is the same everywhere and mixes reference and library, so that val is like train
    text = '\n\n'.join(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))
    rare = [char for char, count in collections.Counter(text).items() if count < RARE]
    print(f'dropped {len(rare)} characters that occur fewer than {RARE} times')
    text = text.translate({ord(char): None for char in rare})
    shards.write_whole(os.path.dirname(path), os.path.basename(path), text.encode())


corpus.prepare(folder, __doc__, source=os.path.join(folder, 'input.txt'), write_source=write_text, tokenizer='char',
               config='quickstart.py')
