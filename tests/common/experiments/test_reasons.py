"""Each reason is given for a run that has it, and for no other."""
import pytest

from common.experiments import curve, reasons
from made_curves import NORMAL, toy, write  # noqa: a fixture

FALLING = [4.0 - 0.02 * i for i in range(100)]


def found(folder, *more):
    """The reasons of a run, {name of the check: its sentence}."""
    return {name: sentences[0] for name, sentences in curve.answer(curve.read(folder, *more))['reasons'].items()}


def test_a_healthy_run_has_no_reason(tmp_path):
    folder = write(tmp_path / 'run', NORMAL, steps=FALLING)
    assert found(folder) == {} and list(curve.lines(curve.read(folder)))[-1] == 'nothing odd in what the run wrote'


@pytest.mark.parametrize('check, made, sentence', [
    ('not_finite', dict(val=NORMAL, steps=[2.0] * 50 + [None] * 3), '3 of 58 losses are not finite, the first at iter'),
    ('start', dict(val=[9.0, *NORMAL[1:]]), 'before any training the loss is 9.00, and not the ln(vocab_size) = 4.17'),
    ('learned_nothing', dict(val=[4.17, 4.1, 4.0]), 'after 200 iterations the loss is still 4.00'),
    ('worse_than_a_guess', dict(val=NORMAL, steps=[4.0, 80.0, *FALLING]), 'at iteration 4 the loss was 80.00'),
    ('rising', dict(val=NORMAL, steps=[3.0] * 50 + [2.0] * 40 + [2.6] * 10), 'has been 2.000 and is 2.600'),
    ('rising', dict(val=NORMAL, train=[4.0, 3.0, 2.0, 2.1, 2.2]), 'has been 2.000 and is 2.200'),
    ('gradients', dict(val=NORMAL, steps=FALLING, norms=[9.0] * 10 + [1.0] * 60 + [4.0] * 30), 'from 1.00 to 4.00'),
    ('skips', dict(val=NORMAL, spikes=[7, 60, 30]), '3 updates were skipped, the last at iteration 60'),
    ('overfitting', dict(val=[4.2, 3.0, 2.5, 2.6, 2.8], train=[4.2, 2.9, 2.2, 1.8, 1.4]),
     'was 2.500 at iteration 200 and is 2.800, while the training loss fell from 2.200 to 1.400'),
    ('warmup', dict(val=NORMAL, warmup_iters=500), 'warmup_iters=500 is not below max_iters=400'),
    ('warmup', dict(val=NORMAL, warmup_iters=500, max_iters=5000), 'still in the warmup: iteration 400 of 500'),
    ('schedule', dict(val=NORMAL, decay_lr=False), 'decay_lr=False'),
    ('schedule', dict(val=NORMAL, lr_decay_iters=600_000), 'lr_decay_iters=600000 is far beyond max_iters=400'),
    ('schedule', dict(val=NORMAL, n_layer=3, lr_decay_iters=500, max_iters=500), 'comes down until iteration 500'),
    ('rates', dict(val=NORMAL, learning_rate=1e-4), 'learning_rate=0.0001 is far below the 0.001 of the reference'),
    ('rates', dict(val=NORMAL, learning_rate=0.1), 'learning_rate=0.1 is far above'),
    ('batch', dict(val=NORMAL, block_size=1), 'an iteration has 2 tokens, the reference 10'),
    ('dropout', dict(val=NORMAL, dropout=0.2), 'dropout=0.2, though the validation loss is not above')])
def test_a_run_that_has_it_is_told(tmp_path, check, made, sentence):
    told = found(write(tmp_path / 'run', **made))
    assert sentence in told.pop(check)
    assert not told.keys() & {'not_finite', 'learned_nothing', 'skips', 'overfitting'}, told


@pytest.mark.parametrize('check, made', [
    ('start', dict(val=[9.0, *NORMAL[1:]], init_from='gpt2')), ('start', dict(val=NORMAL, vocab_size=None)),
    ('learned_nothing', dict(val=[4.17])), ('worse_than_a_guess', dict(val=[9.0, *NORMAL[1:]])),
    ('rising', dict(val=NORMAL, steps=[3.0, 1.0] * 50)),  # noise
    ('rising', dict(val=NORMAL, steps=[2.0] * 10 + [3.0] * 90, warmup_iters=60)),
    ('gradients', dict(val=NORMAL, steps=FALLING, norms=[1.0] * 70 + [2.9] * 30)),
    ('gradients', dict(val=NORMAL, steps=FALLING, norms=[None] * 100)),
    ('gradients', dict(val=NORMAL, steps=FALLING, norms=[0.1] * 10 + [1.0] * 90)),  # of a beginning with zeros
    ('overfitting', dict(val=[4.2, 3.0, 2.5, 2.6], train=[4.2, 2.9, 2.2, 2.3])),
    ('overfitting', dict(val=[4.2, 3.0, 2.5, 2.51], train=[4.2, 2.9, 2.2, 1.8])),
    ('schedule', dict(val=NORMAL, lr_decay_iters=500, max_iters=400, n_layer=2)),
    ('rates', dict(val=NORMAL, learning_rate=2.9e-3)), ('batch', dict(val=NORMAL, batch_size=100)),
    ('dropout', dict(val=NORMAL, train=[loss - 0.2 for loss in NORMAL], dropout=0.2))])
def test_one_that_does_not_is_not(tmp_path, check, made):
    assert check not in found(write(tmp_path / 'run', **made))


def test_every_check_is_tried_here():
    marks = test_a_run_that_has_it_is_told.pytestmark[0].args[1]
    assert {case[0] for case in marks} == {check.__name__ for check in reasons.CHECKS}
