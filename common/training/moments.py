"""
The state of an optimizer from a checkpoint, matched with the parameters by name: PyTorch goes by position, and would
take moments that belong to other parameters, and crash or go on with wrong ones.
"""
import contextlib

import torch


def load(model, optimizer, scaler, checkpoint):
    """
    Restore optimizer and loss scaler from a checkpoint; None changes nothing. Settings of the optimizer (betas, weight
    decay, ...) stay this run's. ValueError if the moments are not those of these parameters.
    """
    if checkpoint is None:
        return
    params = dict(model.named_parameters())
    names = {p: name for name, p in params.items()}
    groups = [[names[p] for p in group['params']] for group in optimizer.param_groups]
    moments = None
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError, RuntimeError):  # from a damaged state
        moments = match_moments(checkpoint['optimizer'], groups, params)
    if moments is None:
        then, now = checkpoint.get('config', {}).get('optimizer', 'adamw'), 'adamw' if len(groups) == 2 else 'muon'
        remedy = f'resume it with --optimizer={then}' if then != now else (
            'to begin with new ones, name the checkpoint in --init_from, and another --out_dir')
        raise ValueError(f'the moments in this checkpoint are those of another optimizer or model; {remedy}')
    state = {}
    for i, name in enumerate(name for group in groups for name in group):  # the same order on all ranks: a collective
        p = params[name]
        if name in moments and hasattr(p, 'device_mesh'):  # split by FSDP
            from torch.distributed.tensor import distribute_tensor
            for key in [key for key in moments[name] if key != 'step']:
                moments[name][key] = distribute_tensor(moments[name][key].to(p.device), p.device_mesh, p.placements)
        if name in moments:
            state[i] = moments[name]
    optimizer.load_state_dict({'state': state, 'param_groups': optimizer.state_dict()['param_groups']})
    if scaler.is_enabled() and checkpoint.get('scaler'):
        scaler.load_state_dict(checkpoint['scaler'])


def match_moments(saved, groups, params):
    """
    The moments of each parameter, {name: {'exp_avg': tensor, ...}}, from the saved state of an optimizer; None if they
    do not fit `params`, {name: parameter}, of which `groups` has the names in the order of the optimizer.
    """
    theirs = [list(group['params']) for group in saved['param_groups']]
    for order in parameter_orders(groups, list(params)):
        if [len(group) for group in order] != [len(group) for group in theirs]:
            continue
        found = {name: dict(saved['state'][i]) for names, ids in zip(order, theirs) for name, i in zip(names, ids)
                 if i in saved['state'].keys()}  # none before the first update
        fits = len(found) in (0, len(params))
        for name, moments in found.items():
            # Muon's, AdamW's
            kinds = ['momentum_buffer'] if 'momentum_buffer' in moments else ['exp_avg', 'exp_avg_sq']
            if name == 'smear' and moments[kinds[0]].dim() == 1:  # of a run before 2026-11-27, see checkpoint.upgrade()
                for kind in kinds:
                    moments[kind] = torch.nn.functional.pad(moments[kind][None], (0, 0, 0, len(params[name]) - 1))
            if len(kinds) == 2:
                moments['step'] = torch.as_tensor(moments['step'], dtype=torch.float32).reshape(())
                fits = fits and moments['step'] >= 0 and (moments['exp_avg_sq'] >= 0).all()
            fits = fits and all(moments[kind].shape == params[name].shape and moments[kind].layout == torch.strided
                                and torch.isfinite(moments[kind]).all() for kind in kinds)
        if fits:
            return found
    return None


def parameter_orders(groups, names):
    """
    The orders in which the parameters of a saved optimizer may stand, each as lists of names: ours, which is the
    original's since June 2023; with Muon ours before 2026-11-27, all of AdamW's in one group; the original's before
    June 2023, sorted by name; its first, without weight decay of embeddings. Their matrices differ in shape at some
    place, so that only one of them fits the moments in a file. `names`: all parameters in the order of the model.
    """
    yield groups
    if len(groups) > 2:
        matrices, others = groups[:2], set().union(*groups[2:])
        yield [*matrices, [name for name in names if name in others]]
    if len(groups) == 2:
        decayed, others = map(sorted, groups)
        yield [decayed, others]
        embeddings = [name for name in decayed if name.endswith(('wte.weight', 'wpe.weight'))]
        yield [[name for name in decayed if name not in embeddings], sorted(others + embeddings)]
