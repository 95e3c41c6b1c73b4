"""The notebook does what it says: it runs from top to bottom at toy size, and is stored as it should be."""
import ast
import base64
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

from conftest import read_metrics
from hooked import HANG
from running import ROOT

PATH = os.path.join(ROOT, 'notebooks', 'quickstart.ipynb')
with open(PATH, encoding='utf-8') as f:
    STORED = f.read()
CELLS = json.loads(STORED)['cells']
CODE = {cell['id']: ''.join(cell['source']) for cell in CELLS if cell['cell_type'] == 'code'}
# behind the settings of the quick start: 60 iterations of milliseconds
TINY = '''
device, dtype = 'cpu', 'float32'
n_layer, n_head, n_embd, block_size, batch_size = 1, 2, 32, 32, 4
max_iters = lr_decay_iters = 60
eval_interval, eval_iters, log_interval = 20, 2, 5
'''
TEXT = ''.join(f'The value of x{i} is Returned to the other, just a quick box. ' + 'How lazy! ' * (i % 5) + '\n'
               for i in range(400))


def commands():
    """The words of each command behind `python`, those of the list of experiments, too."""
    for source in CODE.values():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == 'python':
                yield shlex.split(node.args[0].value)
            elif isinstance(node.func, ast.Attribute) and node.func.attr == 'write_text':
                lines = node.args[0].value.strip().splitlines()
                yield from (['train.py', *shlex.split(line.partition(':')[2])] for line in lines)


def options(script):
    """The names of a script's options."""
    with open(os.path.join(ROOT, script), encoding='utf-8') as f:
        source = f.read()
    settings, by_configurator, _ = source.partition('config_keys = ')
    return set(re.findall(r'^(\w+) = ', settings, re.MULTILINE) if by_configurator else
               re.findall(r"'--(\w+)'", source))


def test_each_command_names_a_script_and_options_that_exist():
    scripts = [words[0] for words in commands()]
    assert {'train.py', 'sample.py', 'run_manager.py'} == set(scripts) and len(scripts) == 7
    for script, *words in commands():
        for word in words:
            if word.startswith('--'):
                assert word[2:].partition('=')[0] in options(script), f'{script} {word}'
            elif word.startswith('config/'):
                assert os.path.exists(os.path.join(ROOT, word)), word


def test_links_lead_to_files_and_headings():
    links = re.findall(r'\]\(([^)#]+)(?:#([^)]+))?\)', ''.join(''.join(cell['source']) for cell in CELLS))
    links.append(('../README.md', re.search('README.md, "(.*?)"', CODE['packages'])[1].lower()))
    assert len(links) > 4
    for path, heading in links:
        with open(os.path.join(os.path.dirname(PATH), path), encoding='utf-8') as f:
            assert not heading or re.search(f'^## {heading}$', f.read(), re.MULTILINE | re.IGNORECASE), heading


def test_it_is_stored_as_jupyter_does_without_outputs():
    nbformat = pytest.importorskip('nbformat', reason='needs the package nbformat, which comes with nbclient')
    notebook = nbformat.reads(STORED, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert nbformat.writes(notebook).rstrip('\n') == STORED.rstrip('\n')
    assert (notebook.nbformat, notebook.nbformat_minor, notebook.metadata.kernelspec.name) == (4, 5, 'python3')
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if 'outputs' in cell)
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert max(len(line) for cell in notebook.cells for line in cell.source.splitlines()) <= 120


