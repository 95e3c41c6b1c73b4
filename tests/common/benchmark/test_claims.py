"""The figure of each claim is read out of what its command prints or writes; here these are made up."""
import json
import os
import shlex

import pytest

from common import device, settings
from common.benchmark import claims, ledger, probes
from common.benchmark.claims import CLAIMS
from conftest import TOY
from running import ROOT, ok, python

STEP = {'tok_s': 61234.0, 'ms': 8.5, 'ms_lowest': 8.25, 'ms_highest': 9.0, 'mfu': 0.38, 'mfu_measured': 0.5,
        'memory_gb': 7.5, 'planned_gb': 7.25, 'reserved_gb': 8.0, 'warmup_s': 9.0, 'compile': False,
        'dtype': 'bfloat16', 'batch_size': 8}
OTHERS = {'check': 'ok       CPU       2 threads\nwarning  GPU       none\n         -> small models\n',
          'matmul': {'float32': 0.152, 'bfloat16': 0.398, 'float16': 0.001, 'read_gb_s': 29.8},
          'attention': {'dtype': 'bfloat16', **{f'{kind}_{channels}': 1.25 for kind in ('cudnn', 'flash', 'efficient')
                                                for channels in (64, 128)}, 'cudnn_128': None},
          'host_syncs': {'steps': 5, 'syncs': 1, 'places': ['train.py:12']},
          'evaluate.py': {'questions': 100, 'seconds': 4.0, 'dtype': 'float32'},
          'sample': {'float32, batch 1': 29.94, 'int8, batch 1': 50.0}, 'pytest': '..\n2 passed, 1 skipped in 4.5s\n'}


def metrics(losses, seconds=10.0):
    """What Bench.train() gives of a run with these validation losses, each `seconds` after the one before."""
    evaluations = [{'val_loss': loss, 'train_s': i * seconds, 'tokens': 1e6 * i, 'bits_per_byte': loss * 1.5}
                   for i, loss in enumerate(losses)]
    steps = [{'loss': loss + 0.5, 'tok_s': 1000.0 * i, 'mem_gb': 9.0} for i, loss in enumerate(losses)]
    return steps, evaluations, {'train_s': evaluations[-1]['train_s']}


class Pretended(ledger.Bench):
    """A Bench whose commands give what is made up above, and are noted."""

    def __init__(self, tmp_path, losses=()):
        super().__init__(ROOT, str(tmp_path), 'cpu', 'shakespeare.txt')
        self.begin(1)
        self.losses, self.commands = dict(losses), []

    def run(self, command, *more, codes=(0,), folder='', **env):
        self.commands.append(' '.join([command, *more]))
        if '--out=sweep.jsonl' in more:
            with open(f'{self.work}/sweep.jsonl', 'w') as f:
                for row in (STEP, dict(STEP, batch_size=16, tok_s=70000.0), dict(batch_size=32, error='out of memory')):
                    f.write(json.dumps(row) + '\n')
        named = [made for word, made in OTHERS.items() if word in command]
        made = named[0] if named else dict(STEP, compile='--compile=True' in more)
        text = 'compile: done in 31.9 s, 2 graphs\n' if '--compile=True' in command else ''
        return text + (made if isinstance(made, str) else json.dumps(made)), 1.5

    def train(self, command, *more, name='run', **options):
        self.commands.append(' '.join([command, *more]))
        return metrics(self.losses.get(name, [4.0, 2.0, 1.0]))

    def dataset(self, name):
        return name


def measure(name, tmp_path, losses=()):
    """(figure, text, spread, the commands that were run) of a claim."""
    claim = ledger.chosen(CLAIMS, name)[0]
    bench = Pretended(tmp_path, losses)
    return *claim.measure(bench, claim.command), bench.commands


