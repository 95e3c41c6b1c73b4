"""The processes of a run: what the environment says of them, and what they do together."""
import signal
from unittest.mock import MagicMock

import pytest
import torch

from common import distributed
from model import GPT, GPTConfig

TORCHRUN = dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', LOCAL_WORLD_SIZE='2')


@pytest.fixture
def environment(monkeypatch):
    """environment(RANK='1', ...): what distributed.environment() makes of these variables alone."""
    def read(**variables):
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return distributed.environment()
    return read


def test_what_torchrun_sets_is_taken_and_what_is_empty_is_not_set(environment):
    assert environment(**TORCHRUN) == (3, 4, 1)
    assert environment() == environment(RANK='', WORLD_SIZE=' ', LOCAL_RANK='', LOCAL_WORLD_SIZE='') == (0, 1, 0)
    assert environment(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0') == environment(WORLD_SIZE='1') == (0, 1, 0)
    assert environment(RANK='0') == environment(LOCAL_RANK='0') == (0, 1, 0)


@pytest.mark.parametrize('variables, reason', [
    (dict(RANK='1'), 'RANK=1, no WORLD_SIZE'), (dict(LOCAL_RANK='1'), 'LOCAL_RANK=1'),
    (dict(WORLD_SIZE='2'), 'no LOCAL_RANK and no RANK'), (dict(WORLD_SIZE='2', RANK='0'), 'no LOCAL_RANK'),
    (dict(WORLD_SIZE='2', LOCAL_RANK='0'), 'no RANK'), (dict(WORLD_SIZE='abc'), "WORLD_SIZE='abc'"),
    (dict(TORCHRUN, RANK='-1'), "RANK='-1'"), (dict(TORCHRUN, RANK='1.5'), "RANK='1.5'"),
    (dict(TORCHRUN, RANK='4'), 'RANK=4, WORLD_SIZE=4'), (dict(TORCHRUN, LOCAL_RANK='2'), 'LOCAL_RANK=2'),
    (dict(TORCHRUN, RANK='0'), 'RANK=0, WORLD_SIZE=4, LOCAL_RANK=1'), (dict(WORLD_SIZE='0'), 'WORLD_SIZE=0'),
    (dict(TORCHRUN, LOCAL_WORLD_SIZE='two'), "LOCAL_WORLD_SIZE='two'")])
def test_variables_that_make_no_sense_are_refused_with_what_to_type(environment, variables, reason):
    with pytest.raises(ValueError, match=f'{reason}.*unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE'):
        environment(**variables)


def test_a_dataset_is_prepared_by_rank_0_and_then_by_the_first_rank_of_each_other_machine(monkeypatch):
    """Two machines of two ranks each. Where they share a disk the second one finds it done."""
    steps = {}
    for rank in range(4):
        steps[rank] = []
        monkeypatch.setattr(distributed, 'environment', lambda: (rank, 4, rank % 2))
        monkeypatch.setattr(distributed, 'barrier', lambda: steps[rank].append('wait'))
        distributed.once_per_disk(lambda: steps[rank].append('prepare'))
    assert steps == {0: ['prepare', 'wait', 'prepare', 'wait'], 1: ['wait', 'wait'], 2: ['wait', 'prepare', 'wait'],
                     3: ['wait', 'wait']}


@pytest.mark.parametrize('address, port', [('', '1234'), ('127.0.0.1', ''), ('127.0.0.1', 'abc'), (None, None)])
def test_processes_that_cannot_meet_are_told_what_is_missing(environment, monkeypatch, address, port):
    environment(**TORCHRUN)
    for name, value in (('MASTER_ADDR', address), ('MASTER_PORT', port)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f'MASTER_PORT={port or ""!r} .* no place'):
        distributed.start_processes('auto', 'cpu')


def test_at_its_end_no_signal_changes_the_exit_code_of_a_run(environment, monkeypatch):
    """As Python restores the default handlers while it ends, a second Ctrl-C would."""
    environment()
    handlers = {}
    monkeypatch.setattr(signal, 'signal', handlers.__setitem__)
    distributed.shut_down(0)
    assert handlers == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}


@pytest.fixture
def process_group(tmp_path):
    """A process group of this process alone, for DDP and FSDP."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def small_gpt(modern=False):
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=32, modern=modern)
    return GPT(config), torch.arange(16).view(2, 8)


def test_gradients_are_in_the_buckets_of_ddp_before_the_first_iteration(process_group):
    """As a micro-batch that does not synchronize finds them, or it would make others beside."""
    model, idx = small_gpt()
    parallel = distributed.data_parallel(model, 'cpu', 'float32', compress=False)

    def storages():
        return {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages()) == 1 and not any(p.grad.any() for p in model.parameters())
    with parallel.no_sync():
        parallel(idx, idx)[1].backward()
    assert len(storages()) == 1 and all(p.grad.any() for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize('dtype, hook', [('float16', 'fp16_compress_hook'), ('bfloat16', 'bf16_compress_hook')])
def test_gradients_are_sent_in_the_dtype_of_the_run(monkeypatch, dtype, hook):
    monkeypatch.setattr(distributed, 'DistributedDataParallel', MagicMock())
    for compress in (True, False):
        calls = distributed.data_parallel(small_gpt()[0], 'cpu', dtype, compress).register_comm_hook.call_args_list
        assert [call.args[1].__name__ for call in calls] == [hook], 'once, as it was asked for once'


@pytest.mark.parametrize('modern', [False, True])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_fsdp_computes_in_the_dtype_of_the_run_and_keeps_float32(process_group, monkeypatch, dtype, modern):
    model, idx = small_gpt(modern)
    right = model(idx, idx)[1]
    seen, rope, policies, fully_shard = {}, [], [], torch.distributed.fsdp.fully_shard
    monkeypatch.setattr(torch.distributed.fsdp, 'fully_shard', lambda module, **options: (
        policies.append(options['mp_policy']), fully_shard(module, **options)))
    distributed.shard(model, model.transformer.h, 'cpu', dtype)
    for module in (model.lm_head, model.transformer.wte, model.transformer.h[1].mlp.c_fc):
        module.register_forward_pre_hook(lambda module, args: seen.update({module: module.weight.dtype}))
    model.transformer.h[0].attn.register_forward_pre_hook(lambda module, args: rope.extend(args[1] or ()))
    loss = model(idx, idx)[1]
    loss.backward()
    assert len(seen) == 3 and set(seen.values()) == {getattr(torch, dtype)}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    assert {angles.dtype for angles in rope} == ({torch.float32} if modern else set())
    assert [policy.reduce_dtype for policy in policies] == [torch.float32] * 3  # two blocks, and the rest
    assert abs(loss - right) < (0.02 if dtype == 'bfloat16' else 1e-6)
