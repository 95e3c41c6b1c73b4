"""Settings from config files and the command line: what is taken, what is refused, and how it says so."""
import errno
import json
import os
import subprocess
import sys

import pytest

from common import settings
from running import ROOT, ok, python

SCRIPT = '''"""What the script is for."""
# numbers
batch_size = 12          # sequences
learning_rate = 6e-4     # the highest
# words
out_dir = 'out'          # a folder
prompts = []             # texts
compile = True           # faster
config_keys = ['batch_size', 'learning_rate', 'out_dir', 'prompts', 'compile']
before = set(globals())
exec(open({configurator!r}).read())
after = set(globals())
import json
new = sorted(name for name in after - before if name[:2] != '__' and name != 'before')
print(json.dumps({{'settings': {{key: globals()[key] for key in config_keys}}, 'new': new}}))
'''


@pytest.fixture
def configure(tmp_path):
    """configure('--key=value', ...) in a script with five settings: what they became, or the CompletedProcess."""
    (tmp_path / 'script.py').write_text(SCRIPT.format(configurator=os.path.join(ROOT, 'configurator.py')))

    def configure(*args, **files):
        for name, text in files.items():
            (tmp_path / f'{name}.py').write_text(text)
        done = python('script.py', *args, cwd=tmp_path, PYTHONPATH=ROOT)
        return json.loads(done.stdout) if done.returncode == 0 and '--help' not in args else done
    return configure


@pytest.mark.parametrize('args, key, value', [
    (['--batch_size=3'], 'batch_size', 3),
    (['--batch_size', '3'], 'batch_size', 3),
    (['--learning_rate=1'], 'learning_rate', 1.0),
    (['--learning_rate=1e-3'], 'learning_rate', 1e-3),
    (['--out_dir=a=b'], 'out_dir', 'a=b'),
    (['--out_dir=123'], 'out_dir', '123'),
    (["--out_dir='quoted'"], 'out_dir', 'quoted'),
    (["--prompts=['a', '']"], 'prompts', ['a', '']),
    (['--compile=False'], 'compile', False),
    (['--compile', 'False'], 'compile', False),
    (['--compile=False', '--compile'], 'compile', True),
    (['--batch_size=3', '--batch_size=4'], 'batch_size', 4),
])
def test_a_value_on_the_command_line_arrives(configure, args, key, value):
    assert configure(*args)['settings'][key] == value


def test_later_ones_win_over_earlier_ones(configure):
    files = dict(one='batch_size = 1\nlearning_rate = 1.0', two='batch_size = 2 * batch_size')
    assert configure('one.py', 'two.py', **files)['settings']['batch_size'] == 2
    assert configure('one.py', '--batch_size=5')['settings']['batch_size'] == 5
    assert configure('--batch_size=5', 'one.py')['settings']['batch_size'] == 1


def test_no_name_but_config_given_is_left_behind(configure):
    result = configure('one.py', one='import time\n_private = 3\ndef helper(): pass\nbatch_size = 4')
    assert result['settings']['batch_size'] == 4 and result['new'] == ['config_given']


@pytest.mark.parametrize('args, expected', [
    (['--batch_sise=3'], ['unknown setting --batch_sise', 'did you mean batch_size?']),
    (['--batch-size=3'], ['did you mean batch_size?']),
    (['——batch_size=3'], ['unknown setting ——batch_size=3; did you mean batch_size? Its dashes are no hyphens']),
    (['--learn=3'], ['did you mean learning_rate?']),
    (['somewhere'], ["no config file 'somewhere'; did you mean --out_dir=somewhere?"]),
    (['batch_size=3'], ["no config file 'batch_size=3'; did you mean --batch_size=3?"]),
    (['a folder'], ["did you mean '--out_dir=a folder'?"]),
    (['--batch_size=many'], ['batch_size expects int', "'many'"]),
    (['--batch_size=1.5'], ['batch_size expects int', '1.5']),
    (['--learning_rate', '-1'], ['learning_rate=-1.0 is below 0']),
    (['--compile=yes'], ['compile expects bool', "'yes'"]),
    (['--prompts=hello'], ['prompts expects list', "'hello'"]),
    (['--batch_size'], ['--batch_size needs a value']),
    (['-n', '3'], ['unknown setting -n']),
    (['config/quickstart'], ["no config file 'config/quickstart'"]),
    (['typo.py'], ["unknown setting 'batch_sise' (typo.py, line 2)", 'did you mean batch_size?']),
    (['kind.py'], ['learning_rate expects float', 'kind.py, line 1']),
    (['broken.py'], ['broken.py, line 2']),
    (['raises.py'], ['raises.py, line 1: ZeroDivisionError']),
    (['last.pt'], ['last.pt is not a config file']),
    (['--out_dir={[1]}', '--batch_size={[1]}'], ['batch_size expects int']),
])
def test_a_mistake_is_one_line_and_exit_code_2(configure, tmp_path, args, expected):
    (tmp_path / 'last.pt').write_bytes(b'PK\x03\xff\x00')
    (tmp_path / 'somewhere').mkdir()
    (tmp_path / 'a folder').mkdir()
    done = configure(*args, typo='batch_size = 3\nbatch_sise = 4', kind="learning_rate = '1e-3'",
                     broken='batch_size = 3\nbatch_size = =', raises='batch_size = 1 // 0')
    assert done.returncode == 2 and done.stdout == '' and len(done.stderr.strip().splitlines()) == 1
    assert all(part in done.stderr for part in expected), done.stderr


