"""What runs wrote in their folders, and which of them can be compared with which. No torch, no numpy."""
import json
import math
import os
import re
import stat
from dataclasses import dataclass

from common.console import SEPARATOR, visible
from common.experiments.runs import is_figure, whole_lines

# settings that do not make a run a different experiment; `data` is compared as Record.data
ASIDE = {'out_dir', 'seed', 'wandb_log', 'wandb_project', 'wandb_run_name', 'tensorboard_log', 'log_interval', 'device',
         'sample_prompts', 'evaluate_tasks', 'always_save_checkpoint', 'keep_interval', 'auto_prepare', 'parameters',
         'vocab_size', 'data'}


@dataclass
class Record:
    """What a run wrote in its folder. Figures that were not finite are None."""
    name: str          # as it can be shown
    folder: str
    settings: dict     # settings.json
    steps: list        # training lines of metrics.jsonl
    evaluations: list  # evaluation lines
    done: bool
    samples: dict      # iteration: texts

    @property
    def data(self):
        """(val_sha256, tokenizer, vocab_size) of what was scored; None if that is not known."""
        data = self.settings.get('data', {})
        if not data.get('val_sha256'):
            return None
        return one_line(data['val_sha256']), one_line(data.get('tokenizer', '')), data.get('vocab_size')


def one_line(text):
    """A text from elsewhere as a cell of a table: control characters, and what is no UTF-8, are escapes."""
    text = str(text).encode(errors='backslashreplace').decode()
    return visible(text).replace('\n', '\\n').replace('\t', '\\t')


def short(value):
    """A setting's value as a cell of a table; None: the run does not say it."""
    text = 'not known' if value is None else one_line(value)
    return text if len(text) <= 60 else text[:57] + '...'


def read_all(folders):
    """
    ([the Record of each folder that holds a run], [a line for each thing that was left out or is odd]). If two runs
    have the same name, all are named by their paths.
    """
    runs, notes, places = {}, [], {}
    for folder in folders:
        places.setdefault(os.path.realpath(folder), os.path.normpath(folder))
    for folder in places.values():
        try:
            runs[folder] = read_run(folder, notes)
        except FileNotFoundError:
            notes.append(f'{folder} left out: it has no metrics.jsonl')
        except OSError as error:
            notes.append(f'{folder} left out: metrics.jsonl: {reason(error)}')
    if len({run.name for run in runs.values()}) < len(runs):
        for folder, run in runs.items():
            run.name = one_line(folder)
    return list(runs.values()), [one_line(line) for line in notes]


def read_run(folder, notes):
    """
    The Record of the run in a folder. What is damaged, or not from train.py, is described in the list `notes`.
    OSError if metrics.jsonl cannot be read.
    """
    path = os.path.join(folder, 'metrics.jsonl')
    lines = [line for line in read_file(path).splitlines(keepends=True) if line.strip()]
    if lines and not lines[-1].endswith(b'\n') and not any(whole_lines(lines[-1:])):  # it is being written
        lines.pop()
    whole = [line for line in whole_lines(lines) if is_known(line)]
    if len(whole) < len(lines):
        notes.append(f'{path}: {len(lines) - len(whole)} of {len(lines)} lines left out: damaged, or not from train.py')
    in_order = sorted(whole, key=lambda line: line['iter'])
    if whole != in_order:
        notes.append(f'{path}: iterations go back, as in a mixture of runs; sorted by iteration')
        whole = in_order
    return Record(one_line(os.path.basename(os.path.abspath(folder)) or folder), folder,
                  read_settings(folder, notes), steps=[line for line in whole if 'loss' in line],
                  evaluations=[line for line in whole if 'val_loss' in line],
                  done=any(line.get('done') for line in whole), samples=read_samples(folder, notes))


def is_known(line):
    """Whether a line of metrics.jsonl is one that train.py writes: a loss with its moment, or the end of the run."""
    if 'loss' in line or 'val_loss' in line:
        return None not in (line.get('tokens'), line.get('train_s'))
    return 'done' in line or 'stopped' in line


def read_settings(folder, notes):
    """settings.json as a dict, {} if there is none; its `data` is a dict, if it is there."""
    path = os.path.join(folder, 'settings.json')
    try:
        settings = json.loads(read_file(path), parse_float=finite_or_text, parse_constant=finite_or_text)
        if not isinstance(settings, dict):
            raise ValueError('not a JSON object')
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f'{path} left out: {reason(error)}')
        return {}
    if 'parameters' in settings and not is_figure(settings['parameters']):
        notes.append(f'{path}: parameters={short(settings.pop("parameters"))} left out: not a number')
    if settings.get('init_from') in ('auto', 'resume'):  # as earlier versions wrote it when they resumed a run
        settings['init_from'] = 'scratch'
    data = settings.pop('data', None)
    if isinstance(data, dict):
        sizes = 'vocab_size', 'val_bytes'
        settings['data'] = {key: value for key, value in data.items() if key not in sizes or is_figure(value)}
    return settings


