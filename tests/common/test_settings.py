"""What settings.check() refuses, and whether its advice helps."""
import ast
import os
import random
import re

import pytest

from common import settings
from running import ROOT

TRAIN = settings.read(os.path.join(ROOT, 'train.py'))
SMALL = {**TRAIN, 'n_layer': 1, 'n_head': 1, 'n_embd': 2, 'batch_size': 1, 'block_size': 1, 'modern': True,
         'gradient_accumulation_steps': 6, 'eval_interval': 10, 'keep_interval': 20, 'optimizer': 'muon',
         'schedule': 'wsd', 'learning_rate': 1e-3, 'min_lr': 1e-4, 'warmup_iters': 2, 'lr_decay_iters': 20}
WHOLE = [key for key, value in TRAIN.items() if type(value) is int]


def complaints_about(these, processes=1):
    """What settings.check() says: a list of one message, or of none."""
    try:
        settings.check(these, processes)
    except ValueError as error:
        return [str(error)]
    return []


def options(message):
    """The ways out that a message offers, each a dict of settings."""
    key = message.partition('=')[0]
    if 'try --' in message:
        offered = [re.findall(r'--(\w+)=(\S+)', words) for words in message.partition('try ')[2].split(' or ')]
        offered = [dict(words) for words in offered if words]
    elif limit := re.search(r' is (below|above) (\d+)$', message):
        offered = [{key: limit[2]}]
    elif known := re.search(r' is not one of (.*)$', message):
        offered = [{key: value} for value in known[1].split(', ')]
    else:
        offered = [{key: {'is not below 1': '0.5', 'is not a finite number': '1.0'}[message.partition(' ')[2]]}]
    return [{key: value if type(TRAIN[key]) is str else type(TRAIN[key])(ast.literal_eval(value))
             for key, value in words.items()} for words in offered]


def follow(these, processes, complaints=()):
    """Follow each piece of advice, to settings that pass. AssertionError if a complaint comes again on the way."""
    for message in complaints_about(these, processes):
        kind = re.sub(r'=\S+|\b\d[\d.e+-]*', '', message.partition('; try')[0])
        assert kind not in complaints, f'{message}\nafter {complaints}'
        assert len(complaints) < 12, complaints
        offered = options(message)
        assert offered, message
        for words in offered:
            assert all(value <= 2**63 - 1 for value in words.values() if type(value) is int), message
            follow({**these, **words}, processes, (*complaints, kind))


POOLS = {'n_layer': [0, 1, 10**12], 'n_head': [0, 1, 2, 3, 7, 12, 99999, 10**6, 2**62],
         'n_embd': [0, 1, 2, 33, 34, 37, 768, 9973, 10**9], 'modern': [False, True],
         'activation': ['gelu', 'gelu_tanh', 'relu'], 'batch_size': [0, 10**12], 'block_size': [0, 2**62],
         'gradient_accumulation_steps': [0, 1, 5, 6, 999, 10**9], 'eval_iters': [0, 2**62],
         'eval_interval': [0, 1, 10, 10**9, 2**62], 'keep_interval': [0, 1, 7, 25, 10**9 + 1, 2**62 + 1, 2**63 - 1],
         'optimizer': ['adamw', 'muon', 'sgd'], 'schedule': ['cosine', 'linear', 'wsd', 'step'],
         'learning_rate': [0.0, 5e-324, 1e-3, 1e400], 'muon_lr': [0.0, 0.02, 1e400],
         'min_lr': [0.0, 5e-324, 1e-4, 1.0, 1e400], 'decay_lr': [True, True, True, False],
         'warmup_iters': [0, 1, 19, 20, 99, 993, 2**62], 'lr_decay_iters': [0, 1, 2, 20, 100, 1000, 10**12, 2**62 + 1],
         'cooldown': [0.0, 1e-300, 0.07, 0.29, 0.5, 0.95, 1.0, 1.5, 1e400], 'dropout': [0.0, 1.0, 1e400],
         'beta1': [0.0, 1.0], 'beta2': [0.999, 2.0], 'weight_decay': [0.1, 1e400], 'spike_z': [0.0, 1e400],
         'max_skips': [0, 10], 'log_interval': [0, 1], 'fsdp': [False, True],
         'compress_gradients': [False, False, True]}


