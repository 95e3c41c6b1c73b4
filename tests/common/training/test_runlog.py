"""metrics.jsonl: one run, however often it was interrupted, and never a made-up number."""
import json
import math
import os

import pytest

from common.training.states import Progress
from common.console import duration, perplexity
from common.training import runlog
from common.training.runlog import RunLog


def make_log(folder, run=Progress(), peak_flops=None, tensorboard_log=False):
    config = {'max_iters': 100, 'out_dir': str(folder), 'wandb_log': False, 'tensorboard_log': tensorboard_log}
    return RunLog(config, run, tokens_per_iter=1000, flops_per_token=50.0, peak_flops=peak_flops)


def after(updates, train_s, **more):
    """The progress of a run after so many updates of 1,000 tokens."""
    return Progress(iter_num=updates, tokens=1000 * updates, train_s=train_s, **more)


def lines(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_a_resumed_log_reads_as_one_run(tmp_path):
    log = make_log(tmp_path)
    for i in range(8):
        log.iteration(after(i + 1, float(i + 1)), loss=8.0 - i, lr=0.1, grad_norm=1.0, mem_gb=None)
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
        f.write('{"iter": 8, "loss": 0.')  # what a crash leaves
    log = make_log(tmp_path, after(5, 5.0))
    log.evaluation(after(5, 5.0), train_loss=3.0, val_loss=3.1, val_acc=0.5, bits_per_byte=None, texts=[], tasks={})
    log = make_log(tmp_path, after(5, 5.0, evaluated_at=5))  # a state that was saved after its evaluation
    log.iteration(after(6, 6.0), loss=3.0, lr=0.1, grad_norm=1.0, mem_gb=None)
    assert [line['iter'] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5, 5]
    assert lines(tmp_path)[-1]['ms'] == 1000.0


def test_speed_is_measured_since_the_last_line(tmp_path, capsys):
    log = make_log(tmp_path, peak_flops=1e6)
    log.iteration(after(1, 1.0), loss=2.0, lr=0.1, grad_norm=None, mem_gb=1.5)
    log.iteration(after(11, 6.0), loss=1.0, lr=0.1, grad_norm=None, mem_gb=1.5)
    assert lines(tmp_path)[1] == dict(iter=10, loss=1.0, lr=0.1, grad_norm=None, ms=500.0, tok_s=2000.0, mfu=0.1,
                                      mem_gb=1.5, tokens=11000, train_s=6.0)
    assert capsys.readouterr().out.splitlines()[1] == ('iter 10: loss 1.0000, time 500.00ms, mfu 10.00%, 2,000 tok/s, '
                                                       '44s left')


def test_what_is_not_a_number_is_null(tmp_path):
    log = make_log(tmp_path)
    log.evaluation(after(0, 0.0), train_loss=math.nan, val_loss=math.inf, val_acc=0.0, bits_per_byte=None, texts=[],
                   tasks={})
    assert lines(tmp_path)[0]['train_loss'] is None and lines(tmp_path)[0]['val_ppl'] is None
    assert math.isnan(perplexity(math.nan)) and perplexity(1e4) == math.inf and perplexity(0.0) == 1.0


def test_the_end_names_only_files_that_are_there(tmp_path, capsys):
    log = make_log(tmp_path)
    log.close(after(0, 0.0, best_val_loss=math.inf), done=True)
    assert 'wrote metrics.jsonl in' in capsys.readouterr().out
    assert lines(tmp_path) == [dict(iter=0, done=True, best_val_loss=None, train_s=0.0)]


def test_an_end_that_is_not_the_usual_one_says_why(tmp_path, capsys):
    make_log(tmp_path).close(after(40, 1.0, best_val_loss=2.0), done=True)
    assert 'best val loss 2.0000; ended by --patience' in capsys.readouterr().out
    make_log(tmp_path).close(after(100, 1.0, best_val_loss=2.0), done=True)
    assert 'patience' not in capsys.readouterr().out
    make_log(tmp_path, after(100, 1.0)).close(after(100, 1.0, best_val_loss=2.0), done=True)
    said = capsys.readouterr().out
    assert 'nothing is left to do: this run ended after 100 iterations' in said and 'trained' not in said


DAMAGED = [b'{"iter": 1, "loss": 0.\n', b'\xff\xfe\n', b'12\n', b'null\n', b'[1]\n', b'{"a": 1}\n', b'{"iter": "1"}\n',
           b'{"iter": null}\n', b'\0\0\0\0\n', b'[' * 10**5 + b'\n', b'\n', b'{"iter": 2, "loss"']


def test_damaged_lines_are_kept_aside_and_never_prevent_a_resume(tmp_path, capsys):
    log = make_log(tmp_path)
    for i in range(4):
        log.iteration(after(i + 1, float(i + 1)), loss=1.0, lr=0.1, grad_norm=1.0, mem_gb=None)
    whole = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    mixed = [line for pair in zip(DAMAGED[:4], whole) for line in pair] + DAMAGED[4:]
    for name in ('metrics', 'spikes'):
        (tmp_path / f'{name}.jsonl').write_bytes(b''.join(mixed))
        runlog.cut(str(tmp_path / f'{name}.jsonl'), after(3, 3.0))
        assert (tmp_path / f'{name}.jsonl').read_bytes() == b''.join(whole[:3])
        assert (tmp_path / f'{name}-damaged.jsonl').read_bytes() == b''.join(DAMAGED)
        assert f'damaged lines, now in {tmp_path}/{name}-damaged.jsonl: 12' in capsys.readouterr().out


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_set_aside_and_never_prevents_a_resume(tmp_path, capsys, make):
    make(tmp_path / 'metrics.jsonl')
    make_log(tmp_path, after(3, 3.0)).iteration(after(4, 4.0), loss=1.0, lr=0.1, grad_norm=1.0, mem_gb=None)
    assert [line['iter'] for line in lines(tmp_path)] == [3] and (tmp_path / 'metrics.jsonl.damaged').exists()


@pytest.mark.parametrize('content', [b'', b'{}', b'[]', b'null', b'{"init_from": ', b'\xff', b'"text"'])
def test_damaged_settings_never_prevent_a_resume(tmp_path, capsys, content):
    (tmp_path / 'settings.json').write_bytes(content)
    runlog.write_settings(str(tmp_path / 'settings.json'), {'init_from': 'resume', 'seed': 7})
    assert json.loads((tmp_path / 'settings.json').read_text()) == {'init_from': 'scratch', 'seed': 7}
    assert 'settings.json is damaged and written anew' in capsys.readouterr().out


def test_a_line_that_could_not_be_written_comes_with_the_next_one(tmp_path, capsys, monkeypatch):
    log = make_log(tmp_path)
    step = dict(loss=1.0, lr=0.1, grad_norm=1.0, mem_gb=None)
    with monkeypatch.context() as patch:
        patch.setattr('builtins.open', lambda *args, **options: (_ for _ in ()).throw(OSError(28, 'No space left')))
        log.iteration(after(1, 1.0), **step)
    assert 'not logged: [Errno 28] No space left' in capsys.readouterr().out
    log.iteration(after(2, 2.0), **step)
    assert [line['iter'] for line in lines(tmp_path)] == [0, 1]


def test_a_service_that_fails_does_not_end_the_run(tmp_path, capsys):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError('the service is down')
    log = make_log(tmp_path)
    log.wandb = log.board = Broken()
    log.evaluation(after(1, 1.0), train_loss=3.0, val_loss=3.1, val_acc=0.5, bits_per_byte=None, texts=[], tasks={})
    log.close(after(1, 1.0, best_val_loss=3.1), done=True)
    assert capsys.readouterr().out.count('not logged: the service is down') == 6 and lines(tmp_path)[-1]['done']


@pytest.mark.parametrize('seconds, text', [(0.4, '0s'), (59.6, '1m00s'), (184, '3m04s'), (7500, '2h05m'),
                                           (356400, '4d03h')])
def test_durations_are_as_exact_as_a_person_needs(seconds, text):
    assert duration(seconds) == text


def test_all_settings_are_beside_the_run(tmp_path):
    path = tmp_path / 'settings.json'
    make_log(tmp_path)
    assert json.loads(path.read_text())['max_iters'] == 100
    for asked, kept in (('gpt2', 'gpt2'), ('auto', 'gpt2'), ('resume', 'gpt2')):
        runlog.write_settings(str(path), {'init_from': asked})
        assert json.loads(path.read_text())['init_from'] == kept, 'what the run began with'


def test_the_progress_line_is_for_terminals_alone(tmp_path, capsys, monkeypatch):
    log = make_log(tmp_path)
    log.iteration(after(1, 1.0), loss=2.0, lr=0.1, grad_norm=None, mem_gb=None)
    log.show_progress(after(1, 1.0))
    assert 'of 100 iterations' not in capsys.readouterr().out
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    log.show_progress(after(1, 1.0))
    line = capsys.readouterr().out
    assert '1 of 100 iterations, 1m39s left' in line and line.endswith('\r') and '\n' not in line


def test_a_key_may_stand_in_a_file(tmp_path, monkeypatch):
    (tmp_path / '.env').write_text('# keys\nexport WANDB_API_KEY="secret"\nWANDB_MODE=online\nPATH=/nowhere\n')
    monkeypatch.setattr(os, 'environ', {'WANDB_MODE': 'offline', 'PATH': '/bin'})
    runlog.read_env(str(tmp_path / '.env'))
    assert os.environ == {'WANDB_API_KEY': 'secret', 'WANDB_MODE': 'offline', 'PATH': '/bin'}


def test_a_byte_order_mark_or_a_byte_that_is_no_text_costs_no_key(tmp_path, monkeypatch):
    (tmp_path / '.env').write_bytes(b'\xef\xbb\xbfWANDB_API_KEY=secret\r\nWANDB_NAME=\xb0\xa1\n')
    monkeypatch.setattr(os, 'environ', {})
    runlog.read_env(str(tmp_path / '.env'))
    assert os.environ['WANDB_API_KEY'] == 'secret'


def test_bits_per_byte_stand_beside_the_loss_where_they_are_known():
    assert runlog.evaluation_line(5, 2.0, 3.0, 0.25, 1.4427) == (
        'step 5: train loss 2.0000, val loss 3.0000, perplexity 20.09, accuracy 25.0%, bits per byte 1.443')
    assert runlog.evaluation_line(5, 2.0, 3.0, 0.25, None).endswith('accuracy 25.0%')


def test_tensorboard_has_the_curves(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    log = make_log(tmp_path, tensorboard_log=True)
    log.iteration(after(1, 1.0), loss=2.0, lr=0.1, grad_norm=None, mem_gb=None)
    log.evaluation(after(1, 1.0), train_loss=3.0, val_loss=3.5, val_acc=0.5, bits_per_byte=None, texts=[], tasks={})
    log.close(after(1, 1.0, best_val_loss=3.5), done=True)
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert [(event.step, event.value) for event in events.Scalars('val_loss')] == [(1, 3.5)]
    assert [event.value for event in events.Scalars('loss')] == [2.0]
