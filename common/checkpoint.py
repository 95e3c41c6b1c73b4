"""
Checkpoints on disk: saved so that no file is ever half written, loaded without running anything in them.
It knows dicts and files, no model and no settings.

    ckpt.pt              the best weights so far by validation loss: what sample.py takes
    last.pt, prev.pt     the newest full state and the one before it: what resume takes
    iter_010000.pt       weights kept on the way

A checkpoint is a dict of plain values, with the original nanoGPT's keys: model, optimizer, model_args, iter_num,
best_val_loss, config; and of ours: scaler, meta (the dataset's meta.json), format, train_s, and for an exact resume
evaluated_at, since_best, recent_losses.
"""
import contextlib
import json
import os
import pickle
import re
import shutil
import zipfile

import torch

try:
    import fcntl
except ImportError:  # Windows, where a run's folder is not locked
    fcntl = None

FORMAT = 1  # raised when a checkpoint's layout changes in a way that older code cannot read


def save(checkpoint, path):
    """Write a checkpoint so that `path` is at every moment either the old file or the new one, both whole."""
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as f:
            torch.save({**checkpoint, 'format': FORMAT}, f)
            f.flush()
            os.fsync(f.fileno())
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error.__context__, OSError):
            raise error.__context__  # a full disk, which torch.save reports as an error of its own
        raise
    os.replace(temporary, path)


def save_last(checkpoint, out_dir):
    """Save a full state as last.pt; the one before it stays as prev.pt, should the newest turn out damaged."""
    last = os.path.join(out_dir, 'last.pt')
    save(checkpoint, f'{last}.new')
    if os.path.exists(last):
        os.replace(last, os.path.join(out_dir, 'prev.pt'))
    os.replace(f'{last}.new', last)


def save_run(out_dir, weights, state, best, keep_interval):
    """
    All that a run saves at a time: the full `state`; the `weights`, if they are the `best`; and those of every
    keep_interval iterations for good. Returns whether the state was written, and whether the best weights were. What
    could not be, as the disk is full or the weights are not finite, stays what it was, and a line says so.
    """
    if not all(torch.isfinite(value).all() for value in state['model'].values()):
        print(f'not saved: the weights are no longer finite; the last good state stays in {out_dir}', flush=True)
        return False, False
    best_saved = False
    try:
        if best:
            save(weights, os.path.join(out_dir, 'ckpt.pt'))
            best_saved = True
        if is_kept(weights['iter_num'], keep_interval):
            save(weights, os.path.join(out_dir, f'iter_{weights["iter_num"]:06d}.pt'))
        save_last(state, out_dir)  # last: a resume from it repeats neither the evaluation nor the other two
    except OSError as error:
        needed = 4 * 3 * sum(value.numel() for value in state['model'].values())  # with AdamW's two moments
        free = shutil.disk_usage(out_dir).free
        print(f'not saved: {error} (a full state needs about {needed / 1e6:.1f} MB, the disk of {out_dir} has '
              f'{free / 1e6:.1f} MB free); earlier checkpoints are intact', flush=True)
        return False, best_saved
    return True, best_saved


def is_kept(iter_num, keep_interval):
    """Whether the weights of this iteration are among those that are kept for good."""
    return keep_interval > 0 and iter_num > 0 and iter_num % keep_interval == 0


def gather(value, seen=None):
    """
    The same state dict, with the tensors that FSDP split over the processes put together, one at a time, on the CPU of
    the first process; the others get None for them.
    """
    seen = {} if seen is None else seen
    if isinstance(value, dict):
        return {key: gather(item, seen) for key, item in value.items()}
    if not hasattr(value, 'full_tensor'):
        return value
    whole = value.full_tensor()
    if torch.distributed.get_rank() > 0:
        return None
    storage = value.to_local().data_ptr()  # the same one for tied weights, which the file shall hold once
    return seen.setdefault(storage, whole.cpu())


