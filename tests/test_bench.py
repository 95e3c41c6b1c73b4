"""bench.py as a user runs it, on a toy model. What it measures is not tested: speed is no promise of a test."""
import importlib.util
import json
import os
import re
import shlex
import sys

import pytest
import torch

from common.benchmark import roofline, sweep
from conftest import slow
from running import QUICK, hook, ok

FULL = 'os.dup2(os.open("/dev/full", os.O_WRONLY), 1)\n'  # code for hook(): stdout is on a full disk

TOY = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=16', '--batch_size=2', '--device=cpu',
       '--gradient_accumulation_steps=2', '--compile=False', '--windows=2', '--vocab_size=64']


@pytest.fixture
def bench(tmp_path):
    """bench('--json=True', ...): bench.py on a toy model, with a roofline of a single product."""
    def run(*args, code=''):
        return hook(QUICK + code, 'bench.py', *TOY, *args, cwd=tmp_path)
    return run


@pytest.mark.parametrize('args', [[], ['--optimizer=muon', '--modern=True', '--dropout=0.1'],
                                  slow(['--gradient_checkpointing=True', '--dtype=float32'])])
def test_a_step_is_measured(bench, args):
    row = json.loads(ok(bench('--json=True', *args)).stdout.splitlines()[-1])
    assert row['ms_lowest'] <= row['ms'] <= row['ms_highest'] and row['mfu_measured'] > 0
    assert row['tok_s'] == pytest.approx(1000 * 2 * 2 * 16 / row['ms']) and row['mfu'] is None
    assert row['device_name'] is None and row['torch'] == torch.__version__
    assert (row['n_layer'], row['n_embd'], row['dropout']) == (1, 32, 0.1 if '--dropout=0.1' in args else 0.0)
    assert sys.platform == 'win32' or 0.05 < row['memory_gb'] < 4  # of the process
    shares = {key: value for key, value in row.items() if key.startswith('share_')}
    assert set(shares) == {'share_data', 'share_forward', 'share_backward', 'share_optimizer'}
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize('size', [2**17, 50304])
def test_a_large_vocabulary_is_measured(bench, size):
    row = json.loads(ok(bench(f'--vocab_size={size}', '--json=True', '--n_embd=2')).stdout.splitlines()[-1])
    assert row['vocab_size'] == size and row['parameters'] > 2 * size


@pytest.mark.parametrize('args', [
    ['--json=True'], ['--mode=plan', '--gpu=h100'], *map(slow, (
        [], ['--profile=True'], ['--mode=check'],
        ['--mode=sample', '--rounds=1', '--max_new_tokens=2', '--prompt_tokens=2']))])
def test_output_that_cannot_be_written_ends_nothing(bench, args):
    done = ok(bench(*args, code=FULL))
    assert not done.stdout and done.stderr.count('output is lost from here on') == 1 and 'Trace' not in done.stderr


@pytest.mark.parametrize('env', [dict(RANK='1'), dict(WORLD_SIZE='abc'), dict(WORLD_SIZE='2'), dict(LOCAL_RANK='-1'),
                                 dict(WORLD_SIZE='2', RANK='0', LOCAL_RANK='0')])
@pytest.mark.parametrize('mode', ['step', 'plan'])
def test_an_environment_that_makes_no_sense_is_one_line(run, mode, env):
    done = run('bench.py', *TOY, f'--mode={mode}', **env)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and 'unset RANK WORLD_SIZE' in done.stderr


