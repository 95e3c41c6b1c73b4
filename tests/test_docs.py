"""
README and the guides keep their word: every command in them works, at toy size and with stand-ins for what would be
downloaded; their messages are what one sees, their code is quoted, their links lead somewhere.
"""
import ast
import glob
import json
import os
import re
import shlex
import shutil
import statistics
import zipfile
from collections import Counter

import pytest
import torch

from conftest import slow
from running import HOOKED, QUICK, ROOT, ok, python

SCRIPTS = ('train.py', 'sample.py', 'evaluate.py', 'bench.py', 'export.py')
DOCS = sorted(path for pattern in ('*.md', 'docs/*.md', 'docs/*/*.ko.md', 'data/*/readme.md', 'data/*/readme.ko.md')
              for path in glob.glob(pattern, root_dir=ROOT))
KOREAN = [path for path in DOCS if path.endswith('.ko.md')]  # their commands are the English pages'

# what a command is given besides its own words, so that it takes a second; its own smaller numbers stay
TINY = ['--device=cpu', '--dtype=float32', '--compile=False', '--n_layer=1', '--n_head=2', '--n_embd=16',
        '--block_size=16', '--batch_size=2', '--gradient_accumulation_steps=8', '--eval_interval=2', '--eval_iters=1',
        '--wandb_log=False']
SHORT = ['--max_iters=2', '--lr_decay_iters=2', '--warmup_iters=0', '--keep_interval=2']
CELL = ['--sweep_dtype=["float32"]', '--sweep_compile=[False]', '--sweep_batch_size=[2]',
        '--sweep_gradient_checkpointing=[False]']
GENERATING = ['--max_new_tokens=3', '--rounds=1', '--use_huggingface=False']
WRITING = ['--device=cpu', '--max_new_tokens=3', '--num_samples=1']
EXPERIMENTS = ''.join(f'{name}: config/quickstart.py {" ".join(TINY + SHORT)} --seed={seed}\n'
                      for seed, name in enumerate(('classic', 'muon')))
ABLATIONS = ''.join(f'gelu-{seed}: config/train_shakespeare_char_fast.py --variant=gelu config/ablations/change.py '
                    f'{" ".join(TINY + SHORT)} --seed={seed}\n' for seed in range(2))

BEFORE = {'data/alpaca/readme.md': ['data/tinystories/readme.md']}  # the documents that one goes on from
# the pages that take README's first steps for done, and what these are
AFTER_README = [f'docs/{name}.md' for name in ('data', 'evaluating', 'experiments', 'exporting', 'own_ids', 'questions',
                                               'sampling', 'several_gpus', 'speed', 'training')]
FIRST_STEPS = '''
python train.py config/quickstart.py
python data/shakespeare_char/prepare.py
python train.py config/train_shakespeare_char.py
python data/text/prepare.py --input letters --out=data/mine
'''
LONG = ['README.md', 'data/alpaca/readme.md', 'docs/curves.md', 'docs/hardware.md', 'docs/recipe.md',
        'docs/training_guide.md', 'docs/v100.md', 'docs/what_124m_can_do.md', *AFTER_README]

CODE = [path for pattern in ('*.py', 'common/**/*.py', 'data/**/*.py')
        for path in glob.glob(pattern, root_dir=ROOT, recursive=True)]


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


def blocks(text):
    """The fenced blocks of a document, [(what stands behind its first fence, its lines)]."""
    found = re.findall(r'^ *```([^\n]*)\n(.*?)^ *```$', text, re.MULTILINE | re.DOTALL)
    return [(info, content.splitlines()) for info, content in found]


def commands(path):
    """The words of each command in a document, but for those in blocks that are marked `elsewhere`."""
    for info, lines in blocks(read(path)):
        if info.startswith('sh') and 'elsewhere' not in info:
            words = [shlex.split(part, comments=True) for line in lines for part in line.split(' && ')]
            yield from filter(None, words)
        yield from (shlex.split(line[2:]) for line in lines if line.startswith('$ '))


def shrink(words, options):
    """The words with the options behind them, but for those that have a smaller number there already."""
    own = dict(word[2:].split('=', 1) for word in words if word.startswith('--') and '=' in word)

    def is_small(option):
        key, value = option[2:].split('=', 1)
        return value.isdecimal() and own.get(key, '').isdecimal() and int(own[key]) < int(value)
    return [*words, *(option for option in options if not is_small(option))]


