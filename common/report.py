"""
What several runs came to, from the files in their folders: a table for the terminal, a picture, and a page with curves
that needs no network and no account. It knows no torch, and of a run only what it wrote.
"""
import contextlib
import glob
import http.server
import json
import math
import os
import statistics
from dataclasses import dataclass

from common.runlog import SEPARATOR, duration, perplexity

# settings that make no other experiment of a run
ASIDE = {'out_dir', 'seed', 'wandb_log', 'wandb_project', 'wandb_run_name', 'tensorboard_log',
         'log_interval', 'sample_prompts', 'always_save_checkpoint', 'keep_interval', 'auto_prepare', 'parameters',
         'vocab_size', 'device'}
# so that a page stays below 1.5 MB, of which Vega is 0.9
POINTS = 6000   # of all curves together
TEXTS = 66_000  # characters of all samples together, up to 3 bytes each


@dataclass
class Run:
    name: str
    settings: dict     # settings.json
    steps: list        # training lines of metrics.jsonl
    evaluations: list  # evaluation lines
    done: bool
    samples: dict      # iteration: texts

    @property
    def best(self):
        """The evaluation with the lowest validation loss; {} before the first."""
        known = [line for line in self.evaluations if line['val_loss'] is not None]
        return min(known, key=lambda line: line['val_loss'], default={})

    @property
    def last(self):
        return max([*self.steps[-1:], *self.evaluations[-1:]], key=lambda line: line['tokens'], default={})

    def reaches(self, target):
        """The first evaluation whose validation loss is at most `target`; None if there is none yet."""
        known = [line for line in self.evaluations if line['val_loss'] is not None]
        return next((line for line in known if line['val_loss'] <= target), None)


def read_run(folder):
    """The Run in a folder. FileNotFoundError if there is none."""
    lines, samples, settings = [], {}, {}
    with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8') as f:
        for line in f:
            with contextlib.suppress(ValueError):  # the last one, while it is being written
                lines.append(json.loads(line))
    path = os.path.join(folder, 'settings.json')
    with contextlib.suppress(FileNotFoundError, ValueError), open(path, encoding='utf-8') as f:
        settings = json.load(f)
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), 'samples', 'iter_*.txt'))):
        number = os.path.basename(path)[5:-4]
        if number.isdecimal():
            with open(path, encoding='utf-8') as f:
                samples[int(number)] = f.read().rstrip('\n').split(SEPARATOR)
    return Run(os.path.basename(os.path.normpath(folder)), settings, [line for line in lines if 'loss' in line],
               [line for line in lines if 'val_loss' in line], any('done' in line for line in lines), samples)


def differing(runs):
    """The settings in which these runs differ, {name: [value of each run]}."""
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.settings) if key not in ASIDE]
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: column for key, column in values.items() if any(value != column[0] for value in column)}


def figures(runs, target=None):
    """What there is to say about each run, {heading: [text of each run]}; unknown is '-'."""
    def text(value, form):
        return '-' if value is None else format(value, form)

    result = {'run': [run.name + ('' if run.done else ' (not done)') for run in runs]}
    millions = [run.settings.get('parameters', math.nan) / 1e6 for run in runs]
    result['parameters'] = ['-' if math.isnan(count) else f'{count:.2f}M' for count in millions]
    result['best val loss'] = [text(run.best.get('val_loss'), '.4f') for run in runs]
    result['perplexity'] = [text(run.best and perplexity(run.best['val_loss']) or None, '.2f') for run in runs]
    result['accuracy'] = [text(run.best.get('val_acc'), '.1%') for run in runs]
    result['tokens'] = [text(run.last.get('tokens'), ',') for run in runs]
    result['time'] = [duration(run.last['train_s']) if run.last else '-' for run in runs]
    result['tokens/s'] = [f'{run.last["tokens"] / run.last["train_s"]:,.0f}' if run.last.get('train_s') else '-'
                          for run in runs]
    if target is not None:
        first = runs[0].reaches(target)
        reached = [run.reaches(target) for run in runs]
        for heading, key, form in (('time', 'train_s', duration), ('tokens', 'tokens', '{:,}'.format)):
            result[f'{heading} to {target:g}'] = [
                'not reached' if line is None else form(line[key])
                + (f' ({line[key] / first[key]:.2f}x)' if first and first[key] else '') for line in reached]
    return result


def table(runs, target=None):
    """The lines of a table for a terminal."""
    differ = differing(runs).items()
    changes = [' '.join(f'{key}={values[i]}' for key, values in differ if values[i] != values[0])
               for i in range(len(runs))]
    columns = {**figures(runs, target), **({'differs from the first by': changes} if differ else {})}
    widths = {heading: max(map(len, [heading, *texts])) for heading, texts in columns.items()}
    yield '  '.join(heading.ljust(width) for heading, width in widths.items()).rstrip()
    for row in zip(*columns.values()):
        yield '  '.join(text.ljust(width) for text, width in zip(row, widths.values())).rstrip()


def groups(runs):
    """The runs that differ in their seed alone together, {label: [runs]}."""
    found = {}
    for run in runs:
        same = json.dumps([(key, value) for key, value in run.settings.items() if key not in ASIDE])
        found.setdefault(same if run.settings else run.name, []).append(run)
    return {members[0].name + (f' ({len(members)} seeds)' if len(members) > 1 else ''): members
            for members in found.values()}


