"""
The kernels of kernels.c, which is compiled for this CPU when it is first needed, and kept in the user's cache folder.
A machine without a C compiler does without them. They compute in float32, on contiguous tensors, without gradients.
"""
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile

import torch

from common import cpu, files

SOURCE = os.path.join(os.path.dirname(__file__), 'kernels.c')
# not -ffast-math, which lets subnormal numbers be 0 in the whole process
FLAGS = ['-O3', '-shared', '-fPIC', '-fno-math-errno', '-fno-trapping-math']
VECTORS = {'AVX2': ['-mavx2', '-mfma', '-mf16c'], 'DEFAULT': []}  # by what PyTorch is limited to; else all there are
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]  # by their numbers in kernels.c
ACTIVATIONS = ['none', 'tanh', 'relu_squared']  # of GELU, by how it is approximated; modern
LINE, LANES = 64, 16  # a matrix has a multiple of so many inputs, a head of so many channels


class Structure(ctypes.Structure):
    """One of kernels.c's. It takes tensors for pointers, and keeps them as long as it lives."""

    def __init__(self, *values):
        super().__init__(*(value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values))
        self.kept = values


def fields(names, kind):
    return [(name, kind) for name in names.split()]


class Matrix(Structure):
    _fields_ = fields('weight scale bias', ctypes.c_void_p) + fields('N K type', ctypes.c_int64)


class Block(Structure):
    _fields_ = (fields('c_attn attn_proj c_fc mlp_proj', Matrix)
                + fields('norm_1 bias_1 norm_2 bias_2 keys values', ctypes.c_void_p))


class Settings(Structure):
    _fields_ = (fields('rows n_head activation', ctypes.c_int64) + fields('scale', ctypes.c_float)
                + fields('cosine sine mask', ctypes.c_void_p) + fields('size slot used is_float16', ctypes.c_int64)
                + fields('room', ctypes.c_void_p))


class Missing(Exception):
    """There are no kernels here, and why."""


def find_compiler():
    """The command of a C compiler, a list of words. Missing if there is none."""
    try:
        named = shlex.split(os.environ.get('CC', ''))
    except ValueError as error:
        raise Missing(f'CC={os.environ["CC"]!r} is no command: {error}') from None
    for words in [named] if named else [['cc'], ['gcc'], ['clang']]:
        if shutil.which(words[0]):
            return words
    raise Missing('there is no C compiler, such as gcc or clang')


def target():
    """The options that let a compiler use all of this CPU, or as much of it as PyTorch uses."""
    if platform.machine() in ('x86_64', 'AMD64'):
        return VECTORS.get(torch.backends.cpu.get_cpu_capability(), ['-march=native'])
    return ['-mcpu=native']


def compile_to(path):
    """Write the library to `path`, whole or not at all. Missing if it cannot be compiled, OSError if not written."""
    compiler, reason = find_compiler(), ''
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as work:  # several processes may do this at once
        made = os.path.join(work, 'kernels.so')
        for threads in (['-fopenmp'], []):  # Apple's compiler knows no OpenMP
            try:
                done = subprocess.run([*compiler, *FLAGS, *target(), *threads, SOURCE, '-o', made, '-lm'],
                                      capture_output=True, text=True, errors='replace', timeout=120)
            except subprocess.TimeoutExpired:
                raise Missing(f'{compiler[0]} takes more than two minutes to compile kernels.c') from None
            lines = [line for line in done.stderr.splitlines() if 'error' in line] or [f'exit code {done.returncode}']
            reason = lines[0]
            if done.returncode == 0:
                try:
                    ctypes.CDLL(made)
                except OSError:
                    reason = 'what it makes cannot be loaded'
                    continue
                with open(made, 'rb+') as f:
                    files.sync(f)
                os.replace(made, path)
                return
    raise Missing(f'{compiler[0]} does not compile kernels.c: {reason}')


def fingerprint():
    """A name for all that the compiled code depends on: a home folder may be shared by several kinds of CPU."""
    about = cpu.facts()
    with open(SOURCE, 'rb') as f:
        parts = [f.read(), *(repr(part).encode() for part in (
            platform.machine(), *(about.get(key) for key in cpu.KIND), FLAGS, target(), os.environ.get('CC')))]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:16]


