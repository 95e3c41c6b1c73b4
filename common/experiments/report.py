"""The report on runs: a table on the terminal and for programs; page.py draws the curves. No torch."""
import csv
import io
import json
import math
import os
import shlex
import statistics
import sys
from typing import NamedTuple

from common import console, files
from common.console import duration, perplexity
from common.experiments import naming, page, welch
from common.experiments.records import (comparability, differing, groups, losses_are_comparable, one_line, read_all,
                                        short, twins)

# the figures of a run: key, heading of the table, and how it is written there
FIGURES = {'parameters': ('parameters', lambda count: f'{count / 1e6:.2f}M'),
           'best_val_loss': ('best val loss', '{:.4f}'.format), 'bits_per_byte': ('bits per byte', '{:.4f}'.format),
           'perplexity': ('perplexity', '{:.2f}'.format), 'accuracy': ('accuracy', '{:.1%}'.format),
           'tokens': ('tokens', '{:,.0f}'.format), 'train_s': ('training time', duration),
           'tok_s': ('tokens/s', '{:,.0f}'.format)}


class Row(NamedTuple):
    """A row of the table: a run, or a group of runs that differ only in their seed."""
    kind: str         # run or group
    name: str
    members: list     # Records
    figures: dict     # {key: number, None if not known}; of a group, the means
    deviations: dict  # of a group, the standard deviations of the sample
    remark: str       # why there is no time to the target
    difference: float | None = None  # of a group, its mean best_val_loss less that of the first group
    p_value: float | None = None     # how often seeds alone would make such a difference; None also if none varies

    @property
    def done(self):
        return all(run.done for run in self.members)


def rows_of(runs, target=None):
    """The Rows of all runs, then those of the groups of several."""
    rows = [measure(run, target) for run in runs]
    places = {id(run): row for run, row in zip(runs, rows)}
    averages = [average(label, [places[id(run)] for run in members]) for label, members in groups(runs).items()
                if len(members) > 1]
    return rows + [compare(row, averages[0]) for row in averages]


def measure(run, target):
    """The Row of a run."""
    best = min(known_evaluations(run), key=lambda line: line['val_loss'], default={})
    last = max([*run.steps[-1:], *run.evaluations[-1:]], key=lambda line: line['tokens'], default={})
    loss, seconds = best.get('val_loss'), last.get('train_s')
    figures = {'parameters': run.settings.get('parameters'), 'best_val_loss': loss,
               'bits_per_byte': best.get('bits_per_byte'),
               'perplexity': None if loss is None else perplexity(loss),
               'accuracy': best.get('val_acc'), 'tokens': last.get('tokens'), 'train_s': seconds,
               'tok_s': last['tokens'] / seconds if seconds else None}
    remark = ''
    if target is not None:
        figures['train_s_to_target'], figures['tokens_to_target'], remark = time_to(run, target)
    figures = {key: value if value is not None and math.isfinite(value) else None for key, value in figures.items()}
    return Row('run', run.name, [run], figures, {}, remark)


def known_evaluations(run):
    return [line for line in run.evaluations if line['val_loss'] is not None]


def time_to(run, target):
    """
    (seconds of training, tokens, '') at which the validation loss of a run came down to `target`, on a straight line
    between two evaluations; (None, None, why) if that is not known.
    """
    before = None
    for line in known_evaluations(run):
        if line['val_loss'] <= target:
            if before is None:
                return None, None, ('before the first step' if line['tokens'] <= 0 else
                                    f'within the first {line["tokens"]:,} tokens')
            share = (before['val_loss'] - target) / (before['val_loss'] - line['val_loss'])
            return *(before[key] + share * (line[key] - before[key]) for key in ('train_s', 'tokens')), ''
        before = line
    if before is None:
        return None, None, 'no evaluation'
    return None, None, f'missed by {min(line["val_loss"] for line in known_evaluations(run)) - target:.4f}'


def average(label, rows):
    """The Row of a group from those of its runs; a figure that not all of these have is not known."""
    columns = {key: [row.figures[key] for row in rows] for key in rows[0].figures}
    known = {key: values for key, values in columns.items() if None not in values}
    remarks = {row.remark for row in rows}
    if len(remarks) > 1:
        remarks = {f'{sum(not row.remark for row in rows)} of {len(rows)} reached it'}
    return Row('group', label, [run for row in rows for run in row.members],
               {key: statistics.mean(known[key]) if key in known else None for key in columns},
               {key: statistics.stdev(values) for key, values in known.items()}, remarks.pop())


