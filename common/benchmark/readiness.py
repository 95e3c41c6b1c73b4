"""Is this machine ready to train? Each check says what to do if something is wrong. Some are for the V100 alone."""
import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.device import CU126, check_architecture, find_gpu, gpus_hidden, native_bf16, passed_over
from common.files import free_bytes, sync

OK, WARNING, ERROR = 'ok', 'warning', 'error'
LAST_VOLTA_DRIVER = 580  # the last series that supports Volta, according to NVIDIA


@dataclass
class Row:
    state: str      # ok, warning, error
    what: str
    found: str
    remedy: str = ''


def check(folder):
    """The rows of all checks, for runs that write to `folder`."""
    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'ROCm' if torch.version.hip else 'the CPU'
    rows = [Row(OK, 'PyTorch', f'{torch.__version__.partition("+")[0]}, built for {build}')]
    if torch.cuda.is_available():
        rows += [row for index in range(torch.cuda.device_count()) for row in gpu(index)]
        if all(row.state != ERROR for row in rows):  # else no kernel runs
            rows.append(attention())
        rows += [peers()] if torch.version.hip else [peers(), driver()]
    elif torch.backends.mps.is_available():
        rows.append(Row(OK, 'GPU', 'an Apple GPU, through mps'))
    else:
        rows.append(no_gpu())
    bf16 = 'with' if native_bf16('cpu') else 'without'
    rows.append(Row(OK, 'CPU', f'{torch.get_num_threads()} threads, {bf16} instructions for bfloat16'))
    return rows + [compiler(), autotuning(), disk(folder), shared_memory()]


def no_gpu():
    if gpus_hidden():
        return Row(WARNING, 'GPU', 'hidden by CUDA_VISIBLE_DEVICES', 'unset CUDA_VISIBLE_DEVICES to use it')
    if not shutil.which('nvidia-smi'):
        if found := passed_over():
            return Row(WARNING, 'GPU', f'there is {found[0]}, but none that this PyTorch offers', f'see {found[1]}')
        return Row(WARNING, 'GPU', 'none that PyTorch can use', 'small models train on a CPU: config/quickstart.py')
    if torch.version.cuda is None:
        return Row(ERROR, 'GPU', 'there is an NVIDIA driver, but this PyTorch is built for the CPU only',
                   f'pip install torch==2.13.0; for a V100: {CU126}')
    return Row(ERROR, 'GPU', 'there is an NVIDIA driver, but PyTorch finds no GPU through it',
               'usually the driver is too old for this build (nvidia-smi shows its version): update it. On a V100 '
               f'keep it at series 525 to {LAST_VOLTA_DRIVER} and take the build for it: {CU126}')


def gpu(index):
    """Which GPU this is, whether this PyTorch has kernels for it, and in which precision it is fast."""
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    here = f'GPU {index}'
    yield Row(OK, here, f'{name}, compute capability {capability[0]}.{capability[1]}')
    try:
        check_architecture(name, capability, torch.cuda.get_arch_list())
        yield Row(OK, f'{here}, kernels', f'this PyTorch has some for sm_{capability[0]}{capability[1]}')
    except ValueError as error:
        yield Row(ERROR, f'{here}, kernels', *str(error).split(': ', 1))
        return
    # is_bf16_supported would look at the current GPU
    if native_bf16(f'cuda:{index}') if torch.version.hip else capability >= (8, 0):
        yield Row(OK, f'{here}, precision', 'bfloat16 natively')
    else:
        yield Row(OK, f'{here}, precision', "float16 with loss scaling, in Muon's iteration too; parameters stay in "
                  'float32; bfloat16 would be emulated and is never used')
    if find_gpu(index) is None:
        yield Row(WARNING, f'{here}, peak', 'not in the table, so no MFU is shown',
                  'add it to GPUS in common/device.py, with its source')


def attention():
    """Which kernels scaled_dot_product_attention has here: each is run forward and backward, as in training."""
    dtype = torch.bfloat16 if native_bf16('cuda') else torch.float16
    works = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        with contextlib.suppress(RuntimeError), sdpa_kernel(backend):
            q = torch.randn(1, 2, 128, 64, device='cuda', dtype=dtype, requires_grad=True)
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
            works.append(backend.name.lower().removesuffix('_attention'))
    if works:
        return Row(OK, 'attention', f'{", ".join(works)}, in {str(dtype).removeprefix("torch.")}')
    return Row(ERROR, 'attention', 'no fused kernel works, so attention would store a score for every pair of tokens',
               'install the PyTorch build for this GPU, see pytorch.org')