def toy(words):
    """A command at toy size, as python()'s arguments; None for what is not the project's own to run."""
    if words[0] == 'torchrun':  # the launcher itself is tested with tests/test_resume.py
        words = ['python', *words[words.index('train.py'):]]
    if words[0] != 'python' or words[1].startswith('-'):
        assert words[0] in ('pip', 'source') or words[:2] == ['python', '-m'], f'{words} is not tested'
        return None
    script, *words = words[1:]
    mode = next((word.partition('=')[2] for word in words if word.startswith('--mode=')), 'step')
    if script == 'train.py':
        words = shrink(words, TINY + SHORT)
    elif script == 'sample.py':
        words = shrink(words, WRITING)
    elif script == 'evaluate.py':
        words += ['--device=cpu']
    elif script == 'bench.py' and mode in ('step', 'sample'):
        more = CELL if '--sweep=True' in words else GENERATING if mode == 'sample' else []
        words = shrink(words, [*TINY, '--vocab_size=64', '--windows=1', *more])
    elif script == 'bench.py' and mode == 'claims':
        words = ['--mode=claims', '--list']
    elif script.endswith('prepare.py') and not script.endswith('_char/prepare.py'):
        if not any(word.startswith('--input') for word in words):
            words += ['--input=corpus.jsonl']
        words = [re.sub('^--fraction=.*', '--fraction=0.5', word) for word in words]
        if not any(word.startswith(('--tokenizer', '--vocab_size')) for word in words):
            words += ['--tokenizer=vocabulary']
    return [script, *words]


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """
    A copy of the project with a text for each corpus, a dataset whose vocabulary stands for GPT-2's, and folders with a
    tiny model under the names of OpenAI's.
    """
    place = tmp_path_factory.mktemp('world') / 'project'
    ignored = shutil.ignore_patterns('__pycache__', '*.bin', 'meta.json', 'input.txt', 'tokenizer.json')
    for folder in ('common', 'config', 'data'):
        shutil.copytree(os.path.join(ROOT, folder), place / folder, ignore=ignored)
    for path in glob.glob('*.py', root_dir=ROOT):
        shutil.copy(os.path.join(ROOT, path), place)
    text = '\n\n'.join(f'{word} said ROMEO: The value of x{i} is Returned, just a quick box. Question? Answer! '
                       + 'How lazy! ' * (i % 5) for i in range(40) for word in ('Once upon a time', 'To the other'))
    for name in ('pydoc_char', 'shakespeare_char', 'shakespeare', 'the_verdict'):
        (place / 'data' / name / 'input.txt').write_text(text * 4)
    line = '{"text": "%s", "instruction": "Name it.", "output": "%s"}\n'
    rows = text.split('\n\n')
    (place / 'corpus.jsonl').write_text(''.join(line % (row + str(i), row) for i, row in enumerate(rows * 3)))
    for name in ('book.txt', 'LICENSE'):
        (place / name).write_text(text)
    (place / 'questions.jsonl').write_text(''.join(
        f'{{"query": "To the x{i}", "choices": ["other said", "box"], "gold": 0}}\n' for i in range(4)))
    write_benchmarks(tmp_path_factory)
    (place / 'prompt.txt').write_text('The other')
    for folder, name in (('letters', 'a.txt'), ('notes', 'b.md'), ('stories', 'c.txt')):
        (place / folder).mkdir()
        (place / folder / name).write_text(text)
    (place / 'config' / 'experiment_list.conf').write_text(EXPERIMENTS)
    (place / 'config' / 'ablations' / 'list.conf').write_text(ABLATIONS)
    names = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')
    for command in (['data/text/prepare.py', '--input=book.txt', '--vocab_size=300', '--out=vocabulary'],
                    ['train.py', *TINY, *SHORT, '--dataset=vocabulary', '--out_dir=out-tiny', '--bias=True'],
                    *(['export.py', '--out_dir=out-tiny', f'--to={name}', '--verify=False'] for name in names)):
        ok(execute(command, place))
    shutil.rmtree(place / 'out-tiny')
    return place


