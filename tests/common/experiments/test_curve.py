"""Whether a curve is normal: beside a reference, beside another run, and by its shape alone."""
import json
from pathlib import Path

import pytest

from common.experiments import curve, references
from made_curves import NORMAL, TOY, toy, write  # noqa: a fixture


def verdict(folder, other=''):
    return curve.judge(curve.read(folder, other))


RISING = [3.0] * 50 + [2.0] * 40 + [3.5] * 10


@pytest.mark.parametrize('val, steps, expected', [
    (NORMAL, (), 'as expected'), (NORMAL[:2], (), 'as expected'), ([*NORMAL[:-1], 2.11], (), 'slower than expected'),
    ([*NORMAL[:-1], 1.89], (), 'better than expected'), ([*NORMAL[:-1], None], (), 'diverging'),
    ([*NORMAL[:-1], 3.4], RISING, 'diverging'), (NORMAL, RISING, 'as expected'),
    ([4.2, 3.6, 3.3, 3.1, 3.0, 2.9], (), 'slower than expected')])
def test_the_last_evaluation_is_judged_by_the_reference(tmp_path, val, steps, expected):
    assert verdict(write(tmp_path / 'run', val, steps=steps)) == expected


@pytest.mark.parametrize('more, train, expected', [
    ([1.95, 1.9], None, 'as expected'), ([2.5, 4.2], None, 'diverging'),
    ([2.2, 2.5], [*NORMAL, 1.9, 1.8], 'overfitting'), ([2.12, 2.13], [*NORMAL, 2.0, 2.0], 'slower than expected')])
def test_what_comes_after_the_end_of_the_reference_counts_too(tmp_path, more, train, expected):
    folder = write(tmp_path / 'run', [*NORMAL, *more], train)
    assert verdict(folder) == expected
    assert f'since then, where the reference has no figure: {more[-1]:.4f} at 6,000 tokens (iteration 600)' in list(
        curve.lines(curve.read(folder)))


@pytest.mark.parametrize('val, train, expected', [
    ([4.2, 3.5, 3.2, 3.0, 2.8], None, 'falling'), ([4.2, 3.5, 3.31, 3.31, 3.3], None, 'flat'),
    ([4.2, 3.5, 3.0, 3.2, 3.5], [4.2, 3.4, 2.8, 2.2, 1.8], 'overfitting'),
    ([4.2, 3.5, 3.0, 3.2, 3.5], None, 'diverging'), ([4.2, 3.0, None], None, 'diverging'),
    ([4.2, 3.5, 3.2], None, 'too early to say'), ([], None, 'no evaluation yet')])
def test_without_a_reference_the_shape_is_judged(tmp_path, val, train, expected):
    folder = write(tmp_path / 'run', val, train, n_layer=3)
    assert verdict(folder) == expected
    assert 'no reference is known for this model on this data' in list(curve.lines(curve.read(folder)))


def test_a_run_that_comes_down_sooner_may_be_lower(tmp_path):
    assert verdict(write(tmp_path / 'a', [4.2, 2.5], lr_decay_iters=100)) == 'as expected'
    assert verdict(write(tmp_path / 'b', [4.2, 3.2], lr_decay_iters=100)) == 'slower than expected'
    assert any('comes down sooner' in line for line in curve.lines(curve.read(str(tmp_path / 'a'))))


def test_a_run_with_a_much_longer_schedule_is_not_held_to_a_short_one(tmp_path):
    case = curve.read(write(tmp_path / 'run', [4.2, 3.5, 3.3, 3.1, 2.9], lr_decay_iters=900))
    assert case.reference is None and curve.judge(case) == 'falling'
    assert 'has come down after 4,000 tokens, this one only after 9,000' in case.notes[0]


def test_a_finetuned_run_has_no_reference(tmp_path):
    case = curve.read(write(tmp_path / 'run', NORMAL, init_from='gpt2'))
    assert case.reference is None and 'began with the weights of gpt2' in case.notes[0]


def test_of_several_references_the_one_with_the_nearest_recipe_is_taken(tmp_path, monkeypatch):
    other = TOY._replace(name='other', recipe={**TOY.recipe, 'eval_iters': 0})
    monkeypatch.setattr(references, 'REFERENCES', [TOY._replace(recipe={**TOY.recipe, 'eval_iters': 20}), other])
    assert curve.read(write(tmp_path / 'run', NORMAL, eval_iters=0)).reference is other


