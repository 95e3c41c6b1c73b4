"""
The device that a run computes on: which one, the dtype that is fast on it, its memory, and the data-sheet limits of its
GPU. It knows no model and no settings; the scripts pass in what the user asked for.

A ValueError here is a mistake in the settings; its text says what to type instead.
"""
import os
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from common.distributed import local_rank, print0, world_size


@dataclass
class Gpu:
    pattern: str         # in the name that PyTorch reports
    tflops: float        # dense TFLOP/s of the tensor cores in fp16 and bf16 with fp32 accumulation, without sparsity
    memory_gb: float
    bandwidth: float     # of the memory, in GB/s
    watts: float         # at full load


# Data sheets of NVIDIA and AMD; nanochat common.py; torchtitan utils.py
GPUS = {
    'v100-16gb': Gpu(r'V100-(SXM|DGXS)', 125, 16, 900, 300),
    'v100-32gb': Gpu(r'V100-(SXM|DGXS)', 125, 32, 900, 300),
    'v100-pcie-16gb': Gpu(r'V100-PCIE', 112, 16, 900, 250),
    'v100-pcie-32gb': Gpu(r'V100-PCIE', 112, 32, 900, 250),
    'v100s': Gpu(r'V100S', 130, 32, 1134, 250),
    't4': Gpu(r'\bT4\b', 65, 16, 320, 70),
    'a10': Gpu(r'\bA10\b', 125, 24, 600, 150),  # disputed: about 62 TFLOP/s were measured
    'l4': Gpu(r'\bL4\b', 121, 24, 300, 72),
    'l40s': Gpu(r'\bL40S\b', 362, 48, 864, 350),
    'rtx3060': Gpu(r'RTX 3060$', 25.5, 12, 360, 170),  # twice its float32, 3,584 x 2 x 1.777 GHz, as on the other two
    'rtx3090': Gpu(r'RTX 3090$', 71, 24, 936, 350),
    'rtx4090': Gpu(r'RTX 4090$', 165.2, 24, 1008, 450),
    'rtx5090': Gpu(r'RTX 5090$', 209.5, 32, 1792, 575),
    'a100-40gb': Gpu(r'\bA100\b', 312, 40, 1555, 400),
    'a100-80gb': Gpu(r'\bA100\b', 312, 80, 2039, 400),
    'h100': Gpu(r'\bH100\b.*HBM3', 989, 80, 3350, 700),
    'h100-pcie': Gpu(r'\bH100 PCIe', 756, 80, 2000, 350),
    'h100-nvl': Gpu(r'\bH100 NVL', 835, 94, 3900, 400),
    'h200': Gpu(r'\bH200$', 989, 141, 4800, 700),
    'b200': Gpu(r'\bB200\b', 2250, 180, 8000, 1000),
    'gb200': Gpu(r'\bGB200\b', 2500, 186, 8000, 1200),
    'mi250x': Gpu(r'MI250X', 191.5, 64, 1638, 280),  # one of its two dies, which PyTorch shows as one device
    'mi300x': Gpu(r'MI300X', 1307, 192, 5300, 750),
}

CU126 = 'pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126'


def has_gpu():
    """True if PyTorch finds a GPU here, NVIDIA's, AMD's or Apple's."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def gpus_hidden():
    """True if the user hides all GPUs from PyTorch; the last two names are ROCm's."""
    names = 'CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES'
    return any(os.environ.get(name) in ('', '-1', 'NoDevFiles') for name in names)


def passed_over():
    """A GPU that seems to be here though PyTorch offers none that is used here, and what says why; None if hidden."""
    if gpus_hidden():
        return None
    if shutil.which('nvidia-smi'):
        return 'an NVIDIA driver', 'python bench.py --mode=check'
    if os.path.exists('/dev/kfd'):
        return 'an AMD GPU', 'docs/hardware.md'
    return ('an Intel GPU', 'docs/hardware.md') if torch.xpu.is_available() else None


def resolve_device(device):
    """
    'auto' becomes 'cuda', 'mps' or 'cpu'; under torchrun 'cuda' becomes the GPU of this rank, such as 'cuda:1'.
    ValueError if there is no such device, or if this build of PyTorch has no kernels for it.
    """
    if device == 'auto':
        one_mac = torch.backends.mps.is_available() and world_size() == 1
        device = 'cuda' if torch.cuda.is_available() else 'mps' if one_mac else 'cpu'
        found = passed_over() if device == 'cpu' else None
        if found:
            print0(f'device: the CPU, though there is {found[0]} here; {found[1]} says why')
    kind, _, index = device.partition(':')
    if kind not in ('cuda', 'mps', 'cpu') or (index and not index.isdigit()):
        raise ValueError(f'device={device!r} is not one of auto, cuda, cuda:N, mps, cpu')
    if kind == 'mps' and not torch.backends.mps.is_available():
        raise ValueError(f'device={device!r}, but PyTorch finds no Apple GPU here; try --device=auto')
    if kind == 'mps' and world_size() > 1:
        raise ValueError(f'device={device!r} works in one process only; leave out torchrun, or try --device=cpu')
    if kind == 'cuda':
        if not torch.cuda.is_available():
            for_gpus = torch.version.cuda or torch.version.hip
            reason = 'PyTorch finds no GPU' if for_gpus else 'this PyTorch is built for the CPU only'
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
        torch.set_float32_matmul_precision('high')  # TF32 for float32 matmuls, on GPUs that have it
    return device