def compare(row, first):
    """The Row of a group with its difference from the first group, if both are done and their losses comparable."""
    losses = [each.figures['best_val_loss'] for each in (row, first)]
    comparable = row.done and first.done and losses_are_comparable(row.members + first.members)
    if row is first or None in losses or not comparable:
        return row
    difference = losses[0] - losses[1]
    spreads = [(each.deviations['best_val_loss'], len(each.members)) for each in (row, first)]
    return row._replace(difference=difference, p_value=welch.p_value(difference, *spreads))


def difference_text(row):
    if row.difference is None:
        return '-'
    chance = '' if row.p_value is None else ' (p<0.001)' if row.p_value < 0.001 else f' (p={row.p_value:.2g})'
    return f'{row.difference:+.4f}{chance}'


def table_columns(runs, target=None):
    """The columns of the table, {heading: [text for each of rows_of()]}; '-' where a figure is not known."""
    rows = rows_of(runs, target)

    def text(row, key, form):
        if row.figures[key] is None:
            return '-'
        deviation = row.deviations.get(key)
        return form(row.figures[key]) + (f' ± {form(deviation)}' if deviation else '')

    result = {'run': [row.name + ': mean ± std' * (row.kind == 'group') + ' (not done)' * (not row.done)
                      for row in rows]}
    for key, (heading, form) in FIGURES.items():
        if key != 'bits_per_byte' or any(row.figures[key] is not None for row in rows):  # older runs have none
            result[heading] = [text(row, key, form) for row in rows]
    if target is not None:
        for heading, key, form in (('time', 'train_s_to_target', duration),
                                   ('tokens', 'tokens_to_target', '{:,.0f}'.format)):
            first = rows[0].figures[key] if losses_are_comparable(runs) else None
            result[f'{heading} to {target:g}'] = [
                (row.remark if heading == 'time' else '-') if row.figures[key] is None else
                text(row, key, form) + (f' ({row.figures[key] / first:.2f}x)' if first else '') for row in rows]
    if any(row.difference is not None for row in rows):
        result['val loss against the first group'] = [difference_text(row) for row in rows]
    return result


def table(runs, target=None):
    """The table for the terminal, line by line."""
    columns = [[heading, *texts] for heading, texts in table_columns(runs, target).items()]
    if differ := differing(runs).items():
        first = next(i for i, run in enumerate(runs) if run.settings)
        changes = [' '.join(f'{key}={short(values[i])}' for key, values in differ if values[i] != values[first])
                   if run.settings else 'not known' for i, run in enumerate(runs)]
        columns.append([f'differs from {"the first" if first == 0 else runs[first].name} by', *changes,
                        *[''] * (len(columns[0]) - 1 - len(runs))])
    return console.table(zip(*columns))


def terminal_text(runs, target):
    """The table and what has to be known, in characters that stdout has."""
    text = '\n'.join([*table(runs, target), '', *remarks(runs, target), ''])
    return text if '±'.encode(sys.stdout.encoding, 'ignore') else text.replace('± ', '+-')


def remarks(runs, target):
    """What a reader of the table has to know, line by line."""
    if target is not None:
        yield (f'time and tokens to {target:g}: of training, without evaluations and saves; on a straight line between '
               'two evaluations')
        if not losses_are_comparable(runs):
            yield f'{target:g} is not the same loss in all of these runs: the times to it cannot be compared'
    if any(row.difference is not None for row in rows_of(runs)):
        yield ("p: how often seeds alone would make a difference at least as large, by Welch's t-test; of variants "
               'that change nothing one in twenty has p < 0.05')
    yield from comparability(runs)
    yield from twins(runs)


def flat_rows(runs, target):
    """Each Row as a flat dict of full precision, for programs."""
    differ, places = differing(runs), {id(run): i for i, run in enumerate(runs)}
    labels = {id(run): label for label, members in groups(runs).items() for run in members}
    for row in rows_of(runs, target):
        first = row.members[0]
        flat = {'kind': row.kind, 'name': row.name, 'group': labels[id(first)], 'runs': len(row.members),
                'done': row.done, **row.figures, 'best_val_loss_difference': row.difference, 'p_value': row.p_value,
                'remark': row.remark}
        if row.kind == 'run':
            flat |= {'out_dir': first.folder, 'seed': first.settings.get('seed')}
        yield {**flat, **{f'{key}_std': value for key, value in row.deviations.items()},
               **{f'settings.{key}': values[places[id(first)]] for key, values in differ.items()}}


