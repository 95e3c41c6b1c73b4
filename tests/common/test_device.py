"""What the machine is said to be, on machines that are not there: the V100's rules above all."""
import os
import shutil
from unittest.mock import Mock

import pytest
import torch

from common.training import guard
from common.device import (autocast, check_architecture, find_gpu, is_out_of_memory, muon_dtype, native_bf16,
                           peak_flops, resolve_device, resolve_dtype)
from common.distributed import start_processes
from model import GPTConfig

CUDA13 = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120']
CUDA126 = ['sm_50', 'sm_60', 'sm_70', 'sm_75', 'sm_80', 'sm_86', 'sm_90']


@pytest.fixture
def gpu(monkeypatch):
    """gpu(name, native_bf16, memory): pretend that PyTorch has found it."""
    def pretend(name='Tesla V100-SXM2-16GB', native_bf16=False, memory=16e9):
        # like the real one, it counts emulation unless told otherwise
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported',
                            lambda including_emulation=True: including_emulation or native_bf16)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: name)
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: Mock(total_memory=memory))
    return pretend


def test_a_v100_trains_in_float16_and_never_in_emulated_bfloat16(gpu, capsys):
    gpu()
    assert resolve_dtype('auto', 'cuda') == 'float16'
    assert resolve_dtype('bfloat16', 'cuda') == 'float16'
    assert capsys.readouterr().out.count('\n') == 1


def test_a_gpu_with_native_bfloat16_uses_it(gpu):
    gpu('NVIDIA H200', native_bf16=True)
    assert resolve_dtype('auto', 'cuda:1') == 'bfloat16'
    assert resolve_dtype('float16', 'cuda:1') == 'float16'


def test_a_cpu_with_native_bfloat16_trains_in_it_and_samples_in_float32(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr('common.device.native_bf16', lambda device: native)
        assert resolve_dtype('auto', 'cpu') == ('bfloat16' if native else 'float32')
        assert resolve_dtype('auto', 'cpu', training=False) == 'float32'


@pytest.mark.parametrize('avx512, amx, capability, onednn, native', [
    (True, False, 'AVX512', True, True), (False, True, 'AVX512', True, True), (False, False, 'AVX512', True, False),
    (True, True, 'AVX2', True, False), (True, True, 'DEFAULT', True, False), (True, True, 'AVX512', False, False),
    (True, True, 'AVX512', None, False)])  # None: a PyTorch without oneDNN
def test_bfloat16_is_native_where_the_cpu_pytorch_and_onednn_have_it(monkeypatch, avx512, amx, capability, onednn,
                                                                     native):
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx512)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: onednn is not None)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: onednn, raising=False)
    assert native_bf16('cpu') == native and not native_bf16('mps')


@pytest.mark.parametrize('architecture, dtype', [
    ('gfx90a:sramecc+:xnack-', 'bfloat16'), ('gfx908', 'bfloat16'), ('gfx942', 'bfloat16'), ('gfx1100', 'bfloat16'),
    ('gfx1201', 'bfloat16'), ('gfx1030', 'float16'), ('gfx1010', 'float16'), ('gfx900', 'float16'),
    ('gfx906:sramecc-:xnack-', 'float16'), ('gfx90c', 'float16'), ('gfx909', 'float16'),
    ('gfx803', 'float16')])
def test_an_amd_gpu_trains_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, architecture, dtype):
    monkeypatch.setattr(torch.version, 'hip', '7.2')  # with that the real is_bf16_supported says yes
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: Mock(gcnArchName=architecture))
    assert resolve_dtype('auto', 'cuda') == resolve_dtype('bfloat16', 'cuda:1') == dtype
    assert muon_dtype('cuda', dtype) == getattr(torch, dtype)


def test_muon_iterates_in_the_16_bits_of_the_run_where_they_are_native(gpu, monkeypatch):
    gpu()
    assert muon_dtype('cuda', 'float16') == torch.float16
    gpu('NVIDIA H200', native_bf16=True)
    assert muon_dtype('cuda:1', 'bfloat16') == torch.bfloat16 and muon_dtype('cuda', 'float16') == torch.float16
    for native in (True, False):
        monkeypatch.setattr('common.device.native_bf16', lambda device: native)
        assert muon_dtype('cpu', 'bfloat16') == (torch.bfloat16 if native else torch.float32)
        assert muon_dtype('cpu', 'float16') == muon_dtype('cpu', 'float32') == torch.float32


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match='float16'):
        resolve_dtype('float16', 'cpu')


