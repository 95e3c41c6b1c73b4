"""
How fast this machine trains and generates text, with the real code, and what would fit elsewhere.

python bench.py                                     # the training step of GPT-2 124M
python bench.py config/train_shakespeare_char.py    # of any config; every setting of train.py is one here too
python bench.py --sweep=True                        # dtype x compile x batch_size x checkpointing, in one table
python bench.py --profile=True                      # the operators that take the time, and trace.json
python bench.py config/train_gpt2.py --mode=plan --gpu=v100-16gb --gpus=8    # memory, speed, days; needs no GPU
python bench.py --mode=matmul                       # matmuls and memory alone: what could be reached
python bench.py --mode=sample                       # tokens a second, beside Hugging Face, llama.cpp and CTranslate2
python bench.py --mode=check                        # is this machine ready to train?
python bench.py --mode=claims                       # every figure of docs/measurements.md again, as far as it goes here
"""
import os
import sys

from common import console, settings

# -----------------------------------------------------------------------------
mode = 'step'          # step, plan, matmul, sample, check, claims
json = False           # one JSON object with what was measured or planned, for programs
# step
vocab_size = 0         # of the model; 0: the dataset's, or GPT-2's 50304 if that is not prepared here
real_data = False      # batches from the dataset, as in training; False: random ids
gradient_accumulation_steps = 0  # 0: one, because 40 micro-batches only take longer; in a plan train.py's
windows = 7            # stretches of steps that are timed, 3 at most if a step takes long
profile = False        # torch.profiler over three steps: a table, and trace.json for ui.perfetto.dev
sweep = False          # each combination of the next four, in a process of its own
sweep_dtype = []       # []: those that the device is fast in
sweep_compile = [False, True]
sweep_batch_size = []  # []: a quarter, half, once, twice and four times batch_size
sweep_gradient_checkpointing = [False, True]
out = ''               # of a sweep: FILE.jsonl, a line for each combination, and FILE.png, their curves; of claims:
                       # FILE.jsonl, to which each is added, and FILE.md, their table; '' is claims.jsonl
# plan
gpu = 'auto'           # v100-16gb, v100-32gb, a100-40gb, h100, ...; auto: the one here; cpu: this machine without one
gpus = 1               # of them; with --fsdp=True they share weights, gradients and moments
# sample
prompt_tokens = 16
max_new_tokens = 128
batch_sizes = [1, 4]   # without the cache only the first, for other libraries 1
rounds = 3             # in which all ways take turns, because a machine's speed drifts; medians are shown
use_huggingface = True  # also time Hugging Face's generate(), if transformers is installed and block_size allows it
use_others = True      # and, on a CPU, llama.cpp and CTranslate2, if llama-cpp-python and ctranslate2 are installed
uncached = True        # also the loop that computes the whole context for each token
compile_step = False   # also each with the step compiled
# claims
minutes = 30.0         # what does not fit into them is left for the next call, which goes on from there
only = ''              # these claims, as in only=check,roofline
list = False           # only say which there are, how long they take, and what they need
input = ''             # the file of tiny Shakespeare's text; '': that of data/shakespeare_char, if it is there
table = ''             # only make the table between the marks in this Markdown file anew, from `out`
# -----------------------------------------------------------------------------
root = os.path.dirname(os.path.abspath(__file__))
train_defaults = settings.read(os.path.join(root, 'train.py'))  # all are settings here too
globals().update({**train_defaults, 'gradient_accumulation_steps': gradient_accumulation_steps})
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, type([])))]
config_keys.remove('root')
defaults = {k: globals()[k] for k in config_keys}
console.protect_output()
results = sys.stdout
if any(word.startswith('--json') for word in sys.argv):
    sys.stdout = sys.stderr  # for what config files say, too
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import builtins
import itertools
import shlex
import statistics
import tempfile
import time
from dataclasses import asdict
from json import dumps

import numpy as np
import torch
from tqdm import tqdm

from common import dataset as datasets, device as devices, tokenizer, weights
from common.benchmark import (claims, claims_table, decoding, ledger, peers, planner, readiness, roofline,
                              sweep as sweeps)
from common.device import (explain_out_of_memory, find_gpu, memory_gb, native_bf16, peak_flops, resolve_device,
                           resolve_dtype, synchronize)
