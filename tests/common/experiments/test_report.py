"""The report: its figures on hand-made runs, and its page in a real browser that must not use a network."""
import base64
import http.server
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from common.experiments import report
from running import HANG, ROOT, ok

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def make_run(folder, losses, seconds=1.0, samples=(), done=True, **settings):
    """The files of a run with an evaluation every 100 iterations; these take `seconds` and 1,000 tokens each time."""
    (folder / 'samples').mkdir(parents=True)
    settings = {'n_layer': 2, 'seed': 1, 'out_dir': str(folder), 'parameters': 800_000, **settings}
    (folder / 'settings.json').write_text(json.dumps(settings))
    lines = []
    for i, loss in enumerate(losses):
        at = dict(iter=100 * i, train_s=seconds * i)
        lines += [dict(at, train_loss=loss, val_loss=loss, val_ppl=None, val_acc=0.5, tokens=1000 * i),
                  dict(at, loss=loss + 0.1, tokens=1000 * i + 10)]
        if samples:
            (folder / 'samples' / f'iter_{100 * i:06d}.txt').write_text(report.SEPARATOR.join(samples) + '\n')
    lines += [dict(iter=100 * len(losses), done=True, best_val_loss=min(losses), train_s=9.0)] if done else []
    unfinished = '' if done else '{"iter": 3'  # a line that is being written
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines) + unfinished)
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """Folders of a slow run and of a fast one with two seeds."""
    sly = 'once </script><script>document.title="broken"</script>'
    return [make_run(tmp_path / 'slow', [4.0, 3.0, 2.0], seconds=10.0, samples=['ROMEO: I', 'JULIET: O']),
            make_run(tmp_path / 'fast', [4.0, 2.0, 1.0], n_layer=4, samples=[sly, 'second']),
            make_run(tmp_path / 'fast-2', [4.0, 2.5, 1.5], n_layer=4, seed=2, done=False)]


def test_the_table_says_what_came_out_and_what_differs(runs):
    read = report.read_all(runs)
    columns = report.figures(read, target=2.5)
    assert columns['run'] == ['slow', 'fast', 'fast-2 (not done)']
    assert columns['best val loss'] == ['2.0000', '1.0000', '1.5000'] and columns['perplexity'][1] == '2.72'
    assert columns['parameters'][0] == '0.80M' and columns['accuracy'][0] == '50.0%'
    assert report.differing(read) == {'n_layer': [2, 4, 4]}, 'neither seeds nor folders'
    assert columns['time to 2.5'] == ['20s (1.00x)', '1s (0.05x)', '1s (0.05x)']
    assert columns['tokens to 2.5'] == ['2,000 (1.00x)', '1,000 (0.50x)', '1,000 (0.50x)']
    assert report.figures(read, target=1.2)['time to 1.2'] == ['not reached', '2s', 'not reached']
    lines = list(report.table(read))
    assert len(lines) == 4 and len({line.index('0.80M') for line in lines[1:]}) == 1
    assert lines[1].endswith('100') and lines[2].endswith('n_layer=4')


def test_seeds_share_a_curve_with_their_range(runs):
    read = report.read_all(runs)
    assert {label: len(members) for label, members in report.groups(read).items()} == {'slow': 1, 'fast (2 seeds)': 2}
    points = [point for point in report.curves(read) if point[:2] == ('fast (2 seeds)', 'validation loss')]
    assert points == [('fast (2 seeds)', 'validation loss', '', 0, 0, 0.0, 4.0, 4.0, 4.0),
                      ('fast (2 seeds)', 'validation loss', '', 100, 1000, 1.0, 2.25, 2.0, 2.5),
                      ('fast (2 seeds)', 'validation loss', '', 200, 2000, 2.0, 1.25, 1.0, 1.5)]


