"""
GPT-2 as Hugging Face keeps it: a folder with config.json and safetensors, here or in its repositories; read and
written. It knows files and names.
"""
import difflib
import json
import os

from common.tokenizer import END_OF_TEXT

# OpenAI's four: n_layer, n_head, n_embd; 124M, 350M, 774M, 1558M parameters
OPENAI = {'gpt2': (12, 12, 768), 'gpt2-medium': (24, 16, 1024), 'gpt2-large': (36, 20, 1280), 'gpt2-xl': (48, 25, 1600)}

# what it calls the activations that we have
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}


def download(model_type):
    """The local folder of a Hugging Face repository, fetched once and cached by huggingface_hub."""
    from huggingface_hub import snapshot_download
    repo = f'openai-community/{model_type}' if model_type in OPENAI else model_type
    try:
        return snapshot_download(repo, allow_patterns=[
            'config.json', '*.safetensors', '*.safetensors.index.json', 'meta.json', 'tokenizer.json'])
    except Exception as error:  # its errors for no network, no such name and no access have no common base
        reason = str(error).strip().split('\n')[0]
        close = difflib.get_close_matches(model_type, [*OPENAI, 'scratch', 'resume', 'auto'], n=1, cutoff=0.8)
        hint = f'did you mean {close[0]}?' if close and close[0] != model_type else (
            'without a network, name a folder with its config.json and model.safetensors instead')
        raise ValueError(f'{model_type} is no file or folder here, and {repo} cannot be fetched from Hugging Face '
                         f'({type(error).__name__}: {reason}); {hint}') from None


def read(folder):
    """(config.json, weights), two dicts, of a folder in Hugging Face's layout. ValueError if that cannot be read."""
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
    except Exception as error:  # a SafetensorError, for one, is nothing else
        raise ValueError(f'{os.path.join(folder, name)} cannot be read ({error})') from None


def read_meta(folder):
    """The meta.json of a folder that write_gpt2 wrote, as bins.read_meta gives it; None in a folder of others."""
    path = os.path.join(folder, 'meta.json')
    if not os.path.isfile(path):
        return None
    with open(path, encoding='utf-8') as f:
        meta = json.load(f)
    if not isinstance(meta, dict) or meta.get('tokenizer') not in ('char', 'gpt2', 'bpe'):
        return None
    if meta['tokenizer'] == 'bpe':
        with open(os.path.join(folder, 'tokenizer.json'), encoding='utf-8') as f:
            meta['tokenizer_json'] = f.read()
    return meta


def gpt2_config(theirs, model_type):
    """GPTConfig's arguments from a Hugging Face config.json; ValueError for what GPT-2 here does not do."""
    if theirs.get('model_type') != 'gpt2':
        raise ValueError(f'{model_type} is a {theirs.get("model_type")!r} model, not a GPT-2')
    missing = {'n_layer', 'n_head', 'n_embd', 'n_positions', 'vocab_size'} - theirs.keys()
    if missing:
        raise ValueError(f'the config.json of {model_type} has no {" and no ".join(sorted(missing))}')
    unusual = [key for key, usual in (('scale_attn_by_inverse_layer_idx', False), ('scale_attn_weights', True),
                                      ('tie_word_embeddings', True), ('layer_norm_epsilon', 1e-5))
               if theirs.get(key, usual) != usual]
    if theirs.get('n_inner') not in (None, 4 * theirs['n_embd']):
        unusual.append('n_inner')
    if theirs.get('activation_function', 'gelu_new') not in ACTIVATIONS:
        unusual.append('activation_function')
    if unusual:
        raise ValueError(f'{model_type} is a GPT-2 of an unusual kind: ' +
                         ', '.join(f'{key}={theirs[key]!r}' for key in unusual))
    return dict(n_layer=theirs['n_layer'], n_head=theirs['n_head'], n_embd=theirs['n_embd'],
                block_size=theirs['n_positions'], vocab_size=theirs['vocab_size'], bias=True,
                activation=ACTIVATIONS[theirs.get('activation_function', 'gelu_new')])


def gpt2_weights(model, vocab_size):
    """
    The weights of a GPT as a GPT2LMHeadModel names and keeps them, one by one, (name, tensor): matrices turned round,
    zeros where it has biases and the model has none, the vocabulary without its padding.
    """
    for name, p in model.named_parameters():
        p = p.detach()
        if name == 'transformer.wte.weight':
            p = p[:vocab_size]
        elif name.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight')):
            p = p.t()  # its Conv1D keeps them (in, out)
        yield name, p.contiguous()
        is_embedding = name.startswith(('transformer.wte', 'transformer.wpe'))
        if not model.config.bias and not is_embedding:
            yield name.removesuffix('weight') + 'bias', p.new_zeros(p.size(-1))


def write_json(content, folder, name):
    with open(os.path.join(folder, name), 'w', encoding='utf-8') as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def write_tokenizer(tokenizer, meta, block_size, folder):
    """Write the files of a tokenizer: transformers' two, and the meta.json by which this project knows it."""
    settings = dict(tokenizer_class='PreTrainedTokenizerFast', model_max_length=block_size,
                    clean_up_tokenization_spaces=False)
    if tokenizer.end_id is not None:
        settings.update(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    write_json(settings, folder, 'tokenizer_config.json')
    write_json({key: value for key, value in meta.items() if key != 'tokenizer_json'}, folder, 'meta.json')
    with open(os.path.join(folder, 'tokenizer.json'), 'w', encoding='utf-8') as f:
        f.write(tokenizer.to_json())


def write_gpt2(model, tokenizer, meta, folder):
    """Write a folder that transformers opens as GPT2LMHeadModel, with its tokenizer. The model is a classic one."""
    from safetensors.torch import save_file
    c = model.config
    ids = dict(bos_token_id=tokenizer.end_id, eos_token_id=tokenizer.end_id)
    config = dict(
        architectures=['GPT2LMHeadModel'], model_type='gpt2', vocab_size=tokenizer.vocab_size, n_positions=c.block_size,
        n_ctx=c.block_size,  # which llama.cpp reads
        n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, n_inner=None, layer_norm_epsilon=1e-5,
        activation_function={'gelu': 'gelu', 'gelu_tanh': 'gelu_new'}[c.activation], attn_pdrop=c.dropout,
        embd_pdrop=c.dropout, resid_pdrop=c.dropout, tie_word_embeddings=True, dtype='float32', **ids)
    for name, content in (('config.json', config), ('generation_config.json', ids)):
        write_json(content, folder, name)
    write_tokenizer(tokenizer, meta, c.block_size, folder)
    save_file(dict(gpt2_weights(model, tokenizer.vocab_size)), os.path.join(folder, 'model.safetensors'),
              metadata={'format': 'pt'})