def write_benchmarks(tmp_path_factory):
    """A question or more for each benchmark, where what was downloaded is kept."""
    import pyarrow
    import pyarrow.parquet
    folder, made = os.path.join(os.environ['XDG_CACHE_HOME'], 'nanogpt', 'benchmarks'), tmp_path_factory.mktemp('files')
    os.makedirs(folder, exist_ok=True)
    swag = dict(activity_label='Haste', ctx_a='Once upon', ctx_b='a time', endings=['a box', 'the other'], label=0)
    arc = dict(question='How lazy?', choices=dict(text=['a box', 'a time'], label=['A', 'B']), answerKey='B')
    rows = pyarrow.Table.from_pylist([arc] * 60)
    (made / 'hellaswag-hellaswag_val.jsonl').write_text(json.dumps(swag) + '\n')
    (made / 'lambada-lambada_test.jsonl').write_text('{"text": "Once upon a time"}\n')
    for name in ('arc_easy-train', 'arc_easy-test', 'arc_challenge-test'):
        pyarrow.parquet.write_table(rows, made / f'{name}-00000-of-00001.parquet')
    with zipfile.ZipFile(made / 'piqa-physicaliqa-train-dev.zip', 'w') as archive:
        archive.writestr('physicaliqa-train-dev/dev.jsonl', '{"goal": "haste", "sol1": "a box", "sol2": "lazy"}\n')
        archive.writestr('physicaliqa-train-dev/dev-labels.lst', '1\n')
    for path in made.iterdir():
        os.replace(path, os.path.join(folder, path.name))  # whole: other processes do the same


def execute(words, place):
    script, *words = words
    before = [HOOKED, QUICK] if script == 'bench.py' else []
    return python(*before, os.path.join(place, script), *words, cwd=place)


@pytest.fixture(scope='session')
def begun(world, tmp_path_factory):
    """The same after README's first steps."""
    place = tmp_path_factory.mktemp('begun') / 'project'
    shutil.copytree(world, place)
    for line in FIRST_STEPS.strip().splitlines():
        ok(execute(toy(shlex.split(line)), place))
    return place


def test_the_first_steps_are_those_of_readme():
    said = [shlex.join(words) for words in commands('README.md')]
    for line in FIRST_STEPS.strip().splitlines()[:3]:
        assert line in said


@pytest.mark.parametrize('path', [slow(path) if path in LONG else path for path in DOCS
                                  if path not in KOREAN and any(commands(path))])
def test_every_command_works(path, request, tmp_path):
    place = tmp_path / 'project'
    shutil.copytree(request.getfixturevalue('begun' if path in AFTER_README else 'world'), place)
    for document in (*BEFORE.get(path, ()), path):
        for words in commands(document):
            short = toy(words)
            if short is not None:
                done = execute(short, place)
                assert done.returncode == 0, f'{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr}'


def mistakes():
    """The rows of the table of mistakes: (what one types, what one sees), in backticks where it is literal."""
    table = read('docs/questions.md').partition('| you type | you see | |')[2].partition('\n\n')[0]
    return [[cell.strip() for cell in row.split('|')[1:3]] for row in table.splitlines()[2:]]


@pytest.mark.slow
def test_the_mistakes_give_the_messages_that_the_table_shows(world, tmp_path):
    rows = mistakes()
    assert len(rows) == 10
    place = tmp_path / 'project'
    shutil.copytree(world, place)
    assert execute(['train.py', 'config/quickstart.py', *TINY, *SHORT, '--n_layer=2'], place).returncode == 0
    sources = ''.join(map(read, CODE))
    ran = 0
    for typed, seen in rows:
        message = seen.strip('`')
        other_build = 'for the CPU only' in message and torch.version.cuda is not None
        if other_build or not re.fullmatch('`python [^`]+`', typed):  # it cannot be had here: its words must do
            assert message.removeprefix("device='cuda', but ").partition(';')[0] in sources
            continue
        words = shlex.split(typed.strip('`'))[1:]
        if '--init_from=auto' in words:
            words[2:2] = TINY
        done = execute(words, place)
        assert done.returncode == 2 and message in done.stderr, f'{typed}\n{done.stderr}'
        ran += 1
    assert ran >= 4


def numbers(text):
    """The numbers of a text, as they are written, but for those in names such as AVX-512 and GPT-2; of 1/8.5, 8.5."""
    return re.findall(r'(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w/])', text)


def measured(command):
    """
    What was measured by a command's script with its config or mode: the figures in docs/claims.jsonl, of several the
    median, with their range, and those by hand in docs/measurements.md. No dates, commands or single runs.
    """
    named, known = ' '.join(command.split()[:3]), []
    for line in map(json.loads, read('docs/claims.jsonl').splitlines()):
        if named in line['command']:
            known += [statistics.median(value) if isinstance(value, list) else value
                      for value in line['figure'].values()]
            known += [float(number) for number in re.findall(r'[\d.]+', line['spread']) if ' to ' in line['spread']]
    for row in read('docs/measurements.md').partition('## By hand')[2].splitlines():
        cells = row.strip('| ').split(' | ')
        if row.startswith('| ') and named in cells[1]:
            known += [float(number.replace(',', '')) for number in numbers(cells[-1]) if number.count('.') < 2]
    return known


