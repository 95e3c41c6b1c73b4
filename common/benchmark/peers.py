"""
The same model in other libraries, to see how fast they generate with it. Each function takes a classic model and gives
a function that writes so many tokens; ImportError where the package is not installed.
"""
import functools
import os
import tempfile
from types import SimpleNamespace

import torch

from common import gguf_file, weights


def hugging_face(model, precision, sizes, device):
    """transformers' generate(), with its cache."""
    import transformers
    transformers.logging.set_verbosity_error()
    c, (prompt_tokens, _, top_k) = model.config, sizes
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size, vocab_size=c.vocab_size,
        activation_function={'gelu': 'gelu', 'gelu_tanh': 'gelu_new'}[c.activation],
        bos_token_id=0, eos_token_id=None, pad_token_id=0))
    theirs.load_state_dict(dict(weights.gpt2_weights(model, c.vocab_size)), strict=False)  # its lm_head is tied
    theirs.eval().to(device, getattr(torch, precision))
    idx = torch.zeros(1, prompt_tokens, dtype=torch.long, device=device)

    def write(tokens):
        theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=tokens, do_sample=True, top_k=top_k)
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
        for _ in range(tokens):
            next(ids)
    return write


def ctranslate2(model, precision, sizes, device):
    """CTranslate2, by its own converter from the same model of transformers."""
    import ctranslate2 as library
    import transformers
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    prompt_tokens, _, top_k = sizes
    c, loader = model.config, _MODEL_LOADERS['GPT2Config']
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size, vocab_size=c.vocab_size))
    theirs.load_state_dict(dict(weights.gpt2_weights(model, c.vocab_size)), strict=False)
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
        generator.generate_batch([names[:1] * prompt_tokens], max_length=tokens, min_length=tokens,
                                 sampling_topk=min(top_k, c.vocab_size) or -1, include_prompt_in_result=False)
    return write


PEERS = {  # name: (function, precisions, whether only on a CPU)
    'Hugging Face': (hugging_face, ('float32', 'bfloat16', 'float16'), False),
    'llama.cpp': (llama_cpp, ('float32', 'float16', 'int8'), True),
    'CTranslate2': (ctranslate2, ('float32', 'int8'), True)}


def ways(make_model, names, sizes, device):
    """{way: function} of the peers of these names; a line for what is not installed, or has no such model."""
    found = {}
    for name in names:
        make, precisions, cpu_only = PEERS[name]
        for precision in precisions if device == 'cpu' or not cpu_only else ():
            try:
                found[f'{name}, {precision}, batch 1'] = make(make_model(), precision, sizes, device)
            except (ImportError, ValueError) as error:
                print(f'{name} is left out: {error}')
                break
    return found
