"""The plan of the house (CONTRIBUTING.md): each module at the lowest place that all its users share."""
import ast
import glob
import os
import re

import pytest

from running import ROOT

CODE = sorted(path for pattern in ('*.py', 'common/**/*.py', 'data/**/*.py')
              for path in glob.glob(pattern, root_dir=ROOT, recursive=True))
# the folder in common/ with the rooms of each script; model.py imports what only training needs of it
ROOMS = {'train.py': 'common/training', 'model.py': 'common/training', 'sample.py': 'common/sampling',
         'bench.py': 'common/benchmark', 'run_manager.py': 'common/experiments', 'export.py': 'common/exporting',
         'evaluate.py': 'common/evaluating'}


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


def imported(path):
    """The files of the project that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    files = {f'{place}{name.replace(".", "/")}.py' for name in names - {'corpus'} for place in ('', 'data/')}
    return files & set(CODE)  # `import corpus` is the package, not the script data/corpus.py


IMPORTS = {path: imported(path) for path in CODE}


def home(path):
    """Where the rooms of a file are: of a script its folder in common/, else the file's own folder."""
    return ROOMS.get(path, os.path.dirname(path))


@pytest.mark.parametrize('module', [path for path in CODE if path.startswith(('common/', 'data/corpus/'))
                                    and not path.endswith('__init__.py')])
def test_a_module_lives_at_the_lowest_place_that_all_its_users_share(module):
    homes = {home(path) for path, modules in IMPORTS.items() if module in modules}
    assert homes, 'nothing uses it'
    shared = os.path.commonpath(homes) or 'common'
    assert os.path.dirname(module) == ('data/corpus' if shared == 'data' else shared)


def test_no_module_imports_itself_in_a_circle():
    finished = set()

    def visit(path, way):
        assert path not in way, ' -> '.join([*way, path])
        if path not in finished:
            for other in IMPORTS[path]:
                visit(other, [*way, path])
            finished.add(path)
    for path in CODE:
        visit(path, [])


def test_nobody_imports_a_script():
    scripts = {path for path in CODE if '/' not in path} - {'model.py'} | {'data/corpus.py'}
    for path, modules in IMPORTS.items():
        assert not modules & scripts, path
        assert 'model.py' not in modules or '/' not in path, path


def test_each_test_of_a_module_stands_where_the_module_does():
    for path in glob.glob('common/**/test_*.py', root_dir=os.path.join(ROOT, 'tests'), recursive=True):
        assert path.replace('test_', '') in CODE, path


def test_the_two_files_to_read_stay_short():
    assert all(len(read(path).splitlines()) <= 350 for path in ('train.py', 'model.py'))


def test_the_table_of_the_house_names_every_file():
    there = {path for path in CODE if '__init__' not in path and not path.endswith('/prepare.py')}
    table = read('CONTRIBUTING.md').partition('## The house')[2].partition('\n## ')[0]
    named = {link for link in re.findall(r'\]\(([^)\s]+)\)', table) if os.path.isfile(os.path.join(ROOT, link))}
    assert named == there | {'common/experiments/report.html',
                             *(f'common/sampling/microscope.{kind}' for kind in ('html', 'js', 'json'))}
