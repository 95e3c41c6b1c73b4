"""The moments of an optimizer find the parameters that they belong to, or are refused."""
import copy
import math

import pytest
import torch

from common.training import moments
from model import GPT, GPTConfig

NO_SCALER = torch.amp.GradScaler('cpu', enabled=False)


@pytest.fixture(scope='module', params=[1, 2, 12])  # with 12, h.10 stands before h.2 where names are sorted
def model(request):
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=request.param, n_head=2, n_embd=8, block_size=8, vocab_size=24))


def saved(model, groups):
    """The state of an AdamW whose groups hold these parameters; each has moments of its own."""
    order = [name for group in groups for name in group]
    numbers = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    state = {i: dict(step=torch.tensor(7.0), exp_avg=torch.full_like(model.get_parameter(name), numbers[name]),
                     exp_avg_sq=torch.full_like(model.get_parameter(name), 0.5)) for i, name in enumerate(order)}
    param_groups, start = [], 0
    for group in groups:
        param_groups.append(dict(lr=0.1, betas=(0.9, 0.95), weight_decay=0.1,
                                 params=list(range(start, start + len(group)))))
        start += len(group)
    return dict(optimizer=dict(state=state, param_groups=param_groups))


def original_orders(model):
    """The groups of the original nanoGPT in the course of its life, written as it wrote them."""
    names = [name for name, _ in model.named_parameters()]
    matrices = [name for name in names if model.get_parameter(name).dim() >= 2]
    vectors = [name for name in names if name not in matrices]
    linear = [name for name in matrices if 'wte' not in name and 'wpe' not in name]
    return {'by dimension': [matrices, vectors], 'sorted': [sorted(matrices), sorted(vectors)],
            'embeddings do not decay': [sorted(linear), sorted(set(names) - set(linear))]}


@pytest.mark.parametrize('order', ['by dimension', 'sorted', 'embeddings do not decay'])
def test_the_moments_of_any_age_of_the_original_go_to_their_parameters(model, order):
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    moments.load(model, optimizer, NO_SCALER, saved(model, original_orders(model)[order]))
    for i, (name, p) in enumerate(model.named_parameters()):
        assert optimizer.state[p]['step'] == 7 and (optimizer.state[p]['exp_avg'] == i).all(), name
    assert [group['weight_decay'] for group in optimizer.param_groups] == [0.1, 0.0], "this run's settings"
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


@pytest.mark.parametrize('spoil', [
    lambda state: state['state'][0].update(exp_avg=torch.ones(3)),
    lambda state: state['state'][0]['exp_avg'].fill_(math.nan),
    lambda state: state['state'][0]['exp_avg_sq'].fill_(-1.0),
    lambda state: state['state'][0].update(step=math.nan),
    lambda state: state['state'][0].update(exp_avg=state['state'][0]['exp_avg'].to_sparse()),
    lambda state: state['state'][0].pop('exp_avg_sq'), lambda state: state['state'][0].update(exp_avg=1.0),
    lambda state: state['state'][0].pop('step'), lambda state: state['state'][0].update(step='seven'),
    lambda state: state['state'].update({0: None}), lambda state: state.update(state=[]),
    lambda state: state['param_groups'].pop(), lambda state: state.update(param_groups={}),
    lambda state: state['param_groups'][0]['params'].reverse(), lambda state: state.clear()])
def test_moments_that_do_not_fit_never_reach_the_optimizer(model, spoil):
    checkpoint = saved(model, original_orders(model)['by dimension'])
    spoil(checkpoint['optimizer'])
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match='those of another optimizer or model; .*--init_from'):
        moments.load(model, optimizer, NO_SCALER, checkpoint)
    assert optimizer.state_dict() == before


def test_another_optimizer_is_named(model):
    checkpoint = dict(saved(model, original_orders(model)['by dimension']), config={'optimizer': 'adamw'})
    muon = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu', muon_lr=0.02, muon_dtype=torch.float32)
    with pytest.raises(ValueError, match='resume it with --optimizer=adamw'):
        moments.load(model, muon, NO_SCALER, checkpoint)
    adamw = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    with pytest.raises(ValueError, match='resume it with --optimizer=muon'):
        moments.load(model, adamw, NO_SCALER, dict(optimizer=muon.state_dict(), config={'optimizer': 'muon'}))


@pytest.mark.parametrize('modern', [True, False])
def test_the_moments_of_a_muon_run_before_the_rates_were_apart_go_to_their_parameters(modern):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=8, vocab_size=24, bias=not modern, modern=modern))
    names = [name for name, _ in model.named_parameters()]
    matrices = [name for name in names if name.startswith('transformer.h.') and model.get_parameter(name).dim() == 2]
    groups = [[name for name in matrices if 'c_attn' in name], [name for name in matrices if 'c_attn' not in name],
              [name for name in names if name not in matrices]]
    checkpoint = saved(model, groups)
    for i, name in enumerate(name for group in groups for name in group):
        state = checkpoint['optimizer']['state'][i]
        if name in matrices:
            checkpoint['optimizer']['state'][i] = {'momentum_buffer': state['exp_avg']}
        elif name == 'smear':  # it reached one token back
            checkpoint['optimizer']['state'][i] = {key: value if key == 'step' else value[0]
                                                   for key, value in state.items()}
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu', muon_lr=0.02, muon_dtype=torch.float32)
    moments.load(model, optimizer, NO_SCALER, checkpoint)
    for i, (name, p) in enumerate(model.named_parameters()):
        first = optimizer.state[p]['momentum_buffer' if name in matrices else 'exp_avg']
        reached = first[:1] if name == 'smear' else first
        assert first.shape == p.shape and (reached == i).all() and (name != 'smear' or not first[1:].any()), name
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
