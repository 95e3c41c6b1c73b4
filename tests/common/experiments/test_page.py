"""The curves of the report: in a picture, on a page in a real browser that must not use a network, and served live."""
import contextlib
import html
import http.client
import http.server
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import warnings
from pathlib import Path

import pytest

from common.experiments import page, records
from made_runs import make_run, read, runs, scored  # noqa: a fixture
from running import HANG, ROOT


def content(folders, remarks=(), target=None):
    found = read(folders)
    return page.content(found, {'run': [run.name for run in found]}, list(remarks), target)


def test_seeds_share_a_curve_with_their_range(runs):
    assert {label: len(members) for label, members in records.groups(read(runs)).items()} == {
        'slow': 1, 'fast (2 seeds)': 2}
    curve = next(curve for curve in page.curves(read(runs)) if curve['label'] == 'fast (2 seeds)')
    assert curve['iterations'] == [0, 100, 200] and curve['tokens'] == [0, 1000, 2000]
    assert curve['seconds'] == [0.0, 1.0, 2.0] and curve['run'] == ''
    assert [curve[name]['validation loss'] for name in ('values', 'lowest', 'highest')] == [
        [4.0, 2.25, 1.25], [4.0, 2.0, 1.0], [4.0, 2.5, 1.5]]


def test_a_mean_has_only_moments_that_all_seeds_share(tmp_path):
    folders = [make_run(tmp_path / str(seed), losses, seed=seed)
               for seed, losses in enumerate(([4.0, 3.0, 2.0], [6.0, 5.0], [5.0, 1e18, 1.0]))]
    path = Path(folders[2], 'metrics.jsonl')
    path.write_text(path.read_text().replace('"val_loss": 1e+18', '"val_loss": null'))
    mean = page.curves(read(folders))[0]
    assert mean['label'] == '0 (3 seeds)' and mean['iterations'] == [0, 100]
    assert mean['values']['validation loss'] == [5.0, None] and mean['lowest']['validation loss'] == [4.0, None]


def test_each_figure_of_training_has_a_curve(runs):
    curve = next(curve for curve in page.curves(read(runs)) if curve['run'] == 'slow')
    assert curve['values'] == {'training loss': [4.1, 3.1, 2.1], 'learning rate': [1e-3] * 3,
                               'gradient norm': [1.0, 2.0, 3.0], 'tokens/s': [100.0] * 3}
    Path(runs[0], 'metrics.jsonl').write_text('{"iter": 0, "loss": 1.0, "lr": null, "tokens": 0, "train_s": 0}\n')
    assert page.curves(read(runs[:1]))[1]['values'] == {'training loss': [1.0]}, 'not known, not drawn'


def test_the_accuracy_on_each_task_has_a_curve(tmp_path):
    folders = [make_run(tmp_path / name, [4.0, 2.0], n_layer=n) for n, name in enumerate(('scored', 'other'))]
    path = Path(folders[0], 'metrics.jsonl')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for i, line in enumerate(line for line in lines if 'val_loss' in line):
        line.update(hellaswag_acc=0.25 + i / 10, hellaswag_acc_stderr=0.1, hellaswag_acc_norm=0.3, words_perplexity=9.0)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    values = {curve['label']: curve['values'] for curve in page.curves(read(folders)) if 'accuracy' in curve['values']}
    assert values['scored']['hellaswag_acc'] == [0.25, 0.35] and values['scored']['hellaswag_acc_norm'] == [0.3, 0.3]
    assert values['other'].keys() == values['scored'].keys() - {'hellaswag_acc', 'hellaswag_acc_norm'}
    assert content(folders)['kinds'] == ['validation loss', 'bits per byte', 'accuracy', 'hellaswag_acc',
                                         'hellaswag_acc_norm', *page.TRAINED]
    assert content(folders[1:])['kinds'] == [*page.EVALUATED, *page.TRAINED]


def test_what_cannot_be_compared_is_not_shown_first(tmp_path):
    folders = [make_run(tmp_path / 'char', [4.0, 2.0], data=scored(), bytes_per_token=1.0),
               make_run(tmp_path / 'bpe', [8.0, 4.0], data=scored('bpe', 4096, 'b'), bytes_per_token=4.0)]
    assert page.main_kind(read(folders)) == 'bits per byte' and page.main_kind(read(folders[:1])) == 'validation loss'


