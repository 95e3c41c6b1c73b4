"""Which Linear generates fastest on this CPU: each gives the right numbers, and the choice is measured once."""
import copy
import json

import pytest
import torch
from torch.nn import functional as F

from common import kernels, linears
from running import ROOT, ok, python

ALL = [(precision, name) for precision, kinds in linears.CANDIDATES.items() for name in kinds]
TOLERANCE = {'float32': 1e-5, 'float16': 1e-3, 'bfloat16': 1e-2, 'int8': 1e-5}  # of 16 bits, activations may be in 16


def candidate(precision, name, weight, bias=None):
    """The candidate, or a skip where this machine or this PyTorch has it not."""
    try:
        return linears.CANDIDATES[precision][name](weight, bias, getattr(torch, precision))
    except (kernels.Missing, RuntimeError, AttributeError) as reason:
        pytest.skip(f'no {name} in {precision} here: {reason}')


@pytest.fixture
def model():
    """Two shapes that are large enough, one of them twice, and one that is not."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict({'a': torch.nn.Linear(256, 512), 'b': torch.nn.Linear(256, 512),
                                'c': torch.nn.Linear(512, 256, bias=False), 'small': torch.nn.Linear(48, 64)})


@pytest.mark.parametrize('precision, name', ALL)
@torch.no_grad()
def test_each_candidate_multiplies_by_the_rounded_weights(precision, name):
    torch.manual_seed(0)
    weight, bias = 0.02 * torch.randn(96, 128), torch.randn(96)
    weight[3] = 0
    exact = linears.rounded(weight, getattr(torch, precision)).double()
    # 8 bits of activations, or 16
    special = {('int8', 'FBGEMM'): 2e-2, ('int8', '_weight_int8pack_mm'): 1e-2}
    tolerance = special.get((precision, name), TOLERANCE[precision])
    for each in (None, bias):
        made = candidate(precision, name, weight, each)
        for shape in ((1, 1), (4, 1), (2, 3), (1, linears.FEW), (1, linears.FEW + 1), (3, 40)):
            x = torch.randn(*shape, 128)
            expected = F.linear(x.double(), exact, None if each is None else each.double())
            y = made(x)
            assert y.shape == expected.shape and y.dtype == torch.float32
            assert (y - expected).norm() <= tolerance * F.linear(x.double(), exact).norm(), shape


@pytest.mark.parametrize('wrong', [lambda x: torch.zeros(1, 96), lambda x: torch.full((1, 96), float('nan'))])
def test_what_computes_something_else_is_no_candidate(monkeypatch, wrong):
    """Whatever compiled it."""
    weight = torch.randn(96, 128)
    assert linears.make(linears.Plain, weight, torch.float32) is not None
    monkeypatch.setattr(linears.Plain, 'few', lambda self, x: wrong(x))
    assert linears.make(linears.Plain, weight, torch.float32) is None


def test_int8_rounds_each_weight_to_the_nearest_step():
    """A step is a 127th of an output's largest weight."""
    weight = torch.randn(48, 64)
    weight[3] = 0
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((linears.rounded(weight, torch.int8) - weight).abs() <= step / 2 + 1e-7).all()
    eight, scale = linears.to_int8(weight)
    assert eight.dtype == torch.int8 and scale.dtype == torch.float32 and eight.abs().max() == 127


@torch.no_grad()
def test_with_activations_in_8_bits_a_text_does_not_depend_on_another():
    weight = torch.randn(96, 128)
    made, x = candidate('int8', 'FBGEMM', weight), torch.randn(4, 1, 128)
    large = x.clone()
    large[1] *= 1000
    assert torch.equal(made(x)[[0, 2, 3]], made(large)[[0, 2, 3]])
    whole = torch.cat((x, torch.randn(40, 1, 128)))  # a prompt is rounded in the same way
    assert torch.allclose(made(whole)[:4], made(x), rtol=1e-3, atol=1e-2)


