"""
Every claim of this project with the command behind it: how the command is run, and how the figure is read out of what
it prints or writes. ledger.py runs them and keeps what they gave.
"""
import re
import shlex
import statistics
from collections import Counter
from functools import partial

from common.benchmark import probes
from common.benchmark.claims_table import json_lines
from common.benchmark.ledger import Claim, Failed

FAST = 'python train.py config/train_shakespeare_char_fast.py'
CLASSIC = 'python train.py config/train_shakespeare_char.py'


def probe(function, *arguments):
    """The command that runs a function of probes.py."""
    call = f'{function.__name__}({", ".join(map(repr, arguments))})'
    return f'python -c {shlex.quote(f"from common.benchmark import probes; probes.{call}")}'


def check(bench, command):
    out, _ = bench.run(command, codes=(0, 1))
    counts = Counter(re.findall(r'^(ok|warning|error) ', out, re.MULTILINE))
    if not counts:
        raise Failed('it said nothing that could be counted')
    wrong = re.findall(r'^(?:warning|error) +(\S.*)$', out, re.MULTILINE)
    remarks = ''.join(f'; {" ".join(line.split())}' for line in wrong)
    return dict(counts), ', '.join(f'{count} {state}' for state, count in counts.items()) + remarks, ''


def roofline(bench, command):
    row = bench.json(command, '--json=True')
    kinds = 'float32', 'bfloat16', 'float16'
    return ({key: row[key] for key in (*kinds, 'read_gb_s')},
            ', '.join(f'{kind} {row[kind]:.3g}' for kind in kinds) + f' TFLOP/s; {row["read_gb_s"]:,.0f} GB/s', '')


def attention(bench, command):
    row = bench.json(command)
    groups = [f'heads of {channels} channels: ' + ', '.join(
        f'{kind} {row[f"{kind}_{channels}"]:.2f} ms' for kind in ('cudnn', 'flash', 'efficient')
        if row[f'{kind}_{channels}'] is not None) for channels in (64, 128)]
    return row, '; '.join(groups) + f' ({row["dtype"]})', ''


def host_syncs(bench, command):
    row = bench.json(command, f'--dataset={bench.dataset("source")}')
    return row, f'{row["syncs"]} in {row["steps"]} steps' + ''.join(f', {place}' for place in row['places']), ''


def speed(row):
    return f'{row["tok_s"]:,.0f} tokens/s ({row["ms"]:.1f} ms' + (f', MFU {row["mfu"]:.0%})' if row['mfu'] else ')')


def step(bench, command):
    """Eager and compiled, one after the other."""
    figure, texts, spreads = {}, [], []
    for way in ('eager', 'compiled'):
        row = bench.json(command, '--json=True', '--windows=3', f'--compile={way == "compiled"}')
        if row['compile'] != (way == 'compiled'):
            texts.append('not compiled: not possible here')
            continue
        figure.update({f'{way}_{key}': row[key] for key in ('tok_s', 'ms', 'mfu', 'mfu_measured', 'memory_gb',
                                                            'planned_gb', 'warmup_s')})
        memory = f', {row["memory_gb"]:.2f} GB (planned {row["planned_gb"]:.2f})' if row['planned_gb'] else ''
        texts.append(f'{way} {speed(row)}{memory}')
        spreads.append(f'{row["ms_lowest"]:.1f} to {row["ms_highest"]:.1f} ms')
    return figure, '; '.join(texts), ' and '.join(spreads)


def precisions(bench, command):
    """float32 and bfloat16, in turn."""
    rows = {dtype: bench.json(command, '--json=True', '--compile=False', '--windows=5', f'--dtype={dtype}')
            for dtype in ('float32', 'bfloat16')}
    figure = {f'{dtype}_{key}': row[key] for dtype, row in rows.items() for key in ('tok_s', 'ms')}
    return (figure, ', '.join(f'{dtype} {speed(row)}' for dtype, row in rows.items()),
            ' and '.join(f'{row["ms_lowest"]:.1f} to {row["ms_highest"]:.1f} ms' for row in rows.values()))