def check_architecture(name, capability, architectures):
    """
    ValueError if a PyTorch built for `architectures` (['sm_70', 'compute_90', ...]) has no kernels for a GPU of compute
    capability (major, minor). Without this check the first kernel fails with 'no kernel image'.
    """
    major, minor = capability
    for architecture in architectures:
        kind, _, number = architecture.partition('_')
        number = re.match(r'\d+', number)
        if number is None:  # ROCm lists gfx names, and what they mean for a card may be overridden (docs/hardware.md)
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
    'auto' becomes 'bfloat16' on a GPU with native bfloat16, and for training on such a CPU; 'float16' on an older GPU
    (V100, T4); 'float32' elsewhere. Emulated bfloat16 is replaced by float16, with a printed line: it is several times
    slower, and torch.cuda.is_bf16_supported() counts it as support unless told otherwise.
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
    """True if this device multiplies matrices in bfloat16 natively, without emulation."""
    if device.startswith('cuda') and torch.version.hip:
        # PyTorch says yes of every AMD GPU. Polaris, Vega (not CDNA), RDNA 1 and 2 have no instructions for it, and
        # compiled code ends the process there (unsloth pull request 7682)
        name = torch.cuda.get_device_properties(device).gcnArchName
        return re.match('gfx(8|90[0-79c]|10)', name) is None
    if device.startswith('cuda'):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != 'cpu' or not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    # the CPU can, but PyTorch may be limited to AVX2 (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA)
    return (torch.backends.cpu.get_cpu_capability() == 'AVX512' and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def muon_dtype(device, dtype):
    """
    The dtype of Muon's Newton-Schulz iteration in a run in `dtype`: the same one where the device multiplies matrices
    in it natively, else float32. In float16 it is more exact than in bfloat16 (common/training/muon.py).
    """
    native = device.startswith('cuda') if dtype == 'float16' else native_bf16(device)
    return getattr(torch, dtype) if native else torch.float32


def autocast(device, dtype, fsdp=False):
    """
    The autocast context for forward passes in `dtype`; parameters stay in float32. With `fsdp` its cache is off: it
    would keep a 16-bit copy of the whole model alive until the end of the forward pass.
    """
    if dtype == 'float32':
        return nullcontext()
    return torch.autocast(device.partition(':')[0], dtype=getattr(torch, dtype), cache_enabled=not fsdp)


def autocast_dtype(x):
    """The dtype in which autocast multiplies here on the device of x; that of x itself without autocast."""
    kind = x.device.type
    enabled = kind != 'meta' and torch.is_autocast_enabled(kind)  # autocast knows no device 'meta'
    return torch.get_autocast_dtype(kind) if enabled else x.dtype


def synchronize(device):
    """Wait until the device has finished its queued work. A clock that is read before this measures nothing."""
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)
    elif device == 'mps':
        torch.mps.synchronize()


def memory_gb(device):
    """
    Peak memory so far, in GB: of tensors on a GPU, of the whole process (resident set) on a CPU. None where it is not
    counted: on MPS, and on Windows without a GPU.
    """
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device != 'cpu' or sys.platform == 'win32':
        return None
    import resource
    unit = 1 if sys.platform == 'darwin' else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def find_gpu(index=0):
    """The row of GPUS for a GPU of this machine, a number or 'cuda:1'; None if it is not in the table."""
    name = torch.cuda.get_device_name(index)
    rows = [gpu for gpu in GPUS.values() if re.search(gpu.pattern, name)]
    if len(rows) > 1:  # sizes of one card
        memory_gb = torch.cuda.get_device_properties(index).total_memory / 1e9
        rows.sort(key=lambda gpu: abs(gpu.memory_gb - memory_gb))
    return rows[0] if rows else None


def peak_flops(device, dtype):
    """Peak FLOP/s in `dtype` of the devices of all ranks together; None for a device that is not in the table."""
    if not device.startswith('cuda') or dtype == 'float32':
        return None
    gpu = find_gpu(device)
    return 1e12 * gpu.tflops * world_size() if gpu else None


def is_out_of_memory(error):
    """Whether an exception says that the memory is full, of a GPU or of the machine."""
    on_cpu = "can't allocate memory"  # a RuntimeError of PyTorch
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or on_cpu in str(error)


def explain_out_of_memory(batch_size, gradient_accumulation_steps, gradient_checkpointing):
    """From here on, running out of memory ends the process with advice on what to change instead of a traceback."""
    usual = sys.excepthook

    def explain(kind, error, traceback):
        if not is_out_of_memory(error):
            return usual(kind, error, traceback)
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        smaller = (f'--batch_size={batch_size // 2} --gradient_accumulation_steps={gradient_accumulation_steps * 2} '
                   f'(the same batch in smaller pieces), ') if batch_size % 2 == 0 else ''
        print(f'out of memory with batch_size={batch_size}: '
              + f'{allocated / 1e9:.1f} GB were allocated at most; ' * (allocated > 0)
              + f'{str(error).split(chr(10))[0]}\n'
              f'try {smaller}{"" if gradient_checkpointing else "--gradient_checkpointing=True, "}'
              'or a smaller --block_size', file=sys.stderr)
    sys.excepthook = explain
