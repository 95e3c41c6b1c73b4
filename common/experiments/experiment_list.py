"""The list of experiments, one per line, and the checks before anything starts. It needs no torch."""
import collections
import contextlib
import os
import re
import shlex
from dataclasses import dataclass, field

from common import charsets, files, settings
from common.experiments import naming


@dataclass
class Experiment:
    name: str
    words: list     # what follows `python train.py`, including --out_dir
    out_dir: str
    line: int       # in the list
    after: list     # names of the experiments that must be done first
    settings: dict = field(default_factory=dict)  # all that train.py has with these words


def read(path, root=None, may_be_empty=False):
    """The experiments of a list; with `root`, the folder of train.py, also their settings. ValueError: all mistakes."""
    experiments, mistakes = read_lines(path, root)
    refuse(mistakes, path)
    if not experiments and not may_be_empty:
        raise ValueError(f'{path} has no experiment in it yet: one per line, exactly what follows `python train.py`')
    return experiments


def read_bytes(content, path, root=None):
    """As read(), of the bytes in a list."""
    experiments, mistakes = parse_lines(content, path, root)
    refuse(mistakes, path)
    return experiments


def read_lines(path, root=None):
    """As read(), but (the experiments, [(line, its mistake)]). ValueError or OSError if it is no text."""
    if not os.path.isfile(path):
        raise ValueError(f'there is no list {path!r}; --list=FILE names one, and config/experiment_list.conf shows how')
    with open(path, 'rb') as f:
        return parse_lines(f.read(), path, root)


