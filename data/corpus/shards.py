"""
The unfinished output of a prepare script, in a folder of its own. Its files only grow. After each shard of work a
manifest notes their lengths and where in the source the next shard begins. A kill at any moment loses at most one
shard: a restart truncates the files to the lengths in the manifest and goes on. What is never gone on with can be
removed. It knows no tokens.
"""
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil

from common import files
from common.console import visible

WORK = re.compile(r'unfinished-[0-9a-f]{8}(-damaged(-\d+)?)?')  # a folder of unfinished work
OURS = re.compile(r'(\.lock|(manifest|meta|tokenizer)\.json|val_keys|(train|val)(_mask)?\.(bin|code_points)|'
                  r'input-\d+\.utf8)(\.tmp)?')  # the files in it
RULES = 2  # of the manifest and of what is text; raised when a restart could not go on with earlier work


class Shards:
    """The work in `folder`, which nothing else may use. ValueError if another process is at work there."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}
        self.claim()
        try:
            self.manifest = self.read_manifest()
        except ValueError as error:  # a damaged disk, or a hand: somebody may want to look at it
            aside = files.free_name(f'{folder}-damaged')
            self.release()
            os.rename(folder, aside)
            print(f'{folder} is damaged ({error}), and the work begins anew; what was there is in {aside} now')
            self.claim()
            self.manifest = nothing_done()
        if self.manifest['ready'] is None:
            for name in set(os.listdir(folder)) - {'.lock', 'manifest.json', *self.last['lengths']}:
                os.remove(self.path(name))
            for name, length in self.last['lengths'].items():
                os.truncate(self.path(name), length)

    def claim(self):
        """Make the folder and lock it."""
        for attempt in range(100):
            os.makedirs(self.folder, exist_ok=True)
            try:
                self.lock = files.lock_if_possible(self.path('.lock'), 'do not start a second process there')
            except FileNotFoundError:  # another process has just finished, and removes the folder
                continue
            except files.Locked:
                raise ValueError(f'another process is at work in {self.folder}') from None
            if os.path.exists(self.path('.lock')):
                return
            self.release()  # of a file that is gone
        raise ValueError(f'{self.folder} cannot be locked: its .lock comes and goes')

    def release(self):
        if self.lock is not None:
            self.lock.release()

    def path(self, name):
        return os.path.join(self.folder, name)

    def read_manifest(self):
        """
        The manifest; an empty one if there is none. ValueError if it is not as it was written, or does not fit the
        files; OSError if it cannot be read now.
        """
        if 'manifest.json' not in os.listdir(self.folder):
            return nothing_done()
        with open(self.path('manifest.json'), 'rb') as f:
            content = f.read()
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError):
            manifest = None
        if not isinstance(manifest, dict) or manifest.pop('sha256', None) != digest(manifest):
            raise ValueError('its manifest.json is not as it was written')
        if manifest.get('rules') != RULES:
            print(f'{self.folder} is unfinished work of another version, and begins anew')
            return nothing_done()
        there = os.listdir(self.folder)
        if manifest['ready'] is not None:  # without its last file it was delivered, and has been replaced since
            return manifest if manifest['ready'][-1] in there else nothing_done()
        for name, length in manifest['last']['lengths'].items():
            if name not in there or os.path.getsize(self.path(name)) < length:
                raise ValueError(f'its {name} has fewer than {length} bytes')
        return manifest

    def write_manifest(self):
        with files.write_whole(self.path('manifest.json'), 'wb') as f:
            f.write(json.dumps({**self.manifest, 'sha256': digest(self.manifest)}, indent=1).encode())

    @property
    def last(self):
        """The state after the newest finished shard: what close() was given, and 'lengths', {file name: bytes}."""
        return self.manifest['last']

    def append(self, name, content):
        """Append bytes, or an array, to a file."""
        if name not in self.files:
            self.files[name] = open(self.path(name), 'ab')
        self.files[name].write(content)

    def close(self, **state):
        """Finish a shard: first its files reach the disk, then the manifest."""
        for file in self.files.values():
            files.sync(file)
        lengths = {**self.last['lengths'], **{name: file.tell() for name, file in self.files.items()}}
        self.manifest.update(shards=self.manifest['shards'] + 1, last={**state, 'lengths': lengths})
        self.write_manifest()

    def deliver(self, folder, names, obsolete):
        """
        Move the finished files to `folder` in the order of `names`, and remove `obsolete` ones that are not replaced.
        The last file marks a complete dataset, so the old one is removed first. After a kill a restart goes on here.
        """
        if self.manifest['ready'] is None:
            for file in self.files.values():
                file.close()
            there = os.listdir(self.folder)
            self.manifest['ready'] = [name for name in names if name in there]
            self.manifest['obsolete'] = [name for name in obsolete if name not in there]
            self.write_manifest()
        ready = self.manifest['ready']
        for name in [ready[-1], *self.manifest['obsolete']]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        for name in ready:
            with contextlib.suppress(FileNotFoundError):  # moved before a kill
                os.replace(self.path(name), os.path.join(folder, name))
        self.remove()

    def remove(self):
        """Remove the folder, which is of no more use. If that fails, it is told, and the work counts."""
        self.release()
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            print(f'{self.folder} can be deleted, but not now ({error})')


def nothing_done():
    """The manifest before any work."""
    return {'rules': RULES, 'plan': None, 'shards': 0, 'last': {'lengths': {}}, 'ready': None}


def digest(manifest):
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def leftovers(folder):
    """What preparations that did not end have left in a folder: {path: bytes}."""
    found = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if WORK.fullmatch(name) and os.path.isdir(path) and not os.path.islink(path):
            found[path] = sum(os.lstat(os.path.join(path, name)).st_size for name in os.listdir(path))
    return found


def name_leftovers(folder):
    """Print what preparations that did not end have left in a folder."""
    with contextlib.suppress(OSError):  # it is no more than a hint
        for path, size in leftovers(folder).items():
            print(f'{visible(path)} is unfinished work of another command, {megabytes(size)}; to remove it: '
                  f'python data/corpus.py clean {shlex.quote(folder)}')


def clean(folder, dry_run):
    """
    Remove what preparations that did not end have left in a folder, and print it. Left alone, and printed, is what
    another process is at work in and what has other files in it. Returns whether nothing was left alone.
    """
    found, kept = leftovers(folder), 0
    for path, size in found.items():
        try:
            if not dry_run:
                remove(path)
            else:
                check_ours(path)
            print(f'{"would remove" if dry_run else "removed"} {visible(path)}, {megabytes(size)}')
        except (ValueError, OSError) as error:
            print(f'left alone: {visible(str(error))}')
            kept += 1
    if not found:
        print(f'no preparation has left anything in {folder}')
    return kept == 0


def remove(path):
    """Remove a leftover. ValueError if another process is at work there, or if other files are in it."""
    check_ours(path)
    try:
        lock = files.lock_if_possible(os.path.join(path, '.lock'), 'no process may be at work there')
    except files.Locked:
        raise ValueError(f'another process is at work in {path}') from None
    shutil.rmtree(path)
    if lock is not None:
        lock.release()


def check_ours(path):
    """ValueError if a folder has something that no preparation writes."""
    for name in os.listdir(path):
        if not OURS.fullmatch(name) or not os.path.isfile(os.path.join(path, name)):
            raise ValueError(f'{path} has {name}, which no preparation writes; take it out first')


def megabytes(size):
    return f'{size / 1e6:,.1f} MB'