def test_nothing_warns():
    """PyTorch deprecates the tensors that FBGEMM takes, and warns once in a process."""
    code = ('import torch; from common import linears\nfor precision, kinds in linears.CANDIDATES.items():\n'
            '    for kind in kinds.values():\n'
            '        made = linears.make(kind, torch.randn(96, 128), getattr(torch, precision))\n'
            '        if made is not None: made(torch.randn(1, 128)), made(torch.randn(40, 128))')
    done = ok(python('-W', 'error', '-c', code, cwd=ROOT))
    assert done.stdout + done.stderr == ''


def figures(**seconds):
    """A stand-in for measure(): seconds of each candidate for one row, and the same for several."""
    return lambda shapes, precision: {shape: {name: [seconds[name], seconds[name]] for name in seconds}
                                      for shape in shapes}


def names(*candidates):
    return dict(zip(('F.linear', 'kernels.c', 'oneDNN'), candidates))


def test_the_fastest_of_each_shape_is_taken_and_named(model, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    times = {(512, 256): names([2, 3], [4, 4], [1, 9]), (256, 512): names([2, 3], [4, 4], [1, 3])}
    monkeypatch.setattr(linears, 'measure', lambda shapes, precision: {shape: times[shape] for shape in shapes})
    choice = linears.Choice(model, 'float32')
    assert choice.names == {(512, 256): 'F.linear', (256, 512): 'oneDNN'} and choice.seconds == 2 * 2 + 1
    assert str(choice) == ('float32 by F.linear and oneDNN: measured here, the matrices of a token take 5000.0 ms '
                           '(F.linear 6000.0, kernels.c 12000.0, oneDNN 3000.0)')


@pytest.mark.parametrize('own, taken', [(1.2, 'kernels.c'), (1.3, 'F.linear')])
def test_our_kernel_is_taken_where_others_are_hardly_faster(model, monkeypatch, tmp_path, own, taken):
    """Because it needs no Python between the matrices of a block."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(linears, 'measure', figures(**names(1, own, 2)))
    choice = linears.Choice(model, 'float32')
    assert set(choice.names.values()) == {taken} and ('not the fastest' in str(choice)) == (taken == 'kernels.c')
    assert set(linears.Choice(model, 'float32', whole=False).names.values()) == {'F.linear'}


def test_a_matrix_that_our_kernel_cannot_take_does_not_keep_it_from_the_others(model, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    times = {(512, 256): names([2, 2], [1.9, 1.9], [1.8, 1.8]), (256, 512): {'F.linear': [2, 2]}}
    monkeypatch.setattr(linears, 'measure', lambda shapes, precision: {shape: times[shape] for shape in shapes})
    assert linears.Choice(model, 'float32').names == {(512, 256): 'kernels.c', (256, 512): 'F.linear'}


def test_what_is_measured_does_not_depend_on_the_weights(model, monkeypatch):
    """Those of a run that has diverged would rule out every candidate."""
    monkeypatch.setattr(linears, 'SAMPLE', 2**17)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3e38)
    assert all('F.linear' in each for each in linears.measure(linears.by_shape(model), 'float32').values())


def test_the_choice_is_measured_once_for_a_machine(model, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    calls = []
    monkeypatch.setattr(linears, 'measure', lambda shapes, precision: calls.append((sorted(shapes), precision)) or
                        figures(**names(2, 1, 3))(shapes, precision))
    both = [(256, 512), (512, 256)]
    for precision in ('float32', 'float32', 'bfloat16', 'bfloat16'):
        linears.Choice(model, precision)
    assert calls == [(both, 'float32'), (both, 'bfloat16')]
    model['new'] = torch.nn.Linear(512, 512)
    linears.Choice(model, 'float32')
    assert calls[2:] == [([(512, 512)], 'float32')]  # the shape that was not measured
    for what in ('machine', 'damaged', 'list'):
        if what == 'machine':
            monkeypatch.setattr(torch, 'get_num_threads', lambda: 99)
        else:
            (tmp_path / 'nanogpt' / 'linears.json').write_text({'damaged': '{"a": ', 'list': '[]'}[what])
        linears.Choice(model, 'float32')
        linears.Choice(model, 'float32')
        assert len(calls) == 4 + ('machine', 'damaged', 'list').index(what), what
    assert isinstance(json.loads((tmp_path / 'nanogpt' / 'linears.json').read_text()), dict)


@pytest.mark.parametrize('unusable', [None, {}, [], {'F.linear': None}, {'F.linear': [1]}, {'F.linear': ['a', 'b']},
                                      {'gone': [1, 2]}])
def test_figures_that_are_none_are_measured_again(model, monkeypatch, tmp_path, unusable):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(linears, 'measure', figures(**names(2, 1, 3)))
    linears.Choice(model, 'float32')
    path = tmp_path / 'nanogpt' / 'linears.json'
    known = json.loads(path.read_text())
    path.write_text(json.dumps({machine: dict.fromkeys(shapes, unusable) for machine, shapes in known.items()}))
    assert set(linears.Choice(model, 'float32').names.values()) == {'kernels.c'}
    assert json.loads(path.read_text()) == known


def test_what_other_machines_measured_stays(model, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(linears, 'measure', figures(**names(2, 1, 3)))
    for threads in (1, 2):
        monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
        linears.Choice(model, 'float32')
    assert len(json.loads((tmp_path / 'nanogpt' / 'linears.json').read_text())) == 2


@pytest.mark.parametrize('place', ['no home', 'a file'])
def test_where_nothing_can_be_kept_it_is_measured_each_time(model, monkeypatch, tmp_path, capsys, place):
    monkeypatch.setenv('XDG_CACHE_HOME', '' if place == 'no home' else str(tmp_path))
    monkeypatch.setenv('HOME', '')
    (tmp_path / 'nanogpt').write_text('mine')
    monkeypatch.setattr(linears, 'measure', figures(**names(2, 1, 3)))
    assert set(linears.Choice(model, 'float32').names.values()) == {'kernels.c'}
    assert (tmp_path / 'nanogpt').read_text() == 'mine'
    assert capsys.readouterr().err.startswith('what was measured for generating cannot be kept, and is measured each')


@pytest.mark.parametrize('error', [RuntimeError('not on this CPU'), AttributeError('no such operator'),
                                   kernels.Missing('no compiler')])
def test_an_operator_that_is_missing_is_a_candidate_less(model, monkeypatch, capsys, error):
    def missing(*args):
        raise error
    monkeypatch.setattr(linears.Packed, '__init__', missing)
    monkeypatch.setattr(linears.Kernel, '__init__', missing)
    monkeypatch.setattr(linears, 'SAMPLE', 2**17)
    times = linears.measure(linears.by_shape(model), 'float32')
    assert {name for each in times.values() for name in each} == {'F.linear'} and set(times) == {(512, 256), (256, 512)}
    assert capsys.readouterr() == ('', '')


def test_what_is_measured_are_seconds_of_one_matrix(model, monkeypatch):
    """Of a large one only the first outputs are multiplied, and the rest is counted."""
    clock = iter(range(10**6))
    monkeypatch.setattr(linears.time, 'perf_counter', lambda: next(clock))  # each group takes one second
    monkeypatch.setattr(linears, 'SAMPLE', 2**15)
    times = linears.measure(linears.by_shape(model), 'int8')
    assert times[512, 256]['_weight_int8pack_mm'] == [4, 4] and times[256, 512]['_weight_int8pack_mm'] == [4, 4]


@pytest.mark.parametrize('precision', linears.CANDIDATES)
@torch.no_grad()
def test_every_linear_is_replaced_or_rounded(model, monkeypatch, tmp_path, precision):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    first = next(iter(linears.CANDIDATES[precision]))
    monkeypatch.setattr(linears, 'measure', figures(**{first: 1}))
    plain, kept = copy.deepcopy(model), model['small'].weight
    linears.Choice(model, precision).apply(model)
    kinds = {name: type(module) for name, module in model.items()}
    chosen = linears.CANDIDATES[precision][first]
    assert kinds == {'a': chosen, 'b': chosen, 'c': chosen, 'small': torch.nn.Linear}
    exact = linears.rounded(plain['small'].weight, getattr(torch, precision))
    assert torch.equal(model['small'].weight, exact) and torch.equal(kept, plain['small'].weight)
    assert torch.equal(model['small'].bias, plain['small'].bias)
