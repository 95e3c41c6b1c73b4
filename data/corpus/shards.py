"""
The unfinished output of a prepare script, in a folder of its own. Its files only grow. After each shard of work a
manifest notes their lengths and where in the source the next shard begins. A kill at any moment loses at most one
shard: a restart truncates the files to the lengths in the manifest and goes on. It knows no tokens.
"""
import contextlib
import json
import os
import shutil

from common import files


class Shards:
    """The work in `folder`, which nothing else may use. ValueError if another process is at work there."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}
        os.makedirs(folder, exist_ok=True)
        try:
            self.lock = files.lock_if_possible(self.path('.lock'), 'do not start a second process there')
        except files.Locked:
            raise ValueError(f'another process is at work in {folder}') from None
        self.manifest = self.read_manifest()
        if self.manifest['ready'] is None:
            for name in set(os.listdir(folder)) - {'.lock', 'manifest.json', *self.last['lengths']}:
                os.remove(self.path(name))
            for name, length in self.last['lengths'].items():
                os.truncate(self.path(name), length)

    def path(self, name):
        return os.path.join(self.folder, name)

    def read_manifest(self):
        """The manifest; an empty one if there is none, or if it does not fit the files."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(self.path('manifest.json'), encoding='utf-8') as f:
                manifest = json.load(f)
            if manifest['ready'] is not None or all(
                    os.path.getsize(self.path(name)) >= length for name, length in manifest['last']['lengths'].items()):
                return manifest
        return {'plan': None, 'shards': 0, 'last': {'lengths': {}}, 'ready': None}

    def write_manifest(self):
        with files.write_whole(self.path('manifest.json'), 'wb') as f:
            f.write(json.dumps(self.manifest, indent=1).encode())

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
            self.manifest['ready'] = [name for name in names if os.path.exists(self.path(name))]
            self.write_manifest()
        ready = self.manifest['ready']
        if os.path.exists(self.path(ready[-1])):
            for name in [ready[-1], *set(obsolete) - set(ready)]:
                if os.path.exists(os.path.join(folder, name)):
                    os.remove(os.path.join(folder, name))
        for name in ready:
            if os.path.exists(self.path(name)):
                os.replace(self.path(name), os.path.join(folder, name))
        self.remove()

    def remove(self):
        if self.lock is not None:
            self.lock.release()
        shutil.rmtree(self.folder)
