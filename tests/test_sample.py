"""sample.py as a user runs it, on a toy model."""
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch

from common import generate
from common.sampling import completion
from common.tokenizer import from_meta
from model import GPT, GPTConfig, load_weights
from conftest import slow
from pages import unpacked
from running import HANG, ROOT, hook, ok, python


@pytest.fixture
def command(trained):
    """sample.py and its options in these tests."""
    return ['sample.py', f'--out_dir={trained}', '--device=cpu', '--num_samples=2', '--max_new_tokens=30']


@pytest.fixture
def sample(run, command):
    return lambda *args, **stdin: run(*command, *args, **stdin)


def messages(done):
    """The lines on stderr, without the one on which iteration the weights are of."""
    return [line for line in done.stderr.splitlines() if 'the run has come to iteration' not in line]


def write_model(folder, chars, change=lambda model: None):
    """A checkpoint of a random model of these characters, changed by a function."""
    torch.manual_seed(0)
    shape = dict(block_size=16, vocab_size=len(chars), n_layer=2, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**shape))
    with torch.no_grad():
        change(model)
    folder.mkdir(exist_ok=True)
    meta = {'tokenizer': 'char', 'vocab_size': len(chars), 'chars': list(chars)}
    torch.save(dict(model=model.state_dict(), model_args=shape, config={}, meta=meta), folder / 'ckpt.pt')


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
        assert done.returncode == 0 and named in done.stderr and len(messages(done)) == 1


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiling_changes_no_text(sample, command, tmp_path, backend):
    code = f'import functools; torch.compile = functools.partial(torch.compile, backend={backend!r})'
    args = ["--start=['the cat', 'a']", '--temperature=0']
    done = hook(code, *command, *args, '--compile=True', cwd=tmp_path)
    if backend == 'inductor' and 'running eager instead' in done.stdout:
        pytest.skip('no compiler on this machine: ' + done.stdout)
    compiled, whole = texts(done), texts(sample(*args))
    assert 'compile: done in' in compiled[0] and compiled[0].endswith(whole[0]) and compiled[1:] == whole[1:]


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
    (header, _), = unpacked((tmp_path / 'page.html').read_text())[1]
    assert header['perplexity'] == result['perplexity'] and header['name'].endswith('out')


def test_a_page_of_several_models_goes_from_early_to_late_to_the_other(sample, trained, tmp_path):
    (tmp_path / 'kept').mkdir()
    state = torch.load(os.path.join(trained, 'ckpt.pt'), weights_only=True)
    for i in (20, 3):
        state['model'] = {key: value * 0.9 for key, value in state['model'].items()}
        torch.save(state, tmp_path / 'kept' / f'iter_{i:06d}.pt')
    write_model(tmp_path / 'other', '\nthe ca')
    ok(sample('--analyze=True', '--start=the cat', '--html=page.html', '--checkpoints=kept', '--compare=other'))
    header, models = unpacked((tmp_path / 'page.html').read_text())
    names = [model['name'] for model, _ in models]
    assert names == ['3', '20', trained, 'other'] and header['shown'] == 2
    assert [model['iteration'] for model, _ in models] == [3, 20, None, None]
    assert len({model['perplexity'] for model, _ in models}) == 4
    assert [len(model['pieces']) for model, _ in models] == [7] * 4


@pytest.mark.parametrize('option, expected', [('--checkpoints=none', "checkpoints='none': no iter_*.pt there"),
                                              ('--compare=none', 'none is no file or folder'),
                                              ('--compare=foreign', "foreign: the model does not know the characters")])
def test_a_model_that_cannot_be_on_the_page_is_named(sample, tmp_path, option, expected):
    write_model(tmp_path / 'foreign', '\nabc')
    done = sample('--analyze=True', '--start=the cat', '--html=page.html', option)
    assert done.returncode == 2 and messages(done)[-1].startswith(f'sample.py: {expected}')
    assert not (tmp_path / 'page.html').exists()


def test_a_page_shows_the_model_in_float32_whatever_the_dtype(sample, tmp_path):
    args = ['--analyze=True', '--start=the cat']
    done = sample(*args, '--html=page.html', '--dtype=bfloat16')
    assert "dtype='bfloat16' does nothing here: the page shows the model in float32" in ok(done).stderr
    (header, _), = unpacked((tmp_path / 'page.html').read_text())[1]
    assert header['perplexity'] == json.loads(sample(*args, '--json=True').stdout)['perplexity']


