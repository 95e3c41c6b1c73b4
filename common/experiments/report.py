"""Compares runs by their files: a table, a picture, and a page that needs no network and no account. No torch."""
import contextlib
import http.server
import json
import os
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common import files
from common.console import SEPARATOR, duration, perplexity
from common.experiments.runs import is_figure, whole_lines

# settings that do not make a run a different experiment
ASIDE = {'out_dir', 'seed', 'wandb_log', 'wandb_project', 'wandb_run_name', 'tensorboard_log', 'log_interval', 'device',
         'sample_prompts', 'always_save_checkpoint', 'keep_interval', 'auto_prepare', 'parameters', 'vocab_size'}
# limits that keep a page below 1.5 MB, of which Vega is 0.9
POINTS = 6000   # in all curves together
TEXTS = 66_000  # characters in all samples together, up to 3 bytes each


@dataclass
class Record:
    """What a run wrote in its folder. Figures that were not finite are None."""
    name: str
    settings: dict     # settings.json
    steps: list        # training lines of metrics.jsonl
    evaluations: list  # evaluation lines
    done: bool
    samples: dict      # iteration: texts


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
    """The Record of the run in a folder, from what is whole there. OSError if its metrics.jsonl cannot be read."""
    samples, settings = {}, {}
    with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8', errors='replace') as f:
        lines = list(whole_lines(f))
    counted = [line for line in lines if None not in (line.get('tokens'), line.get('train_s'))]
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(Path(folder, 'settings.json').read_text(encoding='utf-8'))
        settings = found if isinstance(found, dict) else {}
    if not is_figure(settings.get('parameters')):
        settings.pop('parameters', None)
    for path in sorted(Path(folder, 'samples').glob('iter_*.txt')):
        number = path.stem.removeprefix('iter_')
        with contextlib.suppress(OSError):
            if number.isdecimal():
                text = path.read_text(encoding='utf-8', errors='replace')
                samples[int(number)] = text.rstrip('\n').split(SEPARATOR)
    return Record(os.path.basename(folder), settings, steps=[line for line in counted if 'loss' in line],
                  evaluations=[line for line in counted if 'val_loss' in line],
                  done=any(line.get('done') for line in lines), samples=samples)


