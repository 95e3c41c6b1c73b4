"""The checks of a machine, on pretended machines: each check finds its fault and names the remedy."""
import os
import shutil
import tempfile
from unittest.mock import Mock

import pytest
import torch

from common.benchmark import readiness
from common.benchmark.readiness import ERROR, OK, WARNING


@pytest.fixture
def gpus(monkeypatch):
    """gpus(name, capability, architectures, count): pretend that PyTorch finds these."""
    def pretend(name='Tesla V100-SXM2-16GB', capability=(7, 0), architectures=('sm_70', 'sm_80'), count=1, bf16=False):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: name)
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: Mock(total_memory=16e9))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: list(architectures))
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported',
                            lambda including_emulation=True: including_emulation or bf16)
    return pretend


def test_a_v100_with_the_wrong_build_is_told_which_one_to_install(gpus):
    gpus(architectures=['sm_75', 'sm_80', 'sm_90', 'sm_120'])
    rows = list(readiness.gpu(0))
    assert rows[-1].state == ERROR and 'no kernels for Tesla V100' in rows[-1].found and 'cu126' in rows[-1].remedy


def test_a_v100_with_the_right_build_trains_in_float16(gpus):
    gpus()
    rows = list(readiness.gpu(0))
    assert all(row.state == OK for row in rows)
    assert any('float16 with loss scaling' in row.found and 'float32' in row.found for row in rows)


def test_a_newer_gpu_has_bfloat16_and_one_that_is_not_in_the_table_has_no_peak(gpus):
    gpus('Some GPU of tomorrow', (9, 0), ['sm_90'], bf16=True)
    rows = list(readiness.gpu(0))
    assert any('bfloat16 natively' in row.found for row in rows)
    assert rows[-1].state == WARNING and 'GPUS in common/device.py' in rows[-1].remedy


@pytest.mark.parametrize('arch, expected', [('gfx1100', 'bfloat16 natively'), ('gfx1030', 'float16 with loss scaling')])
def test_an_amd_gpu_is_said_to_train_in_what_it_trains_in_and_nvidias_driver_is_not_missed(gpus, monkeypatch, tmp_path,
                                                                                          arch, expected):
    gpus('AMD Radeon', (11, 0), [arch])
    monkeypatch.setattr(torch.version, 'hip', '7.2')
    archs = {'cuda:0': arch, 'cuda:1': 'gfx90a'}  # the second would do in bfloat16
    monkeypatch.setattr(torch.cuda, 'get_device_properties',
                        lambda device: Mock(total_memory=16e9, gcnArchName=archs.get(device, 'gfx90a')))
    monkeypatch.setattr(readiness, 'attention', lambda: readiness.Row(OK, 'attention', ''))
    rows = readiness.check(str(tmp_path))
    assert any(expected in row.found for row in rows) and 'driver' not in [row.what for row in rows]


def test_a_gpu_that_this_pytorch_does_not_offer_is_named(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    exists = os.path.exists
    monkeypatch.setattr(os.path, 'exists', lambda path: path == '/dev/kfd' or exists(path))
    row = readiness.no_gpu()
    assert row.state == WARNING and 'an AMD GPU' in row.found and 'docs/hardware.md' in row.remedy


@pytest.mark.parametrize('peer, state', [(True, OK), (False, WARNING)])
def test_gpus_that_do_not_reach_each_other_are_named(gpus, monkeypatch, peer, state):
    gpus(count=4)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'can_device_access_peer', lambda a, b: peer)
    row = readiness.peers()
    assert row.state == state and (peer or '6 pairs of 4' in row.found)


def test_without_nccl_several_gpus_are_an_error(gpus, monkeypatch):
    gpus(count=2)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: False)
    assert readiness.peers().state == ERROR


@pytest.mark.parametrize('version, capability, expected', [('580.65.06', (7, 0), 'do not upgrade'),
                                                           ('535.10', (7, 0), '535.10'), ('590.1', (9, 0), '590.1')])
def test_the_driver_is_asked_for_its_version(gpus, monkeypatch, tmp_path, version, capability, expected):
    gpus(capability=capability)
    smi = tmp_path / 'nvidia-smi'
    smi.write_text(f'#!/bin/sh\necho {version}\n')
    smi.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    assert readiness.driver().state == OK and expected in readiness.driver().found


