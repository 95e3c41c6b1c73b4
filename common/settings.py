"""
The settings of a script: read from its source, and checked for what cannot work before any work begins. It needs no
torch, so that the queue can check its experiments quickly.
"""
import ast
import contextlib
import importlib.util
import io
import math
import sys

from common import files

RESUMABLE = 75  # exit code of a run that was stopped after saving: EX_TEMPFAIL, try again later
SHAPE = 'n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'activation', 'modern', 'softcap'  # of a model
SMEARED = 3  # tokens before each one whose embeddings a modern model mixes in
# Far above what anybody trains. Nothing but a slip is larger, and it would end in hours of work or an overflow.
LARGEST = {'n_layer': 10**4, 'n_head': 10**5, 'n_embd': 10**6, 'block_size': 10**8, 'batch_size': 10**6,
           'gradient_accumulation_steps': 10**6, 'eval_iters': 10**7}


def read(script, words=()):
    """
    {name: value} of all settings of a script (its path) with `words` on its command line. Only the settings block and
    the configurator are executed. ValueError with the script's own message if it would refuse the words.
    """
    with open(script, encoding='utf-8') as f:
        body = ast.parse(f.read(), script).body
    end = next(i for i, node in enumerate(body) if 'configurator.py' in ast.unparse(node))
    block = compile(ast.Module(body[:end + 1], []), script, 'exec')
    names, said = {'__file__': script, '__name__': 'settings'}, io.StringIO()
    with command_line(script, *words):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                exec(block, names)
        except SystemExit:
            message = said.getvalue().strip().partition(': ')[2]
            raise ValueError(message or 'it only asks for help') from None
    return {key: names[key] for key in names['config_keys']}


@contextlib.contextmanager
def command_line(*argv):
    """sys.argv is `argv` within the block."""
    before = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


def words(settings):
    """Settings as words of a command line, ['--key=value', ...]."""
    return [f'--{key}={value}' for key, value in settings.items()]


