"""The lines of a list of experiments, and their settings."""
import os

import pytest

from common import settings
from common.experiments import experiment_list
from running import ROOT


def test_a_line_is_split_as_a_shell_would():
    words = experiment_list.split("a: x.py --start='a b' --name=x#y # and so on")
    assert words == ['a:', 'x.py', '--start=a b', '--name=x#y']


def test_an_out_dir_in_the_home_folder_is_the_one_that_train_writes():
    words = experiment_list.split('a: config/quickstart.py --out_dir ~/a')
    known = settings.read(os.path.join(ROOT, 'train.py'), words[1:])
    assert experiment_list.parse(words, 1).out_dir == known['out_dir'] == os.path.expanduser('~/a')


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-32'])
def test_a_list_in_another_encoding_is_told_how_it_can_be_converted(encoding):
    with pytest.raises(ValueError, match=f'is in {encoding}: iconv -f {encoding} -t utf-8 mine.conf > new.conf'):
        experiment_list.read_bytes('a: --seed=2'.encode(encoding), 'mine.conf')


def test_a_state_that_is_renamed_while_it_is_looked_at_does_no_harm(tmp_path, monkeypatch):
    for at, name in enumerate(('.begun', 'last.pt', 'last.pt.new'), 1):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    stat = os.stat

    def vanish(path, *args, **options):
        found = stat(path, *args, **options)
        if str(path).endswith('.new'):
            os.unlink(path)  # so that a second look would fail
        return found
    monkeypatch.setattr('os.stat', vanish)
    assert list(experiment_list.saved_states(tmp_path)) == ['last.pt', 'last.pt.new']


def test_one_word_that_is_an_option_is_not_a_line_in_quotes(tmp_path):
    (tmp_path / 'mine.conf').touch()
    for word, line in (('--out_dir=my folder', "'--out_dir=my folder'"), ('a: --seed=2', 'a: --seed=2')):
        assert experiment_list.with_line(tmp_path / 'mine.conf', [word])[1] == line


@pytest.mark.parametrize('name', sorted(n for n in os.listdir(os.path.join(ROOT, 'config')) if n.endswith('.py')))
def test_the_queue_knows_the_settings_of_every_config(name):
    known = settings.read(os.path.join(ROOT, 'train.py'), [f'config/{name}', '--n_layer=3'])
    assert known['n_layer'] == 3 and isinstance(known['dataset'], str)
