"""
Whether the validation loss of a run comes down as it should: beside a reference (references.py) or another run, else by
its shape alone; with the likeliest reasons (reasons.py). No torch, no numpy.
"""
import json
import math
import os
from dataclasses import dataclass, field

from common.experiments import reasons, references
from common.experiments.records import (Record, comparability, differing, losses_are_comparable, names_of, one_line,
                                        read_file, read_run, short, thinned)
from common.experiments.reasons import RISE, overfitting, rising
from common.experiments.references import LONGER, Reference, expected, tokens_per_iter
from common.experiments.runs import is_figure, whole_lines

ROWS = 8  # of the table
# how far two runs that differ in nothing but the seed are apart, by (parameters, loss): docs/curves.md says from what
SPREADS = [(100_000_000, 0.01), (0, 0.04)]


@dataclass
class Case:
    """A run with what it is judged by."""
    run: Record
    skipped: list                # iterations of the updates in spikes.jsonl
    reference: Reference | None  # None: none fits
    notes: list = field(default_factory=list)

    def __post_init__(self):
        self.settings = self.run.settings
        self.losses = [line for line in self.run.evaluations if line['val_loss'] is not None]
        self.last = self.losses[-1] if self.losses else None
        self.reached = max([line['iter'] for line in self.run.steps + self.run.evaluations], default=0)
        vocabulary = self.number('vocab_size')
        self.guess = math.log(vocabulary) if vocabulary and vocabulary > 1 else None  # the loss of a uniform guess
        self.rows = [(line, self.reference and expected(self.reference, line['tokens'])) for line in self.losses]
        self.compared = [(line, bounds) for line, bounds in self.rows if bounds]

    def number(self, key):
        """A setting that is a number; None if the run does not say it."""
        value = self.settings.get(key)
        return value if is_figure(value) else None

    def since_warmup(self):
        """The training losses after the warmup."""
        return [line['loss'] for line in self.run.steps
                if line['loss'] is not None and line['iter'] >= (self.number('warmup_iters') or 0)]


def read(folder, other=''):
    """The Case of the run in a folder, beside that in the folder `other`, if given. ValueError if there is no run."""
    notes = []
    runs = [read_or_stop(path, notes) for path in (folder, other) if path]
    skipped = []
    try:
        skipped = [line['iter'] for line in whole_lines(read_file(os.path.join(folder, 'spikes.jsonl')).splitlines())]
    except FileNotFoundError:
        pass
    except OSError as error:
        notes.append(f'{folder}/spikes.jsonl left out: {error}')
    if other:
        reference, why = run_as_reference(*runs)
    else:
        reference, why = choose(runs[0])
    return Case(runs[0], skipped, reference, [one_line(note) for note in notes] + why)


def read_or_stop(folder, notes):
    try:
        return read_run(folder, notes)
    except OSError:
        if os.path.exists(os.path.join(folder, 'settings.json')):
            raise ValueError(f'no metrics.jsonl in {folder} yet: its first evaluation is still to come') from None
        raise ValueError(f'no metrics.jsonl in {folder}; give the out_dir of a run') from None


def choose(run):
    """(the Reference that fits a run, None if there is none; [why there is none])."""
    if run.settings.get('init_from', 'scratch') != 'scratch':
        return None, [f'it began with the weights of {short(run.settings["init_from"])}: no reference is for that']
    fitting = [one for one in references.REFERENCES if references.fits(one, run.settings)]
    horizon = references.horizon(run.settings)
    in_time = [one for one in fitting if horizon is None or horizon <= LONGER * references.horizon(one.recipe)]
    if in_time:
        return min(in_time, key=lambda one: len(differences(one.recipe, run.settings))), []
    if fitting:
        longest = max(fitting, key=lambda one: references.horizon(one.recipe))
        return None, [f'the learning rate of the reference that is nearest ({longest.name}) has come down after '
                      f'{references.horizon(longest.recipe):,} tokens, this one only after {horizon:,}: before that it '
                      'has a higher loss']
    return None, ['no reference is known for this model on this data']


def run_as_reference(run, other):
    """(another run as the Reference of a run, [what has to be known of that])."""
    sentences = comparability([run, other])
    if not losses_are_comparable([run, other]):
        return None, sentences
    parameters = other.settings.get('parameters', 0)
    spread = next((spread for least, spread in SPREADS if parameters >= least), SPREADS[-1][1])
    points = [(line['tokens'], line['val_loss'] - spread, line['val_loss'] + spread) for line in other.evaluations
              if line['val_loss'] is not None and line['tokens'] > 0]
    if not points:
        return None, [f'{other.name} has no evaluation after iteration 0', *sentences]
    recipe = {key: values[1] for key, values in differing([run, other]).items() if key != 'data'}
    return Reference(other.name, points=points, recipe={**recipe, **references.batch(other.settings)},
                     source='another run', tolerance=f'{spread:g} on each side, as seeds alone make it'), sentences


def differences(recipe, settings):
    """{setting: (its value in the run, in the reference)} where they differ; the batch as tokens_per_iter."""
    known = {key: settings[key] for key in recipe if key in settings and key not in references.BATCH}
    result = {key: (value, recipe[key]) for key, value in known.items() if value != recipe[key]}
    mine, theirs = tokens_per_iter(settings), tokens_per_iter(recipe)
    if None not in (mine, theirs) and mine != theirs:
        result = {'tokens an iteration': (mine, theirs), **result}
    return result


