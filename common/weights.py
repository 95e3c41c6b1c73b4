"""
Weights by any name that a user gives: a run, a checkpoint file, or a folder or repository in Hugging Face's layout
(config.json and safetensors) with a GPT-2 or an export. It knows the names of parameters, but no model.
"""
import contextlib
import difflib
import json
import os
import shlex

import torch
from torch.overrides import TorchFunctionMode

from common import checkpoint
from common.files import exists
from common.settings import SHAPE
from common.tokenizer import check_meta

# OpenAI's four sizes: n_layer, n_head, n_embd; 124M, 350M, 774M, 1558M parameters
OPENAI = {'gpt2': (12, 12, 768), 'gpt2-medium': (24, 16, 1024), 'gpt2-large': (36, 20, 1280), 'gpt2-xl': (48, 25, 1600)}
# Hugging Face's names for the activations that GPT has
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}
# matrices that Hugging Face's Conv1D has as (in, out), nn.Linear as (out, in)
TRANSPOSED = 'c_attn.weight', 'c_proj.weight', 'c_fc.weight'


class NoValues(TorchFunctionMode):
    """Within it torch.nn.init.normal_ does nothing: on tensors without data the first call would take a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return None if function is torch.nn.init.normal_ else function(*args, **(kwargs or {}))


@contextlib.contextmanager
def not_filled():
    """Within it new modules take no memory and no time: their parameters are to be replaced."""
    with torch.device('meta'), NoValues():
        yield


def load(source):
    """The checkpoint of a file, a run's out_dir, an export or what load_gpt2 takes. OSError or ValueError if none."""
    if not source:
        raise ValueError("init_from='' names no model")
    is_run = os.path.isdir(source) and not os.path.exists(os.path.join(source, 'config.json'))
    if is_run or os.path.isfile(source) or source.endswith('.pt'):
        path = checkpoint.weights_path(source)
        try:
            return checkpoint.load(path)
        except (ValueError, OSError) as error:
            newest = os.path.join(source, 'last.pt')
            if path == os.path.join(source, 'ckpt.pt') and checkpoint.peek(newest):
                raise ValueError(f'{error}; for the newest weights: {shlex.quote(f"--init_from={newest}")}') from None
            raise
    is_path = os.path.isabs(source) or source.startswith('.') or source.count('/') > 1 or os.path.islink(source)
    if is_path and not os.path.isdir(source):  # and no name on Hugging Face
        raise FileNotFoundError(f'no file or folder {source!r}')
    return load_gpt2(source)


def load_gpt2(name):
    """
    A GPT-2 or an export from Hugging Face as a checkpoint with model, model_args and meta (None if unknown). `name`:
    gpt2, gpt2-medium, gpt2-large, gpt2-xl (OpenAI's), any repository id, or a local folder with config.json and
    safetensors. Code that an export brings is not executed. ValueError if it cannot be read or is no such model.
    """
    folder = name if os.path.isdir(name) else download(name)
    config, theirs = read(folder)
    if isinstance(config, dict) and config.get('model_type') == 'nanogpt':  # an export, with the names of this project
        model_args = {key: config[key] for key in ('vocab_size', 'dropout', *SHAPE) if key in config}
        ours = theirs
    else:
        model_args = gpt2_config(config, name)
        ours = from_gpt2(theirs, model_args['n_layer'], name)
    if 'lm_head.weight' not in ours and 'transformer.wte.weight' in ours:  # both have one for both
        ours['lm_head.weight'] = ours['transformer.wte.weight']
    found = {'model': ours, 'model_args': model_args, 'meta': read_meta(folder)}
    try:
        checkpoint.check(found)
    except ValueError as error:
        raise ValueError(f'{name} was not loaded: {error}') from None
    return found


def from_gpt2(theirs, n_layer, name):
    """The weights of a GPT2LMHeadModel by the names that they have here. ValueError if some are missing or unknown."""
    theirs, ours = {key.removeprefix('transformer.'): value for key, value in theirs.items()}, {}
    for key in gpt2_keys(n_layer):
        if key not in theirs:
            raise ValueError(f'{name} is not a GPT-2: it has no {key}')
        ours[f'transformer.{key}'] = theirs[key].transpose(0, -1) if key.endswith(TRANSPOSED) else theirs[key]
    left = [key for key in theirs if key.startswith('h.') and f'transformer.{key}' not in ours
            and not key.endswith(('.attn.bias', '.attn.masked_bias'))]  # attention masks in older files
    if left:
        raise ValueError(f'{name} is not the GPT-2 that its config.json describes: it has {left[0]}')
    return {**ours, 'lm_head.weight': theirs['lm_head.weight']} if 'lm_head.weight' in theirs else ours