def readme_figures():
    """(a text with figures, the command behind them) for what README and the page on sampling say was measured."""
    text, command = read('README.md'), None
    for row in text.partition('| measured on ')[2].partition('\n\n')[0].splitlines()[2:]:
        *figures, behind = row.strip('| ').split(' | ')[1:]
        command = command if behind == 'the same' else behind.strip('`')
        yield ' '.join(figures), command
    speeds = read('docs/sampling.md').partition('| tokens/s |')[2].partition('\n\n')[0]
    for row in speeds.splitlines()[2:]:
        yield row, 'python bench.py --mode=sample'
    yield re.search(r'best val loss [\d.]+', text)[0], 'python train.py config/quickstart.py'
    yield re.search(r'\d+ passed, \d+ skipped', text)[0], 'python -m pytest'


def test_what_readme_says_was_measured_stands_in_the_measurements():
    """With fewer digits, if need be."""
    seen = 0
    for figures, command in readme_figures():
        known = measured(command)
        for number in numbers(figures):
            digits = len(number.partition('.')[2])
            assert any(f'{one:.{digits}f}' == number for one in known), f'{number} of {figures!r}: {command}'
            seen += 1
    assert seen >= 20


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


def prose(text):
    """A document without its blocks of code."""
    return re.sub(r'^ *```.*?^ *```$', '', text, flags=re.MULTILINE | re.DOTALL)


def links(text):
    return re.findall(r'\]\(([^)\s]+)\)', prose(text))


@pytest.mark.parametrize('path', DOCS)
def test_links_lead_somewhere(path):
    for link in links(read(path)):
        if re.match('https?:', link):
            continue
        file, _, anchor = link.partition('#')
        target = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
        assert os.path.exists(os.path.join(ROOT, target)), link
        if anchor:
            headings = re.findall(r'^#+ (.*)$', prose(read(target)), re.MULTILINE)
            assert anchor in map(slug, headings), link


def definition(path, name):
    """The source of a function, class, method or assigned name of a file; None if it is not there."""
    source = read(path)
    body = ast.parse(source).body
    for part in name.split('.'):
        found = [node for node in body if getattr(node, 'name', None) == part or isinstance(node, ast.Assign)
                 and getattr(node.targets[0], 'id', None) == part]
        if not found:
            return None
        body = getattr(found[0], 'body', [])
    return ast.get_source_segment(source, found[0])


@pytest.mark.parametrize('path, pattern', [
    ('docs/code.md', r'(?P<names>(?:`[\w.]+`(?:, | and )?)+) in \[[^]]*\]\(../(?P<file>\S+\.py)\)'),
    ('docs/code.ko.md', r'\[[^]]*\]\(../(?P<file>\S+\.py)\)의 (?P<names>(?:`[\w.]+`(?:, )?)+)'),
], ids=['English', 'Korean'])
def test_names_of_code_are_in_the_file_that_is_linked(path, pattern):
    named = [(found['file'], name) for found in re.finditer(pattern, read(path))
             for name in re.findall(r'`([\w.]+)`', found['names'])]
    assert len(named) >= 18
    for file, name in named:
        assert definition(file, name), f'{file} has no {name}'


@pytest.mark.parametrize('path', [path for path in DOCS if 'guide' in path])
def test_the_guide_quotes_code_that_is_there(path):
    text = read(path)
    quotes = re.findall(r'\[\S+\]\(\.\./(\S+\.py)\)(?:, |의 )`([^`]+)`:\n\n( *)```python\n(.*?)```', text, re.DOTALL)
    assert len(quotes) == text.count('```python') > 0
    for file, name, indent, code in quotes:
        source = definition(file, name)
        assert source, f'{file} has no {name}'
        source, code = (re.sub('  # .*', '', text).splitlines() for text in (source, code))
        lines = iter([line.strip() for line in source])
        for line in filter(None, map(str.strip, code)):
            assert line == '...' or line in lines, f'{name} in {file} has no line {line!r}, or not in this order'


def english(path):
    return path.replace('.ko.md', '.md')


def figures_of(text):
    return Counter(re.findall(r'(?<![A-Za-z\d.,])\d+(?:[.,]\d+)*', text))