def open_library():
    """The library, compiled if it was not yet. Missing where that cannot be."""
    folder, name = files.user_folder('XDG_CACHE_HOME', '.cache'), f'kernels-{fingerprint()}.so'
    try:
        files.make_private(folder)
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            compile_to(path)
        try:
            return ctypes.CDLL(path)
        except OSError:  # damaged
            compile_to(path)
            return ctypes.CDLL(path)
    except (OSError, TypeError):  # there is no such folder, it is not ours, cannot be written, is full
        pass
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:  # for this process
            path = os.path.join(temporary, name)
            compile_to(path)
            return ctypes.CDLL(path)
    except OSError as error:
        raise Missing(f'kernels.c cannot be compiled: {error.strerror}') from None


@functools.cache
def try_to_load():
    """(the library, None), or (None, why there is none)."""
    try:
        library = open_library()
    except Missing as reason:
        return None, str(reason)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.linear.argtypes = [pointer, pointer, pointer, size]
    library.step.argtypes = [pointer, size, pointer, pointer]
    library.linear.restype = library.step.restype = None
    return library, None


def load():
    """The library. Missing, always with the same reason, if there is none."""
    library, reason = try_to_load()
    if library is None:
        raise Missing(reason)
    return library


def matrix(weight, scale=None, bias=None):
    """
    A Matrix for linear(), of weight (N, K) in a dtype of TYPES, scale and bias (N) in float32. Missing where there are
    no kernels, ValueError unless K is a multiple of 64, and N at least 4.
    """
    load()
    N, K = weight.shape
    if K % LINE or N < 4:
        raise ValueError(f'kernels.c takes no matrix of {N} x {K}')
    tensors = (None if tensor is None else tensor.contiguous() for tensor in (weight, scale, bias))
    return Matrix(*tensors, N, K, TYPES.index(weight.dtype))


def linear(matrix, x):
    """x weight^T * scale + bias (..., N) for x (..., K) in float32."""
    assert x.size(-1) == matrix.K and x.dtype == torch.float32  # C would read what is not there
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], matrix.N)
    load().linear(ctypes.byref(matrix), x.data_ptr(), y.data_ptr(), x.numel() // matrix.K)
    return y


class Steps:
    """
    The blocks of a model for one token at a time: of each block the Matrix of c_attn, attn.c_proj, c_fc and
    mlp.c_proj, and weight and bias of both norms, in float32 or None. activation: one of ACTIVATIONS; scale: of the
    products of queries and keys. ValueError if head_dim is no multiple of 16.
    """

    def __init__(self, blocks, n_head, activation, scale):
        self.kept = [Block(*matrices, *norms) for matrices, norms in blocks]
        self.blocks = (Block * len(blocks))(*self.kept)
        self.n_head, self.activation, self.scale = n_head, ACTIVATIONS.index(activation), scale
        if self.blocks[0].c_attn.K // n_head % LANES:
            raise ValueError(f'kernels.c takes no heads of {self.blocks[0].c_attn.K // n_head}')

    def __call__(self, x, rope, keys, values, slot, used, mask=None):
        """
        The output of the blocks for x (B, 1, C) in float32, which is changed. Its keys and values go into a slot of
        `keys` and `values`, of each layer a buffer (B, n_head, size, head_dim) in float32 or float16. It attends to the
        first `used` slots, or to those of them where mask (B or 1, 1, 1, used) is True. rope: of model.rotary, or None.
        """
        x, (B, H, size, D) = x.contiguous(), keys[0].shape
        assert x.shape == (B, 1, H * D) and x.dtype == torch.float32, (x.shape, keys[0].shape)
        mask = None if mask is None else mask.expand(B, 1, 1, used).contiguous()
        cosine, sine = (None, None) if rope is None else (each.expand(B, 1, D // 2).contiguous() for each in rope)
        for block, layer_keys, layer_values in zip(self.blocks, keys, values):
            block.keys, block.values = layer_keys.data_ptr(), layer_values.data_ptr()
        room = x.new_empty(B * (9 * H * D + H * (used + LANES)))
        settings = Settings(B, H, self.activation, self.scale, cosine, sine, mask, size, slot, used,
                            keys[0].dtype == torch.float16, room)
        load().step(self.blocks, len(self.blocks), ctypes.byref(settings), x.data_ptr())
        return x
