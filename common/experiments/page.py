"""Curves of runs: on a page that needs no network and no account, in a picture, and served live. No torch."""
import contextlib
import functools
import http.server
import json
import socket
import statistics
import sys
import warnings
from pathlib import Path

from common.experiments.records import differing, groups, losses_are_comparable, one_line, short, thinned

# what can be drawn, and its name in metrics.jsonl
EVALUATED = {'validation loss': 'val_loss', 'bits per byte': 'bits_per_byte', 'accuracy': 'val_acc'}
# and the accuracies of tasks, whose names end so; val_acc is that of the next token
TASKS = '_acc', '_acc_norm'
TRAINED = {'training loss': 'loss', 'learning rate': 'lr', 'gradient norm': 'grad_norm', 'tokens/s': 'tok_s'}
# limits that keep a page below 1.5 MB, of which Vega is 0.9
MOMENTS = 4000  # in all curves together
TEXTS = 66_000  # characters in all samples together, up to 3 bytes each
SAMPLED = 20    # runs with samples
# names of fonts with Hangul or Chinese characters that are good to read, the best first; and of what is not regular
PREFERRED = 'notosanscjk', 'notosanskr', 'nanumgothic', 'malgun', 'applesdgothicneo', 'undotum', 'notosans', 'nanum'
IRREGULAR = 'bold', 'italic', 'oblique', 'black', 'light', 'thin'


def evaluated_kinds(runs):
    """What an evaluation of one of these runs has to draw, {kind: its name in metrics.jsonl}."""
    keys = {key: None for run in runs for line in run.evaluations for key in line}
    return EVALUATED | {one_line(key): key for key in keys if key.endswith(TASKS) and key != 'val_acc'}