def test_without_nvidia_smi_the_driver_is_not_known(gpus, monkeypatch, tmp_path):
    gpus()
    monkeypatch.setenv('PATH', str(tmp_path))
    assert readiness.driver().state == WARNING


def test_a_driver_and_a_pytorch_for_the_cpu_do_not_go_together(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(torch.version, 'cuda', None)
    monkeypatch.setattr(shutil, 'which', lambda name: '/usr/bin/' + name)
    assert readiness.no_gpu().state == ERROR and 'cu126' in readiness.no_gpu().remedy
    monkeypatch.setattr(torch.version, 'cuda', '12.6')
    assert readiness.no_gpu().state == ERROR and all(word in readiness.no_gpu().remedy for word in ('580', 'cu126'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    assert readiness.no_gpu().state == WARNING and 'hidden' in readiness.no_gpu().found
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert readiness.no_gpu().state == WARNING


def test_without_a_compiler_runs_go_on_uncompiled(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    row = readiness.compiler()
    assert row.state == WARNING and 'C++ compiler' in row.found and 'g++' in row.remedy


def test_matmuls_in_triton_are_not_for_a_v100(gpus, monkeypatch):
    gpus()
    assert readiness.autotuning().state == OK
    monkeypatch.setenv('TORCHINDUCTOR_MAX_AUTOTUNE', '1')
    assert readiness.autotuning().state == WARNING and 'ATEN' in readiness.autotuning().remedy
    monkeypatch.setenv('TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS', 'ATEN')
    assert readiness.autotuning().state == OK
    monkeypatch.delenv('TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS')
    gpus(capability=(9, 0))
    assert readiness.autotuning().state == OK


def test_the_disk_is_written_to_and_left_as_it_was(tmp_path, monkeypatch):
    row = readiness.disk(str(tmp_path), size=2**22)
    assert 'MB/s' in row.found and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(0, 0, 10**6))
    assert readiness.disk(str(tmp_path)).state == ERROR and readiness.shared_memory().state in (OK, WARNING)


def test_the_table_is_shown_where_no_kernel_runs(gpus, monkeypatch, tmp_path):
    gpus(architectures=['sm_75', 'sm_90'])
    monkeypatch.setenv('PATH', str(tmp_path))
    rows = readiness.check(str(tmp_path))
    assert 'cu126' in next(row for row in rows if row.state == ERROR).remedy and len(rows) > 6


def test_kernels_without_tensor_cores_are_told_apart():
    good = ['volta_fp16_s884gemm_fp16_128x128_ldg8_f2f_tn', 'cutlass_70_tensorop_h884gemm_128x128', 'elementwise']
    bad = ['volta_fp16_sgemm_fp16_128x128_nt', 'volta_hgemm_64x64_tn']
    assert readiness.without_tensor_cores(good + bad) == bad


def test_each_row_is_a_line_and_a_remedy_one_more():
    rows = [readiness.Row(OK, 'a', 'b'), readiness.Row(ERROR, 'c', 'd', 'e')]
    lines = list(readiness.lines(rows))
    assert len(lines) == 3 and lines[1].startswith('error') and '-> e' in lines[2]


def test_no_kernel_for_attention_is_an_error(gpus, monkeypatch):
    gpus()
    refuse = Mock(side_effect=RuntimeError('No available kernel'))
    monkeypatch.setattr(readiness, 'native_bf16', lambda device: False)
    monkeypatch.setattr(torch, 'randn', lambda *shape, **options: torch.zeros(shape, requires_grad=True))
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', refuse)
    row = readiness.attention()
    assert row.state == ERROR and 'PyTorch build' in row.remedy
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', lambda q, k, v, is_causal: q)
    assert readiness.attention().state == OK


def test_a_folder_that_cannot_be_written_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'TemporaryFile', Mock(side_effect=PermissionError(13, 'Permission denied')))
    row = readiness.disk(str(tmp_path))
    assert row.state == ERROR and row.found == f'{tmp_path} cannot be written: Permission denied' and row.remedy