def expandable_segments(bench, command):
    figure, texts = {}, []
    for way in (False, True):
        row = bench.json(command, '--json=True', '--windows=3', PYTORCH_ALLOC_CONF=f'expandable_segments:{way}')
        figure.update({f'{key}_{way}'.lower(): row[key] for key in ('tok_s', 'memory_gb', 'reserved_gb')})
        texts.append(f'{"with" if way else "without"} {speed(row)}, {row["reserved_gb"]:.2f} GB reserved for '
                     f'{row["memory_gb"]:.2f}')
    return figure, '; '.join(texts), ''


def sweep(bench, command):
    bench.run(command, '--out=sweep.jsonl')
    rows = [row for row in json_lines(f'{bench.work}/sweep.jsonl') if 'error' not in row]
    best = max(rows, key=lambda row: row['tok_s'])
    return ({f'{row["dtype"]}_{row["batch_size"]}_tok_s': row['tok_s'] for row in rows},
            f'batch_size {best["batch_size"]}, {best["dtype"]}: {speed(best)}, {best["memory_gb"]:.1f} GB',
            ', '.join(f'{row["batch_size"]}: {row["tok_s"]:,.0f}' for row in rows))


def best_line(evaluations):
    return min(evaluations, key=lambda line: line['val_loss'])


def best(evaluations):
    return best_line(evaluations)['val_loss']


def time_to(loss, evaluations):
    """Seconds of training until the validation loss is `loss`, on a straight line between evaluations; None: never."""
    for before, after in zip(evaluations, evaluations[1:]):
        if after['val_loss'] <= loss:
            share = (before['val_loss'] - loss) / (before['val_loss'] - after['val_loss'])
            return before['train_s'] + share * (after['train_s'] - before['train_s'])
    return None


def listed(numbers, digits, unit=''):
    """Numbers with their unit: once, behind the last, or behind each if one of them is None, for never."""
    if None not in numbers:
        return ', '.join(f'{number:.{digits}f}' for number in numbers) + unit
    return ', '.join('never' if number is None else f'{number:.{digits}f}{unit}' for number in numbers)


def span(numbers, unit=''):
    return f'{min(numbers):.3g} to {max(numbers):.3g}{unit}' if len(numbers) > 1 else ''


def quickstart(bench, command):
    _, evaluations, end = bench.train(command, f'--dataset={bench.dataset("pydoc_char")}')
    line = best_line(evaluations)
    return ({'val_loss': line['val_loss'], 'train_s': end['train_s'], 'bits_per_byte': line['bits_per_byte']},
            f'val loss {line["val_loss"]:.4f}, {line["bits_per_byte"]:.3f} bits per byte, after '
            f'{end["train_s"]:.0f} s', '')


def shakespeare(bench, command, seeds=(1337, 1, 2), target=None):
    """
    Two commands in turn, the classic and the fast recipe, for each seed: best losses, seconds of training in all, and
    to `target` or, if it is None, to the last loss of the classic run. Their ratio is that of the seconds to `target`
    or, if it is None, in all.
    """
    data, rows = f'--dataset={bench.dataset("shakespeare_char")}', []
    for seed in seeds:
        runs = {name: bench.train(one, data, f'--seed={seed}', name=f'{name}-{seed}')
                for name, one in zip(('classic', 'fast'), command.split('; '))}
        loss = runs['classic'][1][-1]['val_loss'] if target is None else target
        rows.append({f'{name}_{key}': value for name, (_, evaluations, end) in runs.items() for key, value in (
            ('loss', best(evaluations)), ('s', end['train_s']), ('s_to_target', time_to(loss, evaluations)))})
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    goal = f'{target}' if target else "the classic run's last loss"
    texts = []
    for name in ('classic', 'fast'):
        text = f'{name} {listed(columns[f"{name}_loss"], 4)} in {listed(columns[f"{name}_s"], 1, " s")}'
        if target or name == 'fast':
            text += f', to {goal} in {listed(columns[f"{name}_s_to_target"], 1, " s")}'
        texts.append(text.replace(' in never', ' never'))
    kind = 's_to_target' if target else 's'
    ratios = [row[f'classic_{kind}'] / row[f'fast_{kind}'] if row[f'classic_{kind}'] and row[f'fast_{kind}'] else None
              for row in rows]
    if None not in ratios:
        texts.append(f'1/{statistics.median(ratios):.1f} of the time {"to it" if target else "in all"}')
    known = [ratio for ratio in ratios if ratio]
    return {**columns, 'ratios': ratios}, '; '.join(texts), ', '.join(f'1/{ratio:.1f}' for ratio in known) * (
        len(known) > 1)