def gpt2_keys(n_layer):
    """The names of the parameters of a GPT-2, without 'transformer.' and the tied lm_head."""
    yield from ('wte.weight', 'wpe.weight', 'ln_f.weight', 'ln_f.bias')
    for layer in range(n_layer):
        for module in ('ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'):
            yield from (f'h.{layer}.{module}.weight', f'h.{layer}.{module}.bias')


def download(model_type):
    """The local folder of a Hugging Face repository, fetched once and cached. ValueError if it cannot be fetched."""
    from huggingface_hub import snapshot_download
    repo = f'openai-community/{model_type}' if model_type in OPENAI else model_type
    try:
        return snapshot_download(repo, allow_patterns=[
            'config.json', '*.safetensors', '*.safetensors.index.json', 'meta.json', 'tokenizer.json'])
    except Exception as error:  # the errors for no network, no such name and no access have no common base
        reason = str(error).strip().split('\n')[0]
        close = difflib.get_close_matches(model_type, [*OPENAI, 'scratch', 'resume', 'auto'], n=1, cutoff=0.8)
        hint = f'did you mean {close[0]}?' if close and close[0] != model_type else (
            'without a network, name a folder with its config.json and model.safetensors instead')
        raise ValueError(f'{model_type} is no file or folder here, and {repo} cannot be fetched from Hugging Face '
                         f'({type(error).__name__}: {reason}); {hint}') from None


def read(folder):
    """(config.json, weights) of a folder in Hugging Face's layout, two dicts. ValueError if it cannot be read."""
    from safetensors.torch import load_file
    names = sorted(name for name in os.listdir(folder) if name.endswith('.safetensors'))  # large models have several
    if not names:
        raise ValueError(f'{folder} has no .safetensors file')
    weights = {}
    try:
        for name in names:
            weights.update(load_file(os.path.join(folder, name)))
        name = 'config.json'
        with open(os.path.join(folder, name), encoding='utf-8') as f:
            return json.load(f), weights
    except Exception as error:  # SafetensorError, among others, has no other base
        raise ValueError(f'{os.path.join(folder, name)} cannot be read ({error})') from None


def read_meta(folder):
    """The meta.json of a folder that export.py wrote, in the form of dataset.read_meta; None in any other folder."""
    path = os.path.join(folder, 'meta.json')
    if not exists(path):
        return None
    try:
        with open(path, encoding='utf-8') as f:
            meta = json.load(f)
        if not isinstance(meta, dict) or 'tokenizer' not in meta:  # another program's
            return None
        if meta['tokenizer'] == 'bpe':
            path = os.path.join(folder, 'tokenizer.json')
            with open(path, encoding='utf-8') as f:
                meta['tokenizer_json'] = f.read()
        check_meta(meta)
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error})') from None
    return meta


def gpt2_config(theirs, model_type):
    """The arguments of GPTConfig from a Hugging Face config.json. ValueError for a variant that GPT does not have."""
    if not isinstance(theirs, dict) or theirs.get('model_type') != 'gpt2':
        kind = theirs.get('model_type') if isinstance(theirs, dict) else type(theirs).__name__
        raise ValueError(f'{model_type} is a {kind!r} model, not a GPT-2')
    needed = {'n_layer', 'n_head', 'n_embd', 'n_positions', 'vocab_size'}
    missing = needed - theirs.keys()
    if missing:
        raise ValueError(f'the config.json of {model_type} has no {" and no ".join(sorted(missing))}')
    for key in needed:
        if type(theirs[key]) is not int:
            raise ValueError(f'the config.json of {model_type} has {key}={theirs[key]!r}')
    usual = dict(scale_attn_by_inverse_layer_idx=[False], scale_attn_weights=[True], tie_word_embeddings=[True],
                 layer_norm_epsilon=[1e-5], n_inner=[None, 4 * theirs['n_embd']], activation_function=list(ACTIVATIONS))
    unusual = [key for key, values in usual.items() if key in theirs and theirs[key] not in values]
    if unusual:
        raise ValueError(f'{model_type} is a GPT-2 of an unusual kind: ' +
                         ', '.join(f'{key}={theirs[key]!r}' for key in unusual))
    return dict(n_layer=theirs['n_layer'], n_head=theirs['n_head'], n_embd=theirs['n_embd'],
                block_size=theirs['n_positions'], vocab_size=theirs['vocab_size'], bias=True,
                activation=ACTIVATIONS[theirs.get('activation_function', 'gelu_new')])


def gpt2_weights(model, vocab_size):
    """(name, tensor) as in a GPT2LMHeadModel: matrices transposed, missing biases 0, the vocabulary without padding."""
    for name, p in model.named_parameters():
        p = p.detach()
        if name == 'transformer.wte.weight':
            p = p[:vocab_size]
        elif name.endswith(TRANSPOSED):
            p = p.t()
        yield name, p.contiguous()
        if not model.config.bias and not name.startswith(('transformer.wte', 'transformer.wpe')):
            yield name.removesuffix('weight') + 'bias', p.new_zeros(p.size(-1))