@pytest.mark.slow
def test_many_long_runs_make_a_page_below_1500_kb(tmp_path):
    pytest.importorskip('vl_convert')
    losses = [3.0 + j / 1e4 for j in range(2000)]
    folders = [make_run(tmp_path / str(i), losses, n_layer=i, bytes_per_token=3.3) for i in range(20)]
    wordy = 20 * ['\u4f60' * 2000]
    folders += [make_run(tmp_path / f'wordy-{i}', losses[:8], n_head=i, samples=wordy) for i in range(150)]
    assert len(page.page(content(folders)).encode()) < 1_500_000


def test_a_picture_names_each_run_whatever_it_is_called(tmp_path):
    pytest.importorskip('matplotlib')
    from matplotlib.figure import Figure
    names = ['_hidden', 'a$b$', '$\\frac$', '\udcff']
    folders = [make_run(tmp_path / name, [2.0, 1.0], n_layer=i) for i, name in enumerate(names)]
    saved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda figure, *args, **more: saved.append(figure))
        page.picture(read(folders), None)
    shown = saved[0].axes[1].get_legend().get_texts()
    assert [text.get_text() for text in shown] == ['_hidden', 'a$b$', '$\\frac$', '\\udcff']
    assert not any(text.get_parse_math() for text in shown)
    assert not saved[0].axes[0].collections
    with open(tmp_path / 'x.png', 'wb') as f:
        page.picture(read(folders), f)
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')


def test_a_picture_has_a_band_for_seeds(runs, monkeypatch):
    figures = pytest.importorskip('matplotlib.figure')
    saved = []
    monkeypatch.setattr(figures.Figure, 'savefig', lambda figure, *args, **more: saved.append(figure))
    page.picture(read(runs), None, target=2.5)
    band, = saved[0].axes[0].collections
    assert band.get_paths()[0].contains_point((1000, 2.4)) and not band.get_paths()[0].contains_point((1000, 2.6))
    assert len(saved[0].axes[0].lines) == 3, 'two curves, one target'


