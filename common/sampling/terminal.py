"""
Where the lines of a chat come from: a terminal, with line editing and a history that lasts from one chat to the next,
or a pipe. Both are UTF-8, whatever the locale. It knows no model.
"""
import contextlib
import io
import locale
import os
import sys

from common import files

HISTORY_LINES, HISTORY_COLUMNS = 1000, 2000  # what is kept; a longer line is not


def take_utf8():
    """Read sys.stdin as UTF-8 from here on. A byte that is none does not take the lines around it along."""
    sys.stdin = io.TextIOWrapper(sys.stdin.detach(), 'utf-8-sig', 'surrogateescape')


def use_utf8():
    """A locale in which readline takes UTF-8: without one, what is typed in Korean is lost."""
    with contextlib.suppress(locale.Error, AttributeError):
        locale.setlocale(locale.LC_CTYPE, '')
        if locale.nl_langinfo(locale.CODESET).upper() in ('UTF-8', 'UTF8'):
            return
    for name in ('C.UTF-8', 'en_US.UTF-8', 'UTF-8'):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            os.environ['LC_ALL'] = name  # input() sets the locale anew for each line
            return


def history_path():
    """The file of the lines typed before; None where the user has no place for it."""
    folder = files.user_folder('XDG_STATE_HOME', '.local/state')
    return folder and os.path.join(folder, 'chat_history')


class LineEditor:
    """
    Line editing, completion of `words`, and the history, if there is a terminal and a readline. `history` is the file
    that keeps it, or None.
    """

    def __init__(self, words):
        self.at_terminal, self.readline, self.history = sys.stdin.isatty(), None, None
        if not self.at_terminal:
            return
        use_utf8()
        try:
            import readline
        except ImportError:  # on Windows
            return
        self.readline = readline
        readline.parse_and_bind('tab: complete')
        readline.set_completer_delims(' ')
        readline.set_completer(lambda text, i: ([word for word in words if word.startswith(text)] + [None])[i])
        with contextlib.suppress(OSError):
            self.open_history(history_path())

    def open_history(self, path):
        """Read the history, and keep the file for more. OSError if that is impossible."""
        if path is None or os.path.lexists(path) and not os.path.isfile(path):  # such as a link to /dev/null
            return
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self.readline.set_history_length(HISTORY_LINES)
        self.readline.read_history_file(path)
        self.history = path

    def read(self, prompt):
        """A line, without its end; None at the end of the input, or if it cannot be read any more."""
        sys.stdout.flush()  # input() would do it, and its error be taken for one of the input
        known = self.readline.get_current_history_length() if self.readline else 0
        try:
            line = input(prompt) if self.at_terminal else input()
        except EOFError:
            print(end='\n' if self.at_terminal else '')
            return None
        except Exception as error:  # the terminal is gone, the input is closed: it would fail for ever
            print(f'the input cannot be read: {getattr(error, "strerror", None) or error}', file=sys.stderr)
            return None
        if self.history and self.readline.get_current_history_length() > known and len(line) <= HISTORY_COLUMNS:
            with contextlib.suppress(OSError):  # at once, as a terminal may be closed at any time
                if hasattr(self.readline, 'append_history_file'):  # two chats at once then keep the lines of both
                    self.readline.append_history_file(1, self.history)
                else:
                    self.readline.write_history_file(self.history)
        try:
            line.encode()
        except UnicodeEncodeError:  # not UTF-8: perhaps what the terminal of an old locale sends
            with contextlib.suppress(UnicodeError, LookupError):
                return line.encode('utf-8', 'surrogateescape').decode(sys.stdout.encoding or 'utf-8')
        return line
