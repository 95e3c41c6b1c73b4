"""The names and folders of experiments that would be in the way of something are refused, with their line."""
import os

import pytest

from common.experiments import experiment_list

ROOT = '/project'
LONG = ' '.join(f'--{key}=0.0001' for key in ('learning_rate', 'muon_lr', 'weight_decay', 'beta1', 'beta2', 'grad_clip',
                                              'spike_z', 'min_lr', 'dropout', 'cooldown')) * 2


@pytest.fixture
def read(tmp_path, monkeypatch):
    """read('a line', ...): the experiments of a list with these lines in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *lines: experiment_list.read_bytes('\n'.join(lines).encode(), 'mine.conf')


@pytest.mark.parametrize('name', ['.', '..', '...', '.git', '-x', '', 'a/b', '../a', 'a b', 'a\u200b', 'a;b', '$H'])
def test_a_name_that_is_no_plain_name_is_refused(read, name):
    with pytest.raises(ValueError, match='line 1: .*the name .* may contain only letters'):
        read(f"'{name}:' --seed=1")


@pytest.mark.parametrize('name', ['mine.json', 'MINE.JSON', 'mine.json.lock', 'a.json.manager', 'a.json.damaged-2'])
def test_a_name_of_the_queues_own_files_is_refused(read, name):
    with pytest.raises(ValueError, match='line 1: .*is that of a file of the queue'):
        read(f'{name}: --seed=1')
    for words in (f'--out_dir=results/{name}', f'a: --out_dir results/{name}'):
        with pytest.raises(ValueError, match='line 1: .*queue'):
            read(words)


def test_names_of_letters_of_any_language_are_kept(read):
    names = ['실험-1', 'a.b', '_a', '+x', '=', 'v1.json5', 'lock']
    assert [one.name for one in read(*(f'{name}: --seed={i}' for i, name in enumerate(names)))] == names


@pytest.mark.parametrize('names', [('a', 'A'), ('Straße', 'STRASSE'), ('가', '\u1100\u1161')])
def test_names_that_are_one_file_on_some_disks_are_refused(read, names):
    with pytest.raises(ValueError, match='line 2: .*is on some disks.* the name of line 1 too'):
        read(*(f'{name}: --seed=1' for name in names))


@pytest.mark.parametrize('out_dir, what', [
    ('.', 'the working directory'), ('..', 'the working directory'), ('/', 'the working directory'),
    ('results', "the queue's own folder"), ('Results/', "the queue's own folder"), ('results/a/..', "the queue's own"),
    ('~', 'your home folder'), ('', 'names no folder'), ('link', 'the working directory'),
    ('./x/..', 'the working directory'), (ROOT, "the project's folder"),
    (f'{ROOT}/data', "the project's data"), (f'{ROOT}/Common', "the project's common")])
def test_an_out_dir_that_has_something_else_inside_is_refused(read, out_dir, what):
    os.symlink('.', 'link')
    for line in (f'a: --seed=1 --out_dir={out_dir}', f"--out_dir '{out_dir}'", f'--out_dir=x --out_dir={out_dir}'):
        with pytest.raises(ValueError, match=what):
            experiment_list.parse(experiment_list.split(line), 1, ROOT)


@pytest.mark.parametrize('first, second', [('x', 'x'), ('x', './x/'), ('x', 'x/y'), ('x/y', 'x'), ('x', 'X/y'),
                                           ('results/b', 'results/B')])
def test_an_out_dir_in_that_of_another_experiment_is_refused(read, first, second):
    with pytest.raises(ValueError, match='line 2: line 1 writes to out_dir'):
        read(f'a: --out_dir={first}', f'b: --out_dir={second}')
    read(f'a: --out_dir=other/{first}', f'b: --out_dir={second}')


def test_a_long_name_from_a_line_is_cut_and_stays_the_same(read):
    one, other = read(LONG, f'{LONG} --seed=2')
    assert len(one.name) < 75 and one.name.startswith('learning_rate=0.0001-muon_lr') and one.out_dir.endswith(one.name)
    os.makedirs(one.out_dir)  # whatever is there already
    assert read(LONG)[0].name == one.name != other.name
    assert read('config/quickstart.py --seed=2')[0].name == 'quickstart-seed=2'


@pytest.mark.parametrize('line', [f'{"a" * 256}: --seed=1', f'{"가" * 86}: --seed=1', f'a: --out_dir=x/{"b" * 256}',
                                  f'a: --out_dir={"/b" * 2100}'])
def test_a_name_that_no_disk_can_have_is_refused(read, line):
    with pytest.raises(ValueError, match='line 1: .* is too long for the name of a folder'):
        read(line)
    assert len(read(f'{"a" * 255}: --seed=1')) == 1


@pytest.mark.parametrize('line, expected', [
    ('a config/x.py', "as in a: config/x.py"), ('a : config/x.py', 'as in a: config/x.py'),
    ('실험： config/x.py', 'as in 실험: config/x.py'), ('a:config/x.py --seed=1', 'put a space behind the colon'),
    ('a：config/x.py', 'put a space behind the colon')])
def test_a_name_without_its_colon_is_seen(read, line, expected):
    with pytest.raises(ValueError, match='line 1: ') as error:
        read(line)
    assert expected in str(error.value)
