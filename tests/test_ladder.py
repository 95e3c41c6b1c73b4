"""The ladder in docs/ladder keeps its word: each file is short and on its own, and prints the loss that it names."""
import ast
import difflib
import glob
import math
import os
import re
import runpy
import shutil
import sys

import pytest
import torch

from common import generate
from running import ROOT, ok, python

LADDER = os.path.join(ROOT, 'docs', 'ladder')
FILES = sorted(glob.glob('*.py', root_dir=LADDER))
RUNGS = [name for name in FILES if name[0].isdigit()]
BESIDE = ['bpe_by_hand.py', 'optimizer_and_schedule.py', 'sampling.py']
MAY_IMPORT = {'collections', 'math', 'pathlib', 'sys', 'torch'}


def read(name):
    with open(os.path.join(LADDER, name), encoding='utf-8') as f:
        return f.read()


def code(name):
    """The lines of a file without its docstring and indentation."""
    return [line.strip() for line in read(name).split('"""')[2].splitlines() if line]


def exercises(name):
    """The numbers of the exercises in a file's docstring."""
    return re.findall(r'(?:^|\s)(\d)\. ', read(name).split('"""')[1].partition('To try')[2])


def imported(name):
    """The top-level names of the modules that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(read(name))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.partition('.')[0] for module in modules}


@pytest.fixture(scope='session')
def text(tmp_path_factory):
    """A file of 6,000 characters or so."""
    path = tmp_path_factory.mktemp('text') / 'mine.txt'
    path.write_text('\n'.join(f'The {i * i % 97}th cat sees a {"very " * (i % 3)}big dog.' for i in range(200)))
    return path


@pytest.fixture(scope='session')
def fresh(tmp_path_factory):
    """What the ladder needs of a fresh clone, with the text of the quick start made as a user makes it."""
    place = tmp_path_factory.mktemp('fresh') / 'project'
    for folder in ('common', 'config', 'data/corpus', 'docs/ladder'):
        shutil.copytree(os.path.join(ROOT, folder), place / folder, ignore=shutil.ignore_patterns('__pycache__'))
    (place / 'data' / 'pydoc_char').mkdir()
    for path in ('model.py', 'data/pydoc_char/prepare.py'):
        shutil.copy(os.path.join(ROOT, path), place / path)
    ok(python(place / 'data' / 'pydoc_char' / 'prepare.py', cwd=place))
    return place


def assert_as_expected(name, printed):
    """The figures of the paragraph that begins with Expect have been printed, or almost; a rung's loss comes last."""
    expected = re.search(r'^Expect .*?\n\n', read(name), re.MULTILINE | re.DOTALL)[0]
    figures = [float(figure) for figure in re.findall(r'\d+\.\d+|\d{4}', expected)]
    seen = [float(number) for number in re.findall(r'\d+\.\d+|\d{4}', printed)]
    assert figures
    for figure in figures:
        assert any(abs(number - figure) <= 0.01 + 0.02 * figure for number in seen), f'{figure}\n{printed}'
    if name in RUNGS:
        loss = re.match(r'Expect a validation loss of ([\d.]+\d)', expected)
        last = re.findall(r'validation loss ([\d.]+)\n', printed)[-1]
        assert abs(float(last) - float(loss[1])) <= 0.05, f'{loss[1]}\n{printed}'


def test_the_ladder_has_eight_rungs_and_three_files_beside_it():
    assert [name[:2] for name in RUNGS] == [f'0{i}' for i in range(1, 9)] and FILES == RUNGS + BESIDE


@pytest.mark.parametrize('name', RUNGS)
def test_a_rung_learns_any_text_in_any_folder(name, text, tmp_path):
    done = ok(python(os.path.join(LADDER, name), text, 3, cwd=tmp_path))
    losses = [float(loss) for loss in re.findall(r'validation loss ([\d.]+)\n', done.stdout)]
    assert losses and max(losses) < 2 * math.log(50) and done.stderr == ''
    assert ('equal those of model.py' in done.stdout) == (name == RUNGS[-1])


@pytest.mark.parametrize('name', ['bpe_by_hand.py', 'sampling.py'])  # the third takes longer, and runs below
def test_the_files_beside_the_ladder_print_what_they_promise(name, tmp_path):
    done = ok(python(os.path.join(LADDER, name), cwd=tmp_path))
    assert_as_expected(name, done.stdout)
    assert done.stderr == ''


