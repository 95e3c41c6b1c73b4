"""
Python's own documentation, one id per character: the language reference that help() shows (pydoc_data.topics) and the
docstrings of the standard library. It comes with Python, so it needs no download.

python data/pydoc_char/prepare.py                 # a few seconds
python data/pydoc_char/prepare.py --input=FILE    # another text instead

Source files are parsed with ast; nothing is imported or run. The text depends on the version of Python.
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
from common.files import write_whole

SKIPPED = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'pydoc_data'}
RARE = 50  # characters that occur less often teach nothing, but each costs a row of the embedding


def parse(path):
    """The syntax tree of a source file. It is empty for the few that are invalid on purpose."""
    try:
        with open(path, 'rb') as f:
            return ast.parse(f.read())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def source_files(top):
    """Yields the .py files of the standard library without its tests, always in the same order."""
    for place, folders, files in os.walk(top):
        folders[:] = sorted(set(folders) - SKIPPED)
        yield from (os.path.join(place, name) for name in sorted(files) if name.endswith('.py'))


def documents(top):
    """Yields each topic of the reference, and the docstrings of each source file as one document."""
    topics = os.path.join(top, 'pydoc_data', 'topics.py')
    if os.path.exists(topics):  # one assignment: topics = {'assert': 'text', ...}
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
    # by hash: the same order everywhere, with reference and library mixed, so that val is like train
    text = '\n\n'.join(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))
    rare = [char for char, count in collections.Counter(text).items() if count < RARE]
    print(f'dropped {len(rare)} characters that occur fewer than {RARE} times')
    text = text.translate({ord(char): None for char in rare})
    with write_whole(path, 'wb') as f:
        f.write(text.encode())


corpus.prepare(folder, __doc__, source=os.path.join(folder, 'input.txt'), write_source=write_text, tokenizer='char',
               config='quickstart.py')
