"""
What this machine is: the device, the dtype that is fast on it, the processes that share the work, and
the most it can compute. It knows no model and no settings; the scripts pass in what they were told.

A ValueError here is a mistake in the settings; its text says what to type instead.
"""
import os
import re
import shutil
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common import runlog

# Dense TFLOP/s of the tensor cores in fp16 and bf16 with fp32 accumulation, without sparsity, by a pattern
# in the name that PyTorch reports. Sources: NVIDIA's and AMD's data sheets; nanochat common.py; torchtitan utils.py.
PEAK_TFLOPS = {
    r'V100S': 130,
    r'V100-(SXM|DGXS)': 125,
    r'V100-PCIE': 112,
    r'\bT4\b': 65,
    r'\bA10\b': 125,  # disputed: about 62 were measured
    r'\bA100\b': 312,
    r'\bL4\b': 121,
    r'\bL40S\b': 362,
    r'RTX 3090$': 71,
    r'RTX 4090$': 165.2,
    r'RTX 5090$': 209.5,
    r'\bH100 NVL': 835,
    r'\bH100 PCIe': 756,
    r'\bH100\b.*HBM3': 989,
    r'\bH200$': 989,
    r'\bGB200\b': 2500,
    r'\bB200\b': 2250,
    r'MI250X': 191.5,  # one of its two dies, which is what PyTorch shows as one device
    r'MI300X': 1307,
}

CU126 = 'pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126'


def rank():
    """This process's number among all that torchrun started; 0 without torchrun."""
    return int(os.environ.get('RANK', 0))


def world_size():
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get('WORLD_SIZE', 1))


def local_rank():
    """This process's number on its own machine, which is the number of its GPU."""
    return int(os.environ.get('LOCAL_RANK', 0))


def print0(*args):
    """Print once for all processes, at once even when stdout is a file."""
    if rank() == 0:
        runlog.say(*args)


def stop(message):
    """End the script for a mistake of the user's: one line on stderr (once a machine), exit code 2."""
    if local_rank() == 0:
        print(f'{os.path.basename(sys.argv[0])}: {message}', file=sys.stderr, flush=True)
    sys.exit(2)


