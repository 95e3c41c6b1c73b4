"""torch.compile: graphs are counted by what Dynamo makes, each of which then runs as it is or through AOTAutograd."""
from contextlib import nullcontext

import pytest
import torch
from conftest import slow
from functorch.compile import nop
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from common import distributed, inference
from common.compile import compile_or_eager, training_trial
from model import GPT, GPTConfig
from test_distributed import process_group  # noqa: a fixture

BF16 = torch.autocast('cpu', torch.bfloat16)


def small_gpt(**options):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**dict(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=32), **options}))


def batch(rows=2):
    return (torch.arange(8 * rows).view(rows, 8) % 32,) * 2


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes from here on, of which each runs as it is."""
    torch._dynamo.reset()
    counters.clear()
    made, compile = [], torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph
    monkeypatch.setattr(torch, 'compile', lambda model, **options: compile(model, backend=backend, **options))
    return made


def operators(graph):
    """The names of all operators in a graph, those in graphs within it too."""
    inner = [child for child in graph.children() if isinstance(child, torch.fx.GraphModule)]
    return [str(node.target) for node in graph.graph.nodes] + [name for child in inner for name in operators(child)]


def has_loss(graph):
    return any('cross_entropy' in name or 'log_softmax' in name for name in operators(graph))


@pytest.mark.parametrize('way, modern, recompute, logits_at_once', [  # of 512 logits: all, or in chunks
    ('plain', False, False, 400), ('ddp', False, True, 2**27), ('fsdp', True, True, 400),
    slow('plain', True, True, 2**27), slow('plain', False, True, 400), slow('ddp', True, False, 400),
    slow('fsdp', False, False, 2**27), slow('fsdp', True, False, 400), slow('fsdp', False, True, 2**27)])
def test_all_of_a_step_is_in_graphs(graphs, process_group, monkeypatch, capsys, way, modern, recompute, logits_at_once):
    """
    One graph to train and one to evaluate. With FSDP the blocks are apart, because its hooks run between them: one
    graph for the embedding, one for all blocks, one for output layer and loss.
    """
    monkeypatch.setattr('model.LOGITS_AT_ONCE', logits_at_once)
    model = raw_model = small_gpt(modern=modern).train()
    raw_model.gradient_checkpointing = recompute
    if way == 'ddp':
        model = distributed.data_parallel(raw_model, 'cpu', 'bfloat16', False)
    elif way == 'fsdp':
        distributed.shard(raw_model, raw_model.transformer.h, 'cpu', 'bfloat16')
    compiled = compile_or_eager(model, BF16, training_trial(batch(2), batch(3)))
    if way == 'ddp':
        assert all(p.grad is not None for p in raw_model.parameters()), 'in the buckets of DDP'
    expected = 6 if way == 'fsdp' else 2
    assert len(graphs) == expected and counters['graph_break'] == {}
    assert f', graphs: {expected}\n' in capsys.readouterr().out
    with_loss = [has_loss(graph) for graph in graphs]
    assert with_loss == ([False, False, True] * 2 if way == 'fsdp' else [True] * 2)
    products = [sum('linear' in name for name in operators(graph)) for graph in graphs]
    in_chunks = logits_at_once == 400  # where the output layer's products are matmuls of chunks
    head = [0 if in_chunks else 1, 1]  # while training, while evaluating
    blocks = 4 * raw_model.config.n_layer
    assert products == ([0, 4, head[0], 0, 4, head[1]] if way == 'fsdp' else [blocks + head[0], blocks + head[1]])
    with BF16:  # and it trains: no other graph is needed
        compiled(*batch(2))[1].backward()
    assert len(graphs) == expected


@pytest.mark.parametrize('modern', [False, True])
def test_a_step_that_generates_is_one_graph(graphs, modern):
    model = small_gpt(modern=modern).eval()
    step = inference.compile_step(model, 1, 8, 'cpu')
    assert step is not None and len(graphs) == 1 and counters['graph_break'] == {}
    assert sum('linear' in name for name in operators(graphs[0])) == 4 * 2 + 1


@pytest.mark.parametrize('logits_at_once', [2**27, 400])
def test_the_backward_pass_takes_the_gradient_of_the_loss_alone(monkeypatch, logits_at_once):
    """Not one of the logits, too, which would be made of zeros and as large as they."""
    torch._dynamo.reset()
    monkeypatch.setattr('model.LOGITS_AT_ONCE', logits_at_once)
    tangents = []

    def note(graph, inputs):
        nodes = [node for node in graph.graph.nodes if node.op == 'placeholder' and 'tangents' in node.name]
        tangents.extend(tuple(node.meta['val'].shape) for node in nodes)
        return nop(graph, inputs)
    backend = aot_autograd(fw_compiler=nop, bw_compiler=note)
    torch.compile(small_gpt().train(), backend=backend)(*batch())[1].backward()
    assert tangents == [()]


def test_code_that_makes_no_graph_is_not_called_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch, 'compile', lambda model, **options: model)  # as with TORCHDYNAMO_DISABLE=1
    compile_or_eager(small_gpt(), nullcontext(), training_trial(batch(), None))
    out = capsys.readouterr().out
    assert 'no graph was made' in out and 'done' not in out


def test_graph_breaks_are_counted(graphs, capsys):
    class Broken(torch.nn.Linear):
        def forward(self, x):
            x = super().forward(x)
            torch._dynamo.graph_break()
            return super().forward(x)
    model = Broken(2, 2)
    compile_or_eager(model, nullcontext(), lambda compiled: compiled(torch.ones(2)))
    assert ', graphs: 2, graph breaks: 1\n' in capsys.readouterr().out


def test_a_model_that_does_not_compile_runs_in_eager_and_says_so(monkeypatch, capsys):
    def no_compiler(*args, **kwargs):
        raise RuntimeError('Failed to find C++ compiler\nmore lines')
    monkeypatch.setattr(torch, 'compile', lambda model, **options: no_compiler)
    model = torch.nn.Linear(2, 2)
    assert compile_or_eager(model, nullcontext(), lambda compiled: compiled(torch.ones(2))) is model
    assert capsys.readouterr().out == ('compile: begun; it may take a minute or two\n'
                                       'compile: not possible here, running eager instead '
                                       '(RuntimeError: Failed to find C++ compiler)\n')


def test_the_reason_why_it_does_not_compile_is_told(monkeypatch, capsys):
    def backend(graph, inputs):
        raise RuntimeError('no such instruction: vfmadd')
    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model, **options: compile(model, backend=backend, **options))
    model = torch.nn.Linear(2, 2)
    assert compile_or_eager(model, nullcontext(), lambda compiled: compiled(torch.ones(2))) is model
    assert '(RuntimeError: no such instruction: vfmadd)' in capsys.readouterr().out


@pytest.mark.parametrize('fails_in', ['training', 'evaluation'])
def test_training_and_evaluation_compile_before_the_run_begins(monkeypatch, capsys, fails_in):
    """They are two graphs, of batches of two sizes, and neither is one for all sizes."""
    torch._dynamo.reset()
    sizes, compile = [], torch.compile

    def backend(graph, inputs):
        sizes.append([value for value in inputs if not value.is_floating_point()][0].size(0))
        if len(sizes) == {'training': 1, 'evaluation': 2}[fails_in]:
            raise RuntimeError('out of registers')
        return graph
    monkeypatch.setattr(torch, 'compile', lambda model, **options: compile(model, backend=backend, **options))
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=8)).train()
    batches = [(torch.zeros(rows, 8, dtype=torch.long),) * 2 for rows in (4, 3)]
    assert compile_or_eager(model, nullcontext(), training_trial(*batches)) is model
    assert 'running eager instead (RuntimeError: out of registers)' in capsys.readouterr().out and model.training
    assert sizes == {'training': [4], 'evaluation': [4, 3]}[fails_in]


@pytest.mark.parametrize('bucket_mb, expected', [slow(100, 2), (1, 4)])
def test_with_ddp_the_graph_is_cut_where_gradients_can_travel(process_group, graphs, bucket_mb, expected):
    """
    That is where a bucket of them is full: the first has 1 MB, the others what DDP is told. Of gradients the blocks
    have 2.4 MB and the embedding 2.
    """
    raw_model = GPT(GPTConfig(n_layer=12, n_head=2, n_embd=64, block_size=8, vocab_size=8192)).train()
    ids = torch.arange(16).view(2, 8)
    right = raw_model(ids, ids)[1]
    parallel = torch.nn.parallel.DistributedDataParallel(raw_model, bucket_cap_mb=bucket_mb)
    model = compile_or_eager(parallel, nullcontext(), lambda compiled: compiled(ids, ids)[1].backward())
    assert model.module is not raw_model and len(graphs) == expected
    assert not any(p.grad.any() for p in raw_model.parameters())
    torch.testing.assert_close(model(ids, ids)[1], right)
    assert len(graphs) == expected, 'compiled already'


def test_with_ddp_too_a_model_that_does_not_compile_runs_in_eager(process_group, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda model, **options: torch.nn.Module())  # which cannot be called
    raw_model = torch.nn.Linear(2, 2)
    model = torch.nn.parallel.DistributedDataParallel(raw_model)
    assert compile_or_eager(model, nullcontext(), lambda compiled: compiled(torch.ones(2))) is model
    assert model.module is raw_model