@pytest.mark.parametrize('capability, built, runs', [
    ((7, 0), CUDA126, True), ((7, 0), CUDA13, False), ((8, 6), CUDA13, True), ((8, 9), CUDA13, True),
    ((9, 0), ['sm_90a'], True), ((12, 0), ['sm_90', 'compute_90'], True), ((12, 0), CUDA126, False),
    ((9, 4), ['gfx90a'], True)])
def test_a_build_without_kernels_for_the_gpu_is_found_at_once(capability, built, runs):
    if runs:
        return check_architecture('a GPU', capability, built)
    with pytest.raises(ValueError) as error:
        check_architecture('a GPU', capability, built)
    assert ('cu126' in str(error.value)) == (capability == (7, 0))


@pytest.mark.parametrize('name, tflops', [
    ('Tesla V100-SXM2-16GB', 125), ('Tesla V100-SXM2-32GB', 125), ('Tesla V100-PCIE-32GB', 112),
    ('Tesla V100S-PCIE-32GB', 130), ('Tesla V100-DGXS-32GB', 125), ('Tesla T4', 65), ('NVIDIA A10', 125),
    ('NVIDIA A10G', None), ('NVIDIA A100-SXM4-80GB', 312), ('NVIDIA L4', 121), ('NVIDIA L40S', 362),
    ('NVIDIA L40', None),
    ('NVIDIA GeForce RTX 3060', 25.5), ('NVIDIA GeForce RTX 3060 Ti', None),
    ('NVIDIA GeForce RTX 3060 Laptop GPU', None), ('NVIDIA GeForce RTX 3090', 71),
    ('NVIDIA GeForce RTX 3090 Ti', None), ('NVIDIA GeForce RTX 4090', 165.2),
    ('NVIDIA H100 80GB HBM3', 989), ('NVIDIA H100 PCIe', 756), ('NVIDIA H100 NVL', 835), ('NVIDIA H200', 989),
    ('NVIDIA H200 NVL', None), ('NVIDIA B200', 2250), ('NVIDIA GB200', 2500), ('AMD Instinct MI300X', 1307),
    ('Some GPU of tomorrow', None)])
def test_the_peak_is_the_cards_own_or_unknown(gpu, name, tflops):
    gpu(name)
    assert peak_flops('cuda', 'bfloat16') == (None if tflops is None else tflops * 1e12)
    assert peak_flops('cuda', 'float32') is None and peak_flops('cpu', 'bfloat16') is None


@pytest.mark.parametrize('memory, bandwidth', [(42e9, 1555), (85e9, 2039)])
def test_cards_of_one_name_are_told_apart_by_their_memory(gpu, memory, bandwidth):
    gpu('NVIDIA A100-SXM4', memory=memory)
    assert find_gpu().bandwidth == bandwidth


@pytest.mark.parametrize('device, expected', [('cuda', 'cuda'), ('gpu', 'not one of'), ('cuda:x', 'not one of')])
def test_a_device_that_is_not_there_is_refused(monkeypatch, device, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=expected):
        resolve_device(device)


@pytest.mark.parametrize('cuda, hip, expected', [
    (None, None, 'built for the CPU only'), ('13.0', None, 'finds no GPU'), (None, '7.2', 'finds no GPU')])
def test_a_build_for_a_gpu_that_finds_none_is_told_from_one_for_the_cpu(monkeypatch, cuda, hip, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(torch.version, 'hip', hip)
    with pytest.raises(ValueError, match=expected):
        resolve_device('cuda')


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="dtype='float8'"):
        resolve_dtype('float8', 'cpu')
    with pytest.raises(ValueError, match="backend='foo'"):
        start_processes('foo', 'cpu')


@pytest.mark.parametrize('local_rank', ['0', '3'])
def test_more_processes_than_gpus_are_refused_by_every_process(monkeypatch, local_rank):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    for name, value in (('WORLD_SIZE', '4'), ('RANK', local_rank), ('LOCAL_RANK', local_rank),
                        ('LOCAL_WORLD_SIZE', '4')):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match='4 processes.*2 GPUs.*--nproc_per_node=2'):
        resolve_device('auto')


def test_a_driver_without_a_gpu_is_no_silent_cpu(monkeypatch, capsys):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    monkeypatch.setattr(shutil, 'which', lambda name: '/usr/bin/' + name)
    assert resolve_device('auto') == 'cpu' and '--mode=check says why' in capsys.readouterr().out
    for name in ('CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES'):
        for hidden in ('', '-1'):  # on purpose
            with monkeypatch.context() as patch:
                patch.setenv(name, hidden)
                assert resolve_device('auto') == 'cpu' and capsys.readouterr().out == ''