from common.distributed import world_size
from model import GPT, GPTConfig

sys.stdout = sys.stderr if json else results  # for messages along the way
if mode == 'plan' and gpu != 'auto':
    devices.has_gpu = lambda: gpu != 'cpu'  # a config file that looks for a GPU is to find the one that is planned for
    there = settings.read(__file__, sys.argv[1:])
    if there != {key: globals()[key] for key in config_keys}:
        print(f'planned is what the config file sets on a machine with gpu={gpu}; on this one it sets something else')
        globals().update(there)
if init_from in weights.OPENAI:
    n_layer, n_head, n_embd, bias = *weights.OPENAI[init_from], True
elif init_from not in ('scratch', 'auto', 'resume'):
    print(f'init_from={init_from!r} is ignored: n_layer and the like describe the model', file=sys.stderr)


def make_model(bias=bias, activation=activation, softcap=softcap):
    torch.manual_seed(seed)
    return GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias, activation, modern, softcap))


def find_vocab_size():
    """(the vocabulary size of the model, where it comes from)."""
    if vocab_size and not real_data:
        return vocab_size, 'as given'
    try:
        found = tokenizer.padded_vocab_size(datasets.read_meta(datasets.find(root, dataset)))
    except (ValueError, OSError):
        if real_data:
            raise
        return 50304, f"GPT-2's, as {dataset} is not prepared here"
    if vocab_size not in (0, found):
        raise ValueError(f'vocab_size={vocab_size}, but dataset {dataset!r} has {found}; leave out --vocab_size')
    return found, f'of {dataset}'


def make_random_data(folder):
    """A dataset of a million random ids in `folder`: what they are does not change the speed of a step."""
    dtype = 'uint16' if vocab_size <= 2**16 else 'uint32'
    ids = np.random.default_rng(seed).integers(vocab_size, size=max(2**20, 2 * block_size), dtype=dtype)
    for split in datasets.SPLITS:
        ids.tofile(os.path.join(folder, f'{split}.bin'))
    with open(os.path.join(folder, 'meta.json'), 'w', encoding='utf-8') as f:
        f.write(dumps({'tokenizer': 'char', 'vocab_size': vocab_size, 'chars': [*map(chr, range(vocab_size))],
                       'dtype': dtype}))


def set_up_training():
    """
    Execute train.py with these settings, up to its loop, and return its globals. Among them are the model and
    train_step(i), one iteration, which may return before the device is done.
    """
    path = os.path.join(root, 'train.py')
    own = {key: globals()[key] for key in train_defaults}
    own.update(init_from='scratch', eval_only=False, sample_prompts='')  # a new model, and nothing but its steps
    with tempfile.TemporaryDirectory() as folder:
        if not real_data:
            make_random_data(folder)
            own['dataset'] = folder
        train = {'__file__': path, '__name__': 'train'}  # under the name __main__ it would start to train
        with settings.command_line(sys.argv[0], *settings.words(own)), open(path, encoding='utf-8') as f:
            exec(builtins.compile(f.read(), path, 'exec'), train)
    return train


