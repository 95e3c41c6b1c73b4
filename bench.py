"""
How fast this machine trains and writes, with the real code, and what would fit elsewhere.

python bench.py                                     # the training step of GPT-2 124M
python bench.py config/train_shakespeare_char.py    # of any config; every setting of train.py is one here too
python bench.py --sweep=True                        # dtype x compile x batch_size x checkpointing, in one table
python bench.py --profile=True                      # the operators that take the time, and trace.json
python bench.py config/train_gpt2.py --mode=plan --gpu=v100-16gb --gpus=8    # memory, speed, days; needs no GPU
python bench.py --mode=matmul                       # products and memory alone: what could be reached
python bench.py --mode=sample                       # tokens a second, beside Hugging Face's generate()
python bench.py --mode=check                        # is this machine ready to train?
"""
import os

from common import settings

# -----------------------------------------------------------------------------
mode = 'step'          # step, plan, matmul, sample, check
json = False           # one JSON object with what was measured, for programs
# step
vocab_size = 0         # of the model; 0: the dataset's, or GPT-2's 50304 if that is not prepared here
real_data = False      # batches from the dataset, as in training; False: random ids, always the same
gradient_accumulation_steps = 0  # 0: one, as 40 micro-batches take long and tell no more; in a plan train.py's
windows = 7            # stretches of steps that are timed, 3 where a step takes long; the device is waited for between
profile = False        # torch.profiler over three steps: a table, and trace.json for ui.perfetto.dev
sweep = False          # each combination of the next four, in a process of its own
sweep_dtype = []       # [] stands for those that the device is fast in
sweep_compile = [False, True]
sweep_batch_size = []  # [] stands for a quarter, half, once, twice and four times batch_size
sweep_gradient_checkpointing = [False, True]
out = ''               # of a sweep: FILE.jsonl, a line for each combination, and FILE.png, their curves
# plan
gpu = 'auto'           # v100-16gb, v100-32gb, a100-40gb, h100, ...; auto: the one here
gpus = 1               # of them; with --fsdp=True they share weights, gradients and moments
# sample
prompt_tokens = 16
max_new_tokens = 128
batch_sizes = [1, 4]   # texts at a time; the uncached loop and Hugging Face have the first alone
top_k = 200
rounds = 3             # each takes all in turn, as machines change their speed; medians are shown
use_huggingface = True  # its generate() with its cache too, where transformers is installed; within block_size
uncached = True        # the loop that computes the whole context for each token too
compile_step = False   # each once more, with the step compiled
# -----------------------------------------------------------------------------
root = os.path.dirname(os.path.abspath(__file__))
# every setting of train.py is one here too, so that its command lines and config files work
train_defaults = settings.read(os.path.join(root, 'train.py'))
globals().update({**train_defaults, 'gradient_accumulation_steps': gradient_accumulation_steps})
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
config_keys.remove('root')
defaults = {k: globals()[k] for k in config_keys}
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import builtins
import itertools
import shlex
import statistics
import sys
import tempfile
import time
from json import dumps

import numpy as np
import torch
from tqdm import tqdm

from common import console, dataset as bins, tokenizer, weights
from common.benchmark import decoding, planner, readiness, roofline, sweep as sweeps
from common.device import (explain_out_of_memory, find_gpu, memory_gb, native_bf16, peak_flops, resolve_device,
                           resolve_dtype, synchronize)
from common.distributed import world_size
from model import GPT, GPTConfig

results = sys.stdout
if json:
    sys.stdout = sys.stderr  # for messages along the way
if init_from in weights.OPENAI:
    n_layer, n_head, n_embd, bias = *weights.OPENAI[init_from], True
elif init_from not in ('scratch', 'auto', 'resume'):
    print(f'init_from={init_from!r} is not looked at: the model is that of n_layer and the like', file=sys.stderr)


def make_model(bias=bias):
    """A new model of the shape in the settings."""
    torch.manual_seed(seed)
    return GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias, activation, modern))


def find_vocab_size():
    """The vocabulary size of the model, and where it comes from."""
    if vocab_size and not real_data:
        return vocab_size, 'as said'
    try:
        found = tokenizer.padded_vocab_size(bins.read_meta(bins.find(root, dataset)))
    except (ValueError, OSError):
        if real_data:
            raise
        return 50304, f"GPT-2's, as {dataset} is not prepared here"
    if vocab_size not in (0, found):
        raise ValueError(f'vocab_size={vocab_size}, but real_data of {dataset} has {found}; leave it out')
    return found, f'of {dataset}'


