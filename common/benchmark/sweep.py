"""Many settings of bench.py, each in its own process: a table, a file, a plot. It needs no torch."""
import itertools
import json
import subprocess

from tqdm import tqdm

from common.settings import words

KEYS = 'dtype', 'compile', 'batch_size', 'gradient_checkpointing'


def run(command, values, sequences, out=''):
    """
    Measure each combination of `values` (a list for each of KEYS) by a call of `command` with `sequences` sequences per
    iteration. Returns rows (dicts), the fastest first; one that fails has "error". Each is appended to `out` at once.
    """
    rows = []
    for cell in tqdm(list(itertools.product(*values)), 'sweep', disable=None, leave=False):
        row = dict(zip(KEYS, cell))
        steps = max(1, sequences // row['batch_size'])
        try:
            done = subprocess.run([*command, *words({**row, 'gradient_accumulation_steps': steps})],
                                  capture_output=True, text=True, errors='replace')
        except KeyboardInterrupt:
            print('stopped; this is what was measured so far')
            break
        if done.returncode == 0:
            row.update(json.loads(done.stdout.splitlines()[-1]))
        else:
            lines = done.stderr.strip().splitlines() or [f'ended with exit code {done.returncode} and no message']
            row['error'] = next((line for line in lines if 'out of memory' in line or 'to allocate' in line), lines[-1])
        rows.append(row)
        if out:
            try:
                with open(out, 'a', encoding='utf-8') as f:
                    f.write(json.dumps(row) + '\n')
            except OSError as error:  # a full disk: the table will have it
                print(f'not written: {error}')
    return sorted(rows, key=lambda row: -row.get('tok_s', 0))


def table(rows):
    yield 'dtype      compile  batch_size  checkpointing    tokens/s    ms/step  of matmul  memory'
    for row in rows:
        name = f'{row["dtype"]:10} {row["compile"]!s:8} {row["batch_size"]:10}  {row["gradient_checkpointing"]!s:13}'
        if 'error' in row:
            yield f'{name}  {row["error"]:.90}'
        else:
            memory = f'{row["memory_gb"]:.1f} GB' if row['memory_gb'] else '-'
            yield f'{name} {row["tok_s"]:11,.0f} {row["ms"]:10.1f}  {row["mfu_measured"]:9.1%}  {memory}'


def draw(rows, path):
    """Plot tokens/s and memory against batch_size. ImportError without matplotlib."""
    from matplotlib.figure import Figure  # pyplot would look for a display
    figure, curves = Figure(figsize=(10, 4), layout='tight'), {}
    axes = figure.subplots(1, 2)
    for row in rows:
        if 'error' not in row:
            label = row['dtype'] + ', compiled' * row['compile'] + ', checkpointing' * row['gradient_checkpointing']
            curves.setdefault(label, []).append((row['batch_size'], row['tok_s'], row['memory_gb'] or float('nan')))
    for label, points in sorted(curves.items()):
        sizes, speeds, memories = zip(*sorted(points))
        axes[0].plot(sizes, speeds, 'o-', label=label)
        axes[1].plot(sizes, memories, 'o-', label=label)
    axes[0].set(xlabel='batch_size', ylabel='tokens/s')
    axes[1].set(xlabel='batch_size', ylabel='GB')
    axes[0].legend()
    figure.savefig(path)
