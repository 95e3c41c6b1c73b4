"""
Use a trained model: write texts, talk with it, see what it makes of a text.

python sample.py --out_dir=out-shakespeare-char                      # the best weights of a run
python sample.py --out_dir=out-quickstart --start='The ' --num_samples=3
python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt    # or --start=- for what is typed, or piped in
python sample.py --out_dir=out-alpaca --start=FILE:prompt.txt --stop="['###']" --json=True
python sample.py --init_from=gpt2-xl --start='What is the answer to life, the universe, and everything?'
python sample.py --chat=True                                         # a conversation; /help lists what can be typed
python sample.py --analyze=True --start='The sum of two and two'     # how likely is each token, and what comes next
"""
import glob
import os
import subprocess
import sys
from json import dumps

# -----------------------------------------------------------------------------
# what to do
chat = False           # talk with the model at the terminal
analyze = False        # show what the model makes of the text in start: each token's probability, rank and surprisal
html = ''              # with analyze: a page to write, with the text coloured by surprisal
# model
init_from = 'resume'   # resume: the best weights in out_dir; a checkpoint file; gpt2, gpt2-medium, gpt2-large, gpt2-xl,
                       # or any GPT-2 on Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run; if there is no out, the newest out* here
# text
start = '\n'           # the prompt; FILE:name reads it from a file, - from standard input; '' starts a new text
num_samples = 10       # texts, written side by side in one batch
max_new_tokens = 500   # tokens in each, after the prompt; fewer if end-of-text comes
temperature = 0.8      # below 1.0 less random, above more; 0 always takes the likeliest token
top_k = 200            # choose among this many likeliest tokens; 0: among all
top_p = 1.0            # choose among the likeliest tokens that together have this probability
min_p = 0.0            # choose among tokens that are at least this much as likely as the likeliest
repetition_penalty = 1.0  # above 1.0 makes tokens less likely that are there already
num_beams = 1          # above 1: no choosing at random, but a search for the likeliest texts, with so many at a time
length_penalty = 1.0   # of that search: with 0 the likeliest text wins, above longer ones gain
stop = []              # texts that end a sample, as ['\n\n', '###']; they are not shown
logprobs = False       # with json: the log-probability that the model gives each token; else their mean
json = False           # one JSON object a sample: prompt, text, tokens, finish_reason, tokens_per_second
seed = 1337
# system
device = 'auto'        # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'         # of the weights: float32, bfloat16, float16; auto: what the GPU is fast in
quantize = ''          # int8: weights in 8 bits, a quarter of the memory; says what that costs
use_cache = True       # keep keys and values; False computes the whole context for each token, as nanoGPT does
compile = False        # torch.compile, where it works: takes up to a minute, and pays on a GPU and for small models
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

results = sys.stdout
results.reconfigure(errors='backslashreplace')  # a model may write what the terminal cannot show
if json:
    sys.stdout = sys.stderr  # for what is said on the way


def find_model():
    """What to load: out_dir, or what init_from names. Where there is no model yet, one may be trained now."""
    if init_from != 'resume' or os.path.isdir(out_dir):
        return out_dir if init_from == 'resume' else init_from
    first = 'python train.py config/quickstart.py'
    if out_dir != 'out':
        raise ValueError(f'no folder {out_dir!r} with a model here; to train a first one: {first}, then '
                         '--out_dir=out-quickstart')
    runs = sorted(glob.glob('out*/ckpt.pt'), key=os.path.getmtime)
    if runs:
        print(f'the newest model here: --out_dir={os.path.dirname(runs[-1])}', file=sys.stderr)
        return os.path.dirname(runs[-1])
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(f'there is no model here yet; to train a first one, in about a minute: {first}')
    try:
        wanted = input('There is no model here yet. Train a first one now, in about a minute? [Y/n] ').strip().lower()
    except (EOFError, KeyboardInterrupt):
        wanted = 'n'
    if wanted not in ('', 'y', 'yes'):
        sys.exit(f'\nTo train it later: {first}')
    if subprocess.run([sys.executable, os.path.join(root, 'train.py'), 'config/quickstart.py']).returncode != 0:
        sys.exit(1)
    return 'out-quickstart'