@pytest.mark.parametrize('name', [claim.name for claim in CLAIMS])
def test_each_claim_runs_its_command_and_gives_a_figure_and_a_text(tmp_path, name):
    figure, text, spread, commands = measure(name, tmp_path)
    assert figure and json.loads(json.dumps(figure)) and text and isinstance(spread, str)
    for command in ledger.chosen(CLAIMS, name)[0].command.split('; ' if name.startswith('shakespeare') else '\n'):
        assert any(command.replace('=FILE', '=text.jsonl') in one for one in commands), commands


def test_names_are_unique_and_commands_can_be_pasted():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        words = [word for word in shlex.split(claim.command) if '=' not in word or word.startswith('--')]
        assert words[0] in ('python', 'torchrun')
        script = next(word for word in words[1:] if not word.startswith('--'))
        assert script in ('-c', '-m') or os.path.isfile(os.path.join(ROOT, script)), claim.command


def scripts():
    """(name, script, its words, number of processes, whether on a GPU) for each command that runs one."""
    for claim in CLAIMS:
        for command in claim.command.split('; ' if claim.name.startswith('shakespeare') else '\n'):
            words = shlex.split(command)
            counts = [int(word.partition('=')[2]) for word in words if word.startswith('--nproc_per_node=')]
            script = next((word for word in words if word in ('train.py', 'bench.py', 'evaluate.py')), None)
            if claim.name == 'host-syncs':  # executes train.py with the words behind its own
                yield claim.name, 'train.py', words[3:], 1, True
            elif script:
                yield claim.name, script, words[words.index(script) + 1:], max([1, *counts]), claim.gpu > 0


@pytest.mark.parametrize('name, script, words, processes, on_gpu', list(scripts()))
def test_no_script_would_refuse_its_command(monkeypatch, name, script, words, processes, on_gpu):
    monkeypatch.setattr(device, 'has_gpu', lambda: on_gpu)
    found = settings.read(os.path.join(ROOT, script), words)
    for count in {1, processes} if script == 'train.py' else ():  # parallel() starts one process, too
        settings.check(found, count)


def test_half_an_hour_of_a_gpu_in_pieces_of_8_minutes_is_enough():
    """Three calls, each of which takes the first claims that still fit."""
    due = [claim for claim in CLAIMS if claim.gpu and claim.gpus == 1]
    assert sum(claim.gpu for claim in due) <= 22
    for _ in range(3):
        left = 8.0
        for claim in list(due):
            if claim.gpu <= left:
                due.remove(claim)
                left -= claim.gpu
    assert due == []


def test_a_step_is_measured_eager_and_compiled_with_its_memory_beside_the_plan(tmp_path):
    figure, text, spread, commands = measure('step-124m-float16', tmp_path)
    assert figure['eager_tok_s'] == figure['compiled_tok_s'] == 61234 and figure['eager_planned_gb'] == 7.25
    assert text == ('eager 61,234 tokens/s (8.5 ms, MFU 38%), 7.50 GB (planned 7.25); '
                    'compiled 61,234 tokens/s (8.5 ms, MFU 38%), 7.50 GB (planned 7.25)')
    assert spread == '8.2 to 9.0 ms and 8.2 to 9.0 ms'
    assert [one.rpartition(' ')[2] for one in commands] == ['--compile=False', '--compile=True']


def test_the_tests_are_run_where_they_are(tmp_path):
    project = tmp_path / 'project'
    (project / 'tests').mkdir(parents=True)
    (project / 'pytest.ini').write_text('[pytest]\ntestpaths = tests\n')
    (project / 'tests' / 'test_a.py').write_text('def test_a():\n    assert True\n')
    bench = ledger.Bench(str(project), str(tmp_path / 'bench'), 'cpu')
    bench.begin(1)
    command = ledger.chosen(CLAIMS, 'tests')[0].command
    assert claims.tests(bench, command)[0] == {'passed': 1}


def test_the_figures_of_the_quick_start_are_those_of_its_best_evaluation(tmp_path):
    figure, text, _, _ = measure('quickstart', tmp_path, {'run': [3.0, 1.0, 2.0]})
    assert (figure['val_loss'], figure['bits_per_byte']) == (1.0, 1.5) and 'val loss 1.0000, 1.500 bits' in text


