"""
Where the text comes from: files here or on Hugging Face, or one file to download. It knows formats by name only.
A file is a dict {'path', 'bytes', 'version'}; its version changes when its content does.
"""
import errno
import fnmatch
import glob
import io
import os
import re
import stat

from common import download as network
from common.console import visible

SUFFIXES = ('.txt', '.md', '.jsonl', '.parquet')
ON_HUB = re.compile(r'hf://datasets/([^/@]+/[^/@]+)(?:@(refs/\w+/\w+|[^/]+))?/(.+)')  # name, revision, glob
LINKED = 'a link to a folder (to take it, name it with --input)'


class Gone(ValueError):
    """A dataset or its files no longer exist."""


class Unreachable(ValueError):
    """Hugging Face does not answer, or must not be asked."""


def find(pattern):
    """
    The files that a pattern names, in order and each once: a file, a folder with its subfolders, a glob, or on Hugging
    Face hf://datasets/OWNER/NAME/GLOB (or NAME@REVISION). What is not taken is printed: in folders hidden names,
    links to folders and what cannot be read, anywhere files of other kinds, pipes, sockets, devices, links to nothing
    and other names of a file. ValueError if there are no files, or none of a known kind.
    """
    if pattern.startswith('hf://'):
        return find_on_hub(pattern)
    check_name(pattern)
    named, left_out = os.path.expanduser(pattern), {}
    if os.path.lexists(named):
        found = walk(named, left_out) if os.path.isdir(named) else [named]
    else:
        found = expand(named, left_out)
        if not found and not left_out:
            raise ValueError(f'there is no {pattern!r}')
    files, taken, others = [], {}, []
    for path in sorted({os.path.abspath(path) for path in found}, key=lambda path: (os.path.islink(path), path)):
        if not regular(path, left_out):
            continue
        if suffix(path) not in SUFFIXES:
            others.append(path)
            continue
        if taken.setdefault(identity(path), path) != path:
            left_out.setdefault('another name of a file that is taken', []).append(path)
            continue
        files.append({'path': path, 'bytes': os.path.getsize(path), 'version': os.stat(path).st_mtime_ns})
    if files and others:
        left_out['of another kind'] = others
    for what, paths in left_out.items():
        print(f'left out, {what}: {some(sorted(paths))}')
    if not files:
        convert = '; convert other formats to .jsonl, with a {"text": "..."} on each line'
        raise ValueError(f'{pattern!r} is or has no file of {", ".join(SUFFIXES)} that can be read' +
                         ('' if left_out else convert))
    return sorted(files, key=lambda file: file['path'])


def check_name(pattern):
    """ValueError for what is no name of files here, with what to type instead."""
    if pattern.startswith(('http://', 'https://')):
        if name := re.match(r'https?://huggingface\.co/datasets/([^/]+/[^/?#]+)', pattern):
            raise ValueError(f"{pattern} is on Hugging Face: type --source='hf://datasets/{name[1]}/GLOB', where "
                             'GLOB is data/*.parquet, for example')
        raise ValueError(f'{pattern} is an address; download it first, and name the file: --input=FILE')
    if pattern == '-' or re.fullmatch(r'/dev/(stdin|fd/\d+)|/proc/self/fd/\d+', pattern):
        raise ValueError(f'--input={pattern} is a stream, but a text is read more than once; save it in a file first: '
                         'COMMAND > text.txt, then --input=text.txt')


def some(paths):
    """Paths in one line: all of them, or their number and the first ones."""
    shown = ', '.join(visible(path) for path in paths[:3])
    return shown if len(paths) <= 3 else f'{len(paths):,}, such as {shown}'


def expand(pattern, left_out):
    """The paths that a glob matches. For a folder that it matches these are all in it."""
    parts = pattern.split('/')
    if '**' not in parts:
        found = []
        for path in glob.glob(pattern):
            if os.path.isdir(path) and os.path.islink(path):
                left_out.setdefault(LINKED, []).append(path)
            else:
                found += walk(path, left_out) if os.path.isdir(path) else [path]
        return found
    # glob.glob would go round in a circle of links, and would not say what it leaves out
    first = parts.index('**')
    top, parts = '/'.join(parts[:first]) or ('/' if pattern.startswith('/') else '.'), parts[first:]
    return [path for folder in glob.glob(top) if os.path.isdir(folder) for path in walk(folder, left_out)
            if matches(os.path.relpath(path, folder).split('/'), [part for part in parts if part])]