def curves(runs):
    """
    The curves, as dicts of lists: iterations, tokens, seconds of training, and `values`, one list for each kind. Runs
    that differ only in their seed share a curve of their evaluations, the mean, with `lowest` and `highest`, where all
    that were evaluated have the figure: a mean of fewer would jump.
    """
    found, kinds, limit = [], evaluated_kinds(runs), max(2, MOMENTS // (len(groups(runs)) + len(runs)))
    for label, members in groups(runs).items():
        evaluated = [{line['iter']: line for line in run.evaluations} for run in members if run.evaluations]
        shared = sorted(set.intersection(*map(set, evaluated))) if evaluated else []
        moments = [[lines[at] for lines in evaluated] for at in thinned(shared, limit)]
        curve = dict(label=label, run='', iterations=[lines[0]['iter'] for lines in moments],
                     tokens=[lines[0]['tokens'] for lines in moments],
                     seconds=[statistics.fmean(line['train_s'] for line in lines) for lines in moments],
                     values={}, lowest={}, highest={})
        for kind, key in kinds.items():
            values = [[line.get(key) for line in lines] for lines in moments]
            if any(None not in known for known in values):
                ways = {'values': statistics.fmean} | ({'lowest': min, 'highest': max} if len(members) > 1 else {})
                for name, way in ways.items():
                    curve[name][kind] = [way(known) if None not in known else None for known in values]
        found.append(curve)
        for run in members:
            lines = thinned(run.steps, limit)
            values = {kind: [line.get(key) for line in lines] for kind, key in TRAINED.items()}
            found.append(dict(label=label, run=run.name, iterations=[line['iter'] for line in lines],
                              tokens=[line['tokens'] for line in lines], seconds=[line['train_s'] for line in lines],
                              values={kind: column for kind, column in values.items() if set(column) - {None}}))
    return found


def main_kind(runs):
    """What the picture, and the page at first, show: bits per byte where only these can be compared."""
    known = all(any(line.get('bits_per_byte') is not None for line in run.evaluations) for run in runs)
    return 'bits per byte' if known and not losses_are_comparable(runs) else 'validation loss'


def rounded(value):
    """Curves with floats of five digits, which is what a page can show."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f'{value:.5g}') if isinstance(value, float) else value


def content(runs, columns, remarks, target=None):
    """The page's data as JSON takes it. columns: of the table, {heading: [texts]}; remarks: lines about it."""
    shown = [(at, run.name, run.samples[at]) for run in runs[:SAMPLED] for at in thinned(sorted(run.samples), 6)]
    longest = min(800, TEXTS // max(1, sum(len(texts) for at, name, texts in shown)))
    samples = {}
    for at, name, texts in shown:
        samples.setdefault(at, {})[name] = [text[:longest] for text in texts]
    settings = [[key, [short(value) for value in values], True] for key, values in differing(runs).items()]
    return dict(columns=[[heading, texts, False] for heading, texts in columns.items()] + settings, remarks=remarks,
                target=target, kind=main_kind(runs), kinds=[*evaluated_kinds(runs), *TRAINED],
                labels=list(groups(runs)), curves=rounded(curves(runs)),
                samples=[dict(iter=at, texts=samples[at]) for at in sorted(samples)])


@functools.cache
def library():
    import vl_convert
    return vl_convert.javascript_bundle()


def page(data, live=False):
    """The report as one HTML file: report.html with Vega and the data, of content() or {'error': text}, filled in."""
    template = Path(__file__).with_name('report.html').read_text(encoding='utf-8')
    as_json = json.dumps({**data, 'live': live}, ensure_ascii=False).encode(errors='backslashreplace').decode()
    as_json = as_json.replace('<', '\\u003c')  # no sample may end the script
    return template.replace('/*VEGA*/', library()).replace('/*DATA*/', as_json)


def picture(runs, file, target=None):
    """What main_kind() says, against tokens and against seconds, as a PNG. Returns characters that no font here has."""
    from matplotlib.figure import Figure  # pyplot would look for a display
    figure = Figure(figsize=(12, 4.5), layout='tight')
    axes = figure.subplots(1, 2, sharey=True)
    kind = main_kind(runs)
    drawn = [curve for curve in curves(runs) if kind in curve['values']]
    for axis, key, heading in zip(axes, ('tokens', 'seconds'), ('tokens', 'seconds of training')):
        for curve in drawn:
            known = [i for i, value in enumerate(curve['values'][kind]) if value is not None]
            x, y = ([column[i] for i in known] for column in (curve[key], curve['values'][kind]))
            line, = axis.plot(x, y, '.-', label='a run')
            if kind in curve['lowest']:
                axis.fill_between(x, *([curve[name][kind][i] for i in known] for name in ('lowest', 'highest')),
                                  color=line.get_color(), alpha=0.2)
        if target is not None and kind == 'validation loss':
            axis.axhline(target, color='gray', linestyle=':')
        axis.set(xlabel=heading)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=kind)
    labels = [short(curve['label']) for curve in drawn]
    fonts, missing = fonts_for(''.join(labels))
    if drawn:
        for text, label in zip(axes[1].legend(prop=dict(family=fonts)).get_texts(), labels):
            text.set(text=label, parse_math=False)  # only now, as matplotlib leaves out labels that begin with _
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # once for each character, and again for each time
        figure.savefig(file, format='png', dpi=110)
    return missing


def fonts_for(text):
    """([families that have the characters of a text, if such are installed], the characters that none of them has)."""
    from matplotlib import font_manager, ft2font
    default = font_manager.findfont('DejaVu Sans')
    families, missing = ['DejaVu Sans'], lacking(ft2font.FT2Font(default), text)
    if not missing:
        return families, missing
    # not matplotlib's own list, which it makes once and keeps: it lacks what was installed since
    def rank(path):
        name = Path(path).stem.lower()
        place = next((i for i, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))
        return place, any(word in name for word in IRREGULAR), path

    for path in sorted(font_manager.findSystemFonts(), key=rank):
        with contextlib.suppress(OSError, RuntimeError):  # a font that is damaged, or only a picture a character
            font = ft2font.FT2Font(path)
            left = lacking(font, missing)
            if len(left) < len(missing) and font.scalable and 'Last Resort' not in font.family_name:  # boxes for all
                font_manager.fontManager.addfont(path)
                families.append(font_manager.get_font(path).family_name)
                missing = left
        if not missing:
            break
    return families, missing


def lacking(font, text):
    """The characters of a text that a font does not have."""
    return ''.join(char for char in dict.fromkeys(text) if not char.isspace() and not font.get_char_index(ord(char)))


def check_port(port):
    """ValueError if the page cannot be served at this port."""
    try:
        socket.create_server(('127.0.0.1', port)).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f'--port={port}: {str(error).rstrip(".")}; --port=0 takes one that is free') from None


def serve(find_content, port):
    """
    Serve the page to this machine only, until Ctrl-C. find_content() returns content() as it is now, or raises
    ValueError or OSError; the page then shows the message, and goes on asking.
    """
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # DNS rebinding: another site could read the page if its host name were made to point here
            if self.headers.get('Host', '').partition(':')[0].lower() not in ('127.0.0.1', 'localhost'):
                return self.send_error(403)
            path = self.path.partition('?')[0]
            if path not in ('/', '/data.json'):
                return self.send_error(404)
            try:
                status, data = 200, find_content()
            except Exception as error:  # a mistake in the list, as it is now, or runs that have gone
                status, data = 500, {'error': one_line(error) or type(error).__name__}
            if path == '/':
                status, kind, text = 200, 'text/html', page(data, live=True)
            else:
                kind, text = 'application/json', json.dumps(data)
            body = text.encode()
            self.send_response(status)
            self.send_header('Content-Type', f'{kind}; charset=utf-8')
            self.send_header('Content-Length', str(len(body)))
            self.send_header('Cache-Control', 'no-store')
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), ConnectionError):  # which is a reader that went away
                super().handle_error(request, client_address)

    with Server(('127.0.0.1', port), Handler) as server:
        print(f'http://127.0.0.1:{server.server_address[1]}/ shows the runs as they go on; Ctrl-C ends it')
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