def load(path):
    """
    The checkpoint in a file, its tensors on the CPU. Reads ours and the original nanoGPT's, whose keys it cleans: no
    '_orig_mod.' or 'module.' prefix, no attention masks.
    FileNotFoundError if there is none; ValueError if it is damaged, or not a checkpoint. Nothing in the file is ever
    executed (weights_only=True): a pickle that would run code is refused.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint {path}')
    if path.endswith('.safetensors'):
        return load_safetensors(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums that torch.save wrote
        if damaged:
            raise ValueError(f'{damaged} does not match its checksum')
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what random bytes raise has no common base
        reason = str(error).strip().split('\n')[0]
        if isinstance(error, pickle.UnpicklingError):  # whose text advises to load it unsafely
            reason = 'it holds more than plain values, or none that can be read'
        raise ValueError(f'{path} is damaged or not a checkpoint, and was not loaded ({reason})') from None
    if not isinstance(checkpoint, dict) or not {'model', 'model_args'} <= checkpoint.keys():
        raise ValueError(f'{path} is damaged or not a checkpoint: it has no model and model_args')
    if checkpoint.get('format', 0) > FORMAT:
        raise ValueError(f'{path} was written by a newer version of this project (format {checkpoint["format"]})')
    checkpoint['model'] = {clean_key(key): value for key, value in checkpoint['model'].items()
                           if not key.endswith(('.attn.bias', '.attn.masked_bias'))}
    return checkpoint


def save_safetensors(model, checkpoint, path):
    """The weights of a model alone, with what the checkpoint says of them in the file's metadata, as JSON."""
    from safetensors.torch import save_file
    about = {key: checkpoint[key] for key in ('model_args', 'config', 'meta', 'iter_num') if key in checkpoint}
    if 'best_val_loss' in checkpoint:  # a tensor in the original's
        about['best_val_loss'] = float(checkpoint['best_val_loss'])
    weights = {name: p.detach() for name, p in model.named_parameters()}  # a tied head once
    save_file(weights, path, metadata={'format': 'pt', 'checkpoint': json.dumps(about)})


def load_safetensors(path):
    """What save_safetensors wrote, as load() gives a checkpoint. ValueError if it is another's, or damaged."""
    from safetensors import safe_open
    try:
        with safe_open(path, 'pt') as f:
            checkpoint = json.loads(f.metadata()['checkpoint'])
            weights = {name: f.get_tensor(name) for name in f.keys()}
    except Exception as error:  # SafetensorError has no base of its own
        raise ValueError(f'{path} is damaged, or was not written by export.py ({error})') from None
    if not checkpoint['model_args'].get('modern'):
        weights['lm_head.weight'] = weights['transformer.wte.weight']
    return {**checkpoint, 'model': weights}


def clean_key(key):
    """A parameter's own name, without what torch.compile and DistributedDataParallel put in front of it."""
    return key.removeprefix('module.').removeprefix('_orig_mod.').removeprefix('module.')