def measure_step():
    """What a training step takes: a dict of figures. None means unknown on this machine."""
    begin = time.perf_counter()
    train, numbers = set_up_training(), itertools.count()
    model = train['raw_model']

    def run(count, step=train['train_step']):
        for i in itertools.islice(numbers, count):
            step(i)

    run(2)
    synchronize(device)
    warmup_s = time.perf_counter() - begin
    seconds = roofline.seconds(lambda: run(1), device)
    count = max(1, min(100, round(1.5 / seconds)))  # steps in a window: a second or two
    stretches = tqdm(range(windows if seconds < 5 else min(windows, 3)), 'windows', disable=None, leave=False)
    all_ms = [1000 * roofline.seconds(lambda: run(count), device) / count for _ in stretches]
    memory = memory_gb(device)  # before the matmuls below allocate theirs
    on_cuda, compiled = device.startswith('cuda'), train['compiled_model'] is not model
    reserved = torch.cuda.max_memory_reserved(device) / 1e9 if on_cuda else None
    plan = planner.memory(model, optimizer, half=dtype != 'float32', dropout=dropout, batch_size=batch_size,
                          checkpointing=gradient_checkpointing, compiled=compiled)
    shares = roofline.shares(train, lambda step: run(count, step), device)
    ms, tokens = statistics.median(all_ms), gradient_accumulation_steps * batch_size * block_size
    flops = model.flops_per_token() * tokens / (ms / 1000)
    peak, reached = peak_flops(device, dtype), roofline.matmul_flops(device, dtype)
    same = ('n_layer', 'n_head', 'n_embd', 'vocab_size', 'dropout', 'bias', 'activation', 'modern', 'softcap',
            'optimizer', 'real_data', 'device', 'dtype', 'batch_size', 'block_size', 'gradient_accumulation_steps',
            'gradient_checkpointing')
    return dict(
        {key: globals()[key] for key in same}, torch=torch.__version__, compile=compiled,
        device_name=torch.cuda.get_device_name(device) if on_cuda else None,
        reserved_gb=reserved, planned_gb=sum(plan.values()) / planner.GB if on_cuda else None,
        parameters=model.get_num_params(), warmup_s=warmup_s, ms=ms, ms_lowest=min(all_ms), ms_highest=max(all_ms),
        tok_s=1000 * tokens / ms, tflops=flops / 1e12, mfu=peak and flops / peak, mfu_measured=flops / reached,
        matmul_tflops=reached / 1e12, memory_gb=memory, **{f'share_{part}': share for part, share in shares.items()})


def show_step():
    row = measure_step()
    if json:
        print(dumps(row), file=results)
        return
    print(f'model: {row["parameters"] / 1e6:.2f}M parameters, {vocab_size:,} ids in the vocabulary ({whose_ids})')
    print(f'step: {row["ms"]:.1f} ms ({row["ms_lowest"]:.1f} to {row["ms_highest"]:.1f}), {row["tok_s"]:,.0f} '
          f'tokens/s, after {row["warmup_s"]:.1f} s to set up{", compile" * row["compile"]} and warm up')
    peak = 'the peak of this device is not known' if row['mfu'] is None else f'{row["mfu"]:.1%} of its peak'
    print(f'{row["tflops"]:.3f} TFLOP/s: {row["mfu_measured"]:.1%} of what a matmul reaches here '
          f'({row["matmul_tflops"]:.3f}, {dtype}), {peak}')
    shares = {key.removeprefix('share_'): value for key, value in row.items() if key.startswith('share_')}
    print('of the time: ' + ', '.join(f'{part} {share:.0%}' for part, share in shares.items()))
    whose = '' if device.startswith('cuda') else ', of the whole process'
    most = f'{row["memory_gb"]:.2f} GB at most{whose}' if row['memory_gb'] else 'not counted on this device'
    most += f' (the plan says {row["planned_gb"]:.2f})' if row['planned_gb'] else ''
    print(f'memory: {most}')


def check_writable(path, remedy):
    """ValueError unless a file can be written: better now than after the measurements."""
    try:
        open(path, 'a').close()
    except OSError as error:
        raise ValueError(f'{path} cannot be written ({error.strerror}); {remedy}') from None


def profile_step():
    """The operators that take the time in three steps, as a table, and all of them in trace.json."""
    check_writable('trace.json', 'start bench.py in another folder')
    step, on_cuda = set_up_training()['train_step'], device.startswith('cuda')
    for i in range(3):
        step(i)
    with torch.profiler.profile() as profiler:
        for i in range(3, 6):
            step(i)
        synchronize(device)
    averages = profiler.key_averages()
    print(averages.table(sort_by='self_cuda_time_total' if on_cuda else 'self_cpu_time_total', row_limit=20,
                         max_name_column_width=60))
    profiler.export_chrome_trace('trace.json')
    print('the whole trace: trace.json, for ui.perfetto.dev')
    if on_cuda and torch.cuda.get_device_capability() == (7, 0):
        slow = readiness.without_tensor_cores([event.key for event in averages])
        if slow:
            print(f'note: matmuls without tensor cores: {", ".join(slow)}; see python bench.py --mode=check')


