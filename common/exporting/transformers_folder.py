"""
The folder of an export that transformers opens: config.json, the weights in safetensors, the tokenizer, and the code of
a model that transformers does not have.
"""
import json
import os
import shutil
from dataclasses import asdict

from common import weights
from common.tokenizer import END_OF_TEXT

MODELING = os.path.join(os.path.dirname(__file__), 'modeling_nanogpt.py')  # not imported: it needs transformers


def needs_own_code(config):
    """Whether transformers has no architecture that computes what a GPT of this config does."""
    return config.modern or config.softcap > 0.0


def write(model, tokenizer, meta, folder):
    """Write a GPT with its tokenizer in a folder that transformers opens, with a modelling file if it needs one."""
    from safetensors.torch import save_file
    c, vocab_size = model.config, tokenizer.vocab_size
    if needs_own_code(c):
        shutil.copy(MODELING, folder)
        config, tensors = own_config(c), own_weights(model, vocab_size)
    else:
        config, tensors = gpt2_config(c), weights.gpt2_weights(model, vocab_size)
    ids = dict(bos_token_id=tokenizer.end_id, eos_token_id=tokenizer.end_id)
    write_json({**config, 'vocab_size': vocab_size, 'dtype': 'float32', **ids}, folder, 'config.json')
    write_json(ids, folder, 'generation_config.json')
    write_tokenizer(tokenizer, meta, c.block_size, folder)
    save_file(dict(tensors), os.path.join(folder, 'model.safetensors'), metadata={'format': 'pt'})


def gpt2_config(c):
    """The config.json of a GPT2LMHeadModel."""
    return dict(
        architectures=['GPT2LMHeadModel'], model_type='gpt2', n_positions=c.block_size,
        n_ctx=c.block_size,  # for llama.cpp
        n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, n_inner=None, layer_norm_epsilon=1e-5,
        activation_function={'gelu': 'gelu', 'gelu_tanh': 'gelu_new'}[c.activation], attn_pdrop=c.dropout,
        embd_pdrop=c.dropout, resid_pdrop=c.dropout, tie_word_embeddings=True)


def own_config(c):
    """The config.json of a NanoGPTForCausalLM."""
    auto_map = {'AutoConfig': 'modeling_nanogpt.NanoGPTConfig',
                'AutoModelForCausalLM': 'modeling_nanogpt.NanoGPTForCausalLM'}
    return dict(architectures=['NanoGPTForCausalLM'], model_type='nanogpt', auto_map=auto_map, **asdict(c))


def own_weights(model, vocab_size):
    """(name, tensor) as in a checkpoint, without the padding of the vocabulary; a tied matrix once."""
    for name, p in model.named_parameters():
        is_vocabulary = name in ('transformer.wte.weight', 'lm_head.weight')
        yield name, (p[:vocab_size] if is_vocabulary else p).detach().contiguous()


def write_json(content, folder, name):
    with open(os.path.join(folder, name), 'w', encoding='utf-8') as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def write_tokenizer(tokenizer, meta, block_size, folder):
    """Write a tokenizer: the two files of transformers, and the meta.json that this project reads."""
    settings = dict(tokenizer_class='PreTrainedTokenizerFast', model_max_length=block_size,
                    # no token_type_ids, whose embeddings transformers' GPT-2 would add
                    model_input_names=['input_ids', 'attention_mask'], clean_up_tokenization_spaces=False)
    if tokenizer.end_id is not None:
        settings.update(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    write_json(settings, folder, 'tokenizer_config.json')
    write_json({key: value for key, value in meta.items() if key != 'tokenizer_json'}, folder, 'meta.json')
    with open(os.path.join(folder, 'tokenizer.json'), 'w', encoding='utf-8') as f:
        f.write(tokenizer.to_json())