def as_csv(runs, target=None):
    """The table as CSV with a heading: a row for each run, then for each group of runs that differ in their seed."""
    rows, out = list(flat_rows(runs, target)), io.StringIO()
    writer = csv.DictWriter(out, dict.fromkeys(key for row in rows for key in row), lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow({key: one_line(value) if isinstance(value, str) else value for key, value in row.items()})
    return out.getvalue()


def as_json(runs, notes, target=None):
    """The same as JSON, with what cannot be compared, and what was left out."""
    rows = list(flat_rows(runs, target))
    return json.dumps({'target': target, 'remarks': list(remarks(runs, target)), 'notes': notes,
                       'runs': [row for row in rows if row['kind'] == 'run'],
                       'groups': [row for row in rows if row['kind'] == 'group']}, indent=1) + '\n'


def check_options(options):
    """ValueError if the options of the report command cannot be followed. Makes the folders of its files."""
    if options.target is not None and not math.isfinite(options.target):
        raise ValueError(f'--target={options.target:g} is no loss; give a number, as in --target=1.9')
    places = [(f'--{name}', path, path) for name, path in (('csv', options.csv), ('json', options.json)) if path != '-']
    places = [place for place in places if place[1] is not None]
    if '-' in (options.csv, options.json):
        if options.csv == options.json or options.serve:
            raise ValueError('- is stdout, for one table alone: name a file for the other one, and leave out --serve')
    elif options.serve:
        page.check_port(options.port)
    else:
        places += [('--out', options.out, options.out and f'{options.out}{end}') for end in ('.html', '.png')]
    files_named = [os.path.realpath(path) for _, _, path in places]
    for (option, value, path), real in zip(places, files_named):
        folder = os.path.dirname(value) or '.'
        if not os.path.basename(value):
            raise ValueError(f'{option}={value!r} names no file; leave it out, or give a name')
        if files_named.count(real) > 1:
            raise ValueError(f'{option}={value!r}: another option names the same file; give each its own')
        files.check_folder(folder, option)
        if owner := owner_of(real, options.list):
            raise ValueError(f'{option}={value!r}: {path} is {owner}; give another name')
        if files.exists(path) and not os.path.isfile(path):
            what = 'a folder' if os.path.isdir(path) else 'no regular file'
            raise ValueError(f'{option}={value!r}: {path} is {what}; give another name')
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise ValueError(f'{option}={value!r}: nothing can be written in {folder}; name another folder')


def owner_of(path, experiments):
    """What a report must not replace, if this path is such a file. experiments: the list of the queue."""
    folder, name = os.path.split(path)
    if naming.place(path) == naming.place(experiments):
        return 'the list of experiments'
    if naming.STATE_FILE.search(name) and naming.place(folder) == naming.place('results'):
        return 'a name that a queue may use'
    is_run = any(os.path.exists(os.path.join(folder, up, 'metrics.jsonl')) for up in ('', os.pardir))
    if is_run and (name == 'settings.json' or not name.endswith(('.csv', '.json', '.html', '.png'))):
        return 'a name that the run in this folder may use'


def main(folders, options, hint):
    """
    Print the table; write the page and the picture, or serve the page. folders() returns the runs' folders; `hint` says
    in a command which list is meant.
    """
    check_options(options)
    missing = [folder for folder in options.out_dir if not os.path.exists(os.path.join(folder, 'metrics.jsonl'))]
    if missing:
        raise ValueError(f'no metrics.jsonl in {", ".join(map(shlex.quote, missing))}; give the out_dir of a run')

    def find_runs():
        runs, notes = read_all(folders())
        if not runs and options.out_dir:
            raise ValueError('none of these runs can be read now' + ''.join(f'; {line}' for line in notes))
        if not runs:
            raise ValueError(f'nothing in {options.list} has run yet; start it with python run_manager.py run{hint}, '
                             'or name another --list=FILE, or the out_dir of a run')
        return runs, notes

    runs, notes = find_runs()
    for line in notes:
        print(line, file=sys.stderr)
    tables = {options.csv: as_csv(runs, options.target), options.json: as_json(runs, notes, options.target)}
    tables.pop(None, None)
    alone = tables.pop('-', None)  # on stdout
    print(alone or terminal_text(runs, options.target), end='')
    for path, text in tables.items():
        with files.write_whole(path) as f:
            f.write(text)
        print(f'wrote {path}', file=sys.stderr if alone else sys.stdout)
    if alone:
        return
    if options.serve:
        page.library()  # missing, it has to be said here
        return page.serve(lambda: content(*find_runs(), options.target), options.port)
    with files.write_whole(f'{options.out}.html') as f:
        f.write(page.page(content(runs, notes, options.target)))
    with files.write_whole(f'{options.out}.png', 'wb') as f:
        no_font = page.picture(runs, f, options.target)
    if no_font:
        print(f'no font here has {no_font[:20]}, drawn as boxes in {options.out}.png; apt install fonts-nanum (for '
              f'Hangul) or fonts-noto-cjk; {options.out}.html takes the fonts of the browser')
    print(f'wrote {options.out}.html and {options.out}.png')


def content(runs, notes, target):
    """What the page shows."""
    return page.content(runs, table_columns(runs, target), [*remarks(runs, target), *notes], target)