def make_random_data(folder):
    """A dataset of a million random ids in `folder`: what they are does not change the speed of a step."""
    dtype = 'uint16' if vocab_size <= 2**16 else 'uint32'
    ids = np.random.default_rng(seed).integers(vocab_size, size=max(2**20, 2 * block_size), dtype=dtype)
    for split in bins.SPLITS:
        ids.tofile(os.path.join(folder, f'{split}.bin'))
    with open(os.path.join(folder, 'meta.json'), 'w', encoding='utf-8') as f:
        f.write(dumps({'tokenizer': 'char', 'vocab_size': vocab_size, 'dtype': dtype}))


def set_up_training():
    """
    train.py with these settings as a namespace, a dict: it is executed, with all its set-up, but without its loop.
    train_step(i) in it is one iteration; when it returns, the device may still be at work.
    """
    path, own = os.path.join(root, 'train.py'), {key: globals()[key] for key in train_defaults}
    with tempfile.TemporaryDirectory() as folder:
        if not real_data:
            make_random_data(folder)
            own['dataset'] = folder
        own.update(init_from='scratch', eval_only=False, sample_prompts='')
        with open(path, encoding='utf-8') as f, settings.command_line(sys.argv[0], *settings.words(own)):
            namespace = {'__file__': path, '__name__': 'train'}
            exec(builtins.compile(f.read(), path, 'exec'), namespace)
    return namespace


def measure_shares(train, run):
    """The shares of the time that the parts of train_step() take, when run() calls it a few times."""
    clock = roofline.Clock(device)
    model, unscale, step = train['model'], train['scaler'].unscale_, train['train_step']

    def forward(*batch):
        clock.mark('data' if clock.marks[-1][0] == 'begin' else 'backward')  # ends here
        result = model(*batch)
        clock.mark('forward')
        return result

    def unscale_(optimizer):
        clock.mark('backward')
        unscale(optimizer)

    def marked_step(i):
        clock.mark('begin')
        step(i)
        clock.mark('optimizer')

    train['model'], train['scaler'].unscale_ = forward, unscale_
    run(marked_step)
    return clock.shares()


def measure_step():
    """What a training step takes: a dict of figures. None means unknown on this machine."""
    begin = time.perf_counter()
    train, numbers = set_up_training(), itertools.count()
    model, train_step = train['raw_model'], train['train_step']

    def run(count, step=train_step):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(count):
            step(next(numbers))
        synchronize(device)
        return time.perf_counter() - begin

    run(2)
    warmup_s = time.perf_counter() - begin
    seconds = run(1)
    count = max(1, min(100, round(1.5 / seconds)))  # steps in a window: a second or two
    stretches = windows if seconds < 5 else min(windows, 3)
    ms = [1000 * run(count) / count for _ in tqdm(range(stretches), 'windows', disable=None, leave=False)]
    memory = memory_gb(device)  # before the matmuls below allocate theirs
    shares = measure_shares(train, lambda step: run(count, step))
    tokens = gradient_accumulation_steps * batch_size * block_size
    flops = model.flops_per_token() * tokens / (statistics.median(ms) / 1000)
    peak, reached = peak_flops(device, dtype), roofline.matmul_flops(device, dtype)
    same = ('n_layer', 'n_head', 'n_embd', 'vocab_size', 'dropout', 'bias', 'activation', 'modern', 'optimizer',
            'real_data', 'device', 'dtype', 'batch_size', 'block_size', 'gradient_accumulation_steps',
            'gradient_checkpointing')
    return dict(
        {key: globals()[key] for key in same}, torch=torch.__version__, compile=train['compiled_model'] is not model,
        device_name=torch.cuda.get_device_name(device) if device.startswith('cuda') else None,
        parameters=model.get_num_params(), warmup_s=warmup_s, ms=statistics.median(ms), ms_lowest=min(ms),
        ms_highest=max(ms), tok_s=1000 * tokens / statistics.median(ms), tflops=flops / 1e12,
        mfu=peak and flops / peak, mfu_measured=flops / reached, matmul_tflops=reached / 1e12, memory_gb=memory,
        **{f'share_{part}': share for part, share in shares.items()})


def step_lines(row):
    """measure_step() for people."""
    yield f'model: {row["parameters"] / 1e6:.2f}M parameters, {vocab_size:,} ids in the vocabulary ({whose_ids})'
    yield (f'step: {row["ms"]:.1f} ms ({row["ms_lowest"]:.1f} to {row["ms_highest"]:.1f}), {row["tok_s"]:,.0f} '
           f'tokens/s, after {row["warmup_s"]:.1f} s to compile and warm up')
    peak = 'the peak of this device is not known' if row['mfu'] is None else f'{row["mfu"]:.1%} of its peak'
    yield (f'{row["tflops"]:.3f} TFLOP/s: {row["mfu_measured"]:.1%} of what products alone reach here '
           f'({row["matmul_tflops"]:.3f}, {dtype}), {peak}')
    shares = {key.removeprefix('share_'): value for key, value in row.items() if key.startswith('share_')}
    yield 'of the time: ' + ', '.join(f'{part} {share:.0%}' for part, share in shares.items())
    whose = '' if row['device'].startswith('cuda') else ', of the whole process'
    most = f'{row["memory_gb"]:.2f} GB at most{whose}' if row['memory_gb'] else 'not counted on this device'
    yield f'memory: {most}'


