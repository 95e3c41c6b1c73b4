"""
Where the text comes from: files here or on Hugging Face, or one file to download. It knows formats by name only.
A file is a dict {'path', 'bytes', 'version'}; its version changes when its content does.
"""
import fnmatch
import glob
import hashlib
import http.client
import io
import os
import re
import stat
import time
import urllib.request

from common.files import write_whole

SUFFIXES = ('.txt', '.md', '.jsonl', '.parquet')
WAITS = (1, 2, 5, 15, 30, 60)  # seconds before each retry when a network fails


class Gone(ValueError):
    """A dataset or its files no longer exist."""


def find(pattern):
    """
    The files that a pattern names, in order: a file, a folder with its subfolders, a glob, or on Hugging Face
    hf://datasets/OWNER/NAME/GLOB (or NAME@REVISION). ValueError if there are none, or none of a known kind.
    """
    if pattern.startswith('hf://'):
        return find_on_hub(pattern)
    named = os.path.expanduser(pattern)
    found = [named] if os.path.exists(named) else glob.glob(named, recursive=True)
    if not found:
        raise ValueError(f'there is no {pattern!r}')
    files = []
    for path in found:
        try:
            kind = os.stat(path).st_mode
        except FileNotFoundError:  # a link to nothing
            continue
        files += walk(path) if stat.S_ISDIR(kind) else [path] if stat.S_ISREG(kind) else []
    paths = sorted({os.path.abspath(path) for path in files if suffix(path) in SUFFIXES})
    if not paths:
        raise ValueError(f'{pattern!r} is or has no file of {", ".join(SUFFIXES)}; convert other formats to .jsonl, '
                         'with a {"text": "..."} on each line')
    return [{'path': path, 'bytes': os.path.getsize(path), 'version': os.stat(path).st_mtime_ns} for path in paths]


def walk(folder):
    """The paths of all files in a folder and its subfolders. OSError if one cannot be read: it is not left out."""
    def fail(error):
        raise error
    return [os.path.join(place, name) for place, _, names in os.walk(folder, onerror=fail) for name in names]


def suffix(path):
    return os.path.splitext(path)[1].lower()


def find_on_hub(url):
    """find() on Hugging Face. The paths include the revision that was found, so that a restart reads the same one."""
    from huggingface_hub import dataset_info, errors
    parsed = re.fullmatch(r'hf://datasets/([^/@]+/[^/@]+)(?:@(refs/\w+/\w+|[^/]+))?/(.+)', url)
    if not parsed:
        raise ValueError(f'{url} is not of the form hf://datasets/OWNER/NAME/GLOB, as in hf://datasets/me/mine/*.jsonl')
    name, revision, pattern = parsed.groups()
    info, waits = None, list(WAITS[:2])
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
            wait(error, waits, f'cannot look up the dataset {name} ({type(error).__name__}: {error}).\nWithout a '
                 f'network: copy {pattern} here from https://huggingface.co/datasets/{name}, and name the files with '
                 '--input=FILES')
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
    path, waits = os.path.join(folder, 'input.txt'), list(WAITS[:2])
    while not os.path.exists(path):
        print(f'downloading {url}')
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            wait(error, waits, f'cannot download {url} ({error}).\nWithout a network: put that file at {path}, or name '
                 'it with --input=FILE, or train on text that comes with Python: python train.py config/quickstart.py')
            continue
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise ValueError(f'{url} has changed: its sha256 is {found}, not {sha256}. If you trust it, save it and '
                             'name it with --input=FILE')
        with write_whole(path, 'wb') as f:
            f.write(content)
    return path


def wait(error, waits, failure):
    """Sleep for waits.pop(0) seconds. ValueError with the text `failure` if none are left or a retry cannot help."""
    status = getattr(error, 'code', None) or getattr(getattr(error, 'response', None), 'status_code', 500)
    if not waits or isinstance(error, FileNotFoundError) or (status < 500 and status not in (408, 429)):
        raise ValueError(failure) from None
    print(f'{type(error).__name__}: {str(error)[:300]}; trying again in {waits[0]} s')
    time.sleep(waits.pop(0))