def has_gpu():
    """True if PyTorch can train on something faster than the CPU here."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def gpus_hidden():
    """True if the user keeps PyTorch from seeing any GPU."""
    return os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1', 'NoDevFiles')


def resolve_device(device):
    """
    'auto' becomes 'cuda', 'mps' or 'cpu'; under torchrun 'cuda' becomes this process's own GPU, 'cuda:1'.
    ValueError if the device is not there, or if this build of PyTorch has no kernels for it.
    """
    if device == 'auto':
        one_mac = torch.backends.mps.is_available() and world_size() == 1
        device = 'cuda' if torch.cuda.is_available() else 'mps' if one_mac else 'cpu'
        if device == 'cpu' and shutil.which('nvidia-smi') and not gpus_hidden():
            print0('device: the CPU, though there is an NVIDIA driver here; python bench.py --mode=check says why')
    kind, _, index = device.partition(':')
    if kind not in ('cuda', 'mps', 'cpu') or (index and not index.isdigit()):
        raise ValueError(f'device={device!r} is not one of auto, cuda, cuda:N, mps, cpu')
    if kind == 'mps' and not torch.backends.mps.is_available():
        raise ValueError(f'device={device!r}, but PyTorch finds no Apple GPU here; try --device=auto')
    if kind == 'mps' and world_size() > 1:
        raise ValueError(f'device={device!r} works in one process only; leave out torchrun, or try --device=cpu')
    if kind == 'cuda':
        if not torch.cuda.is_available():
            reason = 'this PyTorch is built for the CPU only' if torch.version.cuda is None else 'PyTorch finds no GPU'
            raise ValueError(f'device={device!r}, but {reason}; try --device=auto or --device=cpu')
        count, processes = torch.cuda.device_count(), int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        if processes > count:
            raise ValueError(f'{processes} processes were started, but this machine has {count} GPUs; '
                             f'try --nproc_per_node={count}')
        if world_size() > 1:
            index = str(local_rank())
        if index and int(index) >= count:
            raise ValueError(f'device={device!r} was asked for, but this machine has {count} GPUs, from cuda:0 on')
        device = f'cuda:{index}' if index else 'cuda'
        check_architecture(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device),
                           torch.cuda.get_arch_list())
        if index:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision('high')  # fp32 products in TF32, on the GPUs that have it
    return device


def check_architecture(name, capability, architectures):
    """
    ValueError if a PyTorch built for `architectures` (['sm_70', 'compute_90', ...]) has no kernels for a GPU
    of compute capability (major, minor); without this check its first kernel fails with 'no kernel image'.
    """
    major, minor = capability
    for architecture in architectures:
        kind, _, number = architecture.partition('_')
        number = re.match(r'\d+', number)
        if number is None:  # ROCm lists gfx names; it has no such trap
            return
        built = divmod(int(number.group()), 10)
        if kind == 'sm' and built[0] == major and built[1] <= minor or kind == 'compute' and built <= capability:
            return
    if architectures:
        remedy = CU126 if major == 7 and minor == 0 else 'install the PyTorch build for it, see pytorch.org'
        raise ValueError(f'this PyTorch has no kernels for {name} (sm_{major}{minor}; it has '
                         f'{", ".join(architectures)}): {remedy}')


def resolve_dtype(dtype, device, training=True):
    """
    'auto' becomes 'bfloat16' on a GPU that computes in it natively, and to train on such a CPU; 'float16' on an older
    GPU (a V100, a T4); and 'float32' elsewhere. Emulated bfloat16 is replaced by float16, with a printed line: a V100
    emulates it at a fraction of its speed, and torch.cuda.is_bf16_supported() counts that unless told otherwise.
    """
    if dtype not in ('auto', 'float32', 'bfloat16', 'float16'):
        raise ValueError(f'dtype={dtype!r} is not one of auto, float32, bfloat16, float16')
    on_cuda = device.startswith('cuda')
    if dtype == 'auto':
        if native_bf16(device) and (on_cuda or training):
            return 'bfloat16'
        return 'float16' if on_cuda else 'float32'
    if dtype == 'float16' and training and not on_cuda:
        raise ValueError(f'float16 does not train on device={device!r}; use --dtype=float32 or --dtype=bfloat16')
    if dtype == 'bfloat16' and on_cuda and not native_bf16(device):
        print0('dtype: this GPU only emulates bfloat16; using float16 instead')
        return 'float16'
    return dtype


def native_bf16(device):
    """True if this device has instructions for products in bfloat16, and does not emulate them."""
    if device.startswith('cuda'):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != 'cpu' or not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    # the CPU has them, but PyTorch may be told to do as on one with AVX2 (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA)
    return (torch.backends.cpu.get_cpu_capability() == 'AVX512' and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def muon_dtype(device, dtype):
    """What Muon's Newton-Schulz iteration runs in, in a run in `dtype`: never float16, in which it is not stable."""
    return torch.bfloat16 if dtype != 'float32' and native_bf16(device) else torch.float32


def autocast(device, dtype, fsdp=False):
    """
    The context in which forward passes compute in `dtype`; parameters stay in float32. With `fsdp` it keeps no weights
    in 16 bits until the pass ends: they would be those of the whole model, which no process shall hold.
    """
    if dtype == 'float32':
        return nullcontext()
    return torch.autocast(device.partition(':')[0], dtype=getattr(torch, dtype), cache_enabled=not fsdp)