def test_a_check_that_says_nothing_has_failed(tmp_path, monkeypatch):
    monkeypatch.setitem(OTHERS, 'check', 'Segmentation fault\n')
    with pytest.raises(ledger.Failed):
        measure('check', tmp_path)


def test_the_time_to_a_loss_is_on_a_straight_line_between_evaluations():
    _, evaluations, _ = metrics([4.0, 3.0, 2.0, 2.5])
    assert claims.time_to(2.25, evaluations) == pytest.approx(17.5) and claims.time_to(2.0, evaluations) == 20
    assert claims.time_to(1.9, evaluations) is None


def test_the_recipes_are_compared_at_the_last_loss_of_the_classic_one(tmp_path):
    losses = {f'{name}-{seed}': values for seed in (1337, 1, 2) for name, values in (
        ('classic', [4.0, 3.0, 2.0]), ('fast', [4.0, 1.0 if seed else 3.0]))}
    losses['fast-2'] = [4.0, 2.5]
    figure, text, spread, commands = measure('shakespeare', tmp_path, losses)
    assert figure['classic_s'] == [20.0] * 3 and figure['fast_loss'] == [1.0, 1.0, 2.5]
    assert figure['fast_s_to_target'] == [pytest.approx(20 / 3)] * 2 + [None] and figure['ratios'] == [2.0] * 3
    assert text == ("classic 2.0000, 2.0000, 2.0000 in 20.0, 20.0, 20.0 s; fast 1.0000, 1.0000, 2.5000 in 10.0, 10.0, "
                    "10.0 s, to the classic run's last loss in 6.7 s, 6.7 s, never; 1/2.0 of the time in all")
    assert spread == '1/2.0, 1/2.0, 1/2.0'
    assert ['_fast' in one for one in commands] == [False, True] * 3  # in turn


def test_on_a_gpu_the_recipes_are_compared_at_nanogpts_loss(tmp_path):
    losses = {'classic-1337': [4.0, 2.0, 1.0], 'fast-1337': [4.0, 1.0]}
    figure, text, _, _ = measure('shakespeare-gpu', tmp_path, losses)
    assert figure['classic_s_to_target'] == [pytest.approx(15.303)] and 'to 1.4697 in 15.3 s' in text
    assert figure['ratios'] == [pytest.approx(15.303 / 8.434, rel=1e-3)] and text.endswith('; 1/1.8 of the time to it')
    losses['fast-1337'] = [4.0, 2.0]
    figure, text, _, _ = measure('shakespeare-gpu', tmp_path, losses)
    assert figure['ratios'] == [None] and text.endswith('; fast 2.0000 in 10.0 s, to 1.4697 never')


def test_both_precisions_are_compared_by_their_losses(tmp_path):
    losses = {'bfloat16': [3.0, 2.0], 'float16': [3.0, 2.25]}
    figure, text, _, _ = measure('float16', tmp_path, losses)
    assert figure['difference'] == pytest.approx(0.125) and '2.0000 in bfloat16, 2.2500 in float16' in text


def test_processes_are_compared_by_their_losses(tmp_path):
    losses = {'one': [3.5, 1.5], 'DDP': [3.5, 1.5], 'FSDP': [3.5, 1.75]}
    figure, text, _, commands = measure('parallel', tmp_path, losses)
    assert figure['DDP_difference'] == 0 and figure['FSDP_difference'] == pytest.approx(0.125)
    assert 'DDP: the same losses to the bit, FSDP: losses within 1.2e-01' in text
    assert [one.split()[0] for one in commands] == ['python', 'torchrun', 'torchrun'] and '--fsdp=True' in commands[2]


def test_what_is_wrong_with_a_machine_is_in_the_text_of_its_check(tmp_path):
    assert measure('check', tmp_path)[1] == '1 ok, 1 warning; GPU none'


def test_a_kernel_that_is_not_there_is_left_out(tmp_path):
    text = measure('attention', tmp_path)[1]
    assert text == ('heads of 64 channels: cudnn 1.25 ms, flash 1.25 ms, efficient 1.25 ms; heads of 128 channels: '
                    'flash 1.25 ms, efficient 1.25 ms (bfloat16)')