def check_settings():
    """ValueError for what cannot be, or does not go together."""
    if num_samples < 1 or repetition_penalty <= 0 or num_beams < 1 or not all(isinstance(text, str) for text in stop):
        raise ValueError(f'num_samples={num_samples} and num_beams={num_beams} must be 1 or more, repetition_penalty='
                         f'{repetition_penalty} above 0, and stop={stop} a list of texts')
    if quantize not in ('', 'int8'):
        raise ValueError(f"quantize={quantize!r} is not one of '', int8")
    for given, other, reason in (
            (chat, analyze, 'chat and analyze are two things to do; /top shows the likeliest tokens in a chat'),
            (chat, json, 'a chat is for people; json goes with samples and with analyze'),
            (chat, num_beams > 1, 'a chat shows each token as it comes; num_beams knows them at the end'),
            (html, not analyze, 'html is written by --analyze=True'),
            (compile, not use_cache, 'compile is for steps with the cache; leave out use_cache=False')):
        if given and other:
            raise ValueError(reason)


try:
    check_settings()
    source = find_model()
except ValueError as error:
    print(f'sample.py: {error}', file=sys.stderr)
    sys.exit(2)

import torch

from common import analysis, bins, completion, generate, hardware, inference
from common.tokenizer import check_same, from_meta
from model import load_weights


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


def find_meta(model, checkpoint):
    """What the model's ids mean: as its checkpoint says, or as the dataset says that an older one was trained on."""
    if checkpoint is not None and checkpoint.get('meta'):
        return checkpoint['meta']
    if model.config.vocab_size in (50257, 50304):
        return {'tokenizer': 'gpt2', 'vocab_size': 50257}
    if checkpoint is None or 'dataset' not in checkpoint.get('config', {}):
        raise ValueError(f'no tokenizer is known for these weights, which have {model.config.vocab_size} ids')
    return bins.read_meta(bins.find(root, checkpoint['config']['dataset']))


def load(name):
    """(model, tokenizer, meta) of a model, ready to generate."""
    model, checkpoint = load_weights(name, dropout=0.0)
    meta = find_meta(model, checkpoint)
    check_same(meta, None, model.config.vocab_size)
    tokenizer = from_meta(meta)
    model.eval().to(device, getattr(torch, dtype))
    if quantize:
        text = own_text(model, tokenizer)
        before, after = inference.quantize(model, text)
        print(f'int8: the perplexity of {text[:, 1:].numel()} tokens that the model wrote itself goes from '
              f'{before:.3f} to {after:.3f} ({after / before - 1:+.2%})')
    elif not compile:
        inference.pack(model, device, dtype)
    return model, tokenizer, meta


def own_text(model, tokenizer):
    """16 texts of up to 65 ids that the model writes: such as it knows, whatever it was trained on."""
    first = torch.full((16, 1), tokenizer.start_id, device=device)
    return generate.generate(model, first, min(64, model.config.block_size), vocab_size=tokenizer.vocab_size,
                             generator=torch.Generator(device).manual_seed(seed))


def complete():
    """Write texts that continue the prompt."""
    shared = dict(stops=stop, logprobs=logprobs, use_cache=use_cache, compile=compile)
    args = model, tokenizer, prompt, results, json, num_samples, max_new_tokens
    if num_beams == 1:
        completion.write_samples(*args, seed=seed, **shared, **options)
    else:
        completion.write_beams(*args, num_beams, length_penalty, **shared, repetition_penalty=repetition_penalty)


def talk():
    """A conversation at the terminal."""
    from common.chat import Chat
    from common.speaker import Speaker

    def speaker(name):
        model, tokenizer, meta = load(name)
        step = inference.compile_step(model, 1, model.config.block_size, device) if compile else None
        return Speaker(name, model, tokenizer, meta, step)

    Chat(speaker, source, max_new_tokens, stop, seed, '' if start == '\n' else read_start(), **options).talk()


def show_analysis():
    """What the model makes of the text."""
    result = analysis.analyze(model, tokenizer, prompt)
    if html:
        with open(html, 'w', encoding='utf-8') as f:
            f.write(analysis.page(result, source))
        print(f'written: {html}')
    if json:
        print(dumps(result), file=results)
    elif not html:
        colour = results.isatty() and not os.environ.get('NO_COLOR')  # https://no-color.org
        print('\n'.join(analysis.report(result, colour)))


options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
try:
    device = hardware.resolve_device(device)
    if quantize and dtype == 'auto' and device == 'cpu':
        dtype = 'bfloat16'  # in which PyTorch multiplies with 8 bits fast
    dtype = hardware.resolve_dtype(dtype, device, training=False)
    with torch.no_grad():
        if chat:
            talk()
        else:
            model, tokenizer, meta = load(source)
            prompt = read_start()
            show_analysis() if analyze else complete()
    results.flush()
except BrokenPipeError:  # whoever reads has had enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), results.fileno())
except (ValueError, OSError) as error:
    hardware.stop(error)
