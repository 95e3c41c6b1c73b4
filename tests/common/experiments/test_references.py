"""The losses to expect: which runs a reference is for, what lies between its points, and what docs/curves.md shows."""
import os
import re

import pytest

from common.experiments import references
from common.experiments.references import REFERENCES, Reference, expected, fits, horizon
from running import ROOT

TWO = Reference('two', points=[(1000, 3.0, 4.0), (100_000, 2.0, 2.5)])


def test_between_two_points_the_loss_is_on_a_straight_line_in_log_tokens():
    assert expected(TWO, 10_000) == pytest.approx((2.5, 3.25))
    assert expected(TWO, 1000) == (3.0, 4.0) and expected(TWO, 100_000) == (2.0, 2.5)


def test_a_little_beyond_the_last_point_holds_the_last_and_further_on_nothing():
    assert expected(TWO, 104_000) == (2.0, 2.5)
    assert expected(TWO, 999) is None and expected(TWO, 106_000) is None


@pytest.mark.parametrize('one', REFERENCES, ids=[one.name for one in REFERENCES])
def test_each_reference_is_in_order_and_says_where_it_comes_from(one):
    tokens, lows, highs = zip(*one.points)
    assert list(tokens) == sorted(set(tokens)) and tokens[0] > 0
    assert all(0 < low < high < 11 for low, high in zip(lows, highs))
    assert one.source and one.tolerance and one.datasets and one.model
    assert tokens[-1] <= references.BEYOND * horizon(one.recipe), 'its points go on after its learning rate is down'


def test_names_are_different():
    assert len({one.name for one in REFERENCES}) == len(REFERENCES)


@pytest.mark.parametrize('change, same', [
    ({}, True), ({'dataset': '/elsewhere/shakespeare_char/'}, True), ({'dataset': 'mine'}, True),
    ({'n_layer': 6}, False), ({'modern': True}, False), ({'data': {}, 'dataset': 'mine'}, False),
    ({'data': {'tokenizer': 'char', 'val_sha256': 'f' * 64}}, False),
    ({'data': {}}, True), ({'data': {'tokenizer': 'gpt2'}}, False),
    ({'learning_rate': 3.0}, True)])
def test_a_corpus_is_known_by_its_hash_and_else_by_its_name(change, same):
    classic = next(one for one in REFERENCES if one.model == dict(n_layer=4, n_embd=128, modern=False))
    settings = dict(dataset='shakespeare_char', n_layer=4, n_embd=128, modern=False,
                    data=dict(tokenizer='char', val_sha256=classic.val_sha256))
    assert fits(classic, {**settings, **change}) is same


def test_the_horizon_is_unknown_where_the_learning_rate_never_comes_down():
    settings = dict(gradient_accumulation_steps=2, batch_size=3, block_size=5, lr_decay_iters=7)
    assert horizon(settings) == 210
    assert horizon({**settings, 'decay_lr': False}) is horizon({**settings, 'block_size': '5'}) is None


def test_the_document_shows_the_same_points():
    """Under a heading with the name of each reference, a row for each of its points."""
    with open(os.path.join(ROOT, 'docs', 'curves.md'), encoding='utf-8') as f:
        sections = dict(re.findall(r'^### (.*)\n((?:(?!^#).*\n?)*)', f.read(), flags=re.MULTILINE))
    for one in REFERENCES:
        step = references.tokens_per_iter(one.recipe)
        rows = [f'| {round(tokens / step):,} | {tokens:,} | {low:.3f} to {high:.3f} |'
                for tokens, low, high in one.points]
        assert one.name in sections, f'docs/curves.md has no heading ### {one.name}'
        shown = [line for line in sections[one.name].splitlines() if re.match(r'\| \d', line)]
        assert shown == rows, 'docs/curves.md needs these rows under ### ' + '\n'.join([one.name, *rows])