def start_processes(backend, device):
    """Join the processes that torchrun started: NCCL between GPUs, gloo between CPUs unless `backend` names one."""
    if backend not in ('auto', 'nccl', 'gloo'):
        raise ValueError(f'backend={backend!r} is not one of auto, nccl, gloo')
    if world_size() == 1:
        return
    on_cuda = device.startswith('cuda')
    if backend == 'nccl' and not on_cuda:
        raise ValueError(f"backend='nccl' needs GPUs, but the device is {device!r}; use --backend=auto")
    if backend == 'auto':
        backend = 'nccl' if on_cuda else 'gloo'
    # others wait while the first one prepares a dataset or saves a large state; NCCL's own limit is 10 minutes
    dist.init_process_group(backend, device_id=torch.device(device) if backend == 'nccl' else None,
                            timeout=timedelta(hours=1))


def barrier():
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def leave(code):
    """The end of the script: part from the processes that torchrun started, when all have come there, and exit."""
    if world_size() > 1:
        dist.barrier()  # or the first to leave pulls down connections that the others still use
        dist.destroy_process_group()
        # at once: gloo's threads may still hold tensors, which abort a process that tidies up (PyTorch pull 179291)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def all_reduce(values, device):
    """The sum over all processes of a list of numbers, as a list of floats."""
    if world_size() == 1:
        return [float(value) for value in values]
    # float64 is not to be had on Apple's GPU, but that is never shared by processes (resolve_device)
    total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def mean_over_processes(value):
    """A tensor's mean over all processes, on its device, without waiting for it."""
    if world_size() > 1:
        dist.all_reduce(value)
        value = value / world_size()
    return value


def shares(targets):
    """
    What each micro-batch of this process weighs in a mean over all targets of all processes: targets (n, B, T), where
    -1 does not count; (n,) float32. Their sum has the mean 1 over the processes, by which gradients are averaged.
    """
    counted = (targets >= 0).sum(dim=(1, 2)).float()
    return counted / mean_over_processes(counted.sum()).clamp(min=1.0)


def shard(model, blocks, device):
    """
    FSDP: split the model's parameters over the processes, from wherever it is onto their devices; they are put together
    block by block when they are used. Gradients are split after each micro-batch: that costs time and saves memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(device.partition(':')[0], (world_size(),))
    for block in [*blocks, model]:
        fully_shard(block, mesh=mesh)


def compile_or_eager(model, ctx, trial, mode=None):
    """
    torch.compile(model); or the model itself and a printed line where that does not work (no C++ compiler, no Triton, a
    GPU that it does not know). `trial`: a function that runs the compiled model as it will be used, within `ctx`.
    Of a DistributedDataParallel the model in it is compiled, when it is first called from there: then PyTorch cuts the
    graph where a bucket of gradients is full, so that these travel while the backward pass goes on.
    """
    start = time.perf_counter()
    parallel = isinstance(model, DistributedDataParallel)
    inner = model.module if parallel else model
    compiled = used = torch.compile(inner, mode=mode)
    if parallel:
        used, model.module = model, compiled
        model.require_backward_grad_sync = False  # a trial sends nothing, or one that fails would leave others waiting
    try:
        with ctx:
            trial(used)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        print0(f'compile: not possible here, running eager instead ({type(error).__name__}: {reason})')
        if parallel:
            model.module = inner
        return model
    finally:
        model.zero_grad(set_to_none=True)
    print0(f'compile: done in {time.perf_counter() - start:.1f} s')
    return used


def synchronize(device):
    """Wait until the device has done all it was given; a clock read before this shows nothing."""
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)
    elif device == 'mps':
        torch.mps.synchronize()


def memory_gb(device):
    """
    The most memory taken so far, in GB: on a GPU by tensors, on a CPU by the whole process (its resident set). None
    where nobody counts it: on MPS, and on Windows without a GPU.
    """
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device != 'cpu' or sys.platform == 'win32':
        return None
    import resource
    unit = 1 if sys.platform == 'darwin' else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peak_flops(device, dtype):
    """FLOP/s that all processes' devices can reach in `dtype`; None for a device that is not in the table."""
    if not device.startswith('cuda') or dtype == 'float32':
        return None
    name = torch.cuda.get_device_name(device)
    matching = [tflops for pattern, tflops in PEAK_TFLOPS.items() if re.search(pattern, name)]
    return 1e12 * matching[0] * world_size() if matching else None