def peers():
    count = torch.cuda.device_count()
    if count == 1:
        return Row(OK, 'between GPUs', 'only one GPU here')
    if not torch.distributed.is_nccl_available():
        return Row(ERROR, 'between GPUs', 'this PyTorch has no NCCL', 'train on one GPU, or slowly with --backend=gloo')
    apart = [(a, b) for a in range(count) for b in range(a) if not torch.cuda.can_device_access_peer(a, b)]
    if apart:
        return Row(WARNING, 'between GPUs', f'{len(apart)} pairs of {count} reach each other only through the host',
                   'nvidia-smi topo -m shows how; gradients travel slowly, so raise --gradient_accumulation_steps')
    return Row(OK, 'between GPUs', f'NCCL, and all {count} reach each other directly')


def driver():
    try:
        text = subprocess.run(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'], timeout=20,
                              capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return Row(WARNING, 'driver', f'nvidia-smi gives no version ({type(error).__name__})')
    if torch.cuda.get_device_capability(0) == (7, 0) and int(text.split('.')[0]) == LAST_VOLTA_DRIVER:
        return Row(OK, 'driver', f'{text}: the last series for a V100, do not upgrade it')
    return Row(OK, 'driver', text)


def compiler():
    """What torch.compile needs: Triton on a GPU, a C++ compiler everywhere."""
    missing = [] if shutil.which(os.environ.get('CXX', 'g++')) or shutil.which('clang++') else ['a C++ compiler']
    if torch.cuda.is_available() and importlib.util.find_spec('triton') is None:
        missing.append('Triton')
    if missing:
        return Row(WARNING, 'compile', f'{" and ".join(missing)} missing: runs go on without torch.compile',
                   'apt install g++' if 'a C++ compiler' in missing else 'pip install triton')
    return Row(OK, 'compile', 'torch.compile has what it needs')


def autotuning():
    """On a V100 matmuls in Triton use no tensor cores, so autotuning must not choose them."""
    backends = os.environ.get('TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS', 'ATEN,TRITON,CPP')  # PyTorch's default
    tuned = any(os.environ.get(f'TORCHINDUCTOR_MAX_AUTOTUNE{name}') == '1' for name in ('', '_GEMM'))
    volta = torch.cuda.is_available() and torch.cuda.get_device_capability(0) == (7, 0)
    if volta and tuned and 'TRITON' in backends.upper():
        return Row(WARNING, 'matmul', "autotuning may choose Triton's, without tensor cores on this GPU",
                   'export TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS=ATEN')
    return Row(OK, 'matmul', "by the vendor's library, not by Triton")


def disk(folder, size=2**28):
    """How fast a file is written where runs are saved, and how much space is free."""
    free = free_bytes(folder)
    if free < 4 * size:
        return Row(ERROR, 'disk', f'{free / 1e9:.1f} GB free in {folder}', 'make room: GPT-2 124M needs 5 GB')
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            begin = time.perf_counter()
            for _ in range(size // len(block)):
                file.write(block)
            sync(file)
    except OSError as error:
        return Row(ERROR, 'disk', f'{folder} cannot be written: {error.strerror}', 'start runs in a folder of your own')
    speed = size / (time.perf_counter() - begin) / 1e6
    found = f'{speed:.0f} MB/s to write, {free / 1e9:.0f} GB free'
    if speed < 50:
        return Row(WARNING, 'disk', found, 'a checkpoint of GPT-2 124M takes 1.5 GB; raise --eval_interval')
    return Row(OK, 'disk', found)


def without_tensor_cores(kernels):
    """Of the kernels (names) that ran on a V100, the matmuls that use no tensor cores."""
    matmuls = [name for name in kernels if 'gemm' in name.lower()]
    return [name for name in matmuls if not any(word in name for word in ('884', 'tensorop', 'wmma'))]


def shared_memory():
    if not os.path.isdir('/dev/shm'):
        return Row(OK, 'shared memory', 'not used here')
    free = free_bytes('/dev/shm')
    if free < 2**28:  # NCCL takes tens of MB per process
        return Row(WARNING, 'shared memory', f'{free / 1e6:.0f} MB in /dev/shm', 'docker run --shm-size=1g')
    return Row(OK, 'shared memory', f'{free / 1e9:.1f} GB in /dev/shm')


def lines(rows):
    """The rows as text, with a second line for a remedy."""
    for row in rows:
        yield f'{row.state:8} {row.what:18} {row.found}'
        if row.remedy:
            yield f'{"":8} {"":18} -> {row.remedy}'
