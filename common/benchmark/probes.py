"""
Measurements that no command makes, each run as a process of its own, python -c 'from common.benchmark import probes;
probes.attention()', whose last line is a JSON object; and the texts that measurements need.
"""
import hashlib
import json
import os
import random
import runpy
import statistics
import sys
import sysconfig
import warnings

import torch

LARGEST = 20e6  # bytes of the source that are enough for a run of a few minutes
JSONL = 100e6


def write_source(path):
    """The source of Python's standard library, a file a document, in an order that is the same everywhere."""
    top, files = sysconfig.get_path('stdlib'), []
    for place, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.endswith('-packages')]
        files += [os.path.join(place, name) for name in names if name.endswith('.py')]
    files.sort(key=lambda file: hashlib.sha256(os.path.relpath(file, top).encode()).digest())
    with open(path, 'w', encoding='utf-8') as out:
        for file in files:
            with open(file, encoding='utf-8', errors='ignore') as f:
                out.write(f.read() + '\n<|endoftext|>\n')
            if out.tell() > LARGEST:
                break


def write_jsonl(text, path):
    """100 MB of documents: the paragraphs of a text again and again, with a seventh of the words replaced."""
    with open(text, encoding='utf-8') as f:
        paragraphs = [paragraph.split() for paragraph in f.read().split('\n\n')]
    words, dice = sorted(set(sum(paragraphs, []))), random.Random(0)
    with open(path, 'w', encoding='utf-8') as out:
        while out.tell() < JSONL:
            chosen = sum(dice.choices(paragraphs, k=25), [])
            mixed = [dice.choice(words) if dice.random() < 1 / 7 else word for word in chosen]
            out.write(json.dumps({'text': ' '.join(mixed)}) + '\n')


def write_questions(path, count):
    """Questions about as long as HellaSwag's, of words from Python's documentation, with a right choice by chance."""
    from pydoc_data.topics import topics
    words, dice = ' '.join(topics.values()).split(), random.Random(0)

    def some(fewest, most):
        start = dice.randrange(len(words) - most)
        return ' '.join(words[start:start + dice.randrange(fewest, most)])
    with open(path, 'w', encoding='utf-8') as out:
        for _ in range(count):
            print(json.dumps({'query': some(10, 60), 'choices': [some(5, 30) for _ in range(4)], 'gold': 0}), file=out)


def tiktoken_batch(path):
    """What data/text/prepare.py does to a jsonl file, by tiktoken's own function: read, tokenise, one array."""
    import numpy as np
    import tiktoken
    with open(path, encoding='utf-8') as f:
        texts = [json.loads(line)['text'] for line in f]
    ids = tiktoken.get_encoding('gpt2').encode_ordinary_batch(texts, num_threads=os.cpu_count())
    np.concatenate([np.array(each, dtype=np.uint16) for each in ids]).tofile(f'{path}.bin')


def attention(device='cuda', batch=12, context=1024, rounds=20):
    """
    Milliseconds of scaled_dot_product_attention, causal, forward and backward, in the shapes of GPT-2 124M (12 heads of
    64 channels) and of config/train_gpt2_fast.py (6 of 128), by each kernel in turn. null: it has none.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention
    from common.benchmark import roofline
    from common.device import native_bf16
    dtype, result = torch.bfloat16 if native_bf16(device) else torch.float16, {}
    for heads, channels in ((12, 64), (6, 128)):
        q, k, v, gradient = (torch.randn(batch, heads, context, channels, device=device, dtype=dtype) for _ in range(4))
        for tensor in (q, k, v):
            tensor.requires_grad_()

        def once(backend):
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(out, (q, k, v), gradient)  # backward() would also add to .grad

        times = {}
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                once(backend)
                times[backend] = []
            except RuntimeError:  # no such kernel for this device or shape
                result[f'{name(backend)}_{channels}'] = None
        for _ in range(rounds):
            for backend, seconds in times.items():
                seconds.append(roofline.seconds(lambda: once(backend), device))
        result.update({f'{name(backend)}_{channels}': 1000 * statistics.median(seconds)
                       for backend, seconds in times.items()})
    print(json.dumps({'dtype': str(dtype).removeprefix('torch.'), **result}))


def name(backend):
    return backend.name.lower().removesuffix('_attention')


def host_syncs():
    """
    How often train_step() of train.py, with the words behind this command, makes the CPU wait for the GPU in 5 steps,
    and where.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.argv[0] = os.path.join(root, 'train.py')
    train = runpy.run_path(sys.argv[0], run_name='train')  # as __main__ it would start to train
    for i in range(3):
        train['train_step'](i)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        for i in range(3, 8):
            train['train_step'](i)
        torch.cuda.set_sync_debug_mode('default')
    places = [f'{os.path.relpath(one.filename, root)}:{one.lineno}' for one in caught
              if 'called a synchronizing' in str(one.message)]  # not PyTorch's own: the mode is a prototype
    print(json.dumps({'steps': 5, 'syncs': len(places), 'places': sorted(set(places))}))