def parse_lines(content, path, root):
    """As read_lines(), of the bytes in a list."""
    try:
        lines = content.decode('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        encoding = charsets.by_mark(content)
        advice = f'; it is in {encoding}: iconv -f {encoding} -t utf-8 {shlex.quote(path)} > new.conf' * bool(encoding)
        raise ValueError(f'{path} is not text in UTF-8 ({error}){advice}') from None
    experiments, mistakes = [], []
    for number, line in enumerate(lines, 1):
        try:
            if words := split(line):
                one = parse(words, number, root)
                experiments.append(one)
                if root:
                    one.settings = settings.read(os.path.join(root, 'train.py'), one.words)
        except ValueError as error:
            mistakes.append((number, str(error)))
    return experiments, mistakes + list(contradictions(experiments))


def refuse(mistakes, path):
    """ValueError that says each mistake [(line or None, text)] of the list at `path`, if there are any."""
    if mistakes:
        raise ValueError('\n'.join(f'{path}, line {line}: {text}' if line else text for line, text in mistakes))


def with_line(path, words):
    """(the bytes of a list with one more line, that line). ValueError for words that a line cannot hold."""
    if not words:
        raise ValueError('add needs a line: [NAME:] and what follows `python train.py`, as in add a: config/small.py')
    # one word with spaces in it is a line in quotes, or an option whose value has some
    line = words[0] if len(words) == 1 and not words[0].startswith('-') else ' '.join(
        word if re.fullmatch(r'[\w.+=-]+:', word) else shlex.quote(word) for word in words)
    if len(line.splitlines()) != 1:
        raise ValueError(f'{line!r} is not one line, as an experiment in a list is')
    try:
        new = line.encode()
    except UnicodeEncodeError:
        raise ValueError(f'{line!r} is not text in UTF-8') from None
    if not split(line):
        raise ValueError(f'{line!r} is a comment, or empty')
    with open(path, 'rb') as f:
        content = f.read()
    end = b'\r\n' if b'\r\n' in content else b'\n'
    return content + (b'' if content.endswith((b'\n', b'\r')) or not content else end) + new + end, line


def without_line(path, number):
    """The bytes of a list without line `number`, counted from 1."""
    with open(path, encoding='utf-8', newline='') as f:
        lines = f.read().splitlines(keepends=True)
    return ''.join(lines[:number - 1] + lines[number:]).encode()


def split(line):
    """The words of a line, split as a shell would: # begins a comment at the start of a word."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ''
    words = []
    while not line[lexer.instream.tell():].lstrip().startswith('#') and (word := lexer.get_token()) is not None:
        words.append(word)
    return words


def parse(words, number, root=None):
    """The experiment of line `number`: [NAME:] [after=NAME ...] and what follows `python train.py`."""
    after = [word.removeprefix('after=') for word in words if word.startswith('after=')]
    words = [word for word in words if not word.startswith('after=')]
    name = words.pop(0)[:-1] if words and words[0].endswith(':') else None
    if name is None and words:
        check_first_word(words[0], words[1:], root or '')
    out_dirs = re.findall(r'(?:^|\0)--out_dir[=\0]([^\0]*)', '\0'.join(words))
    out_dirs = [os.path.expanduser(out_dir) for out_dir in out_dirs]  # as the configurator does
    if name is not None:
        naming.check_name(name)
    elif out_dirs:  # --out_dir=results/tiny12 gives tiny12
        name = re.sub(r'[^\w.=+-]+', '_', os.path.basename(os.path.normpath(out_dirs[-1])))
    else:
        name = naming.name_of(words)
    if out_dirs:
        naming.check_folder(out_dirs[-1], root)
        naming.check_name(name, ', which comes from --out_dir,')
    else:
        out_dirs = [f'results/{name}']
        naming.check_folder(out_dirs[-1], root)
        words.append(f'--out_dir={out_dirs[-1]}')
    return Experiment(name, words, out_dirs[-1], number, after)


def check_first_word(word, others, root):
    """ValueError if the first word of a line without a name was meant as one."""
    if word.startswith('-') or os.path.exists(word) or os.path.exists(os.path.join(root, word)):
        return
    end = next((i for i, other in enumerate(others) if other.endswith((':', '：'))), None)
    if end is not None and len(others[end]) > 1:
        name = '-'.join([word, *others[:end + 1]])
        raise ValueError(f'a name has no spaces, as in {name} {shlex.join(others[end + 1:])}')
    name, colon, rest = re.fullmatch('([^:：]*)([:：]?)(.*)', word).groups()
    if colon and rest:
        raise ValueError(f'{word!r}: put a space behind the colon, as in {name}: {rest}')
    if colon or not word.endswith('.py') and others:
        rest = shlex.join(other for other in others if other != ':')
        raise ValueError(f'{word!r} is no config file; as a name it needs a colon, as in {name}: {rest}')


def contradictions(experiments):
    """What is wrong with the lines taken together: (line, text) of each mistake."""
    by_name, by_folder, names, places = {}, {}, {}, []
    for one in experiments:
        by_name.setdefault(one.name, one)
        by_folder.setdefault(os.path.realpath(one.out_dir), one)
        place = naming.place(one.out_dir)
        shared = next((other for taken, other in places if naming.is_in(taken, place) or naming.is_in(place, taken)),
                      None)
        places.append((place, one))
        other = names.setdefault(naming.folded(one.name), one)
        if other is not one:
            also = '' if other.name == one.name else f'on some disks, where {other.name} is the same, '
            yield one.line, (f'{one.name} is {also}the name of line {other.line} too; put another one in front, as in '
                             f'{one.name}-2: ...')
        elif shared:
            yield one.line, f'line {shared.line} writes to out_dir={shared.out_dir!r} too'
        out_dir = one.settings.get('out_dir', one.out_dir)
        if out_dir != one.out_dir:
            yield one.line, f'a config file sets out_dir={out_dir!r} after --out_dir; put --out_dir behind it'
    for one in experiments:
        for name in one.after:
            if name not in by_name:
                yield one.line, f'after={name} names no experiment; the list has {", ".join(by_name)}'
        if one in ancestors(one, experiments):
            yield one.line, f'{one.name} waits for itself, by after={" after=".join(one.after)}'
        init_from = one.settings.get('init_from', 'scratch')
        if init_from in ('scratch', 'resume', 'auto'):
            continue
        path = os.path.realpath(init_from)
        source = by_folder.get(path) or by_folder.get(os.path.dirname(path))  # a run's folder, or a checkpoint in it
        if source and source not in [one, *ancestors(one, experiments)]:
            yield one.line, f'it starts from what {source.name} writes; add after={source.name}'


def ancestors(experiment, experiments):
    """All experiments that must be done before this one."""
    by_name = {one.name: one for one in experiments}
    found, waiting = [], list(experiment.after)
    while waiting:
        other = by_name.get(waiting.pop())
        if other and other not in found:
            found.append(other)
            waiting += other.after
    return found


def check(experiments, root, processes):
    """
    Why experiments cannot run here, by their settings, their dataset, or the disk: [(line, text)] of each mistake, with
    no line for that of all together.
    """
    mistakes, disks, needed = [], {}, collections.Counter()
    for one in experiments:
        try:
            vocab_size = check_alone(one, root, processes)
        except (ValueError, OSError) as error:
            mistakes.append((one.line, str(error)))
            continue
        folder = files.existing_parent(one.out_dir)
        disk = disks.setdefault(os.stat(folder).st_dev, folder)  # one folder stands for its whole disk
        replaced = sum(state.st_size for state in saved_states(one.out_dir).values())
        needed[disk] += settings.disk_bytes(one.settings, vocab_size) - replaced
    for folder, size in needed.items():
        free = files.free_bytes(folder)
        if size > free:
            mistakes.append((None, f'the experiments that are not done yet may write {size / 1e9:.1f} GB, but the disk '
                                   f'of {folder} has {free / 1e9:.1f} GB free'))
    return mistakes


def check_alone(experiment, root, processes):
    """The vocabulary size of an experiment. ValueError or OSError if its settings, dataset or out_dir cannot work."""
    from common import dataset  # needs numpy, which `status` does without
    if experiment.settings['eval_only']:
        raise ValueError('eval_only trains nothing, so a queue cannot see its end; run it by hand')
    settings.check(experiment.settings, processes)
    folder = dataset.find(root, experiment.settings['dataset'])
    will_prepare = experiment.settings['auto_prepare'] and os.path.isfile(os.path.join(folder, 'prepare.py'))
    vocab_size = 50257 if will_prepare else dataset.read_meta(folder)['vocab_size']  # GPT-2's until known
    files.check_folder(experiment.out_dir, 'out_dir')
    parent = files.existing_parent(experiment.out_dir)
    if not os.access(parent, os.W_OK):
        raise ValueError(f'out_dir={experiment.out_dir!r} cannot be written in {parent}; name another folder')
    return vocab_size


def saved_states(out_dir):
    """
    {name: os.stat_result} of the states that a run can resume from; {} if none is newer than .begun: an earlier run
    left them.
    """
    found = {}
    for name in ('.begun', 'last.pt', 'last.pt.new', 'prev.pt'):
        with contextlib.suppress(OSError):  # a run that is training renames them
            found[name] = os.stat(os.path.join(out_dir, name))
    begun = found.pop('.begun', None)
    return found if begun and any(state.st_mtime > begun.st_mtime for state in found.values()) else {}


def command(experiment, root, processes, anew):
    """The words that start an experiment, or resume it. anew: even init_from='auto' must not resume an earlier run."""
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
    start = []
    if saved_states(experiment.out_dir):
        start = ['--init_from=auto']
    elif anew and experiment.settings['init_from'] in ('auto', 'resume'):
        start = ['--init_from=scratch']
    return ['python', *launcher, os.path.relpath(os.path.join(root, 'train.py')), *experiment.words, *start]