def test_a_step_that_takes_long_is_measured_too():
    """Then a window has one step: the clock has seen no time between two of them."""
    clock = roofline.Clock('cpu')
    for part in ('begin', 'data', 'forward', 'backward', 'forward', 'backward', 'optimizer'):
        clock.mark(part)
    shares = clock.shares()
    assert set(shares) == {'data', 'forward', 'backward', 'optimizer'} and sum(shares.values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_model_that_does_not_compile_is_not_called_compiled(bench):
    code = 'import torch._inductor.config; torch._inductor.config.cpp.cxx = (None, "/bin/false")'
    done = ok(bench('--compile=True', '--json=True', code=code))
    assert json.loads(done.stdout.splitlines()[-1])['compile'] is False
    assert 'compile: not possible here' in done.stderr


def test_real_batches_and_a_config_of_train(bench, corpus_dir):
    done = ok(bench('config/quickstart.py', *TOY, '--vocab_size=0', f'--dataset={corpus_dir}', '--real_data=True'))
    assert re.search(r'^step: [\d.]+ ms \([\d.]+ to [\d.]+\), [\d,]+ tokens/s', done.stdout, re.MULTILINE)
    assert 'of the time: data' in done.stdout


@pytest.mark.slow
def test_a_sweep_sorts_its_cells_and_names_the_best_line(run, tmp_path):
    done = ok(run('bench.py', *TOY, '--modern=True', '--sweep', 'True', "--sweep_dtype=['float32','bfloat16']",
                  '--sweep_compile=[False]', '--sweep_batch_size=[1,2]', '--sweep_gradient_checkpointing=[False]',
                  '--out=sweep.jsonl'))
    rows = [json.loads(line) for line in (tmp_path / 'sweep.jsonl').read_text().splitlines()]
    assert len(rows) == 4
    best = max(rows, key=lambda row: row['tok_s'])
    last = done.stdout.splitlines()[-1]
    assert all(f'--{key}={value} ' in f'{last} ' for key, value in (
        ('batch_size', best['batch_size']), ('dtype', best['dtype']), ('modern', True)))
    # 4 sequences an iteration, as asked; and train.py takes the line
    assert f'--gradient_accumulation_steps={4 // best["batch_size"]}' in last
    done = run(*shlex.split(last)[1:], '--dataset=nowhere')
    assert done.returncode == 2 and 'nowhere' in done.stderr
    if importlib.util.find_spec('matplotlib'):
        assert os.path.getsize(tmp_path / 'sweep.png') > 1000


def test_a_cell_that_dies_is_a_row(tmp_path, capsys):
    script = tmp_path / 'cell.py'
    script.write_text('import os, sys\nif "--batch_size=2" in sys.argv: os.kill(os.getpid(), 9)\n'
                      'if "--batch_size=3" in sys.argv: sys.exit("CUDA out of memory: too large\\nmore")\n'
                      'print(\'{"tok_s": 5, "ms": 1, "mfu": null, "mfu_measured": 0.5, "memory_gb": null}\')')
    (tmp_path / 'rows').symlink_to('/dev/full')
    rows = sweep.run(['python', str(script)], [['float32'], [False], [1, 2, 3], [False]], 4, str(tmp_path / 'rows'))
    assert capsys.readouterr().out.count('not written: [Errno 28]') == 3
    assert [row['batch_size'] for row in rows] == [1, 2, 3]
    assert 'error' not in rows[0] and '-9' in rows[1]['error'] and 'out of memory' in rows[2]['error']
    assert 'out of memory' in '\n'.join(sweep.table(rows))


def test_the_plan_needs_no_gpu(run):
    done = ok(run('bench.py', 'config/train_gpt2.py', '--mode=plan', '--gpu=v100-16gb', '--gpus=8'))
    for word in ('123.59M parameters', '491,520 tokens', 'of compiled code', 'optimizer', 'logits', 'tokens/s',
                 'largest batch_size', 'days for 295 billion', 'kWh', 'Derived',
                 'others: compiled, 38% at 124M (nanoGPT issue 215)'):
        assert word in done.stdout, word
    disk = float(re.search(r'^disk +([\d.]+) GB', done.stdout, re.MULTILINE)[1])
    assert disk == pytest.approx(10 * 4 * 0.1244, abs=0.05)  # the best weights, and three states of thrice as much
    kept = run('bench.py', 'config/train_gpt2.py', '--mode=plan', '--gpu=t4', '--keep_interval=100000',
               '--dtype=bfloat16').stdout
    assert '8.0 GB: the best weights, 6 that are kept' in kept and 'no bfloat16' in kept


def test_a_plan_in_json_has_the_figures_that_are_printed(run):
    words = ['bench.py', 'config/train_gpt2.py', '--mode=plan', '--gpu=v100-16gb', '--gpus=8', '--vocab_size=50304',
             '--batch_size=40']
    text = ok(run(*words)).stdout
    done = ok(run(*words, '--json=True'))
    figures = json.loads(done.stdout)
    assert (figures['gpu'], figures['gpus'], figures['dtype'], figures['tokens_per_iter']) == (
        'v100-16gb', 8, 'float16', 40 * 40 * 1024)
    for part, size in figures['bytes'].items():
        row = next(line for line in text.splitlines() if line.startswith(f'  {part} '))
        assert row.split()[-2:] == [f'{size / 1e9:.2f}', f'{figures["bytes_checkpointing"][part] / 1e9:.2f}']
    for words in (
            f'{figures["parameters"] / 1e6:.2f}M parameters', f'{figures["tokens_per_iter"]:,} tokens an iteration',
            f'{figures["total_bytes"] / 1e9:8.2f} {figures["total_bytes_checkpointing"] / 1e9:8.2f} ',
            f'{figures["largest_batch_size"]:8} {figures["largest_batch_size_checkpointing"]:8}\n',
            f'\n{"fits" if figures["fits"] else "does not fit"}: {figures["total_bytes"] / 1e9:.1f} of 14 GB',
            f'{figures["tok_s_lowest"]:,.0f} to {figures["tok_s_highest"]:,.0f} tokens/s', figures['mfu_source'],
            f'{figures["days_lowest"]:.3g} days to {figures["days_highest"]:.3g} days',
            f'{figures["kwh_lowest"]:,.0f} to {figures["kwh_highest"]:,.0f} kWh',
            f'{figures["disk_bytes"] / 1e9:.1f} GB: the best weights'):
        assert words in text, words
    assert figures['fits'] is False and 'does not fit' in text
    assert '--fsdp=True splits the model over the GPUs\n' in text and 'what travels between the GPUs' in text
    one = ok(run('bench.py', 'config/base.py', '--mode=plan', '--gpu=v100-16gb', '--batch_size=900')).stdout
    assert 'does not fit' in one and 'fsdp' not in one
    small = ok(run('bench.py', 'config/train_shakespeare_char.py', '--mode=plan', '--gpu=H100', '--json'))
    assert json.loads(small.stdout)['dtype'] == 'bfloat16' and small.stderr, 'what the config says is not in the way'
    unknown = json.loads(ok(run('bench.py', '--mode=plan', '--gpu=h100', '--dtype=float32', '--json')).stdout)
    assert unknown['tok_s_lowest'] is unknown['days_lowest'] is unknown['kwh_lowest'] is None and unknown['fits']


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows does not tell the size of the memory this way')
def test_a_cpu_is_planned_with_what_it_reaches_here(bench):
    done = ok(bench('--mode=plan', '--gpu=cpu', '--dtype=float32'))
    assert 'the CPU here (' in done.stdout and '\nfits: ' in done.stdout and 'kWh' not in done.stdout
    peak = float(re.search(r'a matmul in float32 reaches ([\d.]+) TFLOP/s', done.stdout)[1])
    assert peak > 0 and 'of what a matmul reaches here' in done.stdout and 'others' not in done.stdout


@pytest.mark.parametrize('gpu, tokens', [('v100-16gb', 64 * 256), ('cpu', 12 * 64)])
def test_a_plan_has_the_settings_of_the_machine_that_is_planned_for(tmp_path, gpu, tokens):
    """Not those of the machine here, where config/train_shakespeare_char.py finds a GPU or not."""
    here = 'from common import device\ndevice.has_gpu = lambda: ' + str(gpu == 'cpu')
    done = ok(hook(f'{QUICK}{here}\n', 'bench.py', 'config/train_shakespeare_char.py', '--mode=plan', f'--gpu={gpu}',
                   '--n_layer=1', cwd=tmp_path))
    assert f' {tokens:,} tokens an iteration' in done.stdout and 'on this one it sets something else' in done.stdout


def test_a_plan_takes_the_shape_of_the_weights_to_start_from(run):
    done = run('bench.py', '--mode=plan', '--gpu=h100', '--init_from=gpt2-xl', '--max_iters=2', '--batch_size=1')
    assert re.match(r'155[67]\.\d\dM parameters', done.stdout), done.stdout
    assert 'million tokens' in done.stdout and ' days' not in done.stdout


def test_a_batch_for_which_a_cpu_has_no_memory_is_no_traceback(bench):
    done = bench('--batch_size=1000000', '--block_size=100000', '--eval_iters=1')
    assert done.returncode == 1 and 'Traceback' not in done.stderr and '--batch_size=500000 ' in done.stderr


def test_a_profile_names_operators_and_leaves_a_trace(bench, tmp_path):
    assert 'aten::' in ok(bench('--profile=True')).stdout
    assert 'traceEvents' in json.loads((tmp_path / 'trace.json').read_text())
    (tmp_path / 'trace.json').unlink()
    (tmp_path / 'trace.json').mkdir()
    done = bench('--profile=True')
    assert done.returncode == 2 and 'trace.json cannot be written (Is a directory)' in done.stderr and not done.stdout


@pytest.mark.slow
def test_the_roofline_of_this_machine(run):
    done = run('bench.py', '--mode=matmul', '--device=cpu')
    assert len(re.findall(r'^matmul in \w+ +[\d.]+ TFLOP/s$', done.stdout, re.MULTILINE)) == 3
    assert re.search(r'^reading memory +[\d.]+ GB/s$', done.stdout, re.MULTILINE)


def test_the_readiness_of_this_machine(run):
    done = run('bench.py', '--mode=check')
    assert done.returncode == 0 and re.search(r'^ok +PyTorch +\d', done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_each_way_to_write_a_text_is_measured(bench):
    done = ok(bench('--mode=sample', '--prompt_tokens=4', '--max_new_tokens=5', '--rounds=1', '--batch_sizes=[1, 3]'))
    speeds = dict(re.findall(r'^(\S.*?) {2,}([\d.]+) .* [\d.]+ +\d+%$', done.stdout, re.MULTILINE))
    expected = {f'{dtype}, batch {batch}' for dtype in ('float32', 'bfloat16', 'float16', 'int8') for batch in (1, 3)}
    expected.add('float32, batch 1, without the cache')
    for package, (name, dtypes) in {'transformers': ('Hugging Face', ('float32', 'bfloat16', 'float16')),
                                    'llama_cpp': ('llama.cpp', ('float32', 'float16', 'int8')),
                                    'ctranslate2': ('CTranslate2', ('float32', 'int8'))}.items():
        if importlib.util.find_spec(package):
            expected |= {f'{name}, {dtype}, batch 1' for dtype in dtypes}
        else:
            assert f'{name} is left out (pip install ' in done.stdout
    assert set(speeds) == expected and all(float(speed) > 0 for speed in speeds.values())


@pytest.mark.parametrize('args, expected', [
    (['--mode=foo'], "mode='foo'"), (['--rounds=0'], 'rounds=0'), (['--n_head=5'], 'n_head=5'),
    (['--batch_sizes=[0]'], 'batch_sizes=[0]'), (['--mode=sample', '--prompt_tokens=40'], 'prompt_tokens=40'),
    (['--mode=plan', '--gpu=v100'], "gpu='v100'"), (['--mode=plan', '--gpu=cpu', '--gpus=2'], 'leave out --gpus'),
    (['--mode=plan', '--gpu=cpu', '--dtype=float16'], 'float16 does not train'), (['--mode=plan'], 'v100-16gb'),
    (['--mode=plan', '--gpus=0'], 'gpus=0'), (['--gpu=h100'], '--mode=plan'), (['--mode=plan', '--sweep'], 'mode=step'),
    (['--mode=plan', '--fsdp', '--gpu=h100'], '--gpus=8'), (['--mode=plan', '--dtype=fp16'], 'fp16'),
    (['--vocab_size=-1'], 'vocab_size=-1'), (['--json', '--sweep'], 'json'),
    (['--sweep=True', '--out=nowhere/x'], 'nowhere/x cannot be written'), (['--sweep=True', '--out=.'], 'sweep.jsonl'),
    (['--sweep=True', '--out=x.png'], '--out=sweep.jsonl'), (['--fsdp'], '--mode=plan --gpus=8'),
    (['--vocab_size=2000000'], 'vocab_size=2000000 is above'),
    (['--sweep=True', '--sweep_compile=[]'], 'empty'), (['--sweep=True', '--sweep_compile=[1]'], 'True and False'),
    (['--sweep=True', "--sweep_dtype=['float32','x']"], "dtype='x'"),
    (['--sweep=True', "--sweep_dtype=['float16']"], 'float16 does not train'),
    (['--sweep=True', '--sweep_batch_size=[4,-1]'], 'sweep_batch_size=[4, -1]'), (['--batchsize=3'], 'batch_size'),
    (['--real_data=True', '--dataset=nowhere'], 'nowhere')])
def test_a_mistake_is_one_line_and_exit_code_2(bench, args, expected):
    done = bench(*args)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.strip().splitlines()) == 1
