# A script's settings, overridden from the command line. Not a module: each script runs it with exec, after its settings
# and config_keys, the list of their names, so that the settings stay plain globals. It makes config_given, the names
# of those that were given. It takes, the last one winning,
#
#     config/some_file.py        Python that assigns settings; it is executed, so trust it like any code
#     --batch_size=32            also --batch_size 32; --compile alone means --compile=True
#     --help                     every setting with its default and its comment, read from the script
#
# A mistake ends the script with exit code 2 and one line that says what to type instead.


def _configure(settings, keys):
    """Override `settings` (the script's globals), of which only `keys` may change. Returns the names of those given."""
    import ast
    import builtins
    import difflib
    import glob
    import math
    import os
    import shlex
    import sys
    import traceback

    # A shell expands ~ only where a word begins with it: not in --out_dir=~/run, and config files see no shell.
    PATHS = ('out_dir', 'dataset', 'init_from', 'html', 'to', 'out', 'input', 'table', 'text', 'examples', 'compare',
             'checkpoints')
    LARGEST_INT = 2**63 - 1  # what PyTorch and NumPy take

    root = os.path.dirname(os.path.abspath(settings['__file__']))
    script = os.path.basename(settings['__file__'])
    if root not in sys.path:
        sys.path.insert(0, root)  # a config file may import from common/
    from common.console import protect_output, stop
    from common.options import DASHES, expects, hint, is_model, is_value, literal, shown
    protect_output()

    def nearest(name):
        return hint(name, keys, f'{script} --help lists them all')

    def assign(key, value, where):
        """
        settings[key] = value, if it is of the type of the default. An int is taken for a float, and ~ at the beginning
        of a path for the home folder.
        """
        if key not in keys:
            stop(f'unknown setting {key!r} ({where}){nearest(key)}')
        expected = type(settings[key])
        if key == 'start' and isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            value = repr(value)  # several prompts of a config file, as they stand on a command line
        if expected is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf if value > 0 else -math.inf  # as 1e400 is
        if type(value) is not expected:
            example = settings[key] if settings[key] != [] else ['one', 'two']
            dashes = '--' * (where == 'command line')
            stop(f'{expects(key, expected, f"{dashes}{key}={example!r}", value)} ({where})')
        if expected in (int, float) and not value >= 0:  # NaN is not
            stop(f'{key}={shown(value)} is {"below 0" if value < 0 else "not a number"} ({where})')
        if expected is int and value > LARGEST_INT:
            stop(f'{key}={shown(value)} is above {LARGEST_INT} ({where}); try --{key}={settings[key]}')
        if key in PATHS:
            value = os.path.expanduser(value)
        elif expected is str and value.startswith(('FILE:', 'LINES:')):  # a file with prompts
            kind, _, path = value.partition(':')
            value = f'{kind}:{os.path.expanduser(path)}'
        settings[key] = value
        given.add(key)

    def run_config_file(path):
        """Execute a config file. It sees the settings; what it assigns to them is checked and taken over."""
        path = os.path.expanduser(path)
        found = next((p for p in (path, os.path.join(root, path)) if os.path.isfile(p)), None)
        model = 'init_from' in keys and is_model(path)
        if found is None or model:
            close = difflib.get_close_matches(path, sorted(glob.glob('config/*', root_dir=root)), n=2)
            if path.partition('=')[0] in keys:
                close = [shlex.quote(f'--{path}')]
            elif model:
                close = [shlex.quote(f'--init_from={path}')]
            elif os.path.isdir(path) and 'out_dir' in keys:
                close = [shlex.quote(f'--out_dir={path}')]
            stop(f'no config file {path!r}' + (f'; did you mean {" or ".join(close)}?' if close else ''))
        namespace = {key: settings[key] for key in keys} | {'__file__': found, '__name__': 'config'}
        try:
            with open(found, encoding='utf-8-sig') as f:  # an editor on Windows may begin it with a byte order mark
                source = f.read()
        except OSError as error:
            stop(f'the config file {path!r} cannot be read: {error.strerror}')
        except UnicodeDecodeError as error:
            stop(f'{path} is not a config file, which is text in UTF-8 ({error})')
        try:
            tree = ast.parse(source, found)
            exec(builtins.compile(tree, found, 'exec'), namespace)
        except SyntaxError as error:
            stop(f'{path}{f", line {error.lineno}" if error.lineno else ""}: {error.msg}')
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == found]
            where = f'{path}, line {lines[-1]}' if lines else f'{path} is not a config file'
            stop(f'{where}: {type(error).__name__}: {" ".join(str(error).split())}')
        # imports, functions and _private names are no settings
        assigned = {node.id: node.lineno for node in ast.walk(tree)
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for name, line in assigned.items():
            if name in namespace and not name.startswith('_'):
                assign(name, namespace[name], f'{path}, line {line}')

    def show_help():
        """The script's docstring, then its settings block: name = default  # comment."""
        print((settings.get('__doc__') or '').strip(), end='\n\n')
        print(f'usage: python {script} [config/FILE.py ...] [--key=value ...]\n\nsettings, with their defaults:')
        with open(settings['__file__'], encoding='utf-8') as f:
            lines = f.read().partition('\nconfig_keys = ')[0].splitlines()
        own = [i for i, line in enumerate(lines) if line.partition(' = ')[0] in keys]  # bench.py has train.py's too
        for line in lines[own[0] - 1:own[-1] + 1]:  # from the heading above the first setting
            is_setting = line.partition(' = ')[0] in keys
            if is_setting:
                line = f'  --{line.replace(" = ", "=", 1)}'
            print(f'\n{line}' if line[0] == '#' else line if is_setting else f'  {line}')
        if len(own) < len(keys):
            print('\nand every setting of train.py: python train.py --help')

    words, given = sys.argv[1:], set()
    if '--help' in words or '-h' in words:
        show_help()
        sys.exit(0)
    while words:
        word = words.pop(0)
        if not word.startswith(tuple(DASHES)):
            run_config_file(word)
            continue
        key, equals, text = word.removeprefix('--').partition('=')
        if key not in keys:
            stop(f'unknown setting {word}{nearest(key)}')
        if not equals:
            is_flag = isinstance(settings[key], bool) and (not words or words[0] not in ('True', 'False'))
            if is_flag:
                text = 'True'
            elif words and is_value(words[0], keys):
                text = words.pop(0)
            else:
                stop(f'--{key} needs a value, as in --{key}={settings[key]!r}')
        value = literal(text)
        is_text = isinstance(settings[key], str) and not isinstance(value, str)  # a str setting keeps 123 as '123'
        assign(key, text if is_text else value, 'command line')
    return given


config_given = _configure(globals(), config_keys)
del _configure