def load_newest(out_dir):
    """
    (checkpoint, path) of the newest full state in `out_dir` that loads: last.pt, else one that was about to become it
    (last.pt.new), else prev.pt, else a ckpt.pt that the original wrote. FileNotFoundError if there is none; ValueError
    if none loads.
    """
    damaged = []
    for name in ('last.pt', 'last.pt.new', 'prev.pt', 'ckpt.pt'):
        path = os.path.join(out_dir, name)
        try:
            checkpoint = load(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            damaged.append(str(error))
            continue
        if {'optimizer', 'iter_num', 'best_val_loss'} <= checkpoint.keys():
            return checkpoint, path
    if damaged:
        raise ValueError('nothing to resume: ' + '; '.join(damaged))
    raise FileNotFoundError(f'nothing to resume: {out_dir} has no last.pt (with --init_from=auto a run starts from '
                            f'scratch where there is nothing yet)')


def open_out_dir(out_dir, resumed=None):
    """
    Make a run's folder ready, and return a lock on it that is held as long as the process lives. `resumed`: the path
    that load_newest gave. If it stood in for a damaged last.pt it takes that place, before the next save does; without
    it, an earlier run's files are set aside. A ckpt.pt of the original's stays what it is. ValueError if another
    process is writing there.
    """
    os.makedirs(out_dir, exist_ok=True)
    lock = open(os.path.join(out_dir, '.lock'), 'w')
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another run is writing to out_dir={out_dir!r}; choose another one') from None
        except OSError as error:  # some network file systems know no locks
            print(f'{out_dir} cannot be locked ({error}): start no second run there', flush=True)
    if resumed is None:
        previous = set_aside(out_dir)
        if previous:
            print(f'{out_dir} held a run already; it is now in {previous}', flush=True)
    elif os.path.basename(resumed) in ('last.pt.new', 'prev.pt'):
        print(f'last.pt is damaged or not there: {resumed} takes its place', flush=True)
        os.replace(resumed, os.path.join(out_dir, 'last.pt'))
    return lock


def progress(checkpoint):
    """
    (iter_num, best_val_loss, evaluated_at, since_best, train_s, recent_losses) of a state, or of a run that begins.
    evaluated_at: the iteration of the last evaluation, -1 if there was none; since_best: how many followed the best.
    """
    state = checkpoint or {}
    return (state.get('iter_num', 0), float(state.get('best_val_loss', float('inf'))), state.get('evaluated_at', -1),
            state.get('since_best', 0), state.get('train_s', 0.0), state.get('recent_losses', []))


def changes(checkpoint, now):
    """What to say of settings that are not what they were when a state was saved; '' if all are the same."""
    then = checkpoint.get('config', {})
    differing = [f'{key} {then[key]!r} -> {now[key]!r}' for key in then
                 if key in now and key != 'init_from' and now[key] != then[key]]
    return '; changed since then: ' + ', '.join(differing) if differing else ''


def check_same_model(shape, model_args, then, out_dir):
    """
    ValueError if the settings in `shape` (n_layer, ...) ask for another model than the run to resume has (model_args).
    They may also be what they were `then`, when it began: a run that started from gpt2-xl has a model that its n_layer
    does not name.
    """
    differing = [key for key, value in shape.items() if value != model_args[key] and value != then.get(key)]
    if differing:
        raise ValueError(f'the run in {out_dir} has another model: resume it with '
                         + ' '.join(f'--{key}={model_args[key]}' for key in differing)
                         + ', or start another run in another out_dir')


def load_optimizer(optimizer, scaler, checkpoint):
    """Load the optimizer's and the loss scaler's state; settings (betas, weight decay, ...) stay those of this run."""
    state = checkpoint['optimizer']
    counts = [[len(group['params']) for group in groups] for groups in (state['param_groups'], optimizer.param_groups)]
    if counts[0] != counts[1]:
        then = checkpoint.get('config', {}).get('optimizer', 'adamw')
        raise ValueError(f'this run began with another optimizer: resume it with --optimizer={then}, '
                         'or start another one in another out_dir')
    params = [p for group in optimizer.param_groups for p in group['params']]
    for i, moments in state['state'].items():
        if hasattr(params[i], 'device_mesh'):  # split by FSDP
            from torch.distributed.tensor import distribute_tensor
            # in the same order in all processes, which send each other their parts
            for key in [key for key in ('exp_avg', 'exp_avg_sq', 'momentum_buffer') if key in moments]:
                moments[key] = distribute_tensor(moments[key].to(params[i].device), params[i].device_mesh,
                                                 params[i].placements)
    for theirs, ours in zip(state['param_groups'], optimizer.param_groups):
        theirs.update({key: value for key, value in ours.items() if key != 'params'})
    optimizer.load_state_dict(state)
    if scaler.is_enabled() and checkpoint.get('scaler'):
        scaler.load_state_dict(checkpoint['scaler'])


def weights_path(path):
    """The file with the weights: `path` itself; in a run's out_dir its ckpt.pt, else its newest state; an export's."""
    if not os.path.isdir(path):
        return path
    for name in ('ckpt.pt', 'last.pt', 'prev.pt', 'model.safetensors'):
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise FileNotFoundError(f'no checkpoint in {path} (looked for ckpt.pt, last.pt and prev.pt)')


def set_aside(out_dir):
    """
    Move what an earlier run wrote in `out_dir`, and export.py of it, to out_dir/previous-1 (or -2, ...) and return that
    folder; None if there was nothing. So a run that is started over by mistake loses nothing.
    """
    written = r'(ckpt|last|prev|iter_\d+)\.pt|last\.pt\.new|(metrics|spikes)\.jsonl|settings\.json|samples|tensorboard'
    exported = 'hf|onnx|safetensors'
    names = [name for name in sorted(os.listdir(out_dir)) if re.fullmatch(f'{written}|{exported}', name)]
    if not names:
        return None
    number = 1
    while os.path.exists(os.path.join(out_dir, f'previous-{number}')):
        number += 1
    previous = os.path.join(out_dir, f'previous-{number}')
    os.makedirs(previous)
    for name in names:
        os.replace(os.path.join(out_dir, name), os.path.join(previous, name))
    return previous
