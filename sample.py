"""
Use a trained model: generate text, chat with it, or see how likely it finds a text.

python sample.py --out_dir=out-shakespeare-char                      # the best weights of a run
python sample.py --out_dir=out-quickstart --start='The ' --num_samples=3
python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt    # or --start=- for standard input
python sample.py --out_dir=out-quickstart --start=LINES:prompts.txt  # a prompt a line; or --start="['The ', 'A ']"
python sample.py --out_dir=out-alpaca --start=FILE:prompt.txt --stop="['###']" --json=True
python sample.py --init_from=gpt2-xl --start='What is the answer to life, the universe, and everything?'
python sample.py --chat=True                                         # a conversation; /help lists the commands
python sample.py --analyze=True --start='The sum of two and two'     # how likely is each token, and what comes next
"""
import contextlib
import glob
import io
import os
import random
import shlex
import signal
import subprocess
import sys
from json import dumps

# -----------------------------------------------------------------------------
# what to do
chat = False           # talk with the model in the terminal
analyze = False        # show how the model sees the text in start: probability, rank and surprisal of each token
html = ''              # with analyze: an HTML file to write, a microscope: what the model expects, where it looks, ...
compare = ''           # with html: another model that reads the same text; a name as for init_from, or an out_dir
checkpoints = ''       # with html: an out_dir whose iter_*.pt (train.py --keep_interval) read it: how was it learned?
lang = 'auto'          # of that page: en, ko, or auto: ko where LANG says so, else what the browser prefers
# model
init_from = 'resume'   # resume: the best weights in out_dir; or a model by any name: the folder of a run, a checkpoint
                       # file, an export (hf, safetensors), gpt2, gpt2-medium, gpt2-large, gpt2-xl, or any GPT-2 on
                       # Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run; without an out, the newest out* in the working directory
# text
start = '\n'           # the prompt; '' starts a new text. FILE:name: the whole text of a file; -: standard input.
                       # Several prompts: "['one', 'two']", or LINES:name of a file with one per line. Quotes around the
                       # whole are dropped. In a chat it comes first
num_samples = 10       # texts from each prompt, generated side by side
max_new_tokens = 500   # in each text, after the prompt; fewer if end-of-text comes first
temperature = 0.8      # below 1.0 less random, above 1.0 more; 0 always takes the likeliest token
top_k = 200            # sample from this many of the likeliest tokens; 0: from all
top_p = 1.0            # sample from the likeliest tokens that together have this probability
min_p = 0.0            # sample from tokens that are at least this much as likely as the likeliest
repetition_penalty = 1.0  # above 1.0 makes tokens that are already in the text less likely
num_beams = 1          # above 1: beam search for the likeliest texts, with nothing random. It writes at most num_beams,
                       # and only one of those that are the same once cut at stop
length_penalty = 1.0   # of beam search: with 0 the likeliest text wins, above 0 longer ones gain
stop = []              # strings that end a sample, as in ['\n\n', '###']; they are not shown
logprobs = False       # with json: the model's log-probability of each token; otherwise their mean
json = False           # one JSON object per sample: prompt, text, tokens, finish_reason, tokens_per_second
seed = 1337            # the same texts each time; those of several prompts depend on the other prompts, too. A chat
                       # has a new seed each time, unless one is given
# system
device = 'auto'        # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'         # of the weights: float32, bfloat16, float16; auto: what the GPU is fast in, on a CPU float16 if
                       # that is faster, which changes the perplexity by less than 0.01%; computed in float32 there
quantize = ''          # int8: matrices, not embeddings, in 8 bits; prints the cost. Saves memory, and time on CPUs
use_cache = True       # keep keys and values; False recomputes the whole context for each token, as nanoGPT does
compile = False        # torch.compile, where it works: takes up to a minute, pays off on a GPU
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
defaults = {k: globals()[k] for k in config_keys}
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

from common import console, prompts  # not console's stop by name, which is a setting here
from common.options import find_model
from common.tokenizer import check_text, from_meta