# -- the verdict ---------------------------------------------------------------

def judge(case):
    """'as expected', 'slower than expected', 'better than expected', 'diverging'; without a reference the shape()."""
    if not case.compared:
        return shape(case)
    line, (low, high) = case.compared[-1]
    if case.run.evaluations[-1]['val_loss'] is None:
        return 'diverging'
    worst = max(line['val_loss'], case.last['val_loss'])  # the last may be beyond the end of the reference
    if worst > high and any(rising(case)):
        return 'diverging'
    if worst > high:
        return 'overfitting' if case.last is not line and any(overfitting(case)) else 'slower than expected'
    return 'better than expected' if line['val_loss'] < low and not decays_sooner(case) else 'as expected'


def shape(case):
    """'falling', 'flat', 'overfitting', 'diverging', or 'too early to say', from the run alone."""
    if not case.run.evaluations:
        return 'no evaluation yet'
    if case.run.evaluations[-1]['val_loss'] is None or any(rising(case)):
        return 'diverging'
    trained = [line for line in case.losses if line['iter'] > 0]
    if len(trained) < 3:
        return 'too early to say'
    if any(overfitting(case)):
        return 'overfitting'
    before = max((line for line in trained if 2 * line['tokens'] <= case.last['tokens']), key=lambda line: line['iter'],
                 default=trained[0])
    return 'falling' if case.last['val_loss'] < (1 - RISE / 2) * before['val_loss'] else 'flat'


def decays_sooner(case):
    """Whether the learning rate comes down so much sooner than the reference's that a lower loss is no surprise."""
    mine, theirs = references.horizon(case.settings), references.horizon(case.reference.recipe)
    return None not in (mine, theirs) and LONGER * mine < theirs


# -- the answer ----------------------------------------------------------------

def answer(case):
    """Everything as a dict for programs."""
    at, bounds = case.compared[-1] if case.compared else (case.last or {}, None)
    reference = case.reference
    return {'run': case.run.name, 'verdict': judge(case),
            **{key: at.get(key) for key in ('iter', 'tokens', 'val_loss', 'bits_per_byte')}, 'expected': bounds,
            'reference': reference and {key: getattr(reference, key) for key in ('name', 'source', 'tolerance')},
            'curve': [{'iter': line['iter'], 'tokens': line['tokens'], 'val_loss': line['val_loss'], 'expected': bounds}
                      for line, bounds in case.rows],
            'differences': differences(reference.recipe, case.settings) if reference else {},
            'reasons': {check.__name__: sentences for check in reasons.CHECKS if (sentences := list(check(case)))},
            'notes': case.notes}


def as_json(case):
    return json.dumps(answer(case), indent=1)


def lines(case):
    """The same for people, line by line."""
    result = answer(case)
    yield f'{result["run"]}: {result["verdict"]}'
    if not case.last:
        yield 'no evaluation with a loss yet' + next_evaluation(case)
    else:
        reach = ('' if result['expected'] or not case.reference else
                 '; the reference has no figure there, but from {:,} to {:,} tokens'.format(
                     case.reference.points[0][0], case.reference.points[-1][0]))
        yield (f'at {result["tokens"]:,} tokens (iteration {result["iter"]:,}): yours {result["val_loss"]:.4f}'
               + (f', expected {interval(result["expected"])}' if result['expected'] else reach))
        if result['expected'] and case.last['tokens'] > result['tokens']:
            yield (f'since then, where the reference has no figure: {case.last["val_loss"]:.4f} at '
                   f'{case.last["tokens"]:,} tokens (iteration {case.last["iter"]:,})')
    if result['bits_per_byte'] is not None:
        yield f'bits per byte: {result["bits_per_byte"]:.3f}, which can be compared between vocabularies'
    if case.reference:
        yield f'reference: {case.reference.name} ({case.reference.source})'
        yield f'tolerance: {case.reference.tolerance}'
        if decays_sooner(case) and result['verdict'] == 'as expected':
            yield "the learning rate comes down sooner than the reference's: a lower loss is no surprise"
    yield from case.notes
    yield from table(case)
    if result['differences']:
        yield 'other settings: ' + names_of([f'{key}={short(mine)} (reference {short(theirs)})'
                                             for key, (mine, theirs) in result['differences'].items()])
    for sentences in result['reasons'].values():
        yield from (f'- {sentence}' for sentence in sentences)
    if case.last and not result['reasons']:
        yield 'nothing odd in what the run wrote'


def next_evaluation(case):
    """When the next one is due, if that is known."""
    every = case.number('eval_interval')
    return f'; the next is due at iteration {-(-(case.reached + 1) // every) * every:,}' if every else ''


def interval(bounds):
    return f'{bounds[0]:.3f} to {bounds[1]:.3f}'


def table(case):
    """The evaluations beside what is expected, evenly thinned, the last one always; nothing for a single one."""
    rows = case.compared or case.rows
    for line, bounds in thinned(rows, ROWS) if len(rows) > 1 else ():
        yield (f'iteration {line["iter"]:>7,}  {line["tokens"]:>15,} tokens  {line["val_loss"]:.4f}'
               + (f'  expected {interval(bounds)}' if bounds else ''))
