"""
Several runs compared, from the files in their folders: a table for the terminal, a picture, and a page with curves that
needs no network and no account. It needs no torch.
"""
import contextlib
import glob
import http.server
import json
import os
import statistics
from dataclasses import dataclass
from typing import NamedTuple

from common.console import SEPARATOR, duration, perplexity

# settings that do not make a run another experiment
ASIDE = {'out_dir', 'seed', 'wandb_log', 'wandb_project', 'wandb_run_name', 'tensorboard_log',
         'log_interval', 'sample_prompts', 'always_save_checkpoint', 'keep_interval', 'auto_prepare', 'parameters',
         'vocab_size', 'device'}
# limits that keep a page below 1.5 MB, of which Vega is 0.9
POINTS = 6000   # in all curves together
TEXTS = 66_000  # characters in all samples together, up to 3 bytes each


@dataclass
class Record:
    """What a run wrote in its folder."""
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


class Point(NamedTuple):
    """A point of a curve."""
    label: str        # of the group of runs that differ only in their seed
    kind: str         # validation loss, training loss or accuracy
    run: str          # '' for a mean over the group
    iterations: int
    tokens: int
    seconds: float    # of training
    value: float
    lowest: float     # in the group
    highest: float


def read_run(folder):
    """The Record of the run in a folder. FileNotFoundError if there is none."""
    lines, samples, settings = [], {}, {}
    with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8') as f:
        for line in f:
            with contextlib.suppress(ValueError):  # the last line, while it is being written
                lines.append(json.loads(line))
    path = os.path.join(folder, 'settings.json')
    with contextlib.suppress(FileNotFoundError, ValueError), open(path, encoding='utf-8') as f:
        settings = json.load(f)
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), 'samples', 'iter_*.txt'))):
        number = os.path.basename(path)[5:-4]
        if number.isdecimal():
            with open(path, encoding='utf-8') as f:
                samples[int(number)] = f.read().rstrip('\n').split(SEPARATOR)
    name = os.path.basename(os.path.normpath(folder))
    return Record(name, settings, steps=[line for line in lines if 'loss' in line],
                  evaluations=[line for line in lines if 'val_loss' in line],
                  done=any('done' in line for line in lines), samples=samples)


def differing(runs):
    """The settings that differ between these runs, {name: [value in each run]}."""
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.settings) if key not in ASIDE]
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: column for key, column in values.items() if any(value != column[0] for value in column)}


def figures(runs, target=None):
    """The columns of the table, {heading: [text for each run]}; '-' where a figure is not known."""
    def text(value, form):
        return '-' if value is None else format(value, form)

    result = {'run': [run.name + ('' if run.done else ' (not done)') for run in runs]}
    counts = [run.settings.get('parameters') for run in runs]
    result['parameters'] = ['-' if count is None else f'{count / 1e6:.2f}M' for count in counts]
    result['best val loss'] = [text(run.best.get('val_loss'), '.4f') for run in runs]
    result['perplexity'] = [text(perplexity(run.best['val_loss']) if run.best else None, '.2f') for run in runs]
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
    """The table for the terminal, line by line."""
    differ = differing(runs).items()
    changes = [' '.join(f'{key}={values[i]}' for key, values in differ if values[i] != values[0])
               for i in range(len(runs))]
    columns = {**figures(runs, target), **({'differs from the first by': changes} if differ else {})}
    widths = {heading: max(map(len, [heading, *texts])) for heading, texts in columns.items()}
    yield '  '.join(heading.ljust(width) for heading, width in widths.items()).rstrip()
    for row in zip(*columns.values()):
        yield '  '.join(text.ljust(width) for text, width in zip(row, widths.values())).rstrip()


def groups(runs):
    """The runs grouped by their settings without the seed, {label: [runs]}."""
    found = {}
    for run in runs:
        same = json.dumps([(key, value) for key, value in run.settings.items() if key not in ASIDE])
        found.setdefault(same if run.settings else run.name, []).append(run)
    return {members[0].name + (f' ({len(members)} seeds)' if len(members) > 1 else ''): members
            for members in found.values()}