results = sys.__stdout__ or sys.stdout  # unlike a message, a text that cannot be written ends the script
results.reconfigure(errors='backslashreplace')  # a model may generate characters that the terminal cannot show
if json:
    sys.stdout = sys.stderr  # stdout gets nothing but the JSON
    results.reconfigure(encoding='utf-8')  # RFC 8259

LIMITS = [('num_samples', 1, 10**6), ('num_beams', 1, 10**6), ('max_new_tokens', 1, 10**9), ('top_p', 0, 1),
          ('min_p', 0, 1), ('repetition_penalty', 0.01, 100), ('length_penalty', 0, 10), ('seed', 0, 2**63 - 1)]
SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p')
WITHOUT_EFFECT = [  # (when, which settings, why)
    (chat, ('num_samples', 'num_beams', 'length_penalty', 'logprobs'), 'a chat gives one answer, token by token'),
    (analyze, (*SAMPLING, 'num_samples', 'max_new_tokens', 'repetition_penalty', 'num_beams', 'length_penalty', 'stop',
               'logprobs', 'use_cache', 'compile'), 'analyze generates nothing'),
    (html, ('dtype',), 'the page shows the model in float32'),
    (num_beams > 1, (*SAMPLING, 'seed'), 'a beam search is not random'),
    (num_beams == 1, ('length_penalty',), 'it needs num_beams above 1')]
IMPOSSIBLE = [  # (when, why)
    (not all(isinstance(text, str) and text for text in stop), f"stop={stop} is not a list of strings, as in ['###']"),
    (quantize not in ('', 'int8'), f"quantize={quantize!r} is not one of '', int8"),
    (chat and analyze, 'choose chat or analyze; in a chat /top shows the likeliest tokens'),
    (chat and json, 'a chat has no JSON; json goes with samples and with analyze'),
    (chat and start == '-', '--start=- would read what is typed in the chat'),
    (html and not analyze, 'html needs --analyze=True'),
    (html and quantize, 'the page of html shows the weights as they are; leave out quantize'),
    ((compare or checkpoints) and not html, 'compare and checkpoints need --html=page.html'),
    (lang not in ('auto', 'en', 'ko'), f'lang={lang!r} is not one of auto, en, ko'),
    (not os.path.isdir(os.path.dirname(html) or '.'), f'html={html!r} is in a folder that does not exist'),
    (os.path.isdir(html), f'html={html!r} is a folder; name a file in it'),
    (analyze and start == '\n', "analyze needs a text, as in --start='The sum of two and two'"),
    ((chat or compile) and not use_cache, 'with use_cache=False there is no chat, and no step to compile')]


def find_source():
    """The model to load: init_from, or the folder of a run. If there is no model yet, offer to train one."""
    if init_from != 'resume':
        return init_from
    command = f'python {shlex.quote(os.path.relpath(os.path.join(root, "train.py")))} config/quickstart.py'
    runs = [path for name in ('ckpt.pt', 'last.pt') for path in glob.glob(f'out*/{name}') if os.path.isfile(path)]
    runs.sort(key=os.path.getmtime)
    folders = list(dict.fromkeys(os.path.dirname(path) for path in runs))
    if out_dir in folders:
        return out_dir
    if out_dir != 'out':
        advice = f'there are {", ".join(folders)}' if folders else (
            f'to train a first one: {command}, then --out_dir=out-quickstart')
        return find_model(init_from, out_dir, otherwise=advice)
    if folders:
        print(f'the newest model here: {shlex.quote(f"--out_dir={folders[-1]}")}', file=sys.stderr)
        return folders[-1]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(f'there is no model here yet; to train a first one, in about a minute: {command}')
    try:
        answer = input('There is no model here yet. Train a first one now, in about a minute? [Y/n] ').strip().lower()
    except (EOFError, KeyboardInterrupt):
        answer = 'n'
    if answer not in ('', 'y', 'yes'):
        sys.exit(f'\nTo train it later: {command}')
    training = subprocess.Popen([sys.executable, os.path.join(root, 'train.py'), 'config/quickstart.py'])
    while training.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # train.py gets it too, saves, and exits
            training.wait()
    if training.returncode != 0:
        sys.exit(training.returncode)
    return 'out-quickstart'