def test_a_run_without_settings_or_losses_is_shown_as_far_as_it_is_known(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('')
    columns = report.figures(report.read_all([str(tmp_path)]), target=1.0)
    assert columns['best val loss'] == ['-'] and columns['time to 1'] == ['not reached']


@pytest.mark.slow
def test_many_long_runs_make_a_page_below_1500_kb(tmp_path):
    pytest.importorskip('vl_convert')
    losses = [3.0 + j / 1e4 for j in range(2000)]
    folders = [make_run(tmp_path / str(i), losses, n_layer=i) for i in range(20)]
    wordy = 20 * ['\u4f60' * 2000]
    folders += [make_run(tmp_path / f'wordy-{i}', losses[:8], n_head=i, samples=wordy) for i in range(6)]
    assert len(report.page(report.read_all(folders)).encode()) < 1_500_000


def test_runs_of_one_name_and_from_other_weights_are_kept_apart(tmp_path):
    folders = [make_run(tmp_path / 'old' / 'muon', [2.0], init_from='scratch'),
               make_run(tmp_path / 'new' / 'muon', [1.0], init_from='gpt2')]
    read = report.read_all(folders)
    assert [run.name for run in read] == folders and len(report.groups(read)) == 2
    assert report.differing(read) == {'init_from': ['scratch', 'gpt2']}


def test_what_is_half_written_or_foreign_is_left_out(runs):
    Path(runs[0], 'settings.json').write_text('{"n_layer"')
    Path(runs[0], 'samples', 'iter_old.txt').write_text('notes')
    read = report.read_all(runs)
    assert read[0].settings == {} and sorted(read[0].samples) == [0, 100, 200]
    assert report.figures(read)['parameters'][0] == '-'


@pytest.mark.parametrize('settings', ['[]', '{}', '5', 'null', '{"parameters": "many", "n_layer": {"a": [1]}}', '\xff',
                                      '{"dataset": "\\udcff", "parameters": NaN}', '[' * 100_000])
def test_damaged_files_are_shown_as_far_as_they_are_whole(runs, settings):
    pytest.importorskip('vl_convert')
    damage = ['12', 'null', '[1]', '{"a": 1}', '{"iter": 0, "val_loss": 1.0}', '{"iter": 0, "loss": 0.5}', '{"iter": 3',
              '{"iter": 100, "val_loss": 0.1, "tokens": "1", "train_s": 1.0}', '\udcff\0\0', '"val_loss"']
    metrics = Path(runs[0], 'metrics.jsonl')
    text = metrics.read_text()
    metrics.write_bytes('\n'.join([*damage, text, *damage]).encode(errors='surrogateescape'))
    Path(runs[0], 'settings.json').write_bytes(settings.encode('latin-1'))
    Path(runs[0], 'samples', 'iter_000000.txt').write_bytes(b'ROM\xff')
    Path(runs[0], 'samples', 'iter_000300.txt').mkdir()
    read = report.read_all(runs)
    columns = report.figures(read, target=2.5)
    assert columns['best val loss'][0] == '2.0000' and columns['time to 2.5'][0] == '20s (1.00x)'
    assert columns['parameters'][0] == '-' and columns['run'][0] == 'slow' and columns['tokens'][0] == '2,010'
    assert read[0].samples[0] == ['ROM\ufffd'] and sorted(read[0].samples) == [0, 100, 200]
    assert len(list(report.table(read))) == 4 and b'slow' in report.page(read).encode()
    assert len([point for point in report.curves(read) if point.label == 'slow']) == 9


def test_a_run_that_cannot_be_read_now_is_left_out_with_a_line(runs, capsys):
    Path(runs[0], 'metrics.jsonl').unlink()
    Path(runs[0], 'metrics.jsonl').mkdir()
    assert [run.name for run in report.read_all(runs)] == ['fast', 'fast-2']
    assert f"left out: [Errno 21] Is a directory: '{runs[0]}/metrics.jsonl'" in capsys.readouterr().err


@pytest.mark.parametrize('out, expected', [
    ('', "--out='' names no file"), ('there/', "--out='there/' names no file"), ('file/x', 'is a file, not a folder'),
    ('link/x', 'link is a link to'), ('taken', 'taken.html is a folder')])
def test_a_place_that_cannot_be_written_is_refused_at_once(run, runs, tmp_path, out, expected):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to('gone')
    (tmp_path / 'taken.html').mkdir()
    done = run('run_manager.py', 'report', *runs, f'--out={out}')
    assert done.returncode == 2 and expected in done.stderr and '--out=' in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_a_report_writes_a_table_a_page_and_a_picture(run, runs, tmp_path):
    pytest.importorskip('vl_convert')
    pytest.importorskip('matplotlib')
    output = ok(run('run_manager.py', 'report', *runs, '--target=2.5')).stdout
    assert 'time to 2.5' in output and 'wrote report.html and report.png' in output
    assert (tmp_path / 'report.png').read_bytes().startswith(b'\x89PNG')
    missing = run('run_manager.py', 'report', runs[0], 'nowhere')
    assert missing.returncode == 2 and 'no metrics.jsonl in nowhere' in missing.stderr


def test_a_package_that_is_missing_is_named(run, runs, tmp_path):
    (tmp_path / 'vl_convert.py').write_text('raise ModuleNotFoundError("gone", name="vl_convert")')
    done = run('run_manager.py', 'report', *runs, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and 'pip install vl-convert-python' in done.stderr and 'n_layer' in done.stdout


def test_a_home_folder_in_a_path_is_meant_and_a_new_folder_is_made(run, runs, tmp_path):
    (tmp_path / 'vl_convert.py').write_text('def javascript_bundle(): return ""')
    (tmp_path / 'matplotlib.py').write_text('raise ModuleNotFoundError("gone", name="matplotlib")')
    done = run('run_manager.py', 'report', '~/slow', '--out=~/new/er/x', HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert 'pip install matplotlib' in done.stderr and (tmp_path / 'new' / 'er' / 'x.html').exists()


def test_the_live_page_is_for_this_machine_alone(runs, tmp_path):
    pytest.importorskip('vl_convert')
    words = [sys.executable, os.path.join(ROOT, 'run_manager.py'), 'report', *runs, '--serve', '--port=0']
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in process.stdout if line.startswith('http')).split()[0]
        assert address.startswith('http://127.0.0.1:')
        page = urllib.request.urlopen(address).read().decode()
        assert '"live": true' in page and 'fast-2' in page
        for path, host, code in (('etc/passwd', None, 404), ('', 'evil.example', 403)):
            request = urllib.request.Request(address + path, headers={'Host': host} if host else {})
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request)
            assert error.value.code == code
        port = int(address.rstrip('/').rpartition(':')[2])
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {'127.0.0.1'}
        for other in (ip for ip in others if not ip.startswith('127.')):
            with pytest.raises(OSError):
                socket.create_connection((other, port), timeout=2).close()
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_goes_away_and_runs_that_have_gone_do_not_end_the_server(monkeypatch, capsys):
    servers, gone, answers = [], threading.Event(), iter([['run'], ValueError('a mistake <in> the list'), ['run']])

    class InOrder(http.server.HTTPServer):  # when it answers the next request, the one before is over
        def __init__(self, *args):
            super().__init__(*args)
            servers.append(self)

    def find_runs():
        assert gone.wait(HANG)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(http.server, 'ThreadingHTTPServer', InOrder)
    monkeypatch.setattr(report, 'page', lambda runs, target, live: f'page of {runs}')
    thread = threading.Thread(target=report.serve, args=(find_runs, None, 0))
    thread.start()
    while not servers:
        time.sleep(0.01)
    try:
        with socket.create_connection(servers[0].server_address) as reader:
            reader.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # close it with a reset
        gone.set()
        address = f'http://127.0.0.1:{servers[0].server_address[1]}/'
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(address)
        assert error.value.code == 503 and b'a mistake &lt;in&gt; the list' in error.value.read()
        assert urllib.request.urlopen(address).read() == b"page of ['run']"
    finally:
        servers[0].shutdown()
        thread.join()
    assert 'Traceback' not in capsys.readouterr().err


class Browser:
    """A headless Chromium, driven through the pipes of its DevTools protocol; .events keeps all its messages."""

    def __init__(self, profile):
        to_browser, self.to_browser = os.pipe()
        self.from_browser, from_browser = os.pipe()
        script = f'exec {CHROMIUM} "$@" 3<&{to_browser} 4>&{from_browser}'
        words = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--remote-debugging-pipe',
                 f'--user-data-dir={profile}', '--window-size=1200,1400', '--disable-background-networking']
        self.process = subprocess.Popen(['bash', '-c', script, 'chromium', *words], pass_fds=(to_browser, from_browser),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser), os.close(from_browser)
        self.number, self.rest, self.events, self.session = 0, b'', [], None
        target = self.ask('Target.createTarget', url='about:blank')['targetId']
        self.session = self.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.ask(f'{domain}.enable')

    def read(self):
        while b'\0' not in self.rest:
            part = os.read(self.from_browser, 2**16)
            assert part, 'the browser has ended'
            self.rest += part
        message, _, self.rest = self.rest.partition(b'\0')
        message = json.loads(message)
        self.events.append(message)
        return message

    def ask(self, method, **params):
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b'\0')
        while (answer := self.read()).get('id') != self.number:
            pass
        assert 'error' not in answer, answer
        return answer['result']

    def value(self, expression):
        return self.ask('Runtime.evaluate', expression=expression, returnByValue=True)['result'].get('value')

    def wait_for(self, expression):
        end = time.monotonic() + HANG
        while not self.value(expression):
            assert time.monotonic() < end, f'{expression} is not so'
            time.sleep(0.1)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to_browser), os.close(self.from_browser)


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')
def test_the_page_draws_its_curves_in_a_browser_and_asks_no_network(runs, tmp_path):
    pytest.importorskip('vl_convert')
    path = tmp_path / 'report.html'
    path.write_text(report.page(report.read_all(runs), target=2.5), encoding='utf-8')
    browser = Browser(tmp_path / 'profile')
    guard = threading.Timer(HANG, browser.process.kill)
    guard.start()
    try:
        browser.ask('Page.navigate', url=f'file://{path}')
        curves = "document.querySelectorAll('#chart .mark-line path').length"
        browser.wait_for(f'{curves} == 2')
        assert browser.value("document.querySelectorAll('#chart .mark-area path').length") == 1, 'a band for two seeds'
        assert browser.value("document.querySelectorAll('#chart .mark-rule.role-mark line').length") == 1, 'the target'
        assert browser.value("document.title") == 'Runs', 'a sample is text, whatever it holds'
        assert browser.value("document.querySelectorAll('td.differs').length") == 2
        title = "[...document.querySelectorAll('#chart .role-axis-title text')].map(e => e.textContent).join()"
        assert browser.value(title) == 'iterations,validation loss'
        shape = "[...document.querySelectorAll('#chart .mark-line path')].map(e => e.getAttribute('d')).join()"
        before = browser.value(shape)
        browser.value("document.querySelector('input[value=seconds]').click()")
        browser.wait_for(f"{title} == 'seconds of training,validation loss'")
        assert browser.value(shape) != before and 'x=seconds' in browser.value('location.hash')
        browser.value("document.querySelector('input[value=\"training loss\"]').click()")
        browser.wait_for(f"{title} == 'seconds of training,training loss'")
        browser.wait_for(f'{curves} == 3')
        samples = "document.querySelector('#samples').textContent"
        assert 'ROMEO: I' in browser.value(samples) and 'JULIET' not in browser.value(samples)
        browser.value("document.querySelector('input[name=prompt][value=\"1\"]').click()")
        assert 'JULIET: O' in browser.value(samples)
        if folder := os.environ.get('SCREENSHOTS'):
            picture = browser.ask('Page.captureScreenshot', captureBeyondViewport=True)['data']
            Path(folder, 'report.png').write_bytes(base64.b64decode(picture))
    finally:
        guard.cancel()
        browser.close()
    complaints = 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Log.entryAdded'
    wrong = [event for event in browser.events if event.get('method') in complaints]
    assert not wrong, wrong
    asked = {event['params']['request']['url'] for event in browser.events
             if event.get('method') == 'Network.requestWillBeSent'}
    assert all(re.match('file:///.*report.html|data:', url) for url in asked), asked
