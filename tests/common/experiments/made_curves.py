"""Folders of runs with a given curve, and a reference that fits them; for the tests of curve.py and reasons.py."""
import json

import pytest

from common.experiments import references
from common.experiments.references import Reference

TOY = Reference('toy', ('toy',), 'char', model=dict(n_layer=2), points=[(1000, 2.9, 3.1), (4000, 1.9, 2.1)],
                recipe=dict(gradient_accumulation_steps=1, batch_size=2, block_size=5, learning_rate=1e-3,
                            warmup_iters=10, lr_decay_iters=400), source='made by hand', tolerance='0.1 on each side')
NORMAL = [4.17, 3.0, 2.5, 2.2, 2.0]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy is the only reference."""
    monkeypatch.setattr(references, 'REFERENCES', [TOY])


def write(folder, val, train=None, steps=(), norms=(), spikes=(), **settings):
    """
    The files of a run that was evaluated every 100 iterations of 10 tokens, with these losses; its training losses and
    norms of the gradient were logged every 4 iterations. None stands for a figure that was not finite.
    """
    folder.mkdir()
    data = dict(tokenizer='char', vocab_size=65, val_sha256='a' * 64, val_bytes=1000)
    settings = {**TOY.recipe, 'dataset': 'toy', 'n_layer': 2, 'vocab_size': 65, 'max_iters': 400, 'eval_interval': 100,
                'init_from': 'scratch', 'parameters': 800_000, 'dropout': 0.0, 'data': data, **settings}
    (folder / 'settings.json').write_text(json.dumps(settings))
    lines = [dict(iter=100 * i, val_loss=loss, train_loss=(train or val)[i], val_acc=0.5, tokens=1000 * i,
                  bits_per_byte=loss and loss / 2, train_s=1.0 * i) for i, loss in enumerate(val)]
    lines += [dict(iter=4 * i, loss=loss, grad_norm=norms[i] if norms else 1.0, tokens=40 * i, train_s=0.04 * i)
              for i, loss in enumerate(steps)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in
                                                  sorted(lines, key=lambda line: line['iter'])))
    if spikes:
        (folder / 'spikes.jsonl').write_text(''.join(json.dumps(dict(iter=at, loss=9.0, starts=[1], texts=['x'])) + '\n'
                                                     for at in spikes))
    return str(folder)