@pytest.mark.parametrize('seed', range(4))
def test_advice_that_is_followed_helps(seed):
    choose = random.Random(seed)
    refused = 0
    for _ in range(300):
        keys = choose.sample(sorted(POOLS), choose.randint(1, 5))
        these = {**choose.choice([TRAIN, SMALL]), **{key: choose.choice(POOLS[key]) for key in keys}}
        processes = choose.choice([1, 1, 2, 3, 8])
        these['gradient_accumulation_steps'] *= processes if choose.random() < 0.5 else 1
        follow(these, processes)
        refused += len(complaints_about(these, processes))
    assert refused > 100


def test_advice_about_the_schedule_helps_at_every_place():
    for decay in (0, 1, 2, 3, 20, 100, 1000):
        for warmup in sorted({0, 1, decay // 2, decay * 93 // 100, decay - 1, decay, decay + 1} - {-1}):
            for cooldown in (1e-300, 0.07, 0.29, 0.3, 0.5, 0.57, 0.93, 0.99, 1.0):
                follow({**SMALL, 'warmup_iters': warmup, 'lr_decay_iters': decay, 'cooldown': cooldown}, 1)


def test_advice_about_the_shape_helps_at_every_place():
    for n_embd in range(1, 36):
        for n_head in range(1, 40):
            for modern in (False, True):
                follow({**TRAIN, 'n_embd': n_embd, 'n_head': n_head, 'modern': modern}, 1)


@pytest.mark.parametrize('key', WHOLE)
def test_a_size_that_nobody_means_is_refused_and_a_number_without_end_is_not(key):
    """max_iters=10**9 is how to train until stopped; batch_size=10**9 is a slip."""
    for value in (10**9, 10**12, 2**62, 2**63 - 1):
        complaints = complaints_about({**TRAIN, key: value})
        if key in settings.LARGEST:
            assert complaints == [f'{key}={value} is above {settings.LARGEST[key]}']
        elif key not in ('warmup_iters', 'keep_interval'):  # which depend on others
            assert complaints == []


@pytest.mark.parametrize('key', [key for key, value in TRAIN.items() if type(value) is float])
def test_a_float_without_end_is_refused_where_it_cannot_be_used(key):
    complaints = complaints_about({**TRAIN, key: float('inf')})
    assert complaints == ([] if key == 'grad_clip' else [f'{key}=inf is not a finite number'])


def test_a_cooldown_may_begin_where_the_warmup_ends():
    for cooldown, warmup in ((0.07, 93), (0.29, 71), (0.57, 43), (1.0, 0)):
        these = {**SMALL, 'schedule': 'wsd', 'lr_decay_iters': 100, 'cooldown': cooldown, 'warmup_iters': warmup}
        settings.check(these, 1)
        with pytest.raises(ValueError, match='overlap'):
            settings.check({**these, 'warmup_iters': warmup + 1}, 1)


def test_an_out_dir_that_cannot_be_a_folder_is_refused_unless_nothing_is_written(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('nowhere')
    for out_dir in ('', tmp_path / 'file', tmp_path / 'file' / 'sub', tmp_path / 'link'):
        these = {**TRAIN, 'out_dir': str(out_dir)}
        with pytest.raises(ValueError, match='^out_dir='):
            settings.check(these, 1)
        settings.check({**these, 'eval_only': True}, 1)
    settings.check({**TRAIN, 'out_dir': str(tmp_path / 'new' / 'run')}, 1)
    assert sorted(os.listdir(tmp_path)) == ['file', 'link']


def test_a_scripts_settings_are_read_as_it_would_take_them(tmp_path):
    (tmp_path / 'one.py').write_text('batch_size = 3\n')
    found = settings.read(os.path.join(ROOT, 'train.py'), [str(tmp_path / 'one.py'), '--seed=5'])
    assert (found['batch_size'], found['seed']) == (3, 5)
    assert settings.read(os.path.join(ROOT, 'train.py'), settings.words(found)) == found
    with pytest.raises(ValueError, match='^unknown setting --sed=5; did you mean seed'):
        settings.read(os.path.join(ROOT, 'train.py'), ['--sed=5'])
