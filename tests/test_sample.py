"""sample.py as a user runs it, on a toy model."""
import io
import json
import re
import signal
import subprocess
import sys

import pytest
import torch

from common.sampling import completion
from common.tokenizer import from_meta
from model import load_weights
from running import HANG, ROOT, hook, ok


@pytest.fixture
def command(trained):
    """sample.py and its options in these tests."""
    return ['sample.py', f'--out_dir={trained}', '--device=cpu', '--num_samples=2', '--max_new_tokens=30']


@pytest.fixture
def sample(run, command):
    return lambda *args, **stdin: run(*command, *args, **stdin)


def texts(done):
    return ok(done).stdout.split('\n---------------\n')[:-1]


def test_samples_continue_the_prompt(sample):
    written = texts(sample('--start=the cat'))
    assert len(written) == 2 and written[0] != written[1]
    assert all(text.startswith('the cat') and len(text) == len('the cat') + 30 for text in written)


def test_temperature_zero_and_top_k_one_are_greedy(sample):
    greedy = texts(sample('--start=a dog', '--temperature=0'))
    assert greedy[0] == greedy[1] == texts(sample('--start=a dog', '--top_k=1'))[0]


def test_top_k_zero_is_off_and_the_seed_decides(sample):
    first = texts(sample('--top_k=0', '--seed=1'))
    assert first == texts(sample('--top_k=0', '--seed=1')) != texts(sample('--top_k=0', '--seed=2'))


def test_the_cache_changes_no_text(sample):
    """Within the context of 16 tokens; beyond it the two keep different parts of the text."""
    args = ['--start=the cat', '--max_new_tokens=10']
    assert texts(sample(*args)) == texts(sample(*args, '--use_cache=False'))


def test_a_stop_string_ends_a_sample_and_is_not_shown(sample):
    whole, stopped = (texts(sample('--start=the cat', *args)) for args in ([], ["--stop=['e', 'a']"]))
    for one, cut in zip(whole, stopped):
        rest = one[len('the cat'):]
        places = [rest.find(stop) for stop in ('e', 'a') if stop in rest]
        assert cut == 'the cat' + (rest[:min(places)] if places else rest)
    assert whole != stopped


def test_json_has_one_object_per_sample(sample):
    done = sample('--start=the cat', '--json=True', "--stop=['e']")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    plain = texts(sample('--start=the cat', "--stop=['e']"))
    assert [one['prompt'] + one['text'] for one in objects] == plain and len(objects) == 2
    for one in objects:
        assert set(one) == {'prompt', 'text', 'tokens', 'finish_reason', 'tokens_per_second'}
        assert one['finish_reason'] == ('length' if len(one['tokens']) == 30 else 'stop')


def test_beams_are_the_likeliest_texts_and_their_log_probabilities_say_so(sample):
    args = ['--start=a dog', '--max_new_tokens=8', '--json=True', '--logprobs=True']
    found = [json.loads(line) for line in sample(*args, '--num_beams=4').stdout.splitlines()]
    greedy = json.loads(sample(*args, '--temperature=0').stdout.splitlines()[0])
    likely = [sum(one['logprobs']) for one in (*found, greedy)]
    assert len(found) == 2 and likely[0] >= likely[1] and likely[0] >= likely[2] - 1e-4
    assert all(len(one['logprobs']) == len(one['tokens']) == 8 and one['finish_reason'] == 'length' for one in found)


def test_beams_that_are_the_same_after_a_stop_are_written_once(sample):
    args = ['--start=a dog', '--max_new_tokens=12', '--num_beams=6', '--num_samples=6']
    whole, stopped = texts(sample(*args)), texts(sample(*args, "--stop=[' ']"))
    assert len(whole) == 6 and 1 <= len(stopped) < 6 and len(set(stopped)) == len(stopped)


def test_a_setting_that_does_nothing_is_named(sample):
    for args, named in ((['--num_beams=2', '--top_k=3'], 'top_k=3 does nothing'),
                        (['--length_penalty=0.5'], 'length_penalty=0.5 does nothing'),
                        (['--analyze=True', '--start=the'], 'num_samples=2, max_new_tokens=30 does nothing')):
        done = sample(*args)
        assert done.returncode == 0 and named in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiling_changes_no_text(sample, command, tmp_path, backend):
    code = f'import functools; torch.compile = functools.partial(torch.compile, backend={backend!r})'
    done = hook(code, *command, '--start=the cat', '--compile=True', cwd=tmp_path)
    if backend == 'inductor' and 'running eager instead' in done.stdout:
        pytest.skip('no compiler on this machine: ' + done.stdout)
    compiled, whole = texts(done), texts(sample('--start=the cat'))
    assert 'compile: done in' in compiled[0] and compiled[0].endswith(whole[0]) and compiled[1] == whole[1]


def test_the_mean_log_probability_stands_below_a_text(sample):
    first, second = texts(sample('--start=a dog', '--temperature=0', '--logprobs=True'))
    assert first == second and re.search(r'\nmean log-probability of 30 tokens: -\d\.\d+$', first)