@pytest.mark.parametrize('no_color', ['', '1'])
def test_colours_at_a_terminal_unless_no_color_is_set(command, tmp_path, no_color):
    terminal = f'os.environ["NO_COLOR"] = {no_color!r}; sys.stdout.isatty = lambda: True'
    done = ok(hook(terminal, *command, '--analyze=True', '--start=the', cwd=tmp_path))
    assert ('\033[' in done.stdout) == (no_color == '')


def test_a_text_without_compiling_imports_no_compiler(trained):
    """It takes more than a second."""
    code = f"""import runpy, sys
sys.argv = ['sample.py', '--out_dir={trained}', '--device=cpu', '--num_samples=1', '--max_new_tokens=3', '--start=a']
runpy.run_path({os.path.join(ROOT, 'sample.py')!r}, run_name='__main__')
assert 'torch._dynamo' not in sys.modules, 'torch._dynamo'"""
    ok(python('-c', code, cwd=ROOT))


def test_int8_says_what_it_costs(sample):
    done = sample('--quantize=int8')
    assert re.search(r'int8: the perplexity of 256 tokens .* goes from [\d.]+ to [\d.]+ \([+-]', done.stdout)
    assert done.stdout.count('---------------') == 2


def test_more_samples_than_fit_in_memory_are_written_in_several_batches(trained, monkeypatch):
    """Each is a different text, in whatever batch."""
    monkeypatch.setattr(completion, 'CACHE_BYTES', 20000)  # a text takes 8192
    (model, checkpoint), out = load_weights(trained), io.StringIO()
    completion.write_samples(model.eval(), from_meta(checkpoint['meta']), ['the'], out, True, 5, 30)
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
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    assert done.returncode == 0 and out.count('---------------') == 2 and messages(done) == []


def test_a_prompt_comes_from_a_file_or_is_empty(sample, tmp_path):
    (tmp_path / 'prompt.txt').write_text('my fish')
    assert texts(sample('--start=FILE:prompt.txt'))[0].startswith('my fish')
    assert len(texts(sample('--start='))[0]) == 30


def test_a_prompt_file_may_begin_with_a_byte_order_mark_or_its_name_with_a_tilde(sample, tmp_path):
    (tmp_path / 'prompt.txt').write_text('\ufeffmy fish', encoding='utf-8')
    first = texts(sample('--start=FILE:prompt.txt'))
    assert first[0].startswith('my fish') and texts(sample('--start=-', stdin='\ufeffmy fish\n')) == first
    assert texts(sample('--start=FILE:~/prompt.txt', HOME=str(tmp_path))) == first


def test_several_prompts_are_continued_in_order(sample, tmp_path):
    (tmp_path / 'prompts.txt').write_text('the cat\na\n')
    args = ['--temperature=0', '--max_new_tokens=5']
    written = texts(sample("--start=['the cat', 'a']", *args))
    assert [text[:len(text) - 5] for text in written] == ['the cat', 'the cat', 'a', 'a']
    assert written == [text for start in ('the cat', 'a') for text in texts(sample(f'--start={start}', *args))]
    done = sample('--start=LINES:prompts.txt', *args, '--json=True', '--num_beams=2', '--num_samples=1')
    assert [json.loads(line)['prompt'] for line in ok(done).stdout.splitlines()] == ['the cat', 'a']


def test_what_of_a_long_prompt_the_model_sees_is_told(sample):
    done = sample(f'--start={"the cat" * 1000}', '--json=True', '--num_samples=1')
    assert messages(done) == ['the prompt has 7,000 tokens; the model sees the last 16']
    assert json.loads(ok(done).stdout)['prompt'] == 'the cat' * 1000


def test_a_decomposed_prompt_is_taken_in_nfc(run, tmp_path):
    write_model(tmp_path / 'out', '\n가é')
    command = ['sample.py', '--out_dir=out', '--device=cpu', '--start=\u1100\u1161e\u0301']
    for args in (['--max_new_tokens=5', '--num_samples=1'], ['--analyze=True']):
        done = run(*command, *args, '--json=True')
        result = json.loads(ok(done).stdout)
        assert result.get('prompt', result.get('text')) == '가é' and 'NFD' in done.stderr and len(messages(done)) == 1


def test_escape_characters_of_a_model_do_not_reach_the_terminal(run, tmp_path):
    write_model(tmp_path / 'out', '\x1b\x9b\r\x07')
    command = ['sample.py', '--out_dir=out', '--device=cpu', '--max_new_tokens=50']
    for args in ([], ['--num_beams=2']):
        plain = ok(run(*command, '--num_samples=2', *args)).stdout
        assert r'\x1b' in plain and not set(plain) & set('\x1b\x9b\r\x07')
    assert r'\u001b' in run(*command, '--json=True').stdout


