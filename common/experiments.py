"""
The list of experiments that run_manager.py works through, one a line, with all the settings that each would train with;
and what can be wrong with it before anything is started. It knows no torch and starts nothing.
"""
import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field

from common import settings as train_settings

STATES = 'last.pt', 'last.pt.new', 'prev.pt'  # what a run resumes from


@dataclass
class Experiment:
    name: str
    words: list     # what follows `python train.py`, --out_dir among them
    out_dir: str
    line: int       # in the list
    after: list     # names of those that must be done before
    settings: dict = field(default_factory=dict)  # all of train.py's, with these words


def read(path, root=None):
    """
    The experiments of a list, in its order, with their settings by the train.py in `root`; without it these are left
    out. ValueError, a line for each mistake, if train.py would not take one of them or if two do not go together.
    """
    experiments, mistakes = [], []
    if not os.path.isfile(path):
        raise ValueError(f'there is no list {path!r}; --list=FILE names one, and config/experiment_list.conf shows how')
    with open(path, encoding='utf-8-sig') as f:
        try:
            lines = f.read().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not text in UTF-8 ({error})') from None
        for number, line in enumerate(lines, 1):
            try:
                words = split(line)
                if words:
                    one = parse(words, number)
                    experiments.append(one)
                    one.settings = resolve(root, one.words) if root else {}
                    if one.settings.get('out_dir', one.out_dir) != one.out_dir:
                        raise ValueError(f'a config file sets out_dir={one.settings["out_dir"]!r} after --out_dir; '
                                         'put --out_dir behind it')
            except ValueError as error:
                mistakes.append(f'line {number}: {error}')
    mistakes += mistakes_between(experiments)
    if mistakes:
        raise ValueError('\n'.join(f'{path}, {mistake}' for mistake in mistakes))
    if not experiments:
        raise ValueError(f'{path} has no experiment in it yet: one a line, exactly what follows `python train.py`')
    return experiments


def split(line):
    """The words of a line, as a shell has them: # begins a comment where a word could begin."""
    words = shlex.shlex(line, posix=True)
    words.whitespace_split, words.commenters = True, ''
    words = list(words)
    return words[:next((i for i, word in enumerate(words) if word.startswith('#')), len(words))]


def parse(words, number):
    """The experiment of a line: [NAME:] [after=NAME ...] and what follows `python train.py`."""
    after = [word.removeprefix('after=') for word in words if word.startswith('after=')]
    words = [word for word in words if not word.startswith('after=')]
    name = words.pop(0)[:-1] if words and words[0].endswith(':') else None
    if name is not None and not re.fullmatch(r'[\w.+=][\w.+=-]*', name):
        raise ValueError(f'the name {name!r} is not of letters, digits and any of . _ + = -')
    given = re.findall(r'(?:^|\0)--out_dir[=\0]([^\0]+)', '\0'.join(words))
    if name is None:  # results/tiny12 is called tiny12, config/quickstart.py --seed=2 quickstart-seed=2
        said = [os.path.splitext(os.path.basename(word))[0] if word.endswith('.py') else word.lstrip('-')
                for word in words]
        name = os.path.basename(os.path.normpath(given[-1])) if given else '-'.join(said) or 'train'
    name = re.sub(r'[^\w.=+-]+', '_', name)
    if not given:
        words.append(f'--out_dir=results/{name}')
    return Experiment(name, words, given[-1] if given else f'results/{name}', number, after)


def resolve(root, words):
    """
    All of train.py's settings with these words on its command line: its settings block and the configurator, nothing
    else of it, are executed. ValueError with what train.py would say.
    """
    path = os.path.join(root, 'train.py')
    with open(path, encoding='utf-8') as f:
        body = ast.parse(f.read(), path).body
    end = next(i for i, node in enumerate(body) if 'configurator.py' in ast.unparse(node))
    names, said, argv = {'__file__': path, '__name__': 'settings'}, io.StringIO(), sys.argv
    try:
        sys.argv = [path, *words]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            exec(compile(ast.Module(body[:end + 1], []), path, 'exec'), names)
    except SystemExit:
        raise ValueError(said.getvalue().strip().removeprefix('train.py: ') or 'it only asks for help') from None
    finally:
        sys.argv = argv
    return {key: names[key] for key in names['config_keys']}