def finite_or_text(text):
    """A number in JSON as a float; as the text that it is, if it is NaN or infinite."""
    return float(text) if math.isfinite(float(text)) else text


def read_samples(folder, notes):
    """{iteration: texts} of the files in samples/."""
    samples, foreign, place = {}, [], os.path.join(folder, 'samples')
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:  # sample_prompts was not set
        return samples
    except OSError as error:
        notes.append(f'{place} left out: {reason(error)}')
        return samples
    for name in names:
        path, number = os.path.join(place, name), re.fullmatch(r'iter_([0-9]+)\.txt', name)
        if number is None:
            foreign += [name] * (not name.endswith('.tmp'))  # else it is being written
            continue
        try:
            content = read_file(path)
            samples[int(number[1])] = content.decode(errors='backslashreplace').rstrip('\n').split(SEPARATOR)
            content.decode()
        except UnicodeDecodeError as error:
            notes.append(f'{path}: {error}; shown with escapes')
        except OSError as error:
            notes.append(f'{path} left out: {reason(error)}')
    if foreign:
        notes.append(f'{place}: {names_of(foreign)} left out: not from train.py')
    return samples


def reason(error):
    """An error without the path that stands in front of it anyway."""
    return getattr(error, 'strerror', None) or error


def read_file(path):
    """The bytes of a file; OSError if it cannot be read, or is a folder, or a pipe, which would wait for a writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError('not a file')
    with open(path, 'rb') as f:
        return f.read()


def differing(runs):
    """
    The settings that differ between those of these runs that have settings, {name: [value in each run]}; their data as
    in bpe:4096:1f3a9c.
    """
    known = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings if key not in ASIDE)
    result = {key: [run.settings.get(key) for run in runs] for key in keys
              if any(settings.get(key) != known[0].get(key) for settings in known)}
    if not losses_are_comparable(runs):
        result['data'] = [run.data and ':'.join(str(part) for part in (*run.data[1:], run.data[0][:6]) if part)
                          for run in runs]
    return result


def groups(runs):
    """The runs grouped by their settings without the seed, {label: [runs]}."""
    found = {}
    for run in runs:
        same = json.dumps([run.data, sorted((key, value) for key, value in run.settings.items() if key not in ASIDE)])
        found.setdefault(same if run.settings else run.name, []).append(run)
    return {label_of(members): members for members in found.values()}


def label_of(members):
    """What a group of runs is called: its first run, and how many there are."""
    if len(members) == 1:
        return members[0].name
    seeds = {json.dumps(run.settings.get('seed')) for run in members}
    return f'{members[0].name} ({len(members)} {"seeds" if len(seeds) == len(members) else "runs"})'


def twins(runs):
    """A sentence on each experiment that is there twice with the same seed."""
    for members in groups(runs).values():
        found = {}
        for run in members:
            found.setdefault(json.dumps(run.settings.get('seed')), []).append(run.name)
        for names in found.values():
            if len(names) > 1:
                yield f'{names_of(names)} are one experiment with one seed, and the mean counts each of them'


def losses_are_comparable(runs):
    """Whether no two of these runs are known to have different validation data or vocabularies."""
    return len({run.data for run in runs} - {None}) <= 1


def comparability(runs):
    """Sentences on which figures of these runs can be compared; [] where all can."""
    if len(runs) < 2:
        return []
    unknown = [run.name for run in runs if run.data is None]
    kinds, sizes = {}, {}
    for run in runs:
        if run.data:
            kinds.setdefault(run.data, []).append(run.name)
            sizes.setdefault(run.data, set()).add(run.settings['data'].get('val_bytes'))
    sentences = []
    if len(kinds) > 1:
        vocabularies = {kind[1:] for kind in kinds}
        apart = '; '.join(f'{tokenizer} of {size:,} in {names_of(names)}' if size else
                          f'{tokenizer} in {names_of(names)}' for (_, tokenizer, size), names in kinds.items())
        if len(vocabularies) == len(kinds) and set.intersection(*sizes.values()) - {None}:
            sentences.append(f'one text in different vocabularies ({apart}): compare bits per byte only, not losses, '
                             'perplexities or accuracies')
        else:
            sentences.append(f'different validation texts ({apart}): strictly, nothing can be compared; bits per byte '
                             'are a rough figure')
    if unknown:
        sentences.append(f'not known what was scored in {names_of(unknown)}: older runs, or a dataset without sha256 '
                         'in its meta.json; compare their figures only if dataset and vocabulary are the same')
    return sentences


def names_of(names):
    """The first names of a list."""
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def thinned(items, limit):
    """At most `limit` of the items, evenly spread, including the last."""
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]