def test_without_a_newline_in_the_vocabulary_the_default_prompt_is_empty(run, tmp_path):
    write_model(tmp_path / 'out', 'ACGT')
    command = ['sample.py', '--out_dir=out', '--device=cpu', '--max_new_tokens=9']
    for args in ((), ('--num_beams=2',)):
        done = run(*command, '--num_samples=2', *args)
        assert re.fullmatch('([ACGT]{9}\n-{15}\n){2}', ok(done).stdout)
        assert done.stderr == "start='\\n' is not in this vocabulary: starting a new text\n"
    assert len(ok(run(*command, '--chat=True', stdin='ACG\n')).stdout) == 10
    assert "'\\n!'" in run(*command, '--start="\\n!"').stderr  # a prompt of one's own is not replaced


# what becomes of stdout, as code for hook()
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
NO_READER = 'piped, end = os.pipe(); os.dup2(end, 1); os.close(piped)'
CLOSED = 'os.close(1); sys.stdout = sys.__stdout__ = None'


@pytest.mark.parametrize('args', [[], ['--json=True'], ['--num_beams=2'], ['--analyze=True', '--start=the']])
def test_output_that_cannot_be_written_is_told_in_a_line(command, tmp_path, args):
    command = [arg for arg in command if not ('--analyze=True' in args and arg.startswith(('--num', '--max')))]
    for failure, code, expected in (
            (FULL, 1, ['sample.py: the output cannot be written: No space left on device']),
            (NO_READER, 0, []), (CLOSED, 0, [])):
        done = hook(failure, *command, *args, cwd=tmp_path)
        assert (done.returncode, messages(done), done.stdout) == (code, expected, '')


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_else_to_say_at_the_end_of_the_process(command, tmp_path):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and len(messages(done)) == 1


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_characters_that_stdout_cannot_encode_become_escapes(command, tmp_path, encoding):
    write_model(tmp_path / 'out', '\n가')
    done = hook(f'sys.stdout.reconfigure(encoding={encoding!r}, errors="strict")', 'sample.py', '--out_dir=out',
                '--device=cpu', '--max_new_tokens=9', '--temperature=0', '--start=가', cwd=tmp_path)
    assert '\\uac00' in ok(done).stdout and messages(done) == []


def test_each_sample_is_written_when_it_is_done(trained, monkeypatch):
    """A run that is killed later has not lost it in a buffer."""
    monkeypatch.setattr(completion, 'CACHE_BYTES', 4096)  # of one text
    (model, checkpoint), raw = load_weights(trained), io.BytesIO()
    out, written, stream = io.TextIOWrapper(raw), [], generate.stream

    def watched(*args, **options):
        written.append(raw.getvalue().count(b'\n'))
        return stream(*args, **options)
    monkeypatch.setattr(generate, 'stream', watched)
    completion.write_samples(model.eval(), from_meta(checkpoint['meta']), ['the'], out, True, 3, 5)
    assert written == [0, 1, 2]


def overflow(after):
    """A change for write_model(): the model's numbers are too large for float16 after this id (None: always)."""
    def change(model):
        embedding = model.transformer.wte.weight
        rows = slice(None) if after is None else after
        embedding[rows] *= 6e4 / embedding[rows].abs().max()
    return change


def test_numbers_too_large_for_float16_are_told_in_a_line(run, tmp_path):
    """Where the model computes in it. To generate on a CPU it computes in float32, with weights in float16."""
    write_model(tmp_path / 'out', '\nab', overflow(None))
    command = ['sample.py', '--out_dir=out', '--device=cpu', '--start=ab']
    done = run(*command, '--analyze=True', '--dtype=float16')
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == 'sample.py: the model computes numbers that are too large for float16; try --dtype=float32\n'
    ok(run(*command, '--analyze=True', '--dtype=float32'))
    ok(run(*command, '--dtype=float16'))


@pytest.mark.parametrize('args', [['--num_beams=2'], *map(slow, (
    [], ['--temperature=0'], ['--use_cache=False'], ['--json=True'], ['--quantize=int8'], ['--analyze=True']))])