def test_the_best_of_a_sweep_is_its_fastest_and_a_size_that_does_not_fit_is_left_out(tmp_path):
    _, text, spread, _ = measure('sweep-124m', tmp_path)
    assert text.startswith('batch_size 16, bfloat16: 70,000 tokens/s') and spread == '8: 61,234, 16: 70,000'


def test_attention_is_timed_where_a_kernel_is(capsys):
    probes.attention('cpu', batch=1, context=16, rounds=1)
    row = json.loads(capsys.readouterr().out)
    assert row['flash_64'] > 0 and row['cudnn_64'] is None and row['dtype'] in ('float16', 'bfloat16')


# a step in which the CPU waits at two places; PyTorch on a CPU has no such mode
WAITING = '''
import sys, warnings
import torch
modes, usual = ['default'], torch.nn.utils.get_total_norm
torch.cuda.set_sync_debug_mode = lambda mode: modes.append(mode)

def waits(*args):
    if modes[-1] == 'warn':
        warnings.warn('Synchronization debug mode is a prototype feature and does not yet detect all synchronizing '
                      'operations')  # as PyTorch does
        warnings.warn('called a synchronizing CUDA operation', stacklevel=2)
    return usual(*args)
torch.nn.utils.get_total_norm = waits
from common.benchmark import probes
probes.host_syncs()
'''


def test_steps_that_wait_for_the_gpu_are_counted_with_the_place(tmp_path, corpus_dir):
    (tmp_path / 'waiting.py').write_text(WAITING)
    done = python('waiting.py', *TOY, f'--dataset={corpus_dir}', cwd=tmp_path, PYTHONPATH=ROOT)
    row = json.loads(ok(done).stdout.splitlines()[-1])
    assert row['syncs'] == row['steps'] == 5 and [place.split(':')[0] for place in row['places']] == ['train.py']


def test_texts_for_measurements_are_made_here(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, 'LARGEST', 30000)
    monkeypatch.setattr(probes, 'JSONL', 20000)
    probes.write_source(tmp_path / 'source.txt')
    text = (tmp_path / 'source.txt').read_text(encoding='utf-8')
    assert text.count('<|endoftext|>') > 1 and 'import' in text and len(text) > 30000
    (tmp_path / 'a.txt').write_text('\n\n'.join(f'the word {i} is here' for i in range(50)))
    probes.write_jsonl(tmp_path / 'a.txt', tmp_path / 'a.jsonl')
    rows = [json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()]
    assert len({row['text'] for row in rows}) == len(rows) and all(set(row) == {'text'} for row in rows)


@pytest.mark.slow
def test_runs_and_steps_are_measured_for_real(tmp_path, corpus_dir):
    """At toy size, with what train.py and bench.py really write."""
    bench = ledger.Bench(ROOT, str(tmp_path), 'cpu')
    bench.begin(20)
    bench.dataset = lambda name: corpus_dir
    toy = shlex.join(TOY)
    figure, text, _ = claims.quickstart(bench, f'python train.py {toy}')
    assert 0 < figure['val_loss'] < 4 and figure['train_s'] > 0
    assert not [name for name in os.listdir(f'{bench.work}/run') if name.endswith('.pt')]
    figure, _, _ = claims.parallel(bench, f'torchrun --standalone --nproc_per_node=2 train.py {toy} --log_interval=1')
    assert figure['DDP_difference'] < 1e-4 and figure['FSDP_difference'] < 1e-4
    step = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=16', '--batch_size=2', '--vocab_size=64']
    figure, text, _ = claims.step(bench, f'python bench.py {shlex.join(step)}')
    assert figure['eager_tok_s'] > 0 and figure['eager_planned_gb'] is None
    figure, _, _ = claims.roofline(bench, 'python bench.py --mode=matmul --device=cpu')
    assert figure['read_gb_s'] > 0
