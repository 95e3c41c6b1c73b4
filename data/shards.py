"""
The unfinished output of a prepare script, in a folder of its own: files that only grow, and a manifest that says, after
each shard of work, how long they were and where in the source the next shard begins. A kill at any moment costs at most
the shard at hand: what stands behind the manifest's lengths is cut off, and the work goes on. It knows no tokens.
"""
import json
import os
import shutil

try:
    import fcntl
except ImportError:  # Windows, where the folder is not locked
    fcntl = None


class Shards:
    """The work in `folder`, which nothing else uses. ValueError if another process is at work there."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}
        os.makedirs(folder, exist_ok=True)
        self.lock = open(os.path.join(folder, '.lock'), 'w')  # held until the process ends
        try:
            if fcntl is not None:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another process is at work in {folder}') from None
        except OSError as error:  # some network file systems know no locks
            print(f'{folder} cannot be locked ({error}): start no second process there', flush=True)
        self.manifest = self.read_manifest() or {'plan': None, 'shards': 0, 'last': {'lengths': {}}, 'ready': None}
        if self.manifest['ready'] is not None:
            return
        lengths = self.last['lengths']
        for name in os.listdir(folder):
            if name not in ('.lock', 'manifest.json') and name not in lengths:
                os.remove(os.path.join(folder, name))
        for name, length in lengths.items():
            os.truncate(os.path.join(folder, name), length)

    def read_manifest(self):
        """The manifest, or None if there is none that fits the files."""
        try:
            with open(os.path.join(self.folder, 'manifest.json'), encoding='utf-8') as f:
                manifest = json.load(f)
            whole = manifest['ready'] is not None or all(os.path.getsize(os.path.join(self.folder, name)) >= length
                                                         for name, length in manifest['last']['lengths'].items())
            return manifest if whole else None
        except (OSError, ValueError, KeyError):
            return None

    def write_manifest(self):
        write_whole(self.folder, 'manifest.json', json.dumps(self.manifest, indent=1).encode())

    @property
    def last(self):
        """What the newest finished shard left: the files' lengths, {name: bytes}, and all that close() was given."""
        return self.manifest['last']

    def append(self, name, content):
        """Bytes, or an array, to the end of a file."""
        if name not in self.files:
            self.files[name] = open(os.path.join(self.folder, name), 'ab')
        self.files[name].write(content)

    def close(self, **state):
        """A shard is finished: its files are on disk, then the manifest says so."""
        for file in self.files.values():
            sync(file)
        lengths = {**self.last['lengths'], **{name: file.tell() for name, file in self.files.items()}}
        self.manifest.update(shards=self.manifest['shards'] + 1, last={**state, 'lengths': lengths})
        self.write_manifest()

    def deliver(self, folder, names, obsolete):
        """
        All is done: move the files `names`, those of them that there are, to `folder` in this order, and remove
        `obsolete` ones from it. The last says that all is there: it is removed first. Who is killed here goes on here.
        """
        if self.manifest['ready'] is None:
            for file in self.files.values():
                file.close()
            self.manifest['ready'] = [name for name in names if os.path.exists(os.path.join(self.folder, name))]
            self.write_manifest()
        ready = self.manifest['ready']
        if os.path.exists(os.path.join(self.folder, ready[-1])):
            for name in [ready[-1], *set(obsolete) - set(ready)]:
                if os.path.exists(os.path.join(folder, name)):
                    os.remove(os.path.join(folder, name))
        for name in ready:
            if os.path.exists(os.path.join(self.folder, name)):
                os.replace(os.path.join(self.folder, name), os.path.join(folder, name))
        self.remove()

    def remove(self):
        self.lock.close()
        shutil.rmtree(self.folder)


def sync(file):
    """What was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(folder, name, content):
    """Write a file of bytes that is never half a file."""
    path = os.path.join(folder, name)
    with open(f'{path}.tmp', 'wb') as f:
        f.write(content)
        sync(f)
    os.replace(f'{path}.tmp', path)
