"""The names of experiments and their folders: which can be, and which would be in the way of something else."""
import hashlib
import os
import re
import unicodedata

LONGEST = 60  # characters of a name that comes from the words of a line
NAME = re.compile(r'[\w+=][\w.+=-]*')  # no path, no option, and nothing hidden
STATE_FILE = re.compile(r'\.json(\.|$)', re.IGNORECASE)  # results/NAME.json, .json.lock: see state_file.py


def name_of(words):
    """
    The name of a line that has none: config/quickstart.py --seed=2 gives quickstart-seed=2. One that is too long ends
    in a hash instead.
    """
    parts = [os.path.splitext(os.path.basename(word))[0] if word.endswith('.py') else word.lstrip('-')
             for word in words]
    name = re.sub(r'[^\w.=+-]+', '_', '-'.join(parts) or 'train')
    name = name if NAME.match(name) else f'_{name}'
    return name if len(name) <= LONGEST else f'{name[:LONGEST]}-{short_hash(name)}'


def short_hash(text):
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def check_name(name, source=''):
    """ValueError for a name that cannot be one, or that would be in the way of the queue's own files."""
    if not NAME.fullmatch(name):
        raise ValueError(f'the name {name!r}{source} may contain only letters, digits and . _ + = -, and not begin '
                         'with . or -; put another one in front, as in a: ...')
    if STATE_FILE.search(name):
        raise ValueError(f'the name {name!r}{source} is that of a file of the queue in results/; put another one in '
                         f'front, as in {STATE_FILE.sub("", name) or "a"}: ...')


def check_folder(out_dir, root):
    """ValueError for an out_dir that would be in the way of something else. root: the folder of train.py."""
    too_long = next((part for part in out_dir.split(os.sep) if len(os.fsencode(part)) > 255), None)
    if too_long or len(os.fsencode(os.path.realpath(out_dir))) > 4000:  # of 4,096, with the file's own name
        raise ValueError(f'{too_long or out_dir:.40}... is too long for the name of a folder (255 bytes, and 4,000 '
                         'with all above it); put a shorter name in front, as in a: ...')
    if not out_dir:
        raise ValueError("out_dir='' names no folder; leave it out, or name one")
    own = {'the working directory': '.', "the queue's own folder": 'results', 'your home folder': '~'}
    if root:
        own |= {"the project's folder": root}
        own |= {f"the project's {name}": os.path.join(root, name) for name in ('common', 'config', 'data')}
    for what, folder in own.items():
        if is_in(place(os.path.expanduser(folder)), place(out_dir)):
            raise ValueError(f'out_dir={out_dir!r} is {what}, or has it inside; name a folder of its own, as in '
                             '--out_dir=results/a')
    if STATE_FILE.search(os.path.basename(out_dir)) and is_in(place(out_dir), place('results')):
        raise ValueError(f'out_dir={out_dir!r} is where the queue has its own files; name another one')


def folded(name):
    """A name as a disk compares it that knows no upper and lower case."""
    return unicodedata.normalize('NFC', name).casefold()


def place(path):
    """The real path of a folder, as such a disk compares it."""
    return folded(os.path.realpath(path))


def is_in(place, other):
    """Whether a place is the other one, or in it."""
    return place == other or place.startswith(os.path.join(other, ''))


def overlap(folder, other):
    """Whether two folders are the same, or one is in the other."""
    return is_in(place(folder), place(other)) or is_in(place(other), place(folder))