def test_only_the_first_cell_moves_and_none_names_a_place_elsewhere():
    assert "\nREPOSITORY = ''  #" in CODE['project']  # no clone has an address that everybody else lacks
    for name, source in CODE.items():
        texts = [node.value for node in ast.walk(ast.parse(source))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not [text for text in texts if re.search(r'(^|[\s=])(/|~|\w+://)', text)], name
        if name != 'project':
            assert 'chdir' not in source and not [text for text in texts if '..' in re.split(r'[/\s=]', text)], name


# -----------------------------------------------------------------------------
# cell by cell

def begin(folder, monkeypatch, **changes):
    """Run the first cell in a folder, with some of its lines changed; returns the working directory after it."""
    monkeypatch.chdir(folder)
    source = CODE['project']
    for name, value in changes.items():
        source, count = re.subn(f'^{name} = .*', f'{name} = {value!r}', source, flags=re.MULTILINE)
        assert count == 1
    exec(source, {})
    return os.getcwd()


@pytest.fixture
def project(tmp_path):
    """A folder that looks like a clone."""
    for folder in ('config', 'notebooks'):
        (tmp_path / 'project' / folder).mkdir(parents=True)
    shutil.copy(os.path.join(ROOT, 'config', 'quickstart.py'), tmp_path / 'project' / 'config')
    return tmp_path / 'project'


@pytest.mark.parametrize('folder', ['.', 'notebooks'])
def test_within_a_clone_it_works_in_the_clone(folder, project, monkeypatch):
    assert begin(project / folder, monkeypatch) == str(project)
    assert begin('.', monkeypatch) == str(project)  # the cell once more


def test_elsewhere_it_asks_for_the_address_and_clones(project, tmp_path, monkeypatch):
    monkeypatch.setenv('GIT_CONFIG_GLOBAL', os.devnull)
    git = ['git', '-c', 'user.name=x', '-c', 'user.email=x@localhost']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'x']):
        subprocess.run([*git, *words], cwd=project, check=True)
    (tmp_path / 'elsewhere').mkdir()
    with pytest.raises(FileNotFoundError, match="REPOSITORY = ''"):
        begin(tmp_path / 'elsewhere', monkeypatch)
    clone = begin(tmp_path / 'elsewhere', monkeypatch, REPOSITORY=str(project))
    assert clone == str(tmp_path / 'elsewhere' / 'nanoGPT-V100') and os.path.exists('config/quickstart.py')
    assert begin(tmp_path / 'elsewhere', monkeypatch) == clone  # which is there now


@pytest.mark.parametrize('requirements, installed, warned', [
    (['numpy>=1.26', 'torch>=2.0'], None, False),
    (['# a comment', '', 'numpy>=999', 'torch>=2.0', 'no-such-package', 'pytest'], 'numpy>=999 no-such-package', False),
    (['torch==999.0'], None, True)], ids=['all is there', 'too old, or missing', 'another PyTorch'])
def test_what_is_missing_is_installed_but_for_pytorch(requirements, installed, warned, tmp_path, monkeypatch, capsys):
    (tmp_path / 'requirements.txt').write_text('\n'.join(requirements) + '\n')
    monkeypatch.chdir(tmp_path)
    asked = []
    exec(CODE['packages'], dict(python=asked.append))
    assert asked == ([f'-m pip install --quiet {installed}'] if installed else [])
    assert ('tested with torch==999.0' in capsys.readouterr().out) == warned


def test_a_command_shows_what_it_prints_and_its_failure_ends_the_cell(tmp_path, monkeypatch, capsys):
    names = {}
    exec(CODE['python'], names)
    (tmp_path / 'script.py').write_text('import sys\nprint(*sys.argv[1:])\nprint(sys.executable, file=sys.stderr)\n'
                                        'sys.exit(len(sys.argv) - 2)\n')
    monkeypatch.chdir(tmp_path)
    names['python']('script.py "한 글"')
    assert capsys.readouterr().out == f'한 글\n{sys.executable}\n'
    with pytest.raises(RuntimeError, match='script.py a b'):
        names['python']('script.py a b')
    assert capsys.readouterr().out.startswith('a b\n')