def thinned(items, limit):
    """At most `limit` of the items, evenly spread, including the last."""
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def curves(runs):
    """
    The Points of all curves. Runs that differ only in their seed share one validation curve: the mean and the range of
    those that have an evaluation there.
    """
    points = []
    limit = max(20, POINTS // (3 * len(runs)))
    for label, members in groups(runs).items():
        evaluations = {}  # iteration: those of all members
        for run in members:
            for line in run.evaluations:
                evaluations.setdefault(line['iter'], []).append(line)
        for at in thinned(sorted(evaluations), limit):
            here = evaluations[at]
            tokens, seconds = here[0]['tokens'], statistics.mean(line['train_s'] for line in here)
            for kind, key in (('validation loss', 'val_loss'), ('accuracy', 'val_acc')):
                values = [line[key] for line in here if line[key] is not None]
                if values:
                    points.append(Point(label, kind, '', at, tokens, seconds, statistics.mean(values), min(values),
                                        max(values)))
        for run in members:
            for line in thinned([line for line in run.steps if line['loss'] is not None], limit):
                points.append(Point(label, 'training loss', run.name, line['iter'], line['tokens'], line['train_s'],
                                    *[line['loss']] * 3))
    return [Point(*(float(f'{value:.5g}') if isinstance(value, float) else value for value in point))
            for point in points]


def page(runs, target=None, live=False):
    """The report as one HTML file: report.html with Vega and the figures filled in."""
    import vl_convert
    shown = {}
    for run in runs:
        for at in thinned(sorted(run.samples), 6):
            shown.setdefault(at, {})[run.name] = run.samples[at]
    longest = min(800, TEXTS // max(1, sum(len(texts) for by_run in shown.values() for texts in by_run.values())))
    shown = {at: {name: [text[:longest] for text in texts] for name, texts in by_run.items()}
             for at, by_run in shown.items()}
    settings = {key: [str(value) for value in values] for key, values in differing(runs).items()}
    data = dict(columns={**figures(runs, target), **settings}, differing=list(settings), fields=Point._fields,
                curves=curves(runs), labels=list(groups(runs)), target=target, live=live,
                samples=[dict(iter=at, texts=texts) for at, texts in sorted(shown.items())])
    with open(os.path.join(os.path.dirname(__file__), 'report.html'), encoding='utf-8') as f:
        template = f.read()
    as_json = json.dumps(data, ensure_ascii=False).replace('<', '\\u003c')  # no sample may end the script
    return template.replace('/*VEGA*/', vl_convert.javascript_bundle()).replace('/*DATA*/', as_json)


def picture(runs, path, target=None):
    """Validation loss against tokens and against seconds, as a PNG."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    losses = [point for point in curves(runs) if point.kind == 'validation loss']
    for axis, key, heading in zip(axes, ('tokens', 'seconds'), ('tokens', 'seconds of training')):
        for label in groups(runs):
            points = [point for point in losses if point.label == label]
            x = [getattr(point, key) for point in points]
            line, = axis.plot(x, [point.value for point in points], '.-', label=label)
            axis.fill_between(x, [point.lowest for point in points], [point.highest for point in points],
                              color=line.get_color(), alpha=0.2)
        if target is not None:
            axis.axhline(target, color='gray', linestyle=':')
        axis.set(xlabel=heading)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel='validation loss')
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def serve(folders, target, port):
    """Serve the page, made anew for each request, to this machine only, until Ctrl-C. folders: see main()."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # another site's page could read this one if its host name were made to point here (DNS rebinding)
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
    """The Records of those folders that hold a run, named by their paths if two have the same name."""
    folders = [folder for folder in dict.fromkeys(map(os.path.normpath, folders))
               if os.path.exists(os.path.join(folder, 'metrics.jsonl'))]
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, folders):
            run.name = folder
    return runs


def add_arguments(parser):
    parser.add_argument('out_dir', nargs='*', help='folders of runs; default: all of the list')
    parser.add_argument('--target', type=float, help='a validation loss: time and tokens to it')
    parser.add_argument('--out', default='report', help='writes OUT.html and OUT.png')
    parser.add_argument('--serve', action='store_true', help='show the page on this machine, updated as the runs go on')
    parser.add_argument('--port', type=int, default=8080)


def main(folders, options):
    """
    Print the table; write the page and the picture, or serve the page. Returns the exit code. folders(): the folders of
    the runs, read again for each request.
    """
    none = [folder for folder in options.out_dir if not os.path.exists(os.path.join(folder, 'metrics.jsonl'))]
    if none:
        raise ValueError(f'no metrics.jsonl in {", ".join(none)}; give the out_dir of a run')
    runs = read_all(folders())
    if not runs:
        raise ValueError(f'nothing in {options.list} has run yet; start it with python run_manager.py run, or name '
                         'another --list=FILE, or the out_dir of a run')
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