def test_the_filters_of_sampling_are_those_of_generate(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['sampling.py', '1'])
    ours = runpy.run_path(os.path.join(LADDER, 'sampling.py'))
    logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    for temperature, p in ((0.5, 0.3), (1.0, 0.9), (2.0, 0.99)):
        theirs = generate.candidates(logits[None], temperature, top_p=p)[0][0]
        assert torch.equal(ours['with_top_p'](ours['with_temperature'](logits, temperature), p), theirs)
    kept, ids = generate.candidates(logits[None], top_k=7)
    assert torch.equal(ours['with_top_k'](logits, 7)[ids], kept)
    assert ours['with_top_k'](logits, 7).isfinite().sum() == 7


def test_top_k_of_sampling_leaves_k_of_equals_too(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['sampling.py', '1'])
    with_top_k = runpy.run_path(os.path.join(LADDER, 'sampling.py'))['with_top_k']
    for k in (1, 3, 7):
        assert with_top_k(torch.zeros(7), k).isfinite().sum() == k


@pytest.mark.parametrize('name, given', list(zip(RUNGS, 2 * ['nothing.txt', 'short.txt', '.', 'nothing.txt'])))
def test_without_a_text_a_rung_says_how_to_have_one(name, given, tmp_path):
    (tmp_path / 'short.txt').write_text('The cat.\n')
    done = python(os.path.join(LADDER, name), given, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ''
    said = re.fullmatch(r'(\S+) is missing or too short; python (\S+) writes the usual text\n', done.stderr)
    assert said[1] == given and os.path.exists(os.path.join(ROOT, said[2]))


@pytest.mark.parametrize('name', [RUNGS[0], RUNGS[-1]])
def test_the_shortest_text_will_do_and_needs_no_second_line(name, tmp_path):
    (tmp_path / 'line.txt').write_text('ab cd ' * 55)
    done = ok(python(os.path.join(LADDER, name), tmp_path / 'line.txt', 1, cwd=tmp_path))
    assert 'validation loss' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('command', re.findall(r'^python (docs/ladder/\S+\.py)$', read('readme.md'), re.MULTILINE))
def test_the_commands_of_the_readme_print_the_losses_that_the_files_name(command, fresh):
    done = ok(python(fresh / command, cwd=fresh))
    assert_as_expected(os.path.basename(command), done.stdout)


@pytest.mark.parametrize('name', FILES)
def test_a_file_is_short_and_on_its_own(name):
    lines = read(name).splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 120
    assert imported(name) <= MAY_IMPORT | ({'model'} if name == RUNGS[-1] else set())
    assert f'    python docs/ladder/{name}' in read(name)


def test_nobody_imports_the_ladder():
    names = '|'.join(name.removesuffix('.py') for name in FILES)
    for path in glob.glob('**/*.py', root_dir=ROOT, recursive=True):
        with open(os.path.join(ROOT, path), encoding='utf-8') as f:
            assert not re.search(rf'^\s*(?:from|import) (?:docs|ladder|{names})\b', f.read(), re.MULTILINE), path


@pytest.mark.parametrize('before, name', list(zip(RUNGS[1:], RUNGS[2:])))
def test_a_rung_repeats_the_one_before_it_but_for_one_idea(before, name):
    same = sum(block.size for block in difflib.SequenceMatcher(None, code(before), code(name)).get_matching_blocks())
    assert same >= 0.6 * len(code(name))


def test_the_readme_names_each_file_with_its_loss():
    text = read('readme.md')
    assert re.findall(r'^python docs/ladder/(\S+)$', text, re.MULTILINE) == FILES
    for name in FILES:
        row = re.search(rf'^\| \[{re.escape(name)}\]\({re.escape(name)}\) \|.*', text, re.MULTILINE)
        assert row, name
        loss = re.search(r'Expect a validation loss of ([\d.]+\d)', read(name))
        assert name in BESIDE or loss[1] in re.findall(r'[\d.]+\d', row[0].partition(')')[2]), name


@pytest.mark.parametrize('name', FILES)
def test_each_exercise_has_an_answer(name):
    section = re.search(rf'^## {re.escape(name)}\n(.*?)(?=^## |\Z)', read('answers.md'), re.MULTILINE | re.DOTALL)
    assert section and re.findall(r'^(\d)\. ', section[1], re.MULTILINE) == exercises(name)
    assert 2 <= len(exercises(name)) <= 3


@pytest.mark.parametrize('name', ['readme.md', 'answers.md'])
def test_links_of_the_ladder_lead_somewhere(name):
    for link in re.findall(r'\]\(([^)\s]+)\)', read(name)):
        assert os.path.exists(os.path.join(LADDER, link)), link