def mistakes_between(experiments):
    """What does not go together in a list, a text for each."""
    names, folders = {}, {}
    for one in experiments:
        other = names.setdefault(one.name, one)
        if other is not one:
            yield (f'line {one.line}: {one.name} is the name of line {other.line} too; put another one in front, as in '
                   f'{one.name}-2: ...')
        other = folders.setdefault(os.path.realpath(one.out_dir), one)
        if other is not one:
            yield f'line {one.line}: line {other.line} writes to out_dir={one.out_dir!r} too'
    for one in experiments:
        for name in one.after:
            if name not in names:
                yield f'line {one.line}: after={name} names no experiment; there are {", ".join(names)}'
        if one in ancestors(one, names):
            yield f'line {one.line}: {one.name} waits for itself, by after={" after=".join(one.after)}'
        place = os.path.realpath(one.settings.get('init_from', ''))
        source = folders.get(place) or folders.get(os.path.dirname(place))  # a folder, or a checkpoint in it
        named = one.settings.get('init_from') not in (None, 'scratch', 'resume', 'auto')
        if named and source and source is not one and source not in ancestors(one, names):
            yield f'line {one.line}: it starts from what {source.name} writes; add after={source.name}'


def ancestors(one, names):
    """All experiments that must be done before this one."""
    found, waiting = [], list(one.after)
    while waiting:
        other = names.get(waiting.pop())
        if other and other not in found:
            found.append(other)
            waiting += other.after
    return found


def check(experiments, path, root, processes):
    """ValueError, a line for each, if one of these cannot work here: its settings, its dataset, the disk."""
    from common import bins  # here, for numpy: a look at the status needs no more than Python
    mistakes, needed = [], {}
    for one in experiments:
        try:
            if one.settings['eval_only']:
                raise ValueError('eval_only trains nothing, so that a queue cannot see its end; run it by hand')
            train_settings.check(one.settings, processes)
            folder = bins.find(root, one.settings['dataset'])
            makes_it = one.settings['auto_prepare'] and os.path.isfile(os.path.join(folder, 'prepare.py'))
            vocab_size = 50257 if makes_it else bins.read_meta(folder)['vocab_size']
        except (ValueError, OSError) as error:
            mistakes.append(f'{path}, line {one.line}: {error}')
            continue
        place = os.path.abspath(one.out_dir)
        while not os.path.exists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place) or not os.access(place, os.W_OK):
            mistakes.append(f'{path}, line {one.line}: out_dir={one.out_dir!r} cannot be written in {place}')
            continue
        disk = needed.setdefault(os.stat(place).st_dev, [place, 0])
        there = [os.path.join(one.out_dir, name) for name in STATES if resumes(one)]  # to be replaced
        disk[1] += (train_settings.disk_bytes(one.settings, vocab_size)
                    - sum(os.path.getsize(path) for path in there if os.path.exists(path)))
    for place, size in needed.values():
        free = shutil.disk_usage(place).free
        if size > free:
            mistakes.append(f'the experiments that are not done yet may write {size / 1e9:.1f} GB, the disk of {place} '
                            f'has {free / 1e9:.1f} GB free')
    if mistakes:
        raise ValueError('\n'.join(mistakes))


def begin(one):
    """Make the folder of an experiment that starts from its beginning, and note when: in an empty file there."""
    os.makedirs(one.out_dir, exist_ok=True)
    with open(os.path.join(one.out_dir, '.begun'), 'w'):
        pass


def resumes(one):
    """Whether an experiment saved a state since it last began: an older one is of another run in the same folder."""
    begun = os.path.join(one.out_dir, '.begun')
    states = [os.path.join(one.out_dir, name) for name in STATES]
    return os.path.exists(begun) and any(os.path.exists(path) and os.path.getmtime(path) > os.path.getmtime(begun)
                                         for path in states)


def command(one, root, processes=1, anew=False):
    """
    The words of the command that starts an experiment, or goes on with it if it saved a state since it began. `anew`:
    what an earlier run saved in its folder is none of its business, even if its config says init_from='auto'.
    """
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
    start = []
    if resumes(one):
        start = ['--init_from=auto']
    elif anew and one.settings['init_from'] in ('auto', 'resume'):
        start = ['--init_from=scratch']
    return ['python', *launcher, os.path.relpath(os.path.join(root, 'train.py')), *one.words, *start]
