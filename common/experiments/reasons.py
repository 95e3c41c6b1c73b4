"""
Why the loss of a run may not be what it should be: each check is a test on what the run wrote (a curve.Case), a
generator of sentences, with nothing to say where all is well. No torch, no numpy.
"""
import itertools
import math
import statistics

from common.experiments.references import LONGER, tokens_per_iter
from common.experiments.runs import is_figure

ENOUGH = 40  # logged iterations, for a trend in them
RISE = 0.02  # share by which a loss rises before that counts: seeds and batches alone move it by 1%
GUESS = 0.9  # share of ln(vocab_size) above which a model has learned nothing yet


def tenths(values):
    """The values in ten parts; [] if there are too few of them for a trend."""
    places = [i * len(values) // 10 for i in range(11)] if len(values) >= ENOUGH else []
    return [values[begin:end] for begin, end in itertools.pairwise(places)]


def not_finite(case):
    values = [(line['iter'], line.get('loss', line.get('val_loss'))) for line in case.run.steps + case.run.evaluations]
    bad = [iteration for iteration, loss in values if loss is None]
    if bad:
        half = ('; dtype=float16 holds no number above 65,504, bfloat16 and float32 do'
                if case.settings.get('dtype') == 'float16' else '')
        yield (f'{len(bad)} of {len(values)} losses are not finite, the first at iteration {min(bad):,}: a lower '
               f'learning rate, or a longer warmup{half}')


def start(case):
    first = case.losses[0] if case.losses and case.losses[0]['iter'] == 0 else None
    if first and case.guess and case.settings.get('init_from', 'scratch') == 'scratch':
        if abs(first['val_loss'] - case.guess) > 0.5:
            yield (f'before any training the loss is {first["val_loss"]:.2f}, and not the ln(vocab_size) = '
                   f'{case.guess:.2f} of a guess: the initialisation was changed, or the loss is')


def learned_nothing(case):
    lowest = min((line['val_loss'] for line in case.losses), default=0)
    if case.last and case.guess and case.last['iter'] > 0 and lowest > GUESS * case.guess:
        yield (f'after {case.last["iter"]:,} iterations the loss is still {case.last["val_loss"]:.2f}; a guess has '
               f'ln(vocab_size) = {case.guess:.2f}: the learning rate is far too low or too high, or the data is not '
               'in this vocabulary (python data/corpus.py check shows a piece of it)')


def worse_than_a_guess(case):
    losses = [(line.get('loss', line.get('val_loss')), line['iter']) for line in case.run.steps + case.run.evaluations]
    highest, iteration = max(((loss, at) for loss, at in losses if loss is not None), default=(0, 0))
    if case.guess and iteration > 0 and highest > case.guess + 0.5:
        yield (f'at iteration {iteration:,} the loss was {highest:.2f}, more than the ln(vocab_size) = '
               f'{case.guess:.2f} of a guess: the learning rate is too high, or rises too fast (warmup_iters)')


def rising(case):
    parts = tenths(case.since_warmup())
    if parts:
        lowest, last = min(map(statistics.mean, parts)), statistics.mean(parts[-1])
        noise = 4 * statistics.stdev(parts[-1]) / math.sqrt(len(parts[-1]))
    else:
        losses = [line['train_loss'] for line in case.losses if line.get('train_loss') is not None]
        losses = losses if len(losses) > 3 else []  # fewer have no trend: a finetuned model gets worse at first
        lowest, last, noise = min(losses, default=0), losses[-1] if losses else 0, 0
    if last - lowest > max(noise, RISE * lowest):
        yield (f'the training loss has been {lowest:.3f} and is {last:.3f}: the learning rate is too high, or what the '
               'run reads now is other text')


def gradients(case):
    norms = [line['grad_norm'] for line in case.run.steps if line.get('grad_norm') is not None]
    middles = [statistics.median(part) for part in tenths(norms)[1:]]
    if middles and middles[-1] > 3 * min(middles):
        yield (f'the norm of the gradient has grown from {min(middles):.2f} to {middles[-1]:.2f}: often the first '
               'sign of a learning rate that is too high')


def skips(case):
    if case.skipped:
        yield (f'{len(case.skipped)} updates were skipped, the last at iteration {max(case.skipped):,}: spikes.jsonl '
               'has their text; many mean that the learning rate is too high')


def overfitting(case):
    known = [line for line in case.losses if line.get('train_loss') is not None]
    best = min(known, key=lambda line: line['val_loss'], default=None)
    if best and known[-1]['val_loss'] > (1 + RISE / 2) * best['val_loss'] and (
            known[-1]['train_loss'] < best['train_loss']):
        yield (f'the validation loss was {best["val_loss"]:.3f} at iteration {best["iter"]:,} and is '
               f'{known[-1]["val_loss"]:.3f}, while the training loss fell from {best["train_loss"]:.3f} to '
               f'{known[-1]["train_loss"]:.3f}: too little text for this model; ckpt.pt has the best weights, more '
               'dropout or fewer iterations give better ones')


def warmup(case):
    length, end = case.number('warmup_iters') or 0, case.number('max_iters')
    if end is not None and length >= end:
        yield f'warmup_iters={length} is not below max_iters={end}: the learning rate never reaches its peak'
    elif case.reached < length:
        yield f'still in the warmup: iteration {case.reached:,} of {length:,}'


def schedule(case):
    end, down = case.number('max_iters'), case.number('lr_decay_iters')
    if case.settings.get('decay_lr') is False:
        yield 'decay_lr=False: the fall at the end, when the learning rate comes down, is missing'
    elif None not in (end, down) and down > LONGER * end:
        yield (f'lr_decay_iters={down} is far beyond max_iters={end}: the learning rate hardly comes down, and the '
               'fall at the end is missing')
    elif down is not None and case.reached < down and not case.reference:
        yield (f'the learning rate comes down until iteration {down:,}, and this is iteration {case.reached:,}: a part '
               'of the fall is still to come')


def dropout(case):
    value = case.number('dropout')
    if value and case.last and case.last.get('train_loss') is not None and case.last['iter'] > 0:
        if case.last['val_loss'] < (1 + RISE / 2) * case.last['train_loss']:
            yield (f'dropout={value:g}, though the validation loss is not above the training loss: text that is not '
                   'seen again and again needs none, and is learned faster without')


def batch(case):
    if case.reference:
        mine, theirs = tokens_per_iter(case.settings), tokens_per_iter(case.reference.recipe)
        if None not in (mine, theirs) and 2 * mine <= theirs:
            yield (f'an iteration has {mine:,} tokens, the reference {theirs:,}: gradient_accumulation_steps makes up '
                   'for fewer or smaller GPUs')


def rates(case):
    for key in ('learning_rate', 'muon_lr'):
        mine = case.number(key)
        theirs = case.reference.recipe.get(key) if case.reference else None
        used = key == 'learning_rate' or case.settings.get('optimizer') == 'muon'
        if used and mine and is_figure(theirs) and theirs and not 1 / 3 < mine / theirs < 3:
            yield f'{key}={mine:g} is {"far above" if mine > theirs else "far below"} the {theirs:g} of the reference'


CHECKS = (not_finite, start, learned_nothing, worse_than_a_guess, rising, gradients, skips, overfitting, warmup,
          schedule, rates, batch, dropout)