def differing(runs):
    """The settings that differ between these runs, {name: [value in each run]}."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in ASIDE)
    columns = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: column for key, column in columns.items() if any(value != column[0] for value in column)}


def figures(runs, target=None):
    """The columns of the table, {heading: [text for each run]}; '-' where a figure is not known."""
    def column(values, form):
        return ['-' if value is None else form(value) for value in values]

    known = [[line for line in run.evaluations if line['val_loss'] is not None] for run in runs]
    best = [min(lines, key=lambda line: line['val_loss'], default={}) for lines in known]
    last = [max([*run.steps[-1:], *run.evaluations[-1:]], key=lambda line: line['tokens'], default={}) for run in runs]
    losses = [line.get('val_loss') for line in best]
    speeds = [line['tokens'] / line['train_s'] if line.get('train_s') else None for line in last]
    result = {
        'run': [run.name + ('' if run.done else ' (not done)') for run in runs],
        'parameters': column([run.settings.get('parameters') for run in runs], lambda count: f'{count / 1e6:.2f}M'),
        'best val loss': column(losses, '{:.4f}'.format),
        'perplexity': column(losses, lambda loss: f'{perplexity(loss):.2f}'),
        'accuracy': column([line.get('val_acc') for line in best], '{:.1%}'.format),
        'tokens': column([line.get('tokens') for line in last], '{:,}'.format),
        'time': column([line.get('train_s') for line in last], duration),
        'tokens/s': column(speeds, '{:,.0f}'.format)}
    if target is not None:
        reached = [next((line for line in lines if line['val_loss'] <= target), None) for lines in known]
        first = reached[0]
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
    columns = [[heading, *texts] for heading, texts in figures(runs, target).items()]
    columns += [['differs from the first by', *changes]] if differ else []
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns):
        yield '  '.join(text.ljust(width) for text, width in zip(row, widths)).rstrip()


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
    """All Points. Runs that differ only in their seed share a validation curve: mean and range of their evaluations."""
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
                values = [line[key] for line in here if line.get(key) is not None]
                if values:
                    points.append(Point(label, kind, '', at, tokens, seconds, statistics.mean(values), min(values),
                                        max(values)))
        for run in members:
            for line in thinned([line for line in run.steps if line['loss'] is not None], limit):
                points.append(Point(label, 'training loss', run.name, line['iter'], line['tokens'], line['train_s'],
                                    *[line['loss']] * 3))
    return [Point(*(float(f'{x:.5g}') if isinstance(x, float) else x for x in point)) for point in points]


def page(runs, target=None, live=False):
    """The report as one HTML file: report.html with Vega and the figures filled in."""
    import vl_convert
    shown = [(at, run.name, run.samples[at]) for run in runs for at in thinned(sorted(run.samples), 6)]
    longest = min(800, TEXTS // max(1, sum(len(texts) for at, name, texts in shown)))
    samples = {}
    for at, name, texts in shown:
        samples.setdefault(at, {})[name] = [text[:longest] for text in texts]
    settings = {key: [str(value) for value in values] for key, values in differing(runs).items()}
    data = dict(columns={**figures(runs, target), **settings}, differing=list(settings), fields=Point._fields,
                curves=curves(runs), labels=list(groups(runs)), target=target, live=live,
                samples=[dict(iter=at, texts=texts) for at, texts in sorted(samples.items())])
    template = Path(__file__).with_name('report.html').read_text(encoding='utf-8')
    as_json = json.dumps(data, ensure_ascii=False).replace('<', '\\u003c')  # no sample may end the script
    as_json = as_json.encode(errors='backslashreplace').decode()  # bytes in a folder's name that are not UTF-8
    return template.replace('/*VEGA*/', vl_convert.javascript_bundle()).replace('/*DATA*/', as_json)


def picture(runs, file, target=None):
    """Validation loss against tokens and against seconds, as a PNG."""
    from matplotlib.figure import Figure  # pyplot would look for a display
    figure = Figure(figsize=(12, 4.5), layout='tight')
    axes = figure.subplots(1, 2, sharey=True)
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
    figure.savefig(file, format='png', dpi=110)


def serve(find_runs, target, port):
    """Serve the page to this machine only, until Ctrl-C. It is made again for each request."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # DNS rebinding: another site could read the page if its host name were made to point here
            if self.headers.get('Host', '').partition(':')[0] not in ('127.0.0.1', 'localhost'):
                return self.send_error(403)
            if self.path.partition('?')[0] != '/':
                return self.send_error(404)
            try:
                content = page(find_runs(), target, live=True).encode()
            except (ValueError, OSError) as error:  # a mistake in the list, as it is now; or its runs have gone
                return self.send_error(503, explain=str(error))
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), ConnectionError):  # which is a reader that went away
                super().handle_error(request, client_address)

    try:
        server = Server(('127.0.0.1', port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f'--port={port}: {error}; --port=0 takes one that is free') from None
    with server:
        print(f'http://127.0.0.1:{server.server_address[1]}/ shows the runs as they go on; Ctrl-C ends it')
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def read_all(folders):
    """
    The Records of the folders that hold a run. If two have the same name, all are named by their paths. What cannot be
    read is left out, with a line that says so.
    """
    runs = {}
    for folder in dict.fromkeys(map(os.path.normpath, folders)):
        try:
            runs[folder] = read_run(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            print(f'left out: {error}', file=sys.stderr)
    if len({run.name for run in runs.values()}) < len(runs):
        for folder, run in runs.items():
            run.name = folder
    return list(runs.values())


def check_out(out):
    """ValueError unless OUT.html and OUT.png, for the value of --out, can be written. Makes their folder."""
    folder, name = os.path.split(out)
    if not name:
        raise ValueError(f'--out={out!r} names no file; leave it out, or give a name, as in --out=report')
    files.check_folder(folder or '.', '--out')
    for path in (f'{out}.html', f'{out}.png'):
        if os.path.isdir(path):
            raise ValueError(f'--out={out!r}: {path} is a folder; give another name, as in --out={out}-2')
    os.makedirs(folder or '.', exist_ok=True)


def main(folders, options, hint):
    """
    Print the table; write the page and the picture, or serve the page. folders() returns the runs' folders; `hint` says
    in a command which list is meant.
    """
    missing = [folder for folder in options.out_dir if not os.path.exists(os.path.join(folder, 'metrics.jsonl'))]
    if missing:
        raise ValueError(f'no metrics.jsonl in {", ".join(map(shlex.quote, missing))}; give the out_dir of a run')

    def find_runs():
        runs = read_all(folders())
        if not runs:
            if options.out_dir:
                raise ValueError('none of these runs can be read now')
            raise ValueError(f'nothing in {options.list} has run yet; start it with python run_manager.py run{hint}, '
                             'or name another --list=FILE, or the out_dir of a run')
        return runs

    if not options.serve:
        check_out(options.out)
    runs = find_runs()
    print('\n'.join(table(runs, options.target)))
    try:
        content = page(runs, options.target)
        if options.serve:
            return serve(find_runs, options.target, options.port)
        with files.write_whole(f'{options.out}.html') as f:
            f.write(content)
        with files.write_whole(f'{options.out}.png', 'wb') as f:
            picture(runs, f, options.target)
    except ImportError as error:
        package = {'vl_convert': 'vl-convert-python'}.get(error.name, error.name)
        raise ValueError(f'this needs a package that is not here: pip install {package}') from None
    print(f'\nwrote {options.out}.html and {options.out}.png')