def longer(bench, command, seeds=(1337,)):
    data, runs = f'--dataset={bench.dataset("shakespeare_char")}', []
    for seed in seeds:
        runs.append(bench.train(command, data, f'--seed={seed}', name=f'run-{seed}'))
    losses, seconds = [best(run[1]) for run in runs], [run[2]['train_s'] for run in runs]
    return ({'val_loss': losses, 'train_s': seconds},
            f'best val loss {listed(losses, 4)}; {listed(seconds, 1, " s")} in all', '')


def gpt2_fast(bench, command):
    steps, evaluations, end = bench.train(command, f'--dataset={bench.dataset("source")}')
    tok_s = statistics.median(line['tok_s'] for line in steps[len(steps) // 2:])
    return ({'val_loss': evaluations[-1]['val_loss'], 'train_s': end['train_s'], 'tok_s': tok_s,
             'tokens': evaluations[-1]['tokens'], 'memory_gb': steps[-1]['mem_gb']},
            f'val loss {evaluations[-1]["val_loss"]:.4f} after {evaluations[-1]["tokens"] / 1e6:.1f}M tokens, '
            f'{end["train_s"]:.0f} s; {tok_s:,.0f} tokens/s', '')


def float16(bench, command):
    """The same run in both precisions, in turn."""
    figure, runs = {}, {}
    for dtype in ('bfloat16', 'float16'):
        runs[dtype], evaluations, end = bench.train(
            command, f'--dataset={bench.dataset("source")}', f'--dtype={dtype}', name=dtype)
        figure.update({f'{dtype}_val_loss': evaluations[-1]['val_loss'], f'{dtype}_train_s': end['train_s']})
    pairs = zip(*([line['loss'] for line in steps] for steps in runs.values()))
    figure['difference'] = statistics.mean(abs(a - b) for a, b in list(pairs)[-20:])
    return figure, (f'val loss {figure["bfloat16_val_loss"]:.4f} in bfloat16, {figure["float16_val_loss"]:.4f} in '
                    f'float16; the last 20 training losses differ by {figure["difference"]:.4f} on average'), ''


def decoding(bench, command):
    """Tokens a second of each way that bench.py --mode=sample measures."""
    speeds = bench.json(command, '--json=True')
    return speeds, '; '.join(f'{way} {value:,.{1 if value >= 4 else 2}f}' for way, value in speeds.items()), ''


def questions(bench, command, count):
    """So many questions to a model of GPT-2's size that has learned nothing."""
    bench.train('python train.py config/base.py --max_iters=1 --eval_iters=1 --batch_size=1 '
                '--gradient_accumulation_steps=1 --compile=False', f'--dataset={bench.dataset("source")}', name='out',
                keep=True)
    bench.run(probe(probes.write_questions, 'questions.jsonl', count))
    row = bench.json(command, '--json=True')
    return ({'questions': row['questions'], 'seconds': row['seconds'], 'questions_s': count / row['seconds']},
            f'{count:,} in {row["seconds"]:.1f} s, {count / row["seconds"]:.1f} a second ({row["dtype"]})', '')


def parallel(bench, command, dataset='pydoc_char'):
    """One process, DDP on two, FSDP on two: the losses must be the same."""
    data, runs = f'--dataset={bench.dataset(dataset)}', {}
    for name, launcher, more in (('one', 'python', ()), ('DDP', 'torchrun --standalone --nproc_per_node=2', ()),
                                 ('FSDP', 'torchrun --standalone --nproc_per_node=2', ('--fsdp=True',))):
        words = command.split(maxsplit=3)[3]  # behind torchrun and its options
        runs[name] = bench.train(f'{launcher} {words}', data, *more, name=name)[0]
    losses = {name: [line['loss'] for line in steps] for name, steps in runs.items()}
    apart = {name: max(abs(a - b) / b for a, b in zip(losses[name], losses['one'])) for name in ('DDP', 'FSDP')}
    tok_s = {name: statistics.median(line['tok_s'] for line in steps[1:]) for name, steps in runs.items()}
    return ({**{f'{name}_difference': value for name, value in apart.items()},
             **{f'{name}_tok_s': value for name, value in tok_s.items()}},
            ', '.join(f'{name}: ' + (f'losses within {value:.1e}' if value else 'the same losses to the bit')
                      for name, value in apart.items())
            + '; ' + ', '.join(f'{name} {value:,.0f} tokens/s' for name, value in tok_s.items()), '')


def compiling(bench, command):
    seconds = []
    for _ in range(2):
        out, _ = bench.run(command, f'--dataset={bench.dataset("pydoc_char")}', '--out_dir=run',
                           TORCHINDUCTOR_CACHE_DIR=f'{bench.work}/cache')
        found = re.search(r'^compile: done in ([\d.]+) s', out, re.MULTILINE)
        if not found:
            raise Failed('compile: not possible here')
        seconds.append(float(found[1]))
    return ({'empty_s': seconds[0], 'filled_s': seconds[1]},
            f'{seconds[0]:.1f} s with an empty cache, {seconds[1]:.1f} s with a filled one', '')


def prepare(bench, command):
    """GPT-2's tokens by prepare.py and by tiktoken's own function, in turn."""
    bench.run(probe(probes.write_jsonl, bench.text, 'text.jsonl'))
    ours, theirs = [], []
    for i in range(5):
        ours.append(bench.run(command.replace('FILE', 'text.jsonl'), f'--out=out-{i}')[1])
        theirs.append(bench.run(probe(probes.tiktoken_batch, 'text.jsonl'))[1])
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    return ({'ours_s': ours, 'tiktoken_s': theirs, 'ratio': ratio},
            f'{statistics.median(ours):.2f} s, by tiktoken\'s own function {statistics.median(theirs):.2f} s; ratio of '
            f'the pairs {ratio:.2f}', f'{span(ours)} and {span(theirs, " s")}')


def first_token(bench, command):
    bench.train('python train.py config/quickstart.py', f'--dataset={bench.dataset("pydoc_char")}', '--max_iters=20',
                '--lr_decay_iters=20', name='out-quickstart', keep=True)
    pairs = [(bench.run(command)[1], bench.run("python -c 'import torch'")[1]) for _ in range(6)][1:]
    whole, alone = zip(*pairs)
    return ({'whole_s': whole, 'import_s': alone}, f'{statistics.median(whole):.2f} s; import torch alone '
            f'{statistics.median(alone):.2f} s', f'{span(whole)} and {span(alone, " s")}')


def tests(bench, command):
    """Those of the project, where pytest.ini is: in its folder."""
    out, _ = bench.run(command, '-p', 'no:cacheprovider', folder=bench.root)
    words = out.strip().splitlines()[-1].strip('= ')
    return {what: int(count) for count, what in re.findall(r'(\d+) (passed|skipped)', words)}, words, ''


TOY = '--max_iters=20 --lr_decay_iters=20 --warmup_iters=0 --eval_interval=20 --log_interval=1 --eval_iters=1'
BY_SAMPLE = 'python bench.py --mode=sample'


def of_a_step(size, dtype, config, gpu, gb):
    """The Claim of a training step of a GPT-2; gb is what bench.py's plan for eager code says, and what CUDA takes."""
    return Claim(f'step-{size}-{dtype}', f'a training step of GPT-2 {size.upper()} in {dtype}',
                 f'python bench.py {config} --dtype={dtype}', step, gpu=gpu, gb=gb,
                 needs='bfloat16' * (dtype == 'bfloat16'))


# the shortest and most telling first: what there is time for is measured in this order
CLAIMS = [
    Claim('check', 'the machine is ready', 'python bench.py --mode=check', check, cpu=0.2, gpu=0.3),
    Claim('roofline', 'matmul and reading memory', 'python bench.py --mode=matmul', roofline, cpu=0.3, gpu=0.3),
    Claim('attention', 'its kernels at GPT-2 124M\'s shape, forward and backward', probe(probes.attention), attention,
          gpu=0.3, gb=4),
    Claim('host-syncs', 'a training step never waits for the GPU', f'{probe(probes.host_syncs)} config/base.py '
          '--compile=False --gradient_accumulation_steps=1', host_syncs, gpu=0.6, gb=10),
    Claim('quickstart', 'a first model', 'python train.py config/quickstart.py', quickstart, cpu=1.5, gpu=0.6),
    of_a_step('124m', 'bfloat16', 'config/base.py', gpu=1, gb=10),
    of_a_step('124m', 'float16', 'config/base.py', gpu=1, gb=10),
    Claim('parallel', 'the same losses from one process, DDP and FSDP, on two CPU processes',
          f'torchrun --standalone --nproc_per_node=2 train.py config/quickstart.py {TOY} --dtype=float32 '
          '--gradient_accumulation_steps=2', parallel, cpu=0.7),
    Claim('parallel-gpu', 'the same losses from one GPU, DDP and FSDP on two', 'torchrun --standalone '
          f'--nproc_per_node=2 train.py config/base.py {TOY} --gradient_accumulation_steps=8 --compile=False',
          partial(parallel, dataset='source'), gpu=1.5, gb=12, gpus=2),
    Claim('step-small', 'a training step of 0.8M parameters', 'python bench.py config/train_shakespeare_char.py '
          '--vocab_size=65', precisions, cpu=0.5, needs='bfloat16'),
    Claim('shakespeare', 'tiny Shakespeare by the classic and the fast recipe, whole validation split, seeds 1337, 1, '
          '2', f'{CLASSIC} --eval_iters=0 --eval_interval=2000; {FAST} --eval_iters=0', shakespeare,
          cpu=6, needs='shakespeare'),
    Claim('shakespeare-gpu', 'tiny Shakespeare, 6 x 384, by the classic and the fast recipe; to 1.4697, which '
          'nanoGPT reaches after 3 minutes on an A100 (the aim: in a third of the time)',
          f'{CLASSIC}; {FAST} --eval_interval=50',
          partial(shakespeare, seeds=[1337], target=1.4697), gpu=3.3, gb=8, needs='shakespeare'),
    Claim('gpt2-fast', '300 iterations of GPT-2 124M by the fast recipe, on source code, a vocabulary of 4,096',
          'python train.py config/train_gpt2_fast.py --max_iters=300 --lr_decay_iters=300 --eval_interval=300 '
          '--eval_iters=20 --gradient_accumulation_steps=4', gpt2_fast, gpu=2, gb=12),
    Claim('sweep-124m', 'the best batch size for GPT-2 124M', 'python bench.py config/base.py --sweep=True '
          """--sweep_dtype="['auto']" --sweep_compile="[True]" --sweep_gradient_checkpointing="[False]" """
          '--sweep_batch_size="[8,32]"', sweep, gpu=1.7, gb=18),
    Claim('float16', '100 iterations of GPT-2 124M in float16 with loss scaling beside bfloat16',
          'python train.py config/base.py --max_iters=100 --lr_decay_iters=100 --warmup_iters=10 --eval_interval=100 '
          '--eval_iters=20 --gradient_accumulation_steps=4 --log_interval=1 --compile=False', float16, gpu=1.3, gb=10,
          needs='bfloat16'),
    Claim('expandable-segments', 'GPT-2 124M with PYTORCH_ALLOC_CONF=expandable_segments:True',
          'python bench.py config/base.py --compile=False', expandable_segments, gpu=0.6, gb=10),
    Claim('decode-gpu', 'generating with GPT-2 124M, 16 + 128 tokens: tokens/s', f'{BY_SAMPLE} --compile_step=True '
          '--batch_sizes="[1]"', decoding, gpu=1.7, gb=8),
    of_a_step('350m', 'bfloat16', 'config/large.py', gpu=1.3, gb=15),
    of_a_step('350m', 'float16', 'config/large.py', gpu=1.3, gb=15),
    of_a_step('124m', 'float32', 'config/base.py', gpu=1.1, gb=12),
    of_a_step('350m', 'float32', 'config/large.py', gpu=1.5, gb=17),
    Claim('questions-gpu', '10,042 questions of four choices, as many as HellaSwag has and about as long, to GPT-2 '
          '124M with a vocabulary of 4,096 (the aim: minutes)',
          'python evaluate.py --out_dir=out --tasks=questions.jsonl', partial(questions, count=10_042), gpu=0.8, gb=6),
    Claim('questions', '100 of these questions', 'python evaluate.py --out_dir=out --tasks=questions.jsonl',
          partial(questions, count=100), cpu=1.5),
    Claim('compile', 'compiling the quick start\'s model', 'python train.py config/quickstart.py --compile=True '
          '--max_iters=2', compiling, cpu=1.5),
    Claim('shakespeare-longer', 'the fast recipe in about the classic one\'s time, whole validation split, seeds 1337, '
          '1, 2', f'{FAST} --eval_iters=0 --max_iters=2500 --lr_decay_iters=2500 --eval_interval=2500',
          partial(longer, seeds=[1337, 1, 2]), cpu=4, needs='shakespeare'),
    Claim('shakespeare-gpu-longer', 'the fast recipe\'s best loss on tiny Shakespeare, 6 x 384 (the aim: 1.43 '
          'at most)', f'{FAST} --max_iters=1500 --lr_decay_iters=1500', longer, gpu=1, gb=8, needs='shakespeare'),
    Claim('first-token', 'from the start of sample.py to the first token, small model (the aim: 1.2 times the time '
          'of import torch, and 0.5 s)', 'python sample.py --out_dir=out-quickstart --num_samples=1 '
          '--max_new_tokens=1', first_token, cpu=1.2),
    Claim('decode', 'generating with GPT-2 124M, 16 + 128 tokens: steps/s, at batch 1 tokens/s', BY_SAMPLE, decoding,
          cpu=6),
    Claim('decode-small', 'the same with 0.8M parameters, compiled: tokens/s', f'{BY_SAMPLE} --compile_step=True '
          '--n_layer=4 --n_head=4 --n_embd=128 --vocab_size=96 --max_new_tokens=512 --batch_sizes="[1]" '
          '--uncached=False --use_huggingface=False --use_others=False', decoding, cpu=2),
    Claim('prepare', '100 MB of jsonl in GPT-2\'s tokens, and by tiktoken\'s encode_ordinary_batch',
          'python data/text/prepare.py --input=FILE', prepare, cpu=2.5, needs='vocabulary'),
    Claim('kills', 'resuming after 200 kills is exact', 'NANOGPT_TESTS=all python -m pytest tests/test_resume.py -k '
          'killed_at_any', tests, cpu=4, needs='tests'),
    Claim('tests', 'all tests but the slow ones', 'python -m pytest', tests, cpu=8, needs='tests'),
    Claim('decode-900', 'generating 900 tokens with GPT-2 124M, with and without the cache: tokens/s', f'{BY_SAMPLE} '
          '--max_new_tokens=900 --rounds=1 --batch_sizes="[1]" --use_huggingface=False --use_others=False', decoding,
          cpu=20),
]
