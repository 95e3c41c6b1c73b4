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


@pytest.mark.parametrize('name', sorted(set(os.listdir(os.path.join(ROOT, 'config'))) - {'experiment_list.conf'}))
def test_the_queue_knows_the_settings_of_every_config(name):
    known = settings.read(os.path.join(ROOT, 'train.py'), [f'config/{name}', '--n_layer=3'])
    assert known['n_layer'] == 3 and isinstance(known['dataset'], str)
