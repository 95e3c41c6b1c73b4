"""
Generate text from a trained model.

python sample.py --out_dir=out-shakespeare-char                      # the best weights of a run
python sample.py --out_dir=out-quickstart --start='The ' --num_samples=3
python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt    # or --start=- for what is typed, or piped in
python sample.py --out_dir=out-alpaca --start=FILE:prompt.txt --stop="['###']" --json=True
python sample.py --init_from=gpt2-xl --start='What is the answer to life, the universe, and everything?'
"""
import os
import sys
import time
from json import dumps

# -----------------------------------------------------------------------------
# model
init_from = 'resume'   # resume: the best weights in out_dir; a checkpoint file; gpt2, gpt2-medium, gpt2-large, gpt2-xl,
                       # or any GPT-2 on Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run
# text
start = '\n'           # the prompt; FILE:name reads it from a file, - from standard input; '' starts a new text
num_samples = 10       # texts, written side by side in one batch
max_new_tokens = 500   # tokens in each, after the prompt; fewer if end-of-text comes
temperature = 0.8      # below 1.0 less random, above more; 0 always takes the likeliest token
top_k = 200            # choose among this many likeliest tokens; 0: among all
top_p = 1.0            # choose among the likeliest tokens that together have this probability
min_p = 0.0            # choose among tokens that are at least this much as likely as the likeliest
repetition_penalty = 1.0  # above 1.0 makes tokens less likely that are there already
stop = []              # texts that end a sample, as ['\n\n', '###']; they are not shown
json = False           # one JSON object a sample: prompt, text, tokens, finish_reason, tokens_per_second
seed = 1337
# system
device = 'auto'        # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'         # float32, bfloat16, float16; auto: what the GPU is fast in
use_cache = True       # keep keys and values; False computes the whole context for each token, as nanoGPT does
compile = False        # torch.compile, where it works; without the cache
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import torch

from common import bins, generate, hardware
from common.tokenizer import TextStream, check_same, from_meta
from model import load_weights

results = sys.stdout
results.reconfigure(errors='backslashreplace')  # a model may write what the terminal cannot show
if json:
    sys.stdout = sys.stderr  # for what is said on the way


def read_start():
    """The prompt's text."""
    if start == '-':
        return sys.stdin.read().removesuffix('\n')  # which echo, or the last Enter, adds
    if not start.startswith('FILE:'):
        return start
    name = start.removeprefix('FILE:')
    try:
        with open(name, encoding='utf-8') as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'the prompt cannot be read from the file {name!r}: {error}') from None


def find_meta():
    """What the model's ids mean: as its checkpoint says, or as the dataset says that an older one was trained on."""
    if checkpoint is not None and checkpoint.get('meta'):
        return checkpoint['meta']
    if model.config.vocab_size in (50257, 50304):
        return {'tokenizer': 'gpt2', 'vocab_size': 50257}
    if checkpoint is None or 'dataset' not in checkpoint.get('config', {}):
        raise ValueError(f'no tokenizer is known for these weights, which have {model.config.vocab_size} ids')
    return bins.read_meta(bins.find(root, checkpoint['config']['dataset']))


try:
    if init_from == 'resume' and not os.path.isdir(out_dir):
        raise ValueError(f'no folder {out_dir!r} with a model here; to train a first one: '
                         'python train.py config/quickstart.py, then --out_dir=out-quickstart')
    if num_samples < 1 or repetition_penalty <= 0 or not all(isinstance(text, str) for text in stop):
        raise ValueError(f'num_samples={num_samples} must be 1 or more, repetition_penalty={repetition_penalty} above '
                         f'0, and stop={stop} a list of texts')
    device = hardware.resolve_device(device)
    dtype = hardware.resolve_dtype(dtype, device, training=False)
    model, checkpoint = load_weights(out_dir if init_from == 'resume' else init_from, dropout=0.0)
    meta = find_meta()
    check_same(meta, None, model.config.vocab_size)
    tokenizer = from_meta(meta)
    text_given = read_start()
    prompt = tokenizer.encode(text_given) or [tokenizer.start_id]
except (ValueError, OSError) as error:
    hardware.stop(error)

model, ctx = hardware.ready_to_generate(model, device, dtype, pack=not compile)
generator = torch.Generator(device).manual_seed(seed)
idx = torch.tensor([prompt], device=device).expand(num_samples, -1)  # (num_samples, T)
options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
               vocab_size=tokenizer.vocab_size, generator=generator, use_cache=use_cache)


def write_samples():
    """Continue the prompt num_samples times at once; the first text is printed as it comes, the others at the end."""
    samples = [TextStream(tokenizer, stop) for _ in range(num_samples)]
    texts, tokens, reason = [''] * num_samples, [[] for _ in samples], 'length'
    show(text_given)
    t0 = time.perf_counter()
    seconds = [0.0] * num_samples
    try:
        for step in generate.stream(model, idx, max_new_tokens, **options):
            for i, token in enumerate(step.flatten().tolist()):
                if not samples[i].finished:
                    tokens[i].append(token)
                    text = samples[i].push(token)
                    texts[i] += text
                    seconds[i] = time.perf_counter() - t0
                    show(text if i == 0 else '')
            if all(sample.finished for sample in samples):
                break
    except KeyboardInterrupt:
        reason = 'interrupted'
    for i, sample in enumerate(samples):
        rest = sample.rest()
        if json:
            speed = len(tokens[i]) / seconds[i] if tokens[i] else None
            print(dumps({'prompt': text_given, 'text': texts[i] + rest, 'tokens': tokens[i],
                         'finish_reason': sample.finished or reason, 'tokens_per_second': speed}), file=results)
        else:
            print((rest if i == 0 else text_given + texts[i] + rest) + '\n---------------')


def show(text):
    """Print text at once, if it is meant for people."""
    if not json:
        print(text, end='', flush=True)


with torch.no_grad(), ctx:
    if compile:
        context = idx[:, -model.config.block_size:]
        compiled = hardware.compile_or_eager(model, ctx, lambda compiled: compiled(context))
        options['use_cache'] = use_cache and compiled is model
        model = compiled
    try:
        write_samples()
        results.flush()
    except BrokenPipeError:  # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), results.fileno())