def check_shape(n_embd, n_head, modern, activation):
    """ValueError, with what to type instead, for a shape that no model can have."""
    unit = 2 if modern else 1  # rotary embeddings rotate the channels of a head in pairs
    most = min(n_head, n_embd // unit)
    fewer = next((n for n in range(most, max(0, most - 1000), -1) if n_embd % (n * unit) == 0), None)
    wider = -(-n_embd // (n_head * unit)) * n_head * unit
    width = wider if wider <= LARGEST['n_embd'] else wider - n_head * unit
    remedy = (f'--n_head={fewer} or ' if fewer else '') + f'--n_embd={width}'
    if n_embd % n_head != 0:
        raise ValueError(f'n_embd={n_embd} is not divisible by n_head={n_head}; try {remedy}')
    if n_embd % (n_head * unit) != 0:
        raise ValueError(f'n_embd={n_embd} and n_head={n_head} give heads of {n_embd // n_head} channels; modern=True '
                         f'rotates them in pairs and needs an even number; try {remedy}')
    if activation not in ('gelu', 'gelu_tanh'):
        raise ValueError(f'activation={activation!r} is not one of gelu, gelu_tanh')


def check(settings, world_size):
    """ValueError, with what to type instead, for settings of train.py (its globals) that cannot work together."""
    for key in ('n_layer', 'n_head', 'n_embd', 'batch_size', 'block_size', 'gradient_accumulation_steps',
                'eval_interval', 'log_interval', 'max_skips'):
        if settings[key] < 1:
            raise ValueError(f'{key}={settings[key]} is below 1')
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value) and key != 'grad_clip':
            raise ValueError(f'{key}={value} is not a finite number')
        if key in LARGEST and value > LARGEST[key]:
            raise ValueError(f'{key}={value} is above {LARGEST[key]}')
    for key in ('dropout', 'beta1', 'beta2'):
        if settings[key] >= 1:
            raise ValueError(f'{key}={settings[key]} is not below 1')
    check_shape(*(settings[key] for key in ('n_embd', 'n_head', 'modern', 'activation')))
    for key, known in (('optimizer', ('adamw', 'muon')), ('schedule', ('cosine', 'linear', 'wsd'))):
        if settings[key] not in known:
            raise ValueError(f'{key}={settings[key]!r} is not one of {", ".join(known)}')
    if settings['modern'] and settings['activation'] != 'gelu':
        raise ValueError(f'activation={settings["activation"]!r} has no effect with modern=True, which has ReLU^2; '
                         'leave it out, or try --activation=gelu')
    steps = settings['gradient_accumulation_steps']
    if steps % world_size != 0:
        below = steps // world_size * world_size
        most = LARGEST['gradient_accumulation_steps']
        fitting = [count for count in (below, below + world_size) if 0 < count <= most]
        remedy = ' or '.join(f'--gradient_accumulation_steps={count}' for count in fitting) or 'fewer processes'
        raise ValueError(f'gradient_accumulation_steps={steps} is not divisible by the {world_size} processes that '
                         f'share it; try {remedy}')
    check_learning_rate(settings)
    keep, interval = settings['keep_interval'], settings['eval_interval']
    if keep % interval != 0:
        raise ValueError(f'keep_interval={keep} is not a multiple of eval_interval={interval}; '
                         f'try --keep_interval={max(keep // interval, 1) * interval}')
    if settings['fsdp'] and world_size == 1:
        raise ValueError('fsdp=True splits a model over processes, but there is one; start several with torchrun, or '
                         'try --fsdp=False')
    if settings.get('compress_gradients') and (world_size == 1 or settings['fsdp']):
        why = 'fsdp=True sends none that are whole' if settings['fsdp'] else 'there is one process'
        raise ValueError(f'compress_gradients=True is for gradients that travel between processes, but {why}; try '
                         '--compress_gradients=False')
    for key, package in (('wandb_log', 'wandb'), ('tensorboard_log', 'tensorboard')):
        if settings[key] and importlib.util.find_spec(package) is None:
            raise ValueError(f'{key}=True needs a package that is not installed: pip install {package}')
    if not settings['eval_only']:
        files.check_folder(settings['out_dir'], 'out_dir')


def check_learning_rate(settings):
    """The part of check() about learning rates and their schedule."""
    for key in ('learning_rate', 'muon_lr'):
        if settings['optimizer'] == 'muon' and settings[key] == 0:
            raise ValueError(f'{key}=0.0 does not go with optimizer=muon; try --{key}=0.02')
    if not 0 < settings['cooldown'] <= 1:
        raise ValueError(f'cooldown={settings["cooldown"]} must be a fraction of lr_decay_iters, above 0 and up to 1; '
                         'try --cooldown=0.3')
    if not settings['decay_lr']:
        return
    highest, lowest = settings['learning_rate'], settings['min_lr']
    if lowest > highest:
        raise ValueError(f'min_lr={lowest} is above learning_rate={highest}; try --min_lr={highest / 10:g}')
    warmup, decay = settings['warmup_iters'], settings['lr_decay_iters']
    if decay == 0:
        raise ValueError('lr_decay_iters=0 leaves no iteration in which the learning rate could decay; '
                         'try --decay_lr=False')
    if warmup >= decay:
        raise ValueError(f'warmup_iters={warmup} is not below lr_decay_iters={decay}; try --warmup_iters={decay // 20}')
    cooling = math.ceil(settings['cooldown'] * decay * (1 - 1e-12))  # iterations; 0.07 * 100 is a little above 7
    if settings['schedule'] == 'wsd' and warmup + cooling > decay:
        shorter = math.floor(100 * (decay - warmup) / decay) / 100
        raise ValueError(f'warmup_iters={warmup} and cooldown={settings["cooldown"]} overlap; try '
                         + f'--cooldown={shorter} or ' * (shorter > 0) + f'--warmup_iters={decay - cooling}')


def state_bytes(shape, vocab_size, optimizer):
    """
    (weights, moments of the optimizer) of a GPT in bytes, without a few scalars of the optimizer. `shape` has the
    settings n_layer, n_embd, block_size, bias and modern.
    """
    width, layers = shape['n_embd'], shape['n_layer']
    matrices = 12 * layers * width**2
    embeddings = (2 * vocab_size + SMEARED) * width if shape['modern'] else (vocab_size + shape['block_size']) * width
    norms = 0 if shape['modern'] else (1 + shape['bias']) * (2 * layers + 1) * width
    biases = 9 * layers * width if shape['bias'] else 0  # of c_attn, c_fc and both c_proj
    weights = 4 * (matrices + embeddings + norms + biases)
    return weights, 2 * weights - (4 * matrices if optimizer == 'muon' else 0)  # AdamW has two moments, Muon one


def disk_bytes(settings, vocab_size):
    """
    The most that the checkpoints of a run take on disk: the best weights, those that are kept, two full states, and a
    third while it is written.
    """
    weights, moments = state_bytes(settings, vocab_size, settings['optimizer'])
    kept = settings['max_iters'] // settings['keep_interval'] if settings['keep_interval'] else 0
    return (1 + kept) * weights + 3 * (weights + moments)
