"""
Generate text from a trained model.

python sample.py --out_dir=out-shakespeare-char                      # the best weights of a run
python sample.py --out_dir=out-quickstart --start='The ' --num_samples=3
python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt
python sample.py --init_from=gpt2-xl --start='What is the answer to life, the universe, and everything?'
"""
import os

# -----------------------------------------------------------------------------
# model
init_from = 'resume'   # resume: the best weights in out_dir; a checkpoint file; gpt2, gpt2-medium, gpt2-large, gpt2-xl,
                       # or any GPT-2 on Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run
# text
start = '\n'           # the prompt; FILE:name reads it from a file; '' starts a new text
num_samples = 10       # texts
max_new_tokens = 500   # tokens in each, after the prompt
temperature = 0.8      # below 1.0 less random, above more; 0 always takes the likeliest token
top_k = 200            # choose among this many likeliest tokens; 0: among all
seed = 1337
# system
device = 'auto'        # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'         # float32, bfloat16, float16; auto: what the GPU is fast in
compile = False        # torch.compile, where it works
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import torch

from common import bins, generate, hardware
from common.tokenizer import check_same, from_meta
from model import load_weights


def read_start():
    """The prompt's text."""
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
    device = hardware.resolve_device(device)
    dtype = hardware.resolve_dtype(dtype, device, training=False)
    model, checkpoint = load_weights(out_dir if init_from == 'resume' else init_from, dropout=0.0)
    meta = find_meta()
    check_same(meta, None, model.config.vocab_size)
    tokenizer = from_meta(meta)
    prompt = tokenizer.encode(read_start()) or [tokenizer.start_id]
except (ValueError, OSError) as error:
    hardware.stop(error)

model.eval()
model.to(device)
ctx = hardware.autocast(device, dtype)
generator = torch.Generator(device).manual_seed(seed)
idx = torch.tensor([prompt], device=device)  # (1, T)


def write_sample():
    """Continue the prompt once, and print the text as it comes."""
    ids, shown = list(prompt), ''
    for token in generate.stream(model, idx, max_new_tokens, temperature=temperature, top_k=top_k,
                                 vocab_size=tokenizer.vocab_size, generator=generator):
        ids.append(token.item())
        text = tokenizer.decode(ids)
        if not text.endswith('\ufffd'):  # the rest of a character of several bytes is still to come
            print(text[len(shown):], end='', flush=True)
            shown = text
    print(tokenizer.decode(ids)[len(shown):] + '\n---------------')


try:
    with torch.no_grad(), ctx:
        if compile:
            context = idx[:, -model.config.block_size:]
            model = hardware.compile_or_eager(model, ctx, lambda compiled: compiled(context))
        for _ in range(num_samples):
            write_sample()
except KeyboardInterrupt:
    print()
