"""What kind of CPU this is, for figures that are worth nothing without its name, and for code that is made for it."""
import contextlib
import os
import re
import subprocess
import sys

import torch

from common.device import native_bf16


# what tells one kind of CPU from another in facts(), on x86-64 and on ARM
KIND = 'model name', 'flags', 'CPU implementer', 'CPU part', 'Features'


def facts():
    """What Linux tells of the first core, {name: text}; elsewhere {}."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8', errors='replace') as f:
        pairs = (line.partition(':') for line in f.read().partition('\n\n')[0].splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def describe():
    """The name of the CPU and what counts in it: AMD EPYC (AVX-512 with bfloat16)."""
    about, name = facts(), ''
    if about:
        name = about.get('model name', '')
    elif sys.platform == 'darwin':
        name = subprocess.run(['sysctl', '-n', 'machdep.cpu.brand_string'], capture_output=True, text=True).stdout
    name = re.sub(r'\((R|TM|tm)\)|CPU @ .*| Processor| \d+-Core', '', name).strip() or 'CPU'
    if not re.search(r'\d', name) and {'cpu family', 'model'} <= set(about):  # as a virtual machine hides it
        name += f' family {about["cpu family"]} model {about["model"]}'
    widest = torch.backends.cpu.get_cpu_capability()
    if not widest.startswith('AVX'):
        return name
    if widest == 'AVX2' and 'avx512f' in about.get('flags', '').split():  # as ATEN_CPU_CAPABILITY says
        limited = os.environ.get('MKL_ENABLE_INSTRUCTIONS') == 'AVX2'  # else MKL's products, of float32, are not
        vectors = 'limited to AVX2' if limited else 'limited to AVX2, but not MKL'
    elif widest == 'AVX2':
        vectors = 'AVX2 only'
    else:
        vectors = 'AVX-512' + ' with bfloat16' * native_bf16('cpu')
    return f'{name} ({vectors}{", AMX" * (widest == "AVX512" and torch.cpu._is_amx_tile_supported())})'
