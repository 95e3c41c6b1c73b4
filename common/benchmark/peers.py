"""
The same model in other libraries, to see how fast they generate with it. Each has a process of its own, because
libraries with threads of their own slow each other down in one. The first functions take a classic model and give a
function that writes so many tokens and returns their number.
"""
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import torch

from common import gguf_file, weights

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def gpt2_of_transformers(model):
    """Hugging Face's model with the same weights."""
    import transformers
    transformers.logging.set_verbosity_error()
    c = model.config
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size, vocab_size=c.vocab_size,
        activation_function={'gelu': 'gelu', 'gelu_tanh': 'gelu_new'}[c.activation],
        bos_token_id=0, eos_token_id=None, pad_token_id=0))
    theirs.load_state_dict(dict(weights.gpt2_weights(model, c.vocab_size)), strict=False)  # its lm_head is tied
    return theirs.eval()


def hugging_face(model, precision, sizes, device):
    """transformers' generate(), with its cache."""
    prompt_tokens, _, top_k = sizes
    theirs = gpt2_of_transformers(model).to(device, getattr(torch, precision))
    idx = torch.zeros(1, prompt_tokens, dtype=torch.long, device=device)

    def write(tokens):
        return theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=tokens, do_sample=True,
                               top_k=top_k).size(1) - prompt_tokens
    return write


def llama_cpp(model, precision, sizes, device):
    """llama.cpp by its binding llama-cpp-python, from a GGUF file: F32, F16 or Q8_0."""
    import llama_cpp as binding
    gguf_file.print_errors_only()
    prompt_tokens, _, top_k = sizes
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'model.gguf')
        gguf_file.write(model, None, path, precision)
        threads = torch.get_num_threads()
        theirs = binding.Llama(path, n_ctx=model.config.block_size, n_batch=model.config.block_size, n_threads=threads,
                               n_threads_batch=threads, use_mmap=False, verbose=False)

    def write(tokens):
        theirs.reset()
        ids = theirs.generate([0] * prompt_tokens, top_k=top_k, top_p=1.0, min_p=0.0, temp=1.0, repeat_penalty=1.0)
        return sum(1 for _ in itertools.islice(ids, tokens))
    return write


def ctranslate2(model, precision, sizes, device):
    """CTranslate2, by its own converter from the same model of transformers."""
    import ctranslate2 as library
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    prompt_tokens, _, top_k = sizes
    c, loader = model.config, _MODEL_LOADERS['GPT2Config']
    theirs = gpt2_of_transformers(model)
    spec, names = loader.get_model_spec(theirs), [f'<{i}>' for i in range(c.vocab_size)]
    loader.set_vocabulary(spec, names)
    loader.set_config(spec.config, theirs, SimpleNamespace(bos_token=names[0], eos_token=names[1], unk_token=names[0]))
    spec.validate()
    spec.optimize(quantization=None if precision == 'float32' else precision)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        generator = library.Generator(folder, device='cpu', compute_type=precision, inter_threads=1,
                                      intra_threads=torch.get_num_threads())

    def write(tokens):
        found = generator.generate_batch(
            [names[:1] * prompt_tokens], max_length=tokens, min_length=tokens, include_prompt_in_result=False,
            sampling_topk=min(top_k, c.vocab_size))
        return len(found[0].sequences_ids[0])
    return write


PEERS = {  # name: (function, precisions, whether only on a CPU)
    'Hugging Face': (hugging_face, ('float32', 'bfloat16', 'float16'), False),
    'llama.cpp': (llama_cpp, ('float32', 'float16', 'int8'), True),
    'CTranslate2': (ctranslate2, ('float32', 'int8'), True)}
PACKAGES = {'Hugging Face': 'pip install transformers', 'llama.cpp': 'pip install gguf llama-cpp-python',
            'CTranslate2': 'pip install ctranslate2 transformers'}


def serve(make_model):
    """
    The process of a peer. Its stdin: a line of JSON with its name, what make_model takes, sizes and device; then a line
    [precision, tokens] for each text. Its stdout: a line of JSON for each: first {precision: why it has it not, or
    null}; then how many tokens were written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its stdin
    out, sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1), sys.stderr
    os.dup2(2, 1)  # for what libraries print
    name, what, sizes, device = json.loads(sys.stdin.readline())
    make, precisions, _ = PEERS[name]
    writers, reasons = {}, dict.fromkeys(precisions)
    for precision in precisions:
        try:
            writers[precision] = make(make_model(*what), precision, sizes, device)
        except Exception as error:  # not installed, broken, of another version, without such a model
            reasons[precision] = f'{type(error).__name__}: {error}'
    print(json.dumps(reasons), file=out)
    for line in sys.stdin:
        precision, tokens = json.loads(line)
        print(json.dumps(writers[precision](tokens)), file=out)


def start(name, code, what, sizes, device):
    """
    {precision: a function that writes so many tokens and returns their number} of a peer; a line says what it has not.
    code: Python that defines make_model(*what), which gives the model.
    """
    process = subprocess.Popen([sys.executable, '-c', f'from common.benchmark import peers\n{code}\n'
                                'peers.serve(make_model)'], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, bufsize=1)

    def ask(question):
        try:
            print(json.dumps(question), file=process.stdin)
            return json.loads(process.stdout.readline())
        except (OSError, ValueError):  # it has ended
            raise ValueError(f'{name} ended with exit code {process.wait()}; leave it out with '
                             f'{"--use_huggingface" if name == "Hugging Face" else "--use_others"}=False') from None

    reasons = ask([name, what, sizes, device])
    if len(set(reasons.values())) == 1 and None not in reasons.values():
        print(f'{name} is left out ({PACKAGES[name]}): {next(iter(reasons.values()))}')
    else:
        for precision, reason in reasons.items():
            if reason:
                print(f'{name}, {precision} is left out: {reason}')
    return {precision: lambda tokens, precision=precision: ask([precision, tokens])
            for precision, reason in reasons.items() if reason is None}


def ways(names, code, what, sizes, device):
    """{way: a function that writes so many tokens} of the peers of these names; the rest as in start()."""
    return {f'{name}, {precision}, batch 1': write for name in names if device == 'cpu' or not PEERS[name][2]
            for precision, write in start(name, code, what, sizes, device).items()}