def stopped(command, when, kill, folder):
    """
    (stdout, stderr) of a Python in which the notebook's python() runs a command, interrupted by `kill` when a line that
    begins with `when` was printed.
    """
    kernel = subprocess.Popen([sys.executable, '-uc', f'{CODE["python"]}\npython({command!r})'], cwd=folder,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert any(line.startswith(when) for line in kernel.stdout)
        kill(kernel.pid, signal.SIGINT)
        return kernel.communicate(timeout=HANG)
    finally:
        kernel.kill()


@pytest.mark.parametrize('kill', [os.kill, os.killpg], ids=['a kernel alone', 'its process group, as by Jupyter'])
def test_a_stop_is_one_ctrl_c_for_the_command_whose_last_words_are_shown(kill, tmp_path):
    (tmp_path / 'script.py').write_text(f'''
import os, signal, sys
def stop(number, frame):
    print('saved')
    sys.exit(75)
signal.signal(signal.SIGINT, stop)
if os.getpgrp() == os.getsid(0):
    sys.exit('Jupyter would interrupt it, too')
print('ready', flush=True)
signal.alarm({HANG})
signal.pause()
''')
    out, err = stopped('script.py', 'ready', kill, tmp_path)
    assert out == 'saved\n' and err.endswith('KeyboardInterrupt\n')


# -----------------------------------------------------------------------------
# the whole

@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of what the notebook uses, with a tiny quick start on a short text."""
    place = tmp_path_factory.mktemp('notebook') / 'clone'
    ignored = shutil.ignore_patterns('__pycache__', '*.bin', 'meta.json', 'input.txt')
    for folder in ('common', 'config', 'notebooks', 'data/corpus', 'data/pydoc_char'):
        shutil.copytree(os.path.join(ROOT, folder), place / folder, ignore=ignored)
    for name in ('train.py', 'model.py', 'sample.py', 'run_manager.py', 'configurator.py', 'requirements.txt'):
        shutil.copy(os.path.join(ROOT, name), place)
    (place / 'data' / 'pydoc_char' / 'input.txt').write_text(TEXT)
    with open(place / 'config' / 'quickstart.py', 'a') as f:
        f.write(TINY)
    return place


@pytest.fixture(scope='module')
def outputs(clone):
    """
    {id: outputs} of the notebook's cells, which Jupyter's kernel has run with this Python, in the notebook's folder as
    Jupyter and VS Code do.
    """
    nbclient = pytest.importorskip('nbclient', reason='needs the package nbclient')
    nbformat = pytest.importorskip('nbformat', reason='needs the package nbformat')
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    notebook = nbformat.read(clone / 'notebooks' / 'quickstart.ipynb', as_version=4)
    with tempfile.TemporaryDirectory() as home:  # not pytest's, whose names are too long for sockets on a Mac
        # it is reached by sockets in a folder; and without the kernels that a user has installed, it is this Python
        kernel = AsyncKernelManager(transport='ipc', connection_file=os.path.join(home, 'kernel.json'),
                                    kernel_name='python3', kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        assert kernel.format_kernel_cmd()[0] == sys.executable
        client = nbclient.NotebookClient(notebook, km=kernel, timeout=HANG,
                                         resources={'metadata': {'path': str(clone / 'notebooks')}})
        # a package that is not here must fail, and not be downloaded
        client.execute(env={**os.environ, 'IPYTHONDIR': home, 'PIP_NO_INDEX': '1'}, cleanup_kc=True)
    return {cell['id']: cell['outputs'] for cell in notebook['cells'] if 'outputs' in cell}


def printed(outputs):
    """What a cell prints on stdout."""
    return ''.join(output['text'] for output in outputs if output.get('name') == 'stdout')


def shown(outputs, kind):
    """What a cell shows of a MIME type."""
    [found] = [output['data'][kind] for output in outputs if kind in output.get('data', ())]
    return found


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(outputs, clone):
    assert outputs.keys() == CODE.keys() and [name for name in outputs if not outputs[name]] == ['python']
    assert printed(outputs['project']) == f'{clone}\n' and os.listdir(clone.parent) == ['clone']
    assert printed(outputs['packages']).count('\n') == 1  # nothing to install, nothing to warn of
    evaluations = read_metrics(clone / 'out-quickstart')[1]
    assert evaluations[-1]['val_loss'] < evaluations[0]['val_loss'] - 0.5
    assert 'step 60: ' in printed(outputs['train'])
    assert base64.b64decode(shown(outputs['curve'], 'image/png')).startswith(b'\x89PNG')
    assert printed(outputs['write']).count('The ') > 1
    page = (clone / 'page.html').read_text(encoding='utf-8')
    assert f'srcdoc="{html.escape(page)}"' in shown(outputs['microscope'], 'text/html')
    for name in ('narrow', 'wide'):
        assert read_metrics(clone / 'results' / name)[2]['done'] and name in printed(outputs['report'])
    assert base64.b64decode(shown(outputs['report'], 'image/png')) == (clone / 'report.png').read_bytes()
    likeliest = [float(share) for share in re.findall(r"^ *([\d.]+)%  '.'$", printed(outputs['model']), re.MULTILINE)]
    assert len(likeliest) == 5 and likeliest == sorted(likeliest, reverse=True)


@pytest.mark.slow
def test_the_microscope_works_within_the_notebook(outputs, tab):
    tab.set_content(f'<!doctype html><title>notebook</title>{shown(outputs["microscope"], "text/html")}')
    frame = tab.frame_locator('iframe')
    frame.locator('html[data-ready]').wait_for()
    character = frame.locator('#text [role=option]').nth(3)
    character.click()
    assert character.get_attribute('aria-selected') == 'true'
    assert frame.locator('#alternatives tr').count() > 3


@pytest.mark.slow
def test_a_stopped_training_has_a_checkpoint(clone, tmp_path):
    command = f'train.py config/quickstart.py --max_iters=20000 --log_interval=1 --out_dir={tmp_path}/out'
    out, _ = stopped(command, 'iter 3', os.killpg, clone)
    assert 'SIGINT: saving' in out and (tmp_path / 'out' / 'last.pt').exists()
