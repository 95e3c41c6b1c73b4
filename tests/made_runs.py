"""Folders as runs leave them, made by hand; for the tests of the report."""
import json

import pytest

from common.console import SEPARATOR
from common.experiments import records


def make_run(folder, losses, seconds=1.0, samples=(), done=True, bytes_per_token=None, **settings):
    """The files of a run with an evaluation every 100 iterations; these take `seconds` and 1,000 tokens each time."""
    (folder / 'samples').mkdir(parents=True)
    settings = {'n_layer': 2, 'seed': 1, 'out_dir': str(folder), 'parameters': 800_000, **settings}
    (folder / 'settings.json').write_text(json.dumps(settings))
    lines = []
    for i, loss in enumerate(losses):
        at = dict(iter=100 * i, train_s=seconds * i)
        lines += [dict(at, train_loss=loss, val_loss=loss, val_ppl=None, val_acc=0.5, tokens=1000 * i,
                       bits_per_byte=bytes_per_token and loss / bytes_per_token),
                  dict(at, loss=loss + 0.1, lr=1e-3, grad_norm=1.0 + i, tok_s=1000 / seconds, tokens=1000 * i + 10)]
        if samples:
            (folder / 'samples' / f'iter_{100 * i:06d}.txt').write_text(SEPARATOR.join(samples) + '\n')
    lines += [dict(iter=100 * len(losses), done=True, best_val_loss=min(losses), train_s=9.0)] if done else []
    unfinished = '' if done else '{"iter": 3'  # a line that is being written
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines) + unfinished)
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """Folders of a slow run and of a fast one with two seeds."""
    sly = 'once </script><script>document.title="broken"</script>'
    return [make_run(tmp_path / 'slow', [4.0, 3.0, 2.0], seconds=10.0, samples=['ROMEO: I', 'JULIET: O']),
            make_run(tmp_path / 'fast', [4.0, 2.0, 1.0], n_layer=4, samples=[sly, 'second']),
            make_run(tmp_path / 'fast-2', [4.0, 2.5, 1.5], n_layer=4, seed=2, done=False)]


def read(folders):
    return records.read_all(folders)[0]


def scored(tokenizer='char', vocab_size=65, val='a', val_bytes=1000):
    """The setting `data` of a run on a dataset whose val.bin is as `val` says."""
    return dict(tokenizer=tokenizer, vocab_size=vocab_size, val_sha256=val and val * 64, val_bytes=val_bytes)
