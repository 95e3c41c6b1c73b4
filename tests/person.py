"""A person at a terminal, who types and reads."""
import codecs
import os
import pty
import re
import select
import subprocess

from hooked import HANG

PROMPT = '\n> '


class Person:
    """A person at a terminal in which a command runs, in the folder `cwd`, with additions to the environment."""

    def __init__(self, command, cwd, env):
        self.fd, terminal = pty.openpty()
        env = {**os.environ, 'TERM': 'dumb', 'NO_COLOR': '1', 'XDG_STATE_HOME': f'{cwd}/state', **env}
        self.process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=cwd, env=env,
                                        start_new_session=True)
        os.close(terminal)
        self.seen, self.decoder = '', codecs.getincrementaldecoder('utf-8')('backslashreplace')

    def wait_for(self, wanted):
        """Wait for a text; returns the output before it."""
        while wanted not in self.seen:
            assert select.select([self.fd], [], [], HANG)[0], f'waited for {wanted!r}, saw {self.seen!r}'
            try:
                text = self.decoder.decode(os.read(self.fd, 4096))
            except OSError:  # the terminal is closed
                raise AssertionError(f'waited for {wanted!r}, saw {self.seen!r}') from None
            self.seen += re.sub('\x1b\\[\\?2004.', '', text).replace('\r', '')
        before, _, self.seen = self.seen.partition(wanted)
        return before

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def type(self, line):
        """Type a line; returns the output between it and the next prompt."""
        self.press(f'{line}\n')
        self.wait_for(f'{line}\n')
        return self.wait_for(PROMPT).removesuffix('\n')

    def leave(self, word):
        self.press(f'{word}\n')
        assert self.process.wait(timeout=HANG) == 0

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
