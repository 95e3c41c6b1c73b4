"""Settings from config files and the command line: what is taken, what is refused, and how it says so."""
import json
import os

import pytest

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


def test_no_names_are_left_behind(configure):
    result = configure('one.py', one='import time\n_private = 3\ndef helper(): pass\nbatch_size = 4')
    assert result['settings']['batch_size'] == 4 and result['new'] == []


@pytest.mark.parametrize('args, expected', [
    (['--batch_sise=3'], ['unknown setting --batch_sise', 'did you mean batch_size?']),
    (['--batch-size=3'], ['did you mean batch_size?']),
    (['--learn=3'], ['did you mean learning_rate?']),
    (['somewhere'], ["no config file 'somewhere'; did you mean --out_dir=somewhere?"]),
    (['batch_size=3'], ["no config file 'batch_size=3'; did you mean --batch_size=3?"]),
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
    done = configure(*args, typo='batch_size = 3\nbatch_sise = 4', kind="learning_rate = '1e-3'",
                     broken='batch_size = 3\nbatch_size = =', raises='batch_size = 1 // 0')
    assert done.returncode == 2 and done.stdout == '' and len(done.stderr.strip().splitlines()) == 1
    assert all(part in done.stderr for part in expected), done.stderr


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
        exec(f.read().partition('\nfrom dataclasses')[0], namespace)  # the first thing after the settings
    return namespace


@pytest.mark.parametrize('name', sorted(n for n in os.listdir(os.path.join(ROOT, 'config')) if n.endswith('.py')))
def test_every_config_has_only_settings_that_train_knows(monkeypatch, name):
    assert settings_of(f'config/{name}', monkeypatch)['out_dir'].startswith('out')


@pytest.mark.parametrize('gpu, layers, context', [(True, 6, 256), (False, 4, 64)])
def test_shakespeare_char_takes_the_small_settings_where_there_is_no_gpu(monkeypatch, capsys, gpu, layers, context):
    monkeypatch.setattr('common.device.has_gpu', lambda: gpu)
    settings = settings_of('config/train_shakespeare_char.py', monkeypatch)
    assert (settings['n_layer'], settings['block_size']) == (layers, context)
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
    settings = settings_of(str(tmp_path / 'finetune.py'), monkeypatch)
    assert settings['init_from'] == 'gpt2-xl' and settings['learning_rate'] == 3e-5 and not settings['decay_lr']
