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
    """
    The work in `folder` for `job`, which stands for all that determines the output; that of another job is thrown away.
    ValueError if another process is at work there.
    """

    def __init__(self, folder, job):
        self.folder, self.files = folder, {}
        self.path = os.path.join(folder, 'manifest.json')
        os.makedirs(folder, exist_ok=True)
        self.lock = open(os.path.join(folder, '.lock'), 'w')  # held until the process ends
        try:
            if fcntl is not None:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another process is at work in {folder}') from None
        except OSError as error:  # some network file systems know no locks
            print(f'{folder} cannot be locked ({error}): start no second process there', flush=True)
        self.manifest = self.read_manifest(job) or {'job': job, 'shards': []}
        if 'ready' in self.manifest:
            return
        lengths = self.last['lengths']
        for name in os.listdir(folder):
            if name not in ('.lock', 'manifest.json') and name not in lengths:
                os.remove(os.path.join(folder, name))
        for name, length in lengths.items():
            os.truncate(os.path.join(folder, name), length)

    def read_manifest(self, job):
        """The manifest, or None if there is none that fits the job and the files."""
        try:
            with open(self.path, encoding='utf-8') as f:
                manifest = json.load(f)
            lengths = manifest['shards'][-1]['lengths'] if manifest['shards'] else {}
            whole = 'ready' in manifest or all(os.path.getsize(os.path.join(self.folder, name)) >= length
                                               for name, length in lengths.items())
        except (OSError, ValueError, KeyError):
            return None
        if manifest['job'] != job:
            print(f'{self.folder} has unfinished work with other settings or another text: it begins anew', flush=True)
        return manifest if whole and manifest['job'] == job else None

    @property
    def last(self):
        """What the newest finished shard left: its lengths, {name: bytes}, and all that close() was given."""
        return self.manifest['shards'][-1] if self.manifest['shards'] else {'lengths': {}}

    def append(self, name, content):
        """Bytes, or an array, to the end of a file."""
        if name not in self.files:
            self.files[name] = open(os.path.join(self.folder, name), 'ab')
        self.files[name].write(content)

    def close(self, **state):
        """A shard is finished: its files are on disk, then the manifest says so."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        lengths = {**self.last['lengths'], **{name: file.tell() for name, file in self.files.items()}}
        self.manifest['shards'].append({'lengths': lengths, **state})
        self.write_manifest()

    def deliver(self, folder, names):
        """
        All is done: put those of the files `names` that there are into `folder`, in this order, in place of whatever it
        has under these names. Whoever is killed here goes on here.
        """
        if 'ready' not in self.manifest:
            for file in self.files.values():
                file.close()
            self.manifest['ready'] = [name for name in names if os.path.exists(os.path.join(self.folder, name))]
            self.write_manifest()
        for name in names:
            source, target = os.path.join(self.folder, name), os.path.join(folder, name)
            if os.path.exists(source):
                os.replace(source, target)
            elif name not in self.manifest['ready'] and os.path.exists(target):
                os.remove(target)
        self.lock.close()
        shutil.rmtree(self.folder)

    def write_manifest(self):
        write_whole(self.folder, 'manifest.json', json.dumps(self.manifest, indent=1).encode())


def write_whole(folder, name, content):
    """Write a file of bytes that is never half a file."""
    path = os.path.join(folder, name)
    with open(f'{path}.tmp', 'wb') as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(f'{path}.tmp', path)