def untranslated(info, lines):
    """A block of code as it stands in every language: of its comments, which are translated, the figures alone."""
    if not info.startswith(('sh', 'python')):
        return info, lines
    parted = [re.split(r'(?:^|\s+)# ', line, maxsplit=1) for line in lines]
    return info, [(code, *map(figures_of, comment)) for code, *comment in parted]


def outline(path):
    """
    What the languages of a document share: levels of headings, code, links, and the figures of each section. A link to
    a page in Korean counts as one to the English page, and not at all if that is this one or is not there.
    """
    text, (folder, this) = read(path), os.path.split(english(path))
    sections = re.split(r'^(#+) .*$', prose(text), flags=re.MULTILINE)
    pages = Counter(english(link.partition('#')[0]) for link in links(text))
    shared = {page for page in pages if re.match('https?:', page) or os.path.exists(os.path.join(ROOT, folder, page))}
    figures = [figures_of(section) for section in sections[2::2]]
    code = [Counter(re.findall(r'`([^`\n]+)`', section)) for section in sections[2::2]]
    return {'headings': sections[1::2], 'blocks': [untranslated(*block) for block in blocks(text)],
            'links': {page: pages[page] for page in shared - {this}}, 'figures': figures, 'code': code}


@pytest.mark.parametrize('path', [path for path in KOREAN if os.path.exists(os.path.join(ROOT, english(path)))])
def test_a_korean_page_keeps_step(path):
    ours, theirs = outline(english(path)), outline(path)
    for part in ours:
        if isinstance(ours[part], list):
            for i, (one, other) in enumerate(zip(ours[part], theirs[part])):
                assert one == other, f'{part}, number {i}'
        assert ours[part] == theirs[part], part


def settings(script):
    """({setting: its comment}, the code behind the settings) of a script."""
    source = read(script)
    block = source.partition('config_keys = ')[0]
    found = dict(re.findall(r'^(\w+) = [^#\n]*(?:# *(.*))?$', block, re.MULTILINE))
    found.pop('root', None)
    return found, source.partition('config_keys = ')[2]


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_setting_is_read_by_somebody(script):
    names, code = settings(script)
    assert len(names) > 4
    read_by_name = {node.id for node in ast.walk(ast.parse(code.partition('\n')[2])) if isinstance(node, ast.Name)
                    and isinstance(node.ctx, ast.Load)}
    sources = code + ''.join(read(path) for path in CODE if path.startswith('common') and 'records' not in path)
    by_text = {name for name in names if re.search(rf'''['"]{name}['"]''', sources)}
    assert set(names) <= read_by_name | by_text


def test_a_setting_has_one_name_and_one_meaning_in_all_scripts():
    meanings = {}
    for script in SCRIPTS:
        for name, comment in settings(script)[0].items():
            meanings.setdefault(name, {})[script] = comment
    for name in ('device', 'init_from', 'seed', 'dtype'):
        assert len(meanings[name]) > 1
    assert meanings['device']['train.py'] == meanings['device']['sample.py']
    assert meanings['init_from']['sample.py'] == meanings['init_from']['export.py']


# of pip and torchrun, an example of any setting, and one of the mistakes
OTHERS = {'help', 'index', 'standalone', 'nproc_per_node', 'nnodes', 'key', 'batchsize', 'signals'}


@pytest.mark.parametrize('path', DOCS)
def test_options_named_in_the_text_exist(path):
    known = OTHERS.union(*(settings(script)[0] for script in SCRIPTS))
    by_argparse = 'data/corpus/pipeline.py', 'run_manager.py', 'common/experiments/report.py'
    known |= set(re.findall(r"'--(\w+)'", ''.join(map(read, by_argparse))))
    for code in re.findall(r'`([^`\n]+)`', prose(read(path))):
        script = re.match(r'(?:python|torchrun .*) (\S+\.py)', code)
        assert script is None or os.path.exists(os.path.join(ROOT, script[1])), code
        own = settings('train.py')[0] if script and script[1] == 'train.py' else known  # bench.py has train.py's, too
        assert set(re.findall(r'(?<!\S)--(\w+)', code)) <= OTHERS.union(own), code


@pytest.mark.parametrize('path', sorted(glob.glob('config/*.py', root_dir=ROOT)))
def test_a_config_has_its_launch_line_and_sets_what_exists_once(path):
    tree = ast.parse(read(path))
    assigned = [target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    at_once = Counter(target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    assert set(assigned) <= set(settings('train.py')[0]) and max(at_once.values()) == 1
    assert f'train.py {path}' in read(path).partition(' = ')[0]