def run_sweep():
    """Many settings, and the best of them as a line for train.py."""
    if out:
        check_writable(out, 'name a file in a folder that exists, as in --out=sweep.jsonl')
    fast = ['bfloat16'] * native_bf16(device) + ['float16' if device.startswith('cuda') else 'float32']
    sizes = sweep_batch_size or sorted({max(1, batch_size * n // 4) for n in (1, 2, 4, 8, 16)})
    values = [sweep_dtype or fast, sweep_compile, sizes, sweep_gradient_checkpointing]
    for name in values[0]:
        resolve_dtype(name, device)  # ValueError for one that can never train here
    sequences = gradient_accumulation_steps * batch_size  # in an iteration of the run
    own = {key: globals()[key] for key in config_keys if globals()[key] != defaults[key] and not key.startswith('sweep')
           and key not in ('out', 'json', 'mode', 'profile', 'gradient_accumulation_steps', *sweeps.KEYS)}
    command = [sys.executable, os.path.abspath(__file__), '--json=True', *settings.words(own)]
    # as many sequences for each combination, but not more than take a few seconds
    rows = sweeps.run(command, values, min(sequences, max(sizes)), out)
    print('\n'.join(sweeps.table(rows)))
    if not rows or 'error' in rows[0]:
        sys.exit(1)
    if out:
        try:
            sweeps.draw(rows, os.path.splitext(out)[0] + '.png')
        except (ImportError, OSError) as error:
            print('no picture: ' + ('pip install matplotlib' if isinstance(error, ImportError) else str(error)))
    best = {**{key: value for key, value in own.items() if key in train_defaults},
            **{key: rows[0][key] for key in sweeps.KEYS},
            'gradient_accumulation_steps': max(1, sequences // rows[0]['batch_size'])}
    print('\n' + shlex.join(['python', 'train.py', *settings.words(best)]))


def show_plan():
    """What a run with these settings needs and may reach, on GPUs that need not be here."""
    with torch.device('meta'):
        model = make_model()
    card = planner.gpu_by_name(gpu, dtype)
    has_bf16 = 'V100' not in card.pattern and 'T4' not in card.pattern
    if dtype == 'bfloat16' and not has_bf16:
        print('no bfloat16 on such a card: the plan is for float16, which train.py uses there')
    half = 'bfloat16' if has_bf16 else 'float16'
    figures = planner.plan(model, card, half if dtype in ('auto', 'bfloat16') else dtype, globals(), gpus)
    if json:
        print(dumps({'gpu': gpu, **figures}), file=results)
        return
    what = f'the CPU here ({card.memory_gb:.0f} GB' if gpu == 'cpu' else f'{gpus} x {gpu} ({card.memory_gb:.0f} GB'
    peak = f'a matmul in {dtype} reaches {card.tflops:.3f}' if gpu == 'cpu' else f'{card.tflops:g}'
    print(f'{model.get_num_params() / 1e6:.2f}M parameters, {vocab_size:,} ids in the vocabulary ({whose_ids}), '
          f'{figures["tokens_per_iter"]:,} tokens an iteration\n{what}, {peak} TFLOP/s). '
          + ('Derived from that matmul.\n' if gpu == 'cpu' else 'Derived, not measured.\n'))
    print('\n'.join([*planner.memory_lines(figures), '', *planner.time_lines(figures)]))


def show_matmul():
    """The roofline: matmul in each precision, and reading memory."""
    row = {}
    for name in ('float32', 'bfloat16', 'float16'):
        row[name] = roofline.matmul_flops(device, name) / 1e12
        print(f'matmul in {name:11} {row[name]:10.3f} TFLOP/s')
    card = find_gpu(device) if device.startswith('cuda') else None
    of_peak = f' of {card.bandwidth:g}' if card else ''
    row['read_gb_s'] = roofline.read_bytes_per_second(device) / 1e9
    print(f'reading memory       {row["read_gb_s"]:12.1f} GB/s{of_peak}')
    if json:
        print(dumps(row), file=results)


def show_readiness():
    rows = readiness.check(os.getcwd())
    print('\n'.join(readiness.lines(rows)))
    if any(row.state == readiness.ERROR for row in rows):
        sys.exit(1)


def show_decoding():
    """How fast text is generated, by us and by others with the same weights."""
    def new_model():  # as all others have it
        return make_model() if modern else make_model(bias=True, activation='gelu_tanh', softcap=0.0)

    sizes, ways = (prompt_tokens, max_new_tokens, decoding.TOP_K), {}
    if not modern and {'bias', 'activation'} & config_given:
        print('bias and activation are those that all libraries have: biases, gelu_tanh')
    for batch, precision in itertools.product(batch_sizes, decoding.BYTES):
        ways[f'{precision}, batch {batch}'] = decoding.ours(new_model(), precision, batch, sizes, device)
        if compile_step:
            ways[f'{precision}, batch {batch}, compiled'] = decoding.ours(new_model(), precision, batch, sizes, device,
                                                                          compiled=True)
    if uncached:
        ways[f'float32, batch {batch_sizes[0]}, without the cache'] = decoding.ours(
            new_model(), 'float32', batch_sizes[0], sizes, device, use_cache=False)
    if not modern and prompt_tokens + max_new_tokens <= block_size:
        names = ['Hugging Face'] * use_huggingface + ['llama.cpp', 'CTranslate2'] * use_others
        code = ('import torch\nfrom model import GPT, GPTConfig\ndef make_model(config):\n'
                f'    torch.manual_seed({seed})\n    return GPT(GPTConfig(**config)).eval()')
        ways.update(peers.ways(names, code, [asdict(new_model().config)], sizes, device))
    print(f'{prompt_tokens} + {max_new_tokens} tokens, top_k {decoding.TOP_K}, by a new model of {n_layer} layers, '
          f'{n_embd} wide, on {device}: {len(ways)} ways in turn, medians of {rounds}')
    speeds, last_by_first, bandwidth = decoding.measure(ways, max_new_tokens, rounds, device)
    figures = decoding.figures(speeds, last_by_first)
    weights = sum(p.numel() for name, p in new_model().named_parameters() if p.dim() == 2 and 'wpe' not in name)
    if modern:
        weights -= vocab_size * n_embd  # the embedding, which is not the output layer: a row of it is read
    print('\n'.join(decoding.table(figures, speeds, weights, bandwidth)))
    if json:
        print(dumps(figures), file=results)


def measure_claims():
    """What this project claims, measured here; or only the list, or the table of what was measured."""
    path, chosen = out or 'claims.jsonl', ledger.chosen(claims.CLAIMS, only)
    if table:
        lines = claims_table.read(path)
        if not lines:
            raise ValueError(f'{path} has no measurements to make a table of; add --out=docs/claims.jsonl')
        claims_table.update_document(claims.CLAIMS, lines, table)
        print(f'{table}: the table of {len(lines)} measurements in {path}')
        return
    with ledger.workplace(root, device, input) as bench:
        here = ledger.machine(device)
        if list:
            print('\n'.join(ledger.listing(chosen, here, bench, claims_table.read(path))))
            return
        check_writable(path, 'name a file in a folder that exists, as in --out=claims.jsonl')
        if not ledger.run(claims.CLAIMS, chosen, bench, here, minutes, path):
            sys.exit(1)


MODES = {'step': run_sweep if sweep else profile_step if profile else show_step, 'plan': show_plan,
         'matmul': show_matmul, 'sample': show_decoding, 'check': show_readiness, 'claims': measure_claims}

CLAIMS_TAKE = {'mode', 'minutes', 'only', 'list', 'input', 'table', 'out', 'device'}


def not_for_claims():
    """What --mode=claims does not take, as it was typed: config files and settings."""
    typed = [word.removeprefix('--').partition('=')[0] for word in sys.argv[1:]]
    return ', '.join(word for word in typed if word.endswith('.py') or word in config_given - CLAIMS_TAKE)


def contradictions():
    """(when, why) for each thing that cannot be measured."""
    return [
        (mode not in MODES, f'mode={mode!r} is not one of {", ".join(MODES)}'),
        (world_size() > 1, 'it measures one process: leave out torchrun, or unset RANK WORLD_SIZE LOCAL_RANK'),
        (json and (mode not in ('step', 'plan', 'matmul', 'sample') or profile or sweep),
         'json goes with a step, with mode=plan, matmul and sample; a sweep and mode=claims have out'),
        (mode == 'claims' and config_given - CLAIMS_TAKE,
         f'mode=claims has its own settings for everything; leave out {not_for_claims()}'),
        (mode == 'claims' and minutes <= 0, f'{minutes=} is not above 0'),
        (mode == 'claims' and out and not out.endswith('.jsonl'),
         f'{out=} is for the figures, and the table goes into a .md beside it; try --out=claims.jsonl'),
        (mode == 'claims' and device not in ('auto', 'cpu', 'cuda'),
         f'{device=}: another GPU is chosen by CUDA_VISIBLE_DEVICES=1 before the command'),
        (mode != 'claims' and config_given & {'minutes', 'only', 'list', 'input', 'table'},
         'minutes, only, list, input and table are for --mode=claims'),
        (mode != 'step' and (profile or sweep), f'profile and sweep go with mode=step, not with mode={mode}'),
        (mode != 'plan' and (gpu, gpus) != (defaults['gpu'], defaults['gpus']),
         'gpu and gpus are for --mode=plan; everything else is measured on --device'),
        *((globals()[key] < 1, f'{key}={globals()[key]} is below 1')
          for key in ('rounds', 'windows', 'max_new_tokens', 'prompt_tokens', 'gpus')),
        (fsdp and mode != 'plan', 'fsdp=True splits a model over several GPUs, and this measures one; leave it out, or '
                                  'make a plan with --mode=plan --gpus=8'),
        (gpu == 'cpu' and gpus > 1, f'gpu=cpu is this machine, not one of gpus={gpus}; leave out --gpus'),
        (fsdp and gpus == 1, 'fsdp=True splits a model over several GPUs; say how many, as in --gpus=8'),
        (mode == 'step' and vocab_size > sys.maxunicode, f'vocab_size={vocab_size} is above {sys.maxunicode}'),
        (mode == 'plan' and dtype not in ('auto', 'float32', 'bfloat16', 'float16'),
         f'dtype={dtype!r} is not one of auto, float32, bfloat16, float16'),
        (mode == 'sample' and prompt_tokens > block_size, f'{prompt_tokens=} is more than {block_size=}'),
        (not batch_sizes or not all(isinstance(batch, int) and batch > 0 for batch in batch_sizes),
         f'batch_sizes={batch_sizes} must be numbers from 1 up, as in [1, 4]'),
        (sweep and not (sweep_compile and sweep_gradient_checkpointing),
         'a list of the sweep is empty: each needs at least one value'),
        *((not all(isinstance(value, bool) for value in globals()[key]),
           f'{key}={globals()[key]} must be a list of True and False')
          for key in ('sweep_compile', 'sweep_gradient_checkpointing')),
        (not all(type(size) is int and 0 < size <= settings.LARGEST['batch_size'] for size in sweep_batch_size),
         f'sweep_batch_size={sweep_batch_size} must be numbers from 1 up, as in [4, 8]'),
        (sweep and out.endswith('.png'), f'out={out!r} is where the picture goes; name a file for the figures, as in '
                                         '--out=sweep.jsonl')]


try:
    with console.exit_on_error():
        for given, reason in contradictions():
            if given:
                raise ValueError(reason)
        vocab_size, whose_ids = find_vocab_size()
        if mode == 'plan':
            if not gradient_accumulation_steps:
                gradient_accumulation_steps = -(-train_defaults['gradient_accumulation_steps'] // gpus) * gpus
            settings.check(globals(), gpus)
            if gpu == 'cpu':
                dtype = resolve_dtype(dtype, 'cpu')
        elif mode != 'check':  # which reports what is wrong instead of stopping at it
            gradient_accumulation_steps = gradient_accumulation_steps or 1
            settings.check(globals(), 1)
            device = resolve_device(device)
            dtype = resolve_dtype(dtype, device, training=mode == 'step')
            explain_out_of_memory(batch_size, gradient_accumulation_steps, gradient_checkpointing)
        MODES[mode]()
except KeyboardInterrupt:
    kept = out or 'claims.jsonl'
    print('stopped' + f'; {kept} has what is done, the same command goes on' * (mode == 'claims' and
                                                                                os.path.isfile(kept)), file=sys.stderr)
    sys.exit(130)  # what a shell expects after Ctrl-C
