"""
The file of measurements, a JSON object a line, and the Markdown table that is made of it: a row for each claim, a
column for each machine. It measures nothing: ledger.py does.
"""
import contextlib
import json
import os

from common.files import sync, write_whole

BEGIN, END = '<!-- made by bench.py --mode=claims --table, from claims.jsonl -->', '<!-- end of what is made -->'


def json_lines(path):
    """The objects in a file, one a line; [] if it is not there. A line that was cut off is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8-sig', errors='replace') as f:
        for line in f:
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def is_measurement(line):
    if not isinstance(line, dict):
        return False
    texts = {key for key, value in line.items() if isinstance(value, str)}
    return {'claim', 'machine', 'device', 'torch', 'date'} <= texts and bool({'text', 'error'} & texts)


def read(path):
    """The measurements in a file; how many others are in it is printed. ValueError if it has nothing but others."""
    found = json_lines(path)
    lines = [line for line in found if is_measurement(line)]
    if found and not lines:
        raise ValueError(f'{path} has lines that are no measurements; name another file, as in --out=claims.jsonl')
    if len(lines) < len(found):
        print(f'{path}: left out what is no measurement, {counted(len(found) - len(lines), "line")}')
    return lines


def counted(number, noun):
    return f'{number} {noun}{"s" * (number != 1)}'


def append(path, line):
    """Add a line to a file of measurements, on the disk when this returns."""
    with open(path, 'ab+') as f:
        f.seek(max(0, f.tell() - 1))
        broken = f.read() not in (b'', b'\n')  # the line before was cut off
        f.write(b'\n' * broken + json.dumps(line, ensure_ascii=False).encode() + b'\n')
        sync(f)


def table_path(path):
    """The file of the table beside a file of measurements."""
    return os.path.splitext(path)[0] + '.md'


def cell(line):
    """A measurement as a cell of the table."""
    if 'error' in line:
        return f'failed: {line["error"]}'
    return line['text'] + (f' ({line["spread"]})' if line.get('spread') else '')


def row(words):
    """A line of a Markdown table. What would end a cell, a line or the table itself is made harmless."""
    cells = (' '.join(word.split()).replace('|', '\\|').replace('<!--', '&lt;!--') for word in words)
    return '| ' + ' | '.join(cells) + ' |'


def table(claims, lines):
    """
    The lines of a Markdown table: a row for each claim, a column for each machine with the newest of its measurements
    or, if all failed, how. Newest is the latest date and, of one day, what stands last.
    """
    by_date, newest = sorted(lines, key=lambda line: line['date']), {}
    for line in by_date:
        key = line['claim'], line['machine']
        if 'error' not in line or 'error' in newest.get(key, {'error': ''}):
            newest[key] = line
    columns = {line['machine']: {} for line in lines}
    columns.update({line['machine']: line for line in by_date})
    kinds = {line['device'] == 'cpu' for line in lines}
    columns.update({name: {'device': device} for name, device in (('a CPU', 'cpu'), ('a GPU', 'cuda'))
                    if (device == 'cpu') not in kinds})
    yield row(['claim', 'command', *columns])
    yield '|---' * (2 + len(columns)) + '|'
    yield row(['', '', *('PyTorch ' + line['torch'] + (f', driver {line["driver"]}' if line.get('driver') else '')
                         if 'torch' in line else '' for line in columns.values())])
    for claim in claims:
        cells = []
        for name, column in columns.items():
            line = newest.get((claim.name, name))
            if line:
                remarks = ['an older command'] * (line.get('command') != claim.command)
                remarks += [f'PyTorch {line["torch"]}'] * (line['torch'] != column['torch'])
                cells.append(cell(line) + f' ({", ".join(remarks)})' * bool(remarks) + f'; {line["date"]}')
            else:
                cells.append('not measured yet' if claim.minutes(column['device']) else '')
        yield row([f'{claim.name}: {claim.what}', f'`{claim.command}`', *cells])


def update_document(claims, lines, path):
    """Make the table between the marks in a Markdown file anew. ValueError if there is no such file, or no marks."""
    try:
        with open(path, encoding='utf-8') as f:
            before, begin, rest = f.read().partition(BEGIN)
    except OSError as error:
        raise ValueError(f'table={path!r} cannot be read ({error.strerror}); name the document that has the table, as '
                         'in --table=docs/measurements.md') from None
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f'table={path!r} has no lines {BEGIN} and {END}, between which the table goes')
    with write_whole(path) as f:
        f.write('\n'.join([f'{before}{begin}', *table(claims, lines), f'{end}{after}']))