def thinned(items, limit):
    """At most `limit` of the items, evenly spread, the last among them."""
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def curves(runs):
    """
    The points of all curves, rows of (label, kind, run, iterations, tokens, seconds, value, lowest, highest). Runs of
    several seeds share one curve of validation: the mean of those that have an evaluation there, with their range.
    """
    rows, labelled = [], groups(runs)
    limit = max(20, POINTS // (3 * len(runs)))
    for label, members in labelled.items():
        lines = {}
        for run in members:
            for line in run.evaluations:
                lines.setdefault(line['iter'], []).append(line)
        for at in thinned(sorted(lines), limit):
            here = lines[at]
            for kind, key in (('validation loss', 'val_loss'), ('accuracy', 'val_acc')):
                values = [line[key] for line in here if line[key] is not None]
                if values:
                    seconds = statistics.mean(line['train_s'] for line in here)
                    rows.append((label, kind, '', at, here[0]['tokens'], seconds, statistics.mean(values), min(values),
                                 max(values)))
        for run in members:
            for line in thinned([line for line in run.steps if line['loss'] is not None], limit):
                rows.append((label, 'training loss', run.name, line['iter'], line['tokens'], line['train_s'],
                             *[line['loss']] * 3))
    return [[float(f'{value:.5g}') if isinstance(value, float) else value for value in row] for row in rows]


def page(runs, target=None, live=False):
    """The report as one HTML file: common/report.html, with Vega and the figures put in."""
    import vl_convert
    shown = {}
    for run in runs:
        for at in thinned(sorted(run.samples), 6):
            shown.setdefault(at, {})[run.name] = run.samples[at]
    longest = min(800, TEXTS // max(1, sum(len(texts) for by_run in shown.values() for texts in by_run.values())))
    shown = {at: {name: [text[:longest] for text in texts] for name, texts in by_run.items()}
             for at, by_run in shown.items()}
    settings = {key: [str(value) for value in values] for key, values in differing(runs).items()}
    data = dict(columns={**figures(runs, target), **settings}, differing=list(settings), curves=curves(runs),
                labels=list(groups(runs)), target=target, live=live,
                samples=[dict(iter=at, texts=texts) for at, texts in sorted(shown.items())])
    with open(os.path.join(os.path.dirname(__file__), 'report.html'), encoding='utf-8') as f:
        template = f.read()
    as_json = json.dumps(data, ensure_ascii=False).replace('<', '\\u003c')  # no sample may end the script
    return template.replace('/*VEGA*/', vl_convert.javascript_bundle()).replace('/*DATA*/', as_json)


def picture(runs, path, target=None):
    """Validation loss against tokens and against seconds, in a PNG."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    rows = [row for row in curves(runs) if row[1] == 'validation loss']
    for label in groups(runs):
        points = [row for row in rows if row[0] == label]
        for place, at, heading in ((axes[0], 4, 'tokens'), (axes[1], 5, 'seconds of training')):
            line, = place.plot([row[at] for row in points], [row[6] for row in points], '.-', label=label)
            place.fill_between([row[at] for row in points], [row[7] for row in points], [row[8] for row in points],
                               color=line.get_color(), alpha=0.2)
            place.set(xlabel=heading)
            place.grid(alpha=0.3)
    if target is not None:
        for place in axes:
            place.axhline(target, color='gray', linestyle=':')
    axes[0].set(ylabel='validation loss')
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def serve(folders, target, port):
    """The page on this machine alone, made anew for each look at it, until Ctrl-C. folders: as of main()."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # a page of another site may have its name point here: it shall not read along
            if self.headers.get('Host', '').partition(':')[0] not in ('127.0.0.1', 'localhost'):
                return self.send_error(403)
            if self.path.partition('?')[0] != '/':
                return self.send_error(404)
            content = page(read_all(folders()), target, live=True).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    try:
        server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f'--port={port}: {error}; --port=0 takes one that is free') from None
    with server:
        print(f'http://127.0.0.1:{server.server_address[1]}/ shows the runs as they go on; Ctrl-C ends it', flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def read_all(folders):
    """The runs in those of the folders that have one, by names that tell them apart."""
    folders = [folder for folder in dict.fromkeys(map(os.path.normpath, folders))
               if os.path.exists(os.path.join(folder, 'metrics.jsonl'))]
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, folders):
            run.name = folder
    return runs


def add_arguments(parser):
    parser.add_argument('out_dir', nargs='*', help='folders of runs; without them, all of the list')
    parser.add_argument('--target', type=float, help='a validation loss: time and tokens to it')
    parser.add_argument('--out', default='report', help='writes OUT.html and OUT.png')
    parser.add_argument('--serve', action='store_true', help='show the page on this machine, fresh as runs go on')
    parser.add_argument('--port', type=int, default=8080)


def main(folders, options):
    """
    Print the table, write the page and the picture, or serve the page. Returns the exit code. folders: a function that
    lists those of the runs.
    """
    none = [folder for folder in options.out_dir if not os.path.exists(os.path.join(folder, 'metrics.jsonl'))]
    if none:
        raise ValueError(f'no metrics.jsonl in {", ".join(none)}; give the out_dir of a run')
    runs = read_all(folders())
    if not runs:
        raise ValueError(f'nothing of {options.list} has run yet; python run_manager.py run begins, or name another '
                         '--list=FILE, or the out_dir of a run')
    print('\n'.join(table(runs, options.target)))
    try:
        content = page(runs, options.target)
        if options.serve:
            serve(folders, options.target, options.port)
            return 0
        with open(f'{options.out}.html', 'w', encoding='utf-8') as f:
            f.write(content)
        picture(runs, f'{options.out}.png', options.target)
    except ImportError as error:
        package = {'vl_convert': 'vl-convert-python'}.get(error.name, error.name)
        raise ValueError(f'this needs a package that is not here: pip install {package}') from None
    print(f'\nwrote {options.out}.html and {options.out}.png')
    return 0