def matches(names, parts):
    """Whether the names on the way to a file match the parts of a glob, or those of a folder on that way do."""
    if not parts:
        return True
    if parts[0] == '**':
        return any(matches(names[i:], parts[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and matches(names[1:], parts[1:])


def walk(folder, left_out):
    """The paths in a folder and its subfolders, of files of any kind. `left_out` gets {why: [paths]} of others."""
    paths, folders = [], [folder]
    while folders:
        place = folders.pop()
        try:
            entries = list(os.scandir(place))
        except PermissionError:
            left_out.setdefault('a folder without permission to read', []).append(place)
            continue
        for entry in entries:
            is_folder, is_text = entry.is_dir(follow_symlinks=False), suffix(entry.name) in SUFFIXES
            if entry.name.startswith('.'):
                if is_folder or is_text:
                    left_out.setdefault('hidden', []).append(entry.path)
            elif is_folder:
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                left_out.setdefault(LINKED, []).append(entry.path)
            else:
                paths.append(entry.path)
    return paths


def regular(path, left_out):
    """Whether a path is a regular file, else why not is in `left_out`. OSError if that cannot be told just now."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return True
        why = 'no regular file (a pipe, a socket or a device)'
    except FileNotFoundError:
        why = 'a link to nothing'
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        why = 'a link to itself'
    left_out.setdefault(why, []).append(path)
    return False


def identity(path):
    """What two names of one file, such as a link and its target, have in common."""
    found = None if path.startswith('hf://') else os.stat(path)
    return (found.st_dev, found.st_ino) if found and found.st_ino else path


def suffix(path):
    return os.path.splitext(path)[1].lower()


def find_on_hub(url):
    """find() on Hugging Face. The paths include the revision that was found, so that a restart reads the same one."""
    from huggingface_hub import dataset_info, errors
    parsed = ON_HUB.fullmatch(url)
    if not parsed:
        raise ValueError(f'{url} is not of the form hf://datasets/OWNER/NAME/GLOB, as in hf://datasets/me/mine/*.jsonl')
    name, revision, pattern = parsed.groups()
    info, waits = None, list(network.WAITS[:2])
    while info is None:
        try:
            info = dataset_info(name, revision=revision, files_metadata=True)
        except errors.GatedRepoError:
            raise ValueError(f'the dataset {name} is gated: accept its terms at https://huggingface.co/datasets/{name} '
                             'and log in here: hf auth login') from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise Gone(f'Hugging Face has no dataset {name}' + (f' in revision {revision}' if revision else '') +
                       ': it was renamed or removed, or is private') from None
        except (OSError, errors.HTTPError) as error:
            network.wait(error, waits, f'cannot look up the dataset {name} ({type(error).__name__}: {error})',
                         Unreachable)
    files = [{'path': f'hf://datasets/{name}@{info.sha}/{file.rfilename}', 'bytes': file.size, 'version': file.blob_id}
             for file in sorted(info.siblings, key=lambda file: file.rfilename)
             if fnmatch.fnmatchcase(file.rfilename, pattern) and suffix(file.rfilename) in SUFFIXES]
    if not files:
        raise Gone(f'the dataset {name} has no files {pattern}')
    return files


def open_file(path):
    if not path.startswith('hf://'):
        return open(path, 'rb')
    from huggingface_hub import HfFileSystem
    return io.BufferedReader(HfFileSystem().open(path.removeprefix('hf://')), 2**20)  # its own readline is slow


def download(folder, url, sha256):
    """Download a file to input.txt, unless it is there, and return its path. It is kept only if its sha256 is right."""
    path = os.path.join(folder, 'input.txt')
    network.download(url, sha256, path, 'name it with --input=FILE, or train on text that comes with Python: '
                     'python train.py config/quickstart.py')
    return path