with console.exit_on_error():
    for key, low, high in LIMITS:
        if not low <= globals()[key] <= high:
            raise ValueError(f'{key}={globals()[key]} is not between {low} and {high}')
    for given, reason in IMPOSSIBLE:
        if given:
            raise ValueError(reason)
    texts = prompts.read(start)
    for name, values in (('start', texts), ('stop', stop)):  # before a model is loaded
        for value in values:
            check_text(value, name)
    if len(texts) > 1 and (chat or analyze):
        raise ValueError(f'{"chat" if chat else "analyze"} takes one text, but start has {len(texts)}')
    prompt = texts[0]
    for given, keys, reason in WITHOUT_EFFECT:
        ignored = [f'{key}={globals()[key]!r}' for key in keys if given and globals()[key] != defaults[key]]
        if ignored:
            print(f'{", ".join(ignored)} does nothing here: {reason}', file=sys.stderr)
    source = find_source()
signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is output to keep, Ctrl-C ends the program at once

import torch

from common import dataset, inference
from common.device import is_out_of_memory, resolve_device, resolve_dtype
from common.sampling import analysis, completion, microscope_page, terminal
from common.sampling.chat import Chat
from common.sampling.speaker import Speaker
from model import load_weights


def some_text(model, tokenizer, meta, config):
    """(ids (B, T), where they are from) to measure perplexity with: validation data, or what the model writes."""
    T = min(64, model.config.block_size) + 1
    data = dataset.validation_tokens(root, config, meta)
    if len(data) >= 16 * T:
        return torch.tensor(data[:len(data) // 16 * 16].reshape(16, -1)[:, :T].astype('int64')), 'validation data'
    first = torch.full((16, 1), tokenizer.start_id, device=device)
    ids = model.generate(first, T - 1, vocab_size=tokenizer.vocab_size,
                         generator=torch.Generator(device).manual_seed(seed))
    return ids[:, 1:], 'text that the model wrote itself'


def load(name):
    """(model, tokenizer, meta) of a model, ready to generate."""
    model, checkpoint = load_weights(name, dropout=0.0)
    meta = dataset.meta_of(root, checkpoint, model.config.vocab_size)
    config, checkpoint = (checkpoint or {}).get('config'), None  # frees its weights before the model is converted
    tokenizer = from_meta(meta)
    inference.convert(model.eval(), device, 'float32' if specialized or html else dtype)
    if quantize:
        ids, source_of_ids = some_text(model, tokenizer, meta, config)
        before = inference.perplexity(model, ids.to(device))
    if specialized:
        inference.specialize(model, dtype, bool(quantize))
    elif quantize:
        inference.quantize(model)
    if quantize:
        after = inference.perplexity(model, ids.to(device))
        print(f'int8: the perplexity of {ids[:, 1:].numel():,} tokens of {source_of_ids} goes from {before:.3f} to '
              f'{after:.3f} ({after / before - 1:+.2%})')
    return model, tokenizer, meta


@contextlib.contextmanager
def output():
    """A block that writes results. Where that fails the script ends, quietly if the reader of a pipe is gone."""
    try:
        yield
        results.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), results.fileno())  # for what is left in its buffer
        if not isinstance(error, BrokenPipeError):
            console.stop(f'the output cannot be written: {error.strerror}', code=1)


def known_prompts(tokenizer):
    """The prompts; [''] for the default, a newline, which a character vocabulary may lack."""
    if start == defaults['start']:
        try:
            tokenizer.encode(start)
        except ValueError:
            print("start='\\n' is not in this vocabulary: starting a new text", file=sys.stderr)
            return ['']
    return texts


