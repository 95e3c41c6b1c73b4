"""
The page of `sample.py --analyze --html`: what the microscope finds in one or several models that read a text, as one
HTML file that loads nothing. microscope.html is its frame, microscope.js draws it, microscope.json has all its words in
English and Korean.
"""
import base64
import gzip
import html
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import torch

from common import files
from common.console import finite, visible
from common.sampling import microscope
from common.sampling.words import language
from common.tokenizer import token_text

CHECKPOINTS = 10  # of a run, at most, on one page: each is as large as the page of one model
CLEAR = 0.3       # the score from which a head is named


def snapshots(folder):
    """
    [(iteration, file)] of the weights that a run kept (keep_interval), early to late, evenly spread if they are many.
    ValueError if there are none.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    kept = filter(None, (re.fullmatch(r'iter_(\d+)\.pt', name) for name in names))
    found = sorted((int(match[1]), os.path.join(folder, match[0])) for match in kept)
    if not found:
        raise ValueError(f'checkpoints={folder!r}: no iter_*.pt there; train.py keeps the weights of each 100 '
                         'iterations with --keep_interval=100 --eval_interval=100')
    count = min(len(found), CHECKPOINTS)
    spread = {round(i * (len(found) - 1) / max(1, count - 1)) for i in range(count)}
    return [found[i] for i in sorted(spread)]


def record(name, model, tokenizer, result):
    """
    (header, arrays) of a model on the page. name: its own, or the iteration of a checkpoint; result: analysis.analyze()
    of the text. The arrays are those of microscope.look(), the attention as its lower triangles in 16 bits.
    """
    iteration = name if isinstance(name, int) else None
    name = visible(str(name))
    device = model.lm_head.weight.device
    ids = torch.tensor([tokenizer.start_id] + [token['id'] for token in result['tokens']], device=device)
    arrays = microscope.look(model, ids, tokenizer.vocab_size, name)
    n, m = arrays['top_ids'].size(0), arrays['own_ranks'].size(0)
    rows, columns = torch.tril_indices(n, n)
    arrays['attention'] = (arrays['attention'][..., rows, columns] * 65535).round()
    distinct = ids[:n + 1].unique().tolist()
    shown = set(distinct).union(*(arrays[key].flatten().tolist() for key in arrays if key.endswith('_ids')))
    c = model.config
    figures = {key: result[key] for key in ('perplexity', 'accuracy', 'bits_per_token', 'bits_per_character',
                                            'bits_per_byte')}
    header = dict(
        finite(figures), name=name, iteration=iteration, layers=c.n_layer, heads=c.n_head, width=c.n_embd,
        context=c.block_size, modern=c.modern, softcap=c.softcap, has_bias=c.bias, vocabulary=tokenizer.vocab_size,
        n=n, m=m, ids=ids[:n + 1].tolist(), distinct=distinct,
        texts={i: visible(token_text(tokenizer, i)) for i in sorted(shown)},
        pieces=[[visible(piece['text']), piece['tokens']] for piece in result['pieces']],
        tokens=[[short(token['probability']), token['rank'], short(token['surprisal'])] for token in result['tokens']])
    return header, {key: as_array(key, value) for key, value in arrays.items()}


def short(value):
    """A float with the seven digits that it has in float32."""
    return float(f'{value:.7g}') if math.isfinite(value) else None


def as_array(key, tensor):
    """A tensor as an array of a type that microscope.js knows."""
    kind = 'uint16' if key == 'attention' else 'float32' if tensor.is_floating_point() else 'int32'
    return tensor.numpy().astype(kind)


def pack(records, shown):
    """
    Records as one text: base64 of gzip of the length of a header, 4 bytes, little-endian like all; the header, JSON;
    and the arrays, each where its header says in `places`, {name: [type, shape, offset behind the headers]}. Each
    begins at a multiple of 4 bytes, as JavaScript wants it.
    """
    headers, content, size = [], [], 0
    for header, arrays in records:
        places = {}
        for key, array in arrays.items():
            places[key] = [array.dtype.name, array.shape, size]
            content.append(aligned(array.tobytes()))
            size += len(content[-1])
        headers.append({**header, 'places': places})
    settings = dict(shown=shown, temperatures=microscope.TEMPERATURES, top_ps=microscope.TOP_PS, clear=CLEAR)
    head = json.dumps({**settings, 'models': headers}, allow_nan=False).encode()
    whole = b''.join([len(head).to_bytes(4, 'little'), aligned(head), *content])
    return base64.b64encode(gzip.compress(whole, mtime=0)).decode()


def aligned(content):
    return content.ljust(-(-len(content) // 4) * 4, b'\0')


def page(records, shown, title, lang='auto'):
    """
    Records of record() as an HTML file. shown: the index of the one that it begins with. lang: en, ko, or auto, which
    is Korean where the environment says so, and else what the browser prefers.
    """
    if lang == 'auto' and language() == 'ko':
        lang = 'ko'
    frame, code, words = (Path(__file__).with_name(f'microscope.{kind}').read_text(encoding='utf-8')
                          for kind in ('html', 'js', 'json'))
    data = json.dumps({'language': lang, 'packed': pack(records, shown)})
    parts = {'TITLE': html.escape(visible(title)), 'WORDS': words.replace('<', '\\u003c'), 'DATA': data, 'CODE': code}
    return re.sub(r'/\*(TITLE|WORDS|DATA|CODE)\*/', lambda place: parts[place[1]], frame)


def write(path, content):
    """Write a page, whole or not at all. A device or a link, such as /dev/stdout, stays in its place."""
    in_place = os.path.islink(path) or os.path.exists(path) and not os.path.isfile(path)
    with open(path, 'wb') if in_place else files.write_whole(path, 'wb') as f:
        f.write(content.encode('utf-8', 'backslashreplace'))