def profile_step():
    """The operators that take the time in three steps, as a table, and all of them in trace.json."""
    from torch.profiler import ProfilerActivity
    step = set_up_training()['train_step']
    for i in range(3):
        step(i)
    on_cuda = device.startswith('cuda')
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with torch.profiler.profile(activities=activities) as profiler:
        for i in range(3):
            step(3 + i)
        synchronize(device)
    averages = profiler.key_averages()
    print(averages.table(sort_by='self_cuda_time_total' if on_cuda else 'self_cpu_time_total', row_limit=20,
                         max_name_column_width=60))
    profiler.export_chrome_trace('trace.json')
    print('all of it: trace.json, for ui.perfetto.dev')
    if on_cuda and torch.cuda.get_device_capability() == (7, 0):
        slow = readiness.without_tensor_cores([event.key for event in averages])
        if slow:
            print(f'note: products without tensor cores: {", ".join(slow)}; see python bench.py --mode=check')


def run_sweep():
    """Many settings, and the best of them as a line for train.py."""
    native = ['bfloat16', 'float16' if device.startswith('cuda') else 'float32']
    sizes = sweep_batch_size or sorted({max(1, batch_size * n // 4) for n in (1, 2, 4, 8, 16)})
    values = [sweep_dtype or [name for name in native if name != 'bfloat16' or native_bf16(device)],
              sweep_compile, sizes, sweep_gradient_checkpointing]
    if not all(values):
        raise ValueError('a list of the sweep is empty: each must name something')
    if os.path.dirname(out) and not os.path.isdir(os.path.dirname(out)):
        raise ValueError(f'out={out!r} is in a folder that is not there')
    sequences = gradient_accumulation_steps * batch_size  # in an iteration of the run
    given = {key: globals()[key] for key in config_keys if globals()[key] != defaults[key]}
    own = {key: value for key, value in given.items() if not key.startswith('sweep')
           and key not in ('out', 'json', 'mode', 'profile', 'gradient_accumulation_steps', *sweeps.KEYS)}
    command = [sys.executable, os.path.abspath(__file__), '--json=True', *settings.words(own)]
    # all combinations work on as many sequences, but not on more than take a few seconds
    rows = sweeps.run(command, values, min(sequences, max(sizes)), out)
    print('\n'.join(sweeps.table(rows)))
    if not rows or 'error' in rows[0]:
        sys.exit(1)
    if out:
        try:
            sweeps.draw(rows, os.path.splitext(out)[0] + '.png')
        except ImportError:
            print('no picture: pip install matplotlib')
    best = {**{key: value for key, value in own.items() if key in train_defaults},
            **{key: rows[0][key] for key in sweeps.KEYS},
            'gradient_accumulation_steps': max(1, sequences // rows[0]['batch_size'])}
    print('\n' + shlex.join(['python', 'train.py', *settings.words(best)]))


def show_plan():
    """What a run with these settings needs and may reach, on GPUs that need not be here."""
    with torch.device('meta'):
        model = make_model()
    card = planner.find_gpu(gpu)
    if dtype == 'bfloat16' and gpu.startswith(('v100', 't4')):
        print('no bfloat16 on such a card: float16 is planned, which train.py takes there')
    options = dict(model=model, optimizer=optimizer, half=dtype != 'float32', dropout=dropout, gpus=gpus, fsdp=fsdp)
    tokens = gradient_accumulation_steps * batch_size * block_size
    print(f'{model.get_num_params() / 1e6:.2f}M parameters, {vocab_size:,} ids in the vocabulary ({whose_ids}), '
          f'{tokens:,} tokens an iteration\n{gpus} x {gpu} ({card.memory_gb:.0f} GB, {card.tflops:g} TFLOP/s). '
          'Derived, not measured.\n')
    print('\n'.join(planner.memory_lines(card, batch_size, options)))
    print()
    print('\n'.join(planner.time_lines(card, max_iters * tokens, options, globals())))


def show_matmul():
    """The roofline: products in each precision, and reading memory."""
    for name in ('float32', 'bfloat16', 'float16'):
        print(f'products in {name:9} {roofline.matmul_flops(device, name) / 1e12:10.3f} TFLOP/s')
    gpu_here = find_gpu(device) if device.startswith('cuda') else None
    of_peak = f' of {gpu_here.bandwidth:g}' if gpu_here else ''
    print(f'reading memory       {roofline.read_bytes_per_second(device) / 1e9:12.1f} GB/s{of_peak}')


def show_readiness():
    rows = readiness.check(os.getcwd())
    print('\n'.join(readiness.lines(rows)))
    sys.exit(1 if any(row.state == readiness.ERROR for row in rows) else 0)


def show_decoding():
    """Each way to write texts, in turn."""
    sizes, first, ways = (prompt_tokens, max_new_tokens, top_k), batch_sizes[0], {}
    for batch, name in itertools.product(batch_sizes, (*decoding.DTYPES, 'int8')):
        # with biases, as Hugging Face's GPT-2 always has them
        ways[f'{name}, batch {batch}'] = decoding.ours(make_model(bias=True), name, batch, sizes, device)
        if compile_step:
            ways[f'{name}, batch {batch}, compiled'] = decoding.ours(make_model(bias=True), name, batch, sizes, device,
                                                                     compiled=True)
    if uncached:
        ways[f'float32, batch {first}, without the cache'] = decoding.ours(make_model(bias=True), 'float32', first,
                                                                           sizes, device, use_cache=False)
    if use_huggingface and not modern and prompt_tokens + max_new_tokens <= block_size:
        try:
            for name in decoding.DTYPES:
                ways[f'Hugging Face, {name}, batch 1'] = decoding.theirs(make_model().config, name, sizes, device)
        except ImportError:
            print("transformers is not installed: Hugging Face's generate is left out")
    print(f'{prompt_tokens} + {max_new_tokens} tokens, top_k {top_k}, by a new model of {n_layer} layers, {n_embd} '
          f'wide, on {device}: {len(ways)} ways in turn, medians of {rounds}', flush=True)
    speeds, bandwidth = decoding.measure(ways, max_new_tokens, rounds, device)
    print('\n'.join(decoding.table(ways, speeds, bandwidth)))
    if json:
        print(dumps({way: statistics.median(values) for way, values in speeds.items()}), file=results)


def show_training_step():
    if sweep:
        run_sweep()
    elif profile:
        profile_step()
    else:
        row = measure_step()
        print(dumps(row) if json else '\n'.join(step_lines(row)), file=results)


MODES = {'step': show_training_step, 'plan': show_plan, 'matmul': show_matmul, 'sample': show_decoding,
         'check': show_readiness}
try:
    if mode not in MODES:
        raise ValueError(f'mode={mode!r} is not one of {", ".join(MODES)}')
    if world_size() > 1:
        raise ValueError('it measures one process: leave out torchrun')
    if json and (mode in ('plan', 'matmul', 'check') or profile or sweep):
        raise ValueError('json goes with a step and with mode=sample; a sweep has out')
    if mode != 'step' and (profile or sweep):
        raise ValueError(f'profile and sweep go with mode=step, not with mode={mode}')
    if mode != 'plan' and (gpu, gpus) != (defaults['gpu'], defaults['gpus']):
        raise ValueError('gpu and gpus are for --mode=plan; everything else is measured on --device')
    for key in ('rounds', 'windows', 'max_new_tokens', 'prompt_tokens', 'gpus'):
        if globals()[key] < 1:
            raise ValueError(f'{key}={globals()[key]} is below 1')
    if mode == 'sample' and prompt_tokens > block_size:
        raise ValueError(f'{prompt_tokens=} is more than {block_size=}')
    if not batch_sizes or not all(isinstance(batch, int) and batch > 0 for batch in batch_sizes):
        raise ValueError(f'batch_sizes={batch_sizes} must be numbers from 1 up, as in [1, 4]')
    vocab_size, whose_ids = find_vocab_size()
    if mode == 'plan':
        if fsdp and gpus == 1:
            raise ValueError('fsdp=True splits a model over several GPUs; say how many, as in --gpus=8')
        if dtype not in ('auto', 'float32', 'bfloat16', 'float16'):
            raise ValueError(f'dtype={dtype!r} is not one of auto, float32, bfloat16, float16')
        if not gradient_accumulation_steps:
            gradient_accumulation_steps = -(-train_defaults['gradient_accumulation_steps'] // gpus) * gpus
        settings.check(globals(), gpus)
        dtype = 'float16' if dtype == 'auto' else dtype  # or bfloat16: the same memory
    elif mode != 'check':  # which finds out what is wrong, and does not end with that
        gradient_accumulation_steps = gradient_accumulation_steps or 1
        settings.check(globals(), 1)
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device, training=mode == 'step')
        explain_out_of_memory(batch_size, gradient_accumulation_steps, gradient_checkpointing)
    with torch.device('meta'):
        make_model()  # settings that make no model show here
    MODES[mode]()
except (ValueError, OSError) as error:
    console.stop(error)
except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    sys.exit(130)  # what a shell expects after Ctrl-C