def complete():
    """Continue the prompts."""
    model, tokenizer, _ = load(source)
    known = known_prompts(tokenizer)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shared = dict(out=results, as_json=json, num_samples=num_samples, max_new_tokens=max_new_tokens, stops=stop,
                  logprobs=logprobs, use_cache=use_cache, compile=compile)
    with output():
        if num_beams == 1:
            completion.write_samples(model, tokenizer, known, **shared, seed=seed, **options)
        else:
            completion.write_beams(model, tokenizer, known, **shared, num_beams=num_beams,
                                   length_penalty=length_penalty, repetition_penalty=repetition_penalty)


def talk():
    """A conversation in the terminal."""
    def load_speaker(name):
        model, tokenizer, meta = load(name)
        step = inference.compile_step(model, 1, model.config.block_size, device) if compile else None
        return Speaker(name, model, tokenizer, meta, step)

    first_seed = seed
    if 'seed' not in config_given:
        first_seed = random.randrange(10**6)
        print(f'the seed of this chat: --seed={first_seed} brings the same answers to the same lines', file=sys.stderr)
    conversation = Chat(load_speaker, source, max_new_tokens, stop, first_seed, '' if start == '\n' else prompt,
                        **options)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    terminal.take_utf8()
    sys.stdout = results
    with output():
        conversation.talk()


def show_analysis():
    """How the model sees the prompt: as a table, as JSON, or as a page on which other models may see it, too."""
    earlier = microscope_page.snapshots(checkpoints) if checkpoints else []
    models = [*earlier, (source, source), *([(compare, compare)] if compare else [])]

    def examine(name, path, closely):  # a function, so that only one model at a time is in memory
        model, tokenizer, _ = load(path)
        try:
            found = analysis.analyze(model, tokenizer, prompts.encode(tokenizer, texts)[0][0])
        except ValueError as error:  # a text that it cannot read, or a model that has diverged
            raise ValueError(f'{path}: {error}' if len(models) > 1 else error) from None
        return found, microscope_page.record(name, model, tokenizer, found) if closely else None

    if len(models) > 1:  # what is wrong with one of them is told before what takes long
        with contextlib.redirect_stderr(io.StringIO()):
            for name, path in models:
                examine(name, path, closely=False)
    results_and_records = [examine(name, path, closely=bool(html)) for name, path in models]
    result, failure = results_and_records[len(earlier)][0], None
    if html:
        try:
            records = [record for _, record in results_and_records]
            microscope_page.write(html, microscope_page.page(records, len(earlier), source, lang))
            print(f'written: {html}')
        except OSError as error:
            failure = f'html={html!r} cannot be written ({error.strerror}); the result is printed instead'
    with output():
        if json:
            print(dumps(result, ensure_ascii=False), file=results)
        elif not html or failure:
            no_colour = os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb'  # https://no-color.org
            print('\n'.join(analysis.report(result, results.isatty() and not no_colour)), file=results)
    if failure:
        console.stop(failure, code=1)


options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
try:
    device = resolve_device(device)
    # on a CPU, kernels for single tokens, which an analysis has not, and a text without the cache neither
    specialized = device == 'cpu' and use_cache and not compile and (quantize or not analyze)
    if device == 'cpu' and compile:
        print('on a CPU compile=True makes generating slower than the kernels that it has without', file=sys.stderr)
    if quantize and dtype == 'auto' and device == 'cpu' and not specialized:
        dtype = 'bfloat16'  # the dtype of PyTorch's fast 8-bit matmul
    resolved = resolve_dtype(dtype, device, training=False)
    dtype = dtype if specialized else resolved
    with torch.no_grad():
        if chat:
            talk()
        elif analyze:
            show_analysis()
        else:
            complete()
except KeyboardInterrupt:  # for example while a step was compiled
    sys.exit(130)
except (ValueError, OSError) as error:
    console.stop(error)
except (RuntimeError, MemoryError) as error:
    if not is_out_of_memory(error):
        raise
    console.stop('out of memory: try fewer num_samples, num_beams or max_new_tokens, --dtype=bfloat16, or --device=cpu '
                 f'({str(error).partition(chr(10))[0]})', code=1)
