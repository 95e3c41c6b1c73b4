"""
What can be said of train.py's settings before anything is done with them. It knows no torch, so that a queue can look
through its experiments at once.
"""
import importlib.util
import math

RESUMABLE = 75  # exit code of a run that was stopped and saved: EX_TEMPFAIL, try again later


def check_shape(n_embd, n_head, modern, activation):
    """ValueError, with what to type instead, for a model that cannot be."""
    unit = 2 if modern else 1  # rotary positions turn the channels of a head in pairs
    fitting = [n for n in range(max(1, n_head // 2), n_head) if n_embd % (n * unit) == 0]
    wider = -(-n_embd // (n_head * unit)) * n_head * unit
    remedy = (f'--n_head={fitting[-1]} or ' if fitting else '') + f'--n_embd={wider}'
    if n_embd % n_head != 0:
        raise ValueError(f'n_embd={n_embd} is not divisible by n_head={n_head}; try {remedy}')
    if n_embd % (n_head * unit) != 0:
        raise ValueError(f'n_embd={n_embd} and n_head={n_head} give heads of {n_embd // n_head} channels; modern=True '
                         f'turns them in pairs, so that it needs an even number; try {remedy}')
    if activation not in ('gelu', 'gelu_tanh'):
        raise ValueError(f'activation={activation!r} is not one of gelu, gelu_tanh')


def check(settings, world_size):
    """ValueError, with what to type instead, for settings of train.py (its globals) that cannot work together."""
    for key in ('n_layer', 'n_head', 'n_embd', 'batch_size', 'block_size', 'gradient_accumulation_steps',
                'eval_interval', 'log_interval', 'max_skips'):
        if settings[key] < 1:
            raise ValueError(f'{key}={settings[key]} is below 1')
    check_shape(*(settings[key] for key in ('n_embd', 'n_head', 'modern', 'activation')))
    for key in ('dropout', 'beta1', 'beta2'):
        if settings[key] >= 1:
            raise ValueError(f'{key}={settings[key]} is not below 1')
    for key, known in (('optimizer', ('adamw', 'muon')), ('schedule', ('cosine', 'linear', 'wsd'))):
        if settings[key] not in known:
            raise ValueError(f'{key}={settings[key]!r} is not one of {", ".join(known)}')
    if not 0 < settings['cooldown'] <= 1:
        raise ValueError(f'cooldown={settings["cooldown"]} must be a fraction of lr_decay_iters, above 0 and up to 1')
    for key in ('learning_rate', 'muon_lr'):
        if settings['optimizer'] == 'muon' and settings[key] == 0:
            raise ValueError(f'{key}=0.0 does not go with optimizer=muon; try --{key}=0.02')
    if settings['modern'] and settings['activation'] != 'gelu':
        raise ValueError(f'activation={settings["activation"]!r} has no effect with modern=True, which has ReLU^2; '
                         'leave it out')
    steps = settings['gradient_accumulation_steps']
    above = -(-steps // world_size) * world_size
    if above != steps:
        below = f'--gradient_accumulation_steps={above - world_size} or ' if above > world_size else ''
        raise ValueError(f'gradient_accumulation_steps={steps} is not divisible by the {world_size} processes that '
                         f'share it; try {below}--gradient_accumulation_steps={above}')
    highest, lowest = settings['learning_rate'], settings['min_lr']
    if settings['decay_lr'] and lowest > highest:
        raise ValueError(f'min_lr={lowest} is above learning_rate={highest}; try --min_lr={highest / 10:g}')
    warmup, decay = settings['warmup_iters'], settings['lr_decay_iters']
    if settings['decay_lr'] and warmup >= decay:
        raise ValueError(f'warmup_iters={warmup} is not below lr_decay_iters={decay}; try --warmup_iters={decay // 20}')
    if settings['decay_lr'] and settings['schedule'] == 'wsd' and warmup + settings['cooldown'] * decay > decay:
        raise ValueError(f'warmup_iters={warmup} and cooldown={settings["cooldown"]} overlap; '
                         f'try --cooldown={math.floor(100 * (decay - warmup) / decay) / 100}')
    keep, interval = settings['keep_interval'], settings['eval_interval']
    if keep % interval != 0:
        raise ValueError(f'keep_interval={keep} is not a multiple of eval_interval={interval}; '
                         f'try --keep_interval={-(-keep // interval) * interval}')
    if settings['fsdp'] and world_size == 1:
        raise ValueError('fsdp=True splits a model over processes, but there is one; start several with torchrun')
    for key, package in (('wandb_log', 'wandb'), ('tensorboard_log', 'tensorboard')):
        if settings[key] and importlib.util.find_spec(package) is None:
            raise ValueError(f'{key}=True needs a package that is not here: pip install {package}')


def disk_bytes(settings, vocab_size):
    """What a run's checkpoints take at most, about: the number of parameters is that of a classic model."""
    width, block = settings['n_embd'], settings['block_size']
    weights = 4 * ((vocab_size + block) * width + 12 * settings['n_layer'] * width**2)
    kept = settings['max_iters'] // settings['keep_interval'] if settings['keep_interval'] else 0
    return checkpoint_bytes(weights, 2 * weights, kept)


def checkpoint_bytes(weights, moments, kept):
    """Of weights and an optimizer's moments so large: the best weights, `kept` ones, two states, a third in writing."""
    return (1 + kept + 3) * weights + 3 * moments