@pytest.mark.parametrize('driver, intel, expected', [
    (True, False, 'an AMD GPU here; docs/hardware.md'), (False, True, 'an Intel GPU here; docs/hardware.md'),
    (False, False, '')])
def test_a_gpu_that_is_not_used_is_named(monkeypatch, capsys, driver, intel, expected):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    for module in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(module, 'is_available', lambda: False)
    monkeypatch.setattr(torch.xpu, 'is_available', lambda: intel)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    exists = os.path.exists
    monkeypatch.setattr(os.path, 'exists', lambda path: driver if path == '/dev/kfd' else exists(path))
    assert resolve_device('auto') == 'cpu'
    out = capsys.readouterr().out
    assert expected in out and (out == '') == (expected == '')
    assert resolve_device('cpu') == 'cpu' and capsys.readouterr().out == ''  # as was asked for
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # on purpose
    assert resolve_device('auto') == 'cpu' and capsys.readouterr().out == ''


def test_an_amd_gpu_is_taken_as_cuda(monkeypatch):
    for name, value in (('is_available', True), ('device_count', 1), ('get_arch_list', ['gfx90a', 'gfx1100'])):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'AMD Radeon RX 7900 XTX')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (11, 0))
    monkeypatch.setattr(torch, 'set_float32_matmul_precision', lambda precision: None)  # it would hold for other tests
    assert resolve_device('auto') == 'cuda'


def test_a_gpu_is_taken_by_its_number_where_it_has_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch._C, '_cuda_setDevice', chosen.append, raising=False)  # what set_device calls in the end
    for name, value in (('is_available', True), ('device_count', 2), ('get_arch_list', ['sm_70'])):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a GPU')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 0))
    monkeypatch.setattr(torch, 'set_float32_matmul_precision', lambda precision: None)  # it would hold for other tests
    assert [resolve_device(device) for device in ('auto', 'cuda', 'cuda:1')] == ['cuda', 'cuda', 'cuda:1']
    assert chosen == [1]
    for name, value in (('WORLD_SIZE', '2'), ('RANK', '1'), ('LOCAL_RANK', '1')):
        monkeypatch.setenv(name, value)
    assert resolve_device('auto') == 'cuda:1' and chosen == [1, 1]
    with pytest.raises(ValueError, match='this machine has 2 GPUs'):
        monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')
        resolve_device('auto')


def test_a_recomputed_dropout_on_a_mac_is_refused():
    with pytest.raises(ValueError, match='--dropout=0.0'):
        guard.check_model(GPTConfig(dropout=0.1), 'mps', 'float32', gradient_checkpointing=True)
    guard.check_model(GPTConfig(dropout=0.1), 'mps', 'float32', gradient_checkpointing=False)


def test_with_fsdp_autocast_keeps_no_weights_of_the_whole_model():
    for fsdp in (True, False):
        with autocast('cpu', 'bfloat16', fsdp):
            assert torch.is_autocast_cache_enabled() != fsdp


def test_processes_on_a_mac_share_its_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert resolve_device('auto') == 'mps'
    for name, value in (('WORLD_SIZE', '2'), ('RANK', '0'), ('LOCAL_RANK', '0')):
        monkeypatch.setenv(name, value)
    assert resolve_device('auto') == 'cpu'
    with pytest.raises(ValueError, match='one process'):
        resolve_device('mps')


@pytest.mark.parametrize('n_embd, device, dtype, said', [(64, 'cuda', 'float16', ''), (36, 'cpu', 'bfloat16', ''),
                                                         (36, 'cuda', 'float32', ''), (36, 'cuda', 'float16', '=48')])
def test_heads_that_no_fused_attention_takes_are_named(capsys, n_embd, device, dtype, said):
    guard.check_model(GPTConfig(n_embd=n_embd, n_head=2), device, dtype, gradient_checkpointing=True)
    out = capsys.readouterr().out
    assert said in out and (out == '') == (said == '')


@pytest.mark.parametrize('error, expected', [
    (MemoryError(), True), (torch.OutOfMemoryError('CUDA out of memory'), True), (ValueError('x'), False),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."), True),
    (RuntimeError('CUDA error: device-side assert triggered'), False)])
def test_a_full_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected
