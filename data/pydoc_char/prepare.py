"""
Python's own documentation, one id per character: the language reference that help() shows (pydoc_data.topics) and the
docstrings of the standard library. It comes with Python, so it needs no download.

python data/pydoc_char/prepare.py                 # a few seconds
python data/pydoc_char/prepare.py --input=FILE    # another text instead

Source files are parsed with ast; nothing is imported or run. The text depends on the version of Python.
"""
import ast
import collections
import contextlib
import hashlib
import inspect
import os
import sys
import sysconfig

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))
from corpus.pipeline import prepare
from common.files import write_whole

SKIPPED = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'pydoc_data'}
RARE = 50  # characters that occur less often teach nothing, but each costs a row of the embedding
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documents(top):
    """Yields each topic of the reference, and the docstrings of each source file (no tests) as one document."""
    with contextlib.suppress(FileNotFoundError), open(os.path.join(top, 'pydoc_data', 'topics.py'), 'rb') as f:
        yield from ast.literal_eval(ast.parse(f.read()).body[-1].value).values()  # topics = {'assert': 'text', ...}
    for place, folders, names in os.walk(top):
        folders[:] = set(folders) - SKIPPED
        for path in (os.path.join(place, name) for name in names if name.endswith('.py')):
            # a few are invalid on purpose, and some systems have links to nothing there
            with contextlib.suppress(SyntaxError, ValueError, FileNotFoundError), open(path, 'rb') as f:
                nodes = ast.walk(ast.parse(f.read()))
                docstrings = [ast.get_docstring(node) for node in nodes if isinstance(node, WITH_DOCSTRING)]
                yield '\n\n'.join(filter(None, docstrings))


def write_text(path):
    """Write all documents to one file."""
    top = sysconfig.get_path('stdlib')
    print(f'reading the docstrings of {top}')
    texts = {inspect.cleandoc(text) for text in documents(top)} - {''}
    # by hash: the same order everywhere, with reference and library mixed, so that val is like train
    text = '\n\n'.join(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))
    rare = [char for char, count in collections.Counter(text).items() if count < RARE]
    print(f'dropped {len(rare)} characters that occur fewer than {RARE} times')
    with write_whole(path, 'wb') as f:
        f.write(text.translate(dict.fromkeys(map(ord, rare))).encode())


prepare(__file__, __doc__, source=os.path.join(FOLDER, 'input.txt'), write_source=write_text, tokenizer='char',
        config='quickstart.py')