def read(*words, script='train.py'):
    """The settings of a script with these words on its command line, read in this process."""
    return settings.read(os.path.join(ROOT, script), words)


@pytest.mark.parametrize('script, key', [
    ('train.py', 'out_dir'), ('train.py', 'dataset'), ('train.py', 'init_from'), ('sample.py', 'init_from'),
    ('sample.py', 'out_dir'), ('sample.py', 'html'), ('sample.py', 'compare'), ('sample.py', 'checkpoints'),
    ('export.py', 'out_dir'), ('export.py', 'to'), ('bench.py', 'out'), ('bench.py', 'dataset')])
def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch, script, key):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text(f"{key} = '~/run'")
    assert read(f'--{key}=~/run', script=script)[key] == read('~/mine.py', script=script)[key] == f'{tmp_path}/run'
    assert read(f'--{key}', '~', script=script)[key] == str(tmp_path)
    assert read(f'--{key}=gpt2', script=script)[key] == 'gpt2' and read(f'--{key}=a~', script=script)[key] == 'a~'


def test_a_tilde_in_a_prompt_stays_but_that_of_its_file_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    for script, key in (('sample.py', 'start'), ('train.py', 'sample_prompts')):
        assert read(f'--{key}=~', script=script)[key] == '~' and read(f'--{key}=~/x', script=script)[key] == '~/x'
        for kind in ('FILE', 'LINES'):
            assert read(f'--{key}={kind}:~/x', script=script)[key] == f'{kind}:{tmp_path}/x'
        assert read(f'--{key}=FILE:x~', script=script)[key] == 'FILE:x~'


def test_several_prompts_are_the_same_in_a_config_file_and_on_the_command_line(tmp_path):
    (tmp_path / 'mine.py').write_text("start = ['one', 'two']")
    assert read(str(tmp_path / 'mine.py'), script='sample.py')['start'] == "['one', 'two']"
    assert read("--start=['one', 'two']", script='sample.py')['start'] == "['one', 'two']"
    for no_prompts in ([], ['one', 2]):
        (tmp_path / 'mine.py').write_text(f'start = {no_prompts}')
        with pytest.raises(ValueError, match='start expects str'):
            read(str(tmp_path / 'mine.py'), script='sample.py')


def test_bytes_that_are_not_utf_8_do_not_hide_what_a_value_is():
    assert read("--stop=['\udcb0']", script='sample.py')['stop'] == ['\udcb0']
    assert read('--start="a\udcb0"', script='sample.py')['start'] == 'a\udcb0'