def test_what_differs_from_the_reference_is_named_and_a_batch_by_its_tokens(tmp_path):
    folder = write(tmp_path / 'run', NORMAL, learning_rate=2e-3, batch_size=1, gradient_accumulation_steps=2)
    assert curve.answer(curve.read(folder))['differences'] == {'learning_rate': (2e-3, 1e-3)}
    folder = write(tmp_path / 'small', NORMAL, batch_size=1)
    assert curve.answer(curve.read(folder))['differences'] == {'tokens an iteration': (5, 10)}


def test_another_run_can_be_the_reference(tmp_path):
    good = write(tmp_path / 'good', NORMAL)
    assert verdict(write(tmp_path / 'same', [loss + 0.03 for loss in NORMAL], seed=2), good) == 'as expected'
    case = curve.read(write(tmp_path / 'worse', [loss + 0.05 for loss in NORMAL], variant='mine'), good)
    assert curve.judge(case) == 'slower than expected' and case.reference.name == 'good'
    assert curve.answer(case)['differences'] == {'variant': ('mine', None)}


def test_larger_models_differ_less_between_seeds(tmp_path):
    good = write(tmp_path / 'good', NORMAL, parameters=124e6)
    assert verdict(write(tmp_path / 'worse', [loss + 0.03 for loss in NORMAL], parameters=124e6), good) == (
        'slower than expected')


def test_a_run_on_other_data_is_no_reference_and_that_is_said(tmp_path):
    other = write(tmp_path / 'other', NORMAL, data=dict(tokenizer='gpt2', vocab_size=50257, val_sha256='b' * 64))
    case = curve.read(write(tmp_path / 'run', NORMAL), other)
    assert case.reference is None and 'different validation texts' in case.notes[0] and curve.judge(case) == 'falling'


def test_the_figures_are_written_out(tmp_path):
    folder = write(tmp_path / 'run', [*NORMAL[:-1], 2.2])
    text = '\n'.join(curve.lines(curve.read(folder)))
    assert 'run: slower than expected\nat 4,000 tokens (iteration 400): yours 2.2000, expected 1.900 to 2.100\n' in text
    assert 'bits per byte: 1.100' in text and 'reference: toy (made by hand)\ntolerance: 0.1 on each side\n' in text
    assert 'iteration     200            2,000 tokens  2.5000  expected 2.400 to 2.600\n' in text


def test_a_run_that_has_just_begun_is_told_when_to_look_again(tmp_path):
    folder = write(tmp_path / 'run', [], steps=[4.0] * 30)
    assert list(curve.lines(curve.read(folder)))[:2] == [
        'run: no evaluation yet', 'no evaluation with a loss yet; the next is due at iteration 200']
    text = '\n'.join(curve.lines(curve.read(write(tmp_path / 'first', [4.17]))))
    assert 'the reference has no figure there, but from 1,000 to 4,000 tokens' in text


def test_a_long_curve_is_thinned_to_its_last_evaluation(tmp_path):
    rows = list(curve.table(curve.read(write(tmp_path / 'run', [4.2 - 0.01 * i for i in range(100)], n_layer=3))))
    assert len(rows) == curve.ROWS and rows[0].split()[1] == '0' and rows[-1].split()[1] == '9,900'


@pytest.mark.parametrize('settings', [
    '', '{', '[1]', '{"n_layer": [2], "dataset": 3, "vocab_size": NaN, "init_from": 1}',
    '{"warmup_iters": "many", "max_iters": {}, "lr_decay_iters": 1e400}'])
def test_damaged_settings_leave_the_shape(tmp_path, settings):
    folder = write(tmp_path / 'run', NORMAL, steps=[2.0] * 60)
    Path(folder, 'settings.json').write_text(settings)
    Path(folder, 'spikes.jsonl').write_text('{"iter": 3')
    case = curve.read(folder)
    assert curve.judge(case) == 'falling' and list(curve.lines(case))
    assert json.loads(curve.as_json(case), parse_constant=pytest.fail)['verdict'] == 'falling'


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match='no metrics.jsonl in .*nothing; give the out_dir of a run'):
        curve.read(str(tmp_path / 'nothing'))
    with pytest.raises(ValueError, match='no metrics.jsonl in other'):
        curve.read(write(tmp_path / 'run', NORMAL), 'other')


def test_a_run_of_train_py_is_judged(trained):
    case = curve.read(trained)
    assert curve.judge(case) in ('falling', 'flat', 'too early to say') and list(curve.lines(case))