def test_a_picture_takes_an_installed_font_or_says_which_characters_lack_one(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip('matplotlib')
    fonts = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')
    (tmp_path / 'broken.ttf').write_text('no font')
    monkeypatch.setattr(matplotlib.font_manager, 'findSystemFonts', lambda: [str(tmp_path / 'broken.ttf')])
    folders = [make_run(tmp_path / 'ab\U0001d7d8한', [2.0])]
    with warnings.catch_warnings(), open(tmp_path / 'x.png', 'wb') as f:
        warnings.simplefilter('error')
        assert page.picture(read(folders), f) == '한', 'not what DejaVu Sans has'
    char = '\u1d81'  # in STIX, not in DejaVu Sans
    assert page.fonts_for(f'a{char}') == (['DejaVu Sans'], char)
    monkeypatch.setattr(matplotlib.font_manager, 'findSystemFonts', 
                        lambda: [f'{fonts}/{name}.ttf' for name in ('LastResortHE-Regular', 'STIXGeneral')])
    assert page.fonts_for(f'a{char}') == (['DejaVu Sans', 'STIXGeneral'], '')


def test_the_live_page_is_for_this_machine_alone(runs, tmp_path):
    (tmp_path / 'vl_convert.py').write_text('def javascript_bundle(): return ""')
    words = [sys.executable, os.path.join(ROOT, 'run_manager.py'), 'report', *runs, '--serve', '--port=0']
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    try:
        address = next(line for line in process.stdout if line.startswith('http')).split()[0]
        assert address.startswith('http://127.0.0.1:')
        served = urllib.request.urlopen(address).read().decode()
        assert '"live": true' in served and 'fast-2' in served
        port = int(address.rstrip('/').rpartition(':')[2])
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {'127.0.0.1'}
        for other in (ip for ip in others if not ip.startswith('127.')):
            with pytest.raises(OSError):
                socket.create_connection((other, port), timeout=2).close()
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def server(monkeypatch, find_content, kind=http.server.HTTPServer):
    """The port of page.serve(find_content), without Vega. It answers one request after the other."""
    servers, ready = [], threading.Event()

    class Known(kind):
        def serve_forever(self):
            servers.append(self)
            ready.set()
            super().serve_forever()

    monkeypatch.setattr(http.server, 'ThreadingHTTPServer', Known)
    monkeypatch.setattr(page, 'library', lambda: '')
    thread = threading.Thread(target=page.serve, args=(find_content, 0))
    thread.start()
    assert ready.wait(HANG)
    try:
        yield servers[0].server_address[1]
    finally:
        servers[0].shutdown()
        thread.join()


def ask(port, path='/', method='GET', host='localhost'):
    """(status, body) of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=HANG)
    connection.request(method, path, headers={'Host': host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_a_port_that_is_taken_is_said_before_the_work():
    with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(ValueError, match='--port=0 takes one'):
        page.check_port(taken.getsockname()[1])


def test_the_live_page_asks_for_its_figures_alone(monkeypatch):
    with server(monkeypatch, lambda: {'labels': ['</script>']}) as port:
        status, text = ask(port)
        assert status == 200 and '"live": true' in text and text.count('</script>') == 3
        assert ask(port, '/data.json') == (200, '{"labels": ["</script>"]}')
        with socket.create_connection(('127.0.0.1', port)) as head:
            head.sendall(b'HEAD /data.json?x HTTP/1.1\r\nHost: localhost\r\n\r\n')
            answer = head.makefile('rb').read()
        assert b' 200 ' in answer.splitlines()[0] and answer.endswith(b'\r\n\r\n'), 'no body'
        for path in ('/etc/passwd', '/../data.json', '/data.json/'):
            assert ask(port, path)[0] == 404
        for host in ('evil.example', '', 'localhost.evil.example', f'evil.example:{port}'):
            assert [ask(port, path, host=host)[0] for path in ('/', '/data.json')] == [403, 403]
        assert ask(port, host=f'LOCALHOST:{port}')[0] == 200


def test_what_is_wrong_for_the_moment_is_said_in_the_live_page(monkeypatch, capsys):
    answers = [ValueError('a mistake <in> the list'), ValueError('a mistake <in> the list'), ZeroDivisionError(), {}]

    def find_content():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with server(monkeypatch, find_content) as port:
        status, text = ask(port)
        assert status == 200 and 'a mistake \\u003cin> the list' in text
        assert ask(port, '/data.json') == (500, '{"error": "a mistake <in> the list"}')
        assert ask(port, '/data.json') == (500, '{"error": "ZeroDivisionError"}')
        assert ask(port, '/data.json') == (200, '{}')
    assert capsys.readouterr().err == ''


def test_a_reader_that_goes_away_does_not_end_the_server(monkeypatch, capsys):
    gone = threading.Event()

    def find_content():
        assert gone.wait(HANG)
        return {}

    with server(monkeypatch, find_content) as port:
        with socket.create_connection(('127.0.0.1', port)) as reader:
            reader.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # close it with a reset
        gone.set()
        assert ask(port, '/data.json') == (200, '{}')
    assert 'Traceback' not in capsys.readouterr().err


CURVES = "document.querySelectorAll('#chart .mark-line path').length"
SHAPE = "[...document.querySelectorAll('#chart .mark-line path')].map(e => e.getAttribute('d')).join()"
LABELS = "[...document.querySelectorAll('#chart .role-legend-label text')].map(e => e.textContent).join()"


def select(tab, value):
    tab.evaluate(f'document.querySelector(`input[value="{value}"]`).click()')


@pytest.mark.slow
def test_the_page_draws_its_curves_in_a_browser_and_asks_no_network(runs, tmp_path, tab):
    pytest.importorskip('vl_convert')
    path = tmp_path / 'report.html'
    path.write_text(page.page(content(runs, ['a left out'], target=2.5)), encoding='utf-8')
    tab.goto(path.as_uri())
    tab.wait_for_function(f'{CURVES} == 2')
    assert tab.evaluate("document.querySelectorAll('#chart .mark-area path').length") == 2, 'bands of seeds'
    assert tab.evaluate("document.querySelectorAll('#chart .mark-rule.role-mark line').length") == 1, 'the target'
    assert tab.evaluate("document.title") == 'Runs', 'a sample is text, whatever it holds'
    assert tab.evaluate("document.querySelectorAll('td.differs').length") == 2
    assert tab.evaluate("document.querySelector('#remarks').textContent") == 'a left out'
    title = "[...document.querySelectorAll('#chart .role-axis-title text')].map(e => e.textContent).join()"
    assert tab.evaluate(title) == 'iterations,validation loss'
    before = tab.evaluate(SHAPE)
    select(tab, 'seconds')
    tab.wait_for_function(f"{title} == 'seconds of training,validation loss'")
    assert tab.evaluate(SHAPE) != before and 'x=seconds' in tab.evaluate('location.hash')
    for kind in ('training loss', 'learning rate', 'gradient norm', 'tokens/s'):
        select(tab, kind)
        tab.wait_for_function(f"{title} == 'seconds of training,{kind}' && {CURVES} == 3")
    assert not tab.evaluate('document.querySelector(`input[value="bits per byte"]`)'), 'not known'
    select(tab, 'training loss')
    tab.wait_for_function(f"{title} == 'seconds of training,training loss'")
    for choice in ('log', 'smoothed'):
        before = tab.evaluate(SHAPE)
        select(tab, choice)
        tab.wait_for_function(f'{SHAPE} != {json.dumps(before)} && {CURVES} == 3')
    samples = "document.querySelector('#samples').textContent"
    assert 'ROMEO: I' in tab.evaluate(samples) and 'JULIET' not in tab.evaluate(samples)
    tab.evaluate("document.querySelector('input[name=prompt][value=\"1\"]').click()")
    assert 'JULIET: O' in tab.evaluate(samples)
    if folder := os.environ.get('SCREENSHOTS'):
        tab.screenshot(path=Path(folder, 'report.png'), full_page=True)
    assert all(re.match('file:///.*report.html|data:', url) for url in tab.asked), tab.asked


@pytest.mark.slow
def test_choices_act_in_a_notebooks_frame_which_has_no_address(runs, tab):
    pytest.importorskip('vl_convert')
    tab.set_content(f'<iframe srcdoc="{html.escape(page.page(content(runs)))}"></iframe>')
    frame = tab.frame_locator('iframe')
    frame.locator('input[value=seconds]').click()
    frame.locator('#chart .role-axis-title', has_text='seconds of training').wait_for()


@pytest.mark.slow
def test_the_live_page_keeps_its_zoom_and_its_library_while_figures_come(runs, tmp_path, monkeypatch, tab):
    pytest.importorskip('vl_convert')
    library = page.library()
    shown = runs[:2]

    def find_content():
        if not shown:
            raise ValueError('all runs have gone')
        return content(shown)

    with server(monkeypatch, find_content, http.server.ThreadingHTTPServer) as port:
        monkeypatch.setattr(page, 'library', lambda: library)
        tab.goto(f'http://127.0.0.1:{port}/')
        tab.wait_for_function(f"{CURVES} == 2 && {LABELS} == 'slow,fast'")
        tab.evaluate("svg = document.querySelector('#chart svg'); void chart.then(result => view = result.view)")
        tab.wait_for_function("typeof view == 'object'")
        tab.evaluate("void view.signal('view_iterations', [50, 150]).runAsync()")
        zoomed = "view.scale('x').domain().join() == '50,150'"
        tab.wait_for_function(zoomed)
        select(tab, '1')
        before, last = tab.evaluate(SHAPE), '{"iter": 300, "val_loss": 0.5, "tokens": 3000, "train_s": 30}\n'
        with open(Path(runs[0], 'metrics.jsonl'), 'a') as f:
            f.write(last)
        shown.append(runs[2])
        tab.evaluate('refresh()')
        tab.wait_for_function(f"{LABELS} == 'slow,fast (2 seeds)' && {SHAPE} != {json.dumps(before)}")
        assert tab.evaluate(zoomed) and tab.evaluate("svg === document.querySelector('#chart svg')")
        assert tab.evaluate("document.querySelector('input[name=prompt]:checked').value") == '1'
        assert tab.evaluate("document.querySelectorAll('#runs tr').length") == 4
        message = "document.querySelector('#message').textContent"
        shown.clear()
        tab.evaluate('refresh()')
        tab.wait_for_function(f"{message} == 'all runs have gone (below: the last figures)'")
        assert tab.evaluate(CURVES) == 2 and tab.evaluate(zoomed)
        shown += runs
        tab.evaluate('refresh()')
        tab.wait_for_function(f"{message} == ''")
    tab.evaluate('refresh()')
    tab.wait_for_function(f"{message}.includes('does not answer')")
    asked = [url.rpartition('/')[2] for url in tab.asked if not url.startswith('data:')]
    assert asked == [''] + ['data.json'] * 4
