"""bench.py as a user runs it, on a toy model. What it measures is not tested: speed is no promise of a test."""
import importlib.util
import re


TOY = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--vocab_size=64', '--block_size=32', '--prompt_tokens=4',
       '--max_new_tokens=5', '--rounds=1', '--device=cpu']


def test_each_way_to_write_a_text_is_measured(run):
    done = run('bench.py', '--mode=sample', *TOY, '--batch_sizes=[1, 3]')
    assert done.returncode == 0, done.stderr
    speeds = dict(re.findall(r'^(\S.*?) {2,}([\d.]+) .* [\d.]+ +\d+%$', done.stdout, re.MULTILINE))
    expected = {f'{dtype}, batch {batch}' for dtype in ('float32', 'bfloat16', 'float16', 'int8') for batch in (1, 3)}
    expected.add('float32, batch 1, without the cache')
    if importlib.util.find_spec('transformers'):
        expected |= {f'Hugging Face, {dtype}, batch 1' for dtype in ('float32', 'bfloat16', 'float16')}
    assert set(speeds) == expected and all(float(speed) > 0 for speed in speeds.values())


def test_a_mistake_is_one_line_and_exit_code_2(run):
    for args, expected in ((['--mode=foo'], "mode='foo'"), (['--rounds=0'], 'rounds=0'), (['--n_head=5'], 'n_head=5')):
        done = run('bench.py', *TOY, *args)
        assert done.returncode == 2 and expected in done.stderr and len(done.stderr.strip().splitlines()) == 1