@pytest.mark.parametrize('script, word, ours', [
    ('sample.py', '--prompt=Hi', 'start'), ('sample.py', '-p', 'start'), ('sample.py', '--temp=1', 'temperature'),
    ('sample.py', '--n_predict=9', 'max_new_tokens'), ('sample.py', '--max-tokens=9', 'max_new_tokens'),
    ('sample.py', '--num_predict=9', 'max_new_tokens'), ('sample.py', '--top-p=0.9', 'top_p'),
    ('sample.py', '--repeat-penalty=1.1', 'repetition_penalty'), ('train.py', '--lr=1e-3', 'learning_rate'),
    ('train.py', '--steps=3', 'max_iters'), ('train.py', '--prompt=a', 'sample_prompts'),
    ('train.py', '--model=gpt2', 'init_from'), ('train.py', '--output_dir=x', 'out_dir'),
    ('train.py', '--data', 'dataset'), ('train.py', '--batch=3', 'batch_size'),
    ('train.py', '--train.lr=1', 'learning_rate'), ('evaluate.py', '--data=x', 'dataset'),
    ('evaluate.py', '--file=x', 'text'), ('evaluate.py', '--num_fewshot=5', 'shots'), ('export.py', '--output=x', 'to'),
    ('bench.py', '--output=x', 'out'), ('sample.py', '-n', 'max_new_tokens or num_samples')])
def test_what_other_programs_call_a_setting_leads_to_ours(script, word, ours):
    with pytest.raises(ValueError, match=f'; did you mean {ours}[?]$'):
        read(word, script=script)


@pytest.mark.parametrize('script, word, advice', [
    ('train.py', '--epochs=3', 'did you mean max_iters? A run is counted in iterations, not in epochs'),
    ('train.py', '--fp16', 'did you mean dtype? As in --dtype=float16'), ('sample.py', '--bf16', '--dtype=bfloat16'),
    ('sample.py', '--file=a.txt', 'did you mean start? As in --start=FILE:prompt.txt'),
    ('train.py', '--gpu=1', 'did you mean device? As in --device=cuda'), ('train.py', '--gpus=8', 'torchrun'),
    ('train.py', '--resume', 'did you mean init_from? As in --init_from=resume'),
    ('train.py', '--num_workers=4', 'there is no such setting: reading data takes no worker processes'),
    ('train.py', '--threads=4', 'there is no such setting: OMP_NUM_THREADS=8 in front of the command')])
def test_a_word_of_another_program_that_needs_more_than_a_name_is_explained(script, word, advice):
    with pytest.raises(ValueError, match=f'^unknown setting {word}; ') as error:
        read(word, script=script)
    assert advice in str(error.value)


def test_the_name_of_a_model_in_place_of_a_config_file_leads_to_init_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'ckpt.pt').write_bytes(b'PK\x03\xff\x00')
    (tmp_path / 'hf').mkdir()
    (tmp_path / 'hf' / 'config.json').touch()
    for script in ('train.py', 'sample.py', 'evaluate.py', 'export.py'):
        for name in ('gpt2-xl', 'ckpt.pt', 'hf'):
            with pytest.raises(ValueError, match=f"^no config file '{name}'; did you mean --init_from={name}[?]$"):
                read(name, script=script)


@pytest.mark.parametrize('script, key', [('train.py', 'seed'), ('train.py', 'max_iters'), ('sample.py', 'top_k'),
                                         ('bench.py', 'vocab_size')])
@pytest.mark.parametrize('value', [2**63, 2**64, 10**30, 10**4299])
def test_an_int_that_is_too_large_is_named_with_one_that_works(script, key, value):
    default = read(script=script)[key]
    with pytest.raises(ValueError) as error:
        read(f'--{key}={value}', script=script)
    assert str(error.value).startswith(f'{key}={str(value)[:200]} is above 9223372036854775807')
    assert str(error.value).endswith(f'; try --{key}={default}')
    assert read(f'--{key}={2**63 - 1}', script=script)[key] == 2**63 - 1


@pytest.mark.parametrize('text, expected', [
    ('seed = 10**5000', 'seed=(a number of more than 4300 digits) is above 9223372036854775807'),
    ('seed = -10**5000', 'seed=(a number of more than 4300 digits) is below 0'),
    ('dataset = [10**5000]', 'dataset expects str'),
    ("learning_rate = float('nan')", 'learning_rate=nan is not a number'),
    ('learning_rate = -10**400', 'learning_rate=-inf is below 0')])
def test_a_number_that_no_one_can_print_or_use_is_a_message(tmp_path, text, expected):
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(ValueError) as error:
        read(str(tmp_path / 'mine.py'))
    assert expected in str(error.value) and 'mine.py, line 1' in str(error.value)