def test_numbers_that_are_not_finite_are_told_in_a_line(run, tmp_path, args):
    def change(model):
        model.transformer.h[0].mlp.c_fc.bias.fill_(3e38)
        model.transformer.h[0].mlp.c_proj.weight.fill_(1.0)
    write_model(tmp_path / 'out', '\nab', change)
    done = run('sample.py', '--out_dir=out', '--device=cpu', '--start=a', *args)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('sample.py: the model computes numbers that are not finite in float32')


def test_weights_too_large_for_float16_are_told_in_a_line(run, tmp_path):
    def change(model):
        model.transformer.h[0].mlp.c_fc.weight[3] = 1e6
    write_model(tmp_path / 'out', '\nab', change)
    done = run('sample.py', '--out_dir=out', '--device=cpu', '--dtype=float16')
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == 'sample.py: the weights of this model are too large for float16; try --dtype=float32\n'


@pytest.mark.parametrize('as_json', [False, True])
def test_what_was_written_before_an_error_is_shown(trained, monkeypatch, as_json):
    (model, checkpoint), out = load_weights(trained), io.StringIO()
    forward, calls = model.forward, []

    def fails(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return forward(*args, **options)
    monkeypatch.setattr(model, 'forward', fails)
    with pytest.raises(torch.OutOfMemoryError):
        completion.write_samples(model.eval(), from_meta(checkpoint['meta']), ['the'], out, as_json, 2, 30)
    if as_json:
        objects = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [(len(one['text']), one['finish_reason']) for one in objects] == 2 * [(5, 'interrupted')]
    else:
        assert [len(text) for text in out.getvalue().split(completion.SEPARATOR)] == [8, 8, 0]


def test_a_full_memory_is_told_in_a_line(command, tmp_path):
    done = hook('def full(*args, **options): raise torch.OutOfMemoryError("CUDA out of memory. Tried")\n'
                'model.load_weights = full', *command, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == '' and len(messages(done)) == 1
    assert 'out of memory: try fewer num_samples' in done.stderr


@pytest.fixture
def best_before_the_end(trained, tmp_path):
    """The out_dir of a run whose best weights are those of iteration 10, of 20."""
    out_dir = tmp_path / 'early'
    shutil.copytree(trained, out_dir)
    best = torch.load(out_dir / 'ckpt.pt', weights_only=True)
    torch.save({**best, 'iter_num': 10}, out_dir / 'ckpt.pt')
    return out_dir


def test_the_iteration_of_the_weights_is_told_beside_the_text_at_each_load(run, best_before_the_end):
    command = ['sample.py', f'--out_dir={best_before_the_end}', '--device=cpu', '--max_new_tokens=5']

    def told(done):
        return [line for line in ok(done).stderr.splitlines() if 'iteration 10;' in line and 'iteration 20' in line]
    done = run(*command, '--json=True', '--num_samples=2')
    assert len(told(done)) == 1 and [len(json.loads(line)['tokens']) for line in done.stdout.splitlines()] == [5, 5]
    done = run(*command, '--chat=True', stdin=f'the cat\n/load {best_before_the_end}\n/undo\n')
    assert len(told(done)) == 2 and 'has come' not in done.stdout
    assert done.stdout.endswith("forgotten: 'the cat'; turns left: 0\n")


def test_a_page_that_cannot_be_written_is_told_and_the_analysis_printed_instead(command, tmp_path):
    args = [*command[:3], '--analyze=True', '--start=the']
    (tmp_path / 'page.html').write_text('an older page')
    full = 'from common import files\ndef full(file): raise OSError(28, "No space left on device")\nfiles.sync = full'
    (tmp_path / 'full.html').symlink_to('/dev/full')
    for code, page in ((full, 'page.html'), ('', 'full.html')):
        done = hook(code, *args, f'--html={page}', cwd=tmp_path)
        assert done.returncode == 1 and 'Perplexity' in done.stdout
        assert messages(done) == [f'sample.py: html={page!r} cannot be written (No space left on device); the result '
                                  'is printed instead']
    assert sorted(os.listdir(tmp_path)) == ['full.html', 'page.html']
    assert (tmp_path / 'page.html').read_text() == 'an older page'


def test_a_page_goes_through_a_link_and_into_a_pipe(command, tmp_path):
    args = [*command[:3], '--analyze=True', '--start=the']
    (tmp_path / 'link.html').symlink_to('page.html')
    ok(hook('', *args, '--html=link.html', cwd=tmp_path))
    assert (tmp_path / 'link.html').is_symlink() and '<html' in (tmp_path / 'page.html').read_text()
    os.mkfifo(tmp_path / 'pipe.html')
    pipe = os.open(tmp_path / 'pipe.html', os.O_RDWR)
    received = []

    def read():  # while it is written: a pipe holds 64 KB
        while not b''.join(received).endswith(b'</html>\n'):
            received.append(os.read(pipe, 2**20))
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    ok(hook('', *args, '--html=pipe.html', cwd=tmp_path))
    reader.join(timeout=10)
    assert not reader.is_alive() and b''.join(received).startswith(b'<!doctype html>')
    os.close(pipe)


def test_the_newest_model_is_named_as_a_shell_takes_it_and_a_broken_link_is_none(run, tmp_path):
    write_model(tmp_path / 'out my', '\nab')
    (tmp_path / 'out-gone').mkdir()
    (tmp_path / 'out-gone' / 'ckpt.pt').symlink_to('nowhere')
    done = run('sample.py', '--device=cpu', '--max_new_tokens=5')
    assert ok(done).stderr == "the newest model here: '--out_dir=out my'\n"


def test_a_checkpoint_of_the_original_gets_its_tokenizer_from_its_dataset(sample, trained, corpus_dir, tmp_path):
    _, state = load_weights(trained)
    old = dict(model=state['model'], model_args=state['model_args'], config={'dataset': corpus_dir})
    torch.save(old, tmp_path / 'ckpt.pt')
    assert len(texts(sample('--out_dir=.'))) == 2


@pytest.mark.parametrize('args, expected', [
    (['--start=the #cat@'], "'#@'"),
    (["--start=['a', '#@']"], "prompt 2 of 2: the model does not know the characters '#@'"),
    (["--start=['a', 'b']", '--chat=True'], 'chat takes one text, but start has 2'),
    (["--start=['a', 'b']", '--analyze=True'], 'analyze takes one text, but start has 2'),
    (['--start=a\udcb0'], r"start cannot be encoded: it has the byte \xb0, which is not UTF-8, at"),
    (["--stop=['\udcb0']"], r'stop cannot be encoded: it has the byte \xb0'),
    (['--start="\\ud83d"', '--chat=True'], r'start cannot be encoded: it has half a character, the surrogate \ud83d,'),
    (['--start="a\\0"'], r"does not know the characters '\x00'"),
    (['--start=LINES:none.txt'], 'cannot be read: No such file'),
    (['--start=FILE:none.txt'], "start='FILE:none.txt' cannot be read: No such"),
    (['--start=FILE:.'], "start='FILE:.' cannot be read: Is a directory"),
    (['--start=FILE:/bin/sh'], "start='FILE:/bin/sh' is not UTF-8"),
    (['--analyze=True', '--start=a', '--html=.'], "html='.' is a folder"), (['--device=cuda'], "device='cuda'"),
    (['--out_dir=none'], "no folder 'none' with a trained model here; "), (['--out_dir=none'], 'config/quickstart.py'),
    (['--out_dir=gpt2'], 'did you mean --init_from=gpt2?'), (['--temperature=-1.0'], 'temperature=-1.0 is below 0'),
    (['--topk=3'], 'top_k'), (['--num_beams=0'], 'num_beams=0'), (['--min_p=1.5'], 'min_p=1.5'),
    (['--quantize=int4'], "quantize='int4'"),
    (['--chat=True', '--analyze=True'], '/top'), (['--chat=True', '--json=True'], 'json goes with'),
    (['--chat=True', '--use_cache=False'], 'no chat'), (['--length_penalty=50'], 'length_penalty=50'),
    (['--html=x.html'], '--analyze=True'), (['--analyze=True'], '--start='),
    (['--analyze=True', '--start=a', '--compare=out'], 'compare and checkpoints need --html'),
    (['--analyze=True', '--start=a', '--html=x.html', '--lang=de'], "lang='de' is not one of auto, en, ko"),
    (['--analyze=True', '--start=a', '--html=x.html', '--quantize=int8'], 'leave out quantize'),
    (['--analyze=True', '--start=a', '--html=no/x.html'], 'no/x.html'), (['--top_p=3.0'], 'top_p=3.0'),
    (['--chat=True', '--start=-'], '--start=-'),
    (['--compile=True', '--use_cache=False'], 'use_cache'), (['--repetition_penalty=0'], 'repetition_penalty')])
def test_a_mistake_is_one_line_and_exit_code_2(sample, args, expected):
    done = sample(*args)
    assert done.returncode == 2 and done.stdout == '' and expected in done.stderr
    assert len(messages(done)) == 1