def test_the_filters_reach_the_sampler(sample):
    greedy = texts(sample('--start=a dog', '--temperature=0'))
    assert texts(sample('--start=a dog', '--top_p=1e-9')) == texts(sample('--start=a dog', '--min_p=1.0')) == greedy
    assert texts(sample('--start=a dog', '--temperature=0', '--repetition_penalty=5.0')) != greedy


def test_the_analysis_of_a_text(sample, tmp_path):
    lines = sample('--analyze=True', '--start=the cat').stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["'t'", "'h'", "'e'"]
    assert any(line.startswith('Perplexity') for line in lines)
    assert len(lines) - lines.index('what comes next:') == 11
    done = sample('--analyze=True', '--start=the cat', '--json=True', '--html=page.html')
    result = json.loads(done.stdout)
    assert [token['text'] for token in result['tokens']] == list('the cat') and 'written: page.html' in done.stderr
    assert f'{result["perplexity"]:.2f}' in (tmp_path / 'page.html').read_text()


@pytest.mark.parametrize('no_color', ['', '1'])
def test_colours_at_a_terminal_unless_no_color_is_set(command, tmp_path, no_color):
    terminal = f'os.environ["NO_COLOR"] = {no_color!r}; sys.stdout.isatty = lambda: True'
    done = ok(hook(terminal, *command, '--analyze=True', '--start=the', cwd=tmp_path))
    assert ('\033[' in done.stdout) == (no_color == '')


def test_int8_says_what_it_costs(sample):
    done = sample('--quantize=int8')
    assert re.search(r'int8: the perplexity of 256 tokens .* goes from [\d.]+ to [\d.]+ \([+-]', done.stdout)
    assert done.stdout.count('---------------') == 2


def test_more_samples_than_fit_in_memory_are_written_in_several_batches(trained, monkeypatch):
    """Each is a different text, in whatever batch."""
    monkeypatch.setattr(completion, 'CACHE_BYTES', 20000)  # a text takes 8192
    (model, checkpoint), out = load_weights(trained), io.StringIO()
    completion.write_samples(model.eval(), from_meta(checkpoint['meta']), 'the', out, True, 5, 30)
    written = [json.loads(line)['text'] for line in out.getvalue().splitlines()]
    assert len(written) == len(set(written)) == 5


def test_a_prompt_can_be_piped_in(sample):
    text, _ = texts(sample('--start=-', stdin='my fish\n'))
    assert text.startswith('my fish') and len(text) == len('my fish') + 30


def test_ctrl_c_ends_the_samples_and_keeps_what_is_there(command):
    process = subprocess.Popen([sys.executable, *command, '--max_new_tokens=1000000'], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 0 and out.count('---------------') == 2 and err == ''


def test_a_prompt_comes_from_a_file_or_is_empty(sample, tmp_path):
    (tmp_path / 'prompt.txt').write_text('my fish')
    assert texts(sample('--start=FILE:prompt.txt'))[0].startswith('my fish')
    assert len(texts(sample('--start='))[0]) == 30


def test_a_checkpoint_of_the_original_gets_its_tokenizer_from_its_dataset(sample, trained, corpus_dir, tmp_path):
    _, state = load_weights(trained)
    old = dict(model=state['model'], model_args=state['model_args'], config={'dataset': corpus_dir})
    torch.save(old, tmp_path / 'ckpt.pt')
    assert len(texts(sample('--out_dir=.'))) == 2


@pytest.mark.parametrize('args, expected', [
    (['--start=the #cat@'], "'#@'"), (['--start=FILE:none.txt'], 'none.txt'), (['--device=cuda'], "device='cuda'"),
    (['--out_dir=none'], 'config/quickstart.py'), (['--temperature=-1.0'], 'temperature=-1.0 is below 0'),
    (['--topk=3'], 'top_k'), (['--num_beams=0'], 'num_beams=0'), (['--min_p=1.5'], 'min_p=1.5'),
    (['--quantize=int4'], "quantize='int4'"),
    (['--chat=True', '--analyze=True'], '/top'), (['--chat=True', '--json=True'], 'json goes with'),
    (['--chat=True', '--use_cache=False'], 'no chat'), (['--length_penalty=50'], 'length_penalty=50'),
    (['--html=x.html'], '--analyze=True'), (['--analyze=True'], '--start='),
    (['--analyze=True', '--start=a', '--html=no/x.html'], 'no/x.html'), (['--top_p=3.0'], 'top_p=3.0'),
    (['--chat=True', '--start=-'], '--start=-'),
    (['--compile=True', '--use_cache=False'], 'use_cache'), (['--repetition_penalty=0'], 'repetition_penalty')])
def test_a_mistake_is_one_line_and_exit_code_2(sample, args, expected):
    done = sample(*args)
    assert done.returncode == 2 and done.stdout == '' and expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
