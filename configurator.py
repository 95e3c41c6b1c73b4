# A script's settings, overridden from the command line. Not a module: each script runs it with exec,
# after its own block of settings and after
#
#     config_keys = [...]        # the names of the settings
#
# so that the settings stay plain globals. It takes, in any order and later ones winning,
#
#     config/some_file.py        Python that assigns settings; it is executed, so trust it like any code
#     --batch_size=32            also --batch_size 32; --compile alone means --compile=True
#     --help                     every setting with its default and its comment, read from the script
#
# A mistake ends the script with exit code 2 and one line that says what to type instead.


def _configure(settings, keys, argv):
    """Override `settings` (the script's globals), of which only `keys` may change, from `argv`."""
    import ast
    import builtins
    import difflib
    import os
    import sys
    import traceback

    root = os.path.dirname(os.path.abspath(settings['__file__']))
    script = os.path.basename(settings['__file__'])
    if root not in sys.path:
        sys.path.insert(0, root)  # a config file may import from common/
    from common.console import stop

    def nearest(name, known):
        name = name.lstrip('-').replace('-', '_')
        close = difflib.get_close_matches(name, known, n=2)
        close = close or [key for key in known if name and key.startswith(name)][:2]
        return f'; did you mean {" or ".join(close)}?' if close else f'; {script} --help lists them all'

    def assign(key, value, where):
        """settings[key] = value, if it is of the type of the default; an int is taken for a float."""
        if key not in keys:
            stop(f'unknown setting {key!r} ({where}){nearest(key, keys)}')
        expected = type(settings[key])
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            example = settings[key] if settings[key] != [] else ['one', 'two']
            stop(f'{key} expects {expected.__name__}, as in {key}={example!r}, but got {value!r} ({where})')
        if expected in (int, float) and value < 0:
            stop(f'{key}={value!r} is below 0 ({where})')
        settings[key] = value

    def literal(key, text):
        """What `text` means as a Python literal, else the text itself. A str setting keeps 123 as '123'."""
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text
        is_text = isinstance(settings.get(key), str)
        return text if is_text and not isinstance(value, str) else value

    def run_config_file(path):
        """Execute a config file: it sees the settings, and what it assigns is checked and taken over."""
        found = next((p for p in (path, os.path.join(root, path)) if os.path.isfile(p)), None)
        if found is None:
            folder = os.path.join(root, 'config')
            files = [f'config/{name}' for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
            close = difflib.get_close_matches(path, files, n=2)
            if path.partition('=')[0] in keys:
                close = [f'--{path}']
            elif os.path.isdir(path) and 'out_dir' in keys:
                close = [f'--out_dir={path}']
            stop(f'no config file {path!r}' + (f'; did you mean {" or ".join(close)}?' if close else ''))
        namespace = {key: settings[key] for key in keys}
        namespace.update(__file__=found, __name__='config')
        try:
            with open(found, encoding='utf-8') as f:
                tree = ast.parse(f.read(), found)
            exec(builtins.compile(tree, found, 'exec'), namespace)
        except SyntaxError as error:
            stop(f'{path}, line {error.lineno}: {error.msg}')
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == found]
            where = f'{path}, line {lines[-1]}' if lines else f'{path} is not a config file'
            stop(f'{where}: {type(error).__name__}: {error}')
        # the names it assigned, with their lines; imports, functions and _private names are its own business
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
            source = f.read()
        lines = source.splitlines()
        defined = {node.targets[0].id: node.lineno for node in ast.parse(source).body
                   if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
        own = [defined[key] for key in keys if key in defined]  # bench.py has train.py's settings too
        first, last = min(own), max(own)
        for line in lines[first - 2:last]:  # from the heading above the first setting
            is_setting = line.partition(' ')[0] in keys
            if is_setting:
                line = f'  --{line.replace(" = ", "=", 1)}'
            print(f'\n{line}' if line[0] == '#' else line if is_setting else f'  {line}')
        if len(own) < len(keys):
            print('\nand every setting of train.py: python train.py --help')

    words = list(argv)
    if '--help' in words or '-h' in words:
        show_help()
        sys.exit(0)
    while words:
        word = words.pop(0)
        if not word.startswith('-'):
            run_config_file(word)
            continue
        key, equals, text = word.removeprefix('--').partition('=')
        if key not in keys:
            stop(f'unknown setting {word}{nearest(key, keys)}')
        if not equals:
            is_flag = isinstance(settings[key], bool) and (not words or words[0] not in ('True', 'False'))
            if is_flag:
                text = 'True'
            elif words and not words[0].startswith('--'):
                text = words.pop(0)
            else:
                stop(f'--{key} needs a value, as in --{key}={settings[key]!r}')
        assign(key, literal(key, text), 'command line')


_configure(globals(), config_keys, __import__('sys').argv[1:])
del _configure