@pytest.mark.parametrize('value', ['1e400', '1' + 400 * '0'])
def test_a_float_may_be_infinite(value):
    """sample.py --temperature=1e400 takes every token alike; train.py refuses what it cannot use (settings.check)."""
    assert read(f'--temperature={value}', script='sample.py')['temperature'] == float('inf')


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / 'mine.py').write_text('batch_size = 3', encoding='utf-8-sig')
    assert read(str(tmp_path / 'mine.py'))['batch_size'] == 3


@pytest.mark.parametrize('content, expected', [
    (b'batch_size = 3\0', 'mine.py: source code string cannot contain null bytes'),
    ('batch_size = 3'.encode('utf-16'), 'mine.py is not a config file, which is text in UTF-8'),
    (b'(' * 10000, 'mine.py, line 1'),
    (b'import sys\nsys.exit()', 'mine.py, line 2: SystemExit'),
    (b'raise ValueError("two\\nlines")', 'mine.py, line 1: ValueError: two lines')])
def test_a_config_file_that_is_none_is_one_line(tmp_path, content, expected):
    (tmp_path / 'mine.py').write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(str(tmp_path / 'mine.py'))
    assert expected in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('number', [errno.EACCES, errno.EIO])
def test_a_config_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch, number):
    path, usual = str(tmp_path / 'mine.py'), open
    (tmp_path / 'mine.py').touch()

    def fails(name, *args, **options):
        if name == path:
            raise OSError(number, os.strerror(number), path)
        return usual(name, *args, **options)
    monkeypatch.setattr('builtins.open', fails)
    with pytest.raises(ValueError, match=f'mine.py. cannot be read: {os.strerror(number)}$'):
        read(path)


@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'bench.py', 'export.py'])
def test_help_that_nobody_reads_to_its_end_is_no_error(tmp_path, script):
    """As with --help | head: the pipe has no reader any more."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, os.path.join(ROOT, script), '--help'], cwd=tmp_path, stdout=writer,
                          stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == b''


def test_help_shows_every_setting_with_its_default_and_comment(configure):
    shown = configure('--help').stdout
    assert 'What the script is for.' in shown
    for line in ["--batch_size=12", '--learning_rate=6e-4', "--out_dir='out'", '--prompts=[]', '--compile=True',
                 '# sequences', '# faster', '# words']:
        assert line in shown


@pytest.mark.parametrize('script', ['train.py', 'sample.py'])
def test_help_of_the_scripts_needs_no_torch(tmp_path, script):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    done = ok(python(os.path.join(ROOT, script), '--help', cwd=tmp_path, PYTHONPATH=str(tmp_path)))
    assert '--seed=1337' in done.stdout


def settings_of(config, monkeypatch):
    """The globals of train.py after its settings block has run with a config file."""
    monkeypatch.setattr('sys.argv', ['train.py', config])
    namespace = {'__file__': os.path.join(ROOT, 'train.py')}
    with open(namespace['__file__'], encoding='utf-8') as f:
        exec(f.read().partition('\nimport numpy')[0], namespace)  # the first thing after the settings
    return namespace


@pytest.mark.parametrize('name', sorted(n for n in os.listdir(os.path.join(ROOT, 'config')) if n.endswith('.py')))
def test_every_config_has_only_settings_that_train_knows(monkeypatch, name):
    assert settings_of(f'config/{name}', monkeypatch)['out_dir'].startswith('out')


@pytest.mark.parametrize('gpu, layers, context', [(True, 6, 256), (False, 4, 64)])
def test_shakespeare_char_takes_the_small_settings_where_there_is_no_gpu(monkeypatch, capsys, gpu, layers, context):
    monkeypatch.setattr('common.device.has_gpu', lambda: gpu)
    found = settings_of('config/train_shakespeare_char.py', monkeypatch)
    assert (found['n_layer'], found['block_size']) == (layers, context)
    assert capsys.readouterr().out.count('\n') == (0 if gpu else 1)


ORIGINAL_FINETUNE = """
import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False # feel free to turn on
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl' # this is the largest GPT-2 model
always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20
learning_rate = 3e-5
decay_lr = False
"""


def test_a_config_of_the_original_still_runs(monkeypatch, tmp_path):
    (tmp_path / 'finetune.py').write_text(ORIGINAL_FINETUNE)
    found = settings_of(str(tmp_path / 'finetune.py'), monkeypatch)
    assert found['init_from'] == 'gpt2-xl' and found['learning_rate'] == 3e-5 and not found['decay_lr']
