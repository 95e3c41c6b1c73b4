"""
GPT-2 in one file: the model, the weights it can start from, and its optimizer's parameter groups.
It knows no tokenizer, no data and no settings of a run.

    from model import GPT, GPTConfig
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384))   # from scratch
    model = GPT.from_pretrained('gpt2')                       # OpenAI's weights, or any GPT-2 in safetensors
    model = GPT.from_checkpoint('out/ckpt.pt')                # ours, or the original nanoGPT's

References: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; OpenAI's TensorFlow code,
https://github.com/openai/gpt-2/blob/master/src/model.py; https://github.com/karpathy/nanoGPT, whose names for
parameters and settings are kept, so that its checkpoints load.
"""
import difflib
import json
import math
import os
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from common import checkpoint as checkpoint_file
from common import generate


OPENAI = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')  # 124M, 350M, 774M, 1558M parameters

# what Hugging Face calls the activations that we have
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}


@dataclass
class GPTConfig:
    block_size: int = 1024    # longest context, in tokens
    vocab_size: int = 50304   # GPT-2's 50257, padded to a multiple of 64 for the tensor cores
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True         # in Linear and LayerNorm, as GPT-2 has it; False is a little faster and as good
    activation: str = 'gelu'  # 'gelu' is exact, as nanoGPT trained; 'gelu_tanh' is what OpenAI trained GPT-2 with

    def __post_init__(self):
        if self.n_embd % self.n_head != 0:
            divisors = [n for n in range(1, self.n_head) if self.n_embd % n == 0]
            raise ValueError(f'n_embd={self.n_embd} is not divisible by n_head={self.n_head}; '
                             f'try --n_head={divisors[-1]} or --n_embd={-(-self.n_embd // self.n_head) * self.n_head}')
        if self.activation not in ('gelu', 'gelu_tanh'):
            raise ValueError(f'activation={self.activation!r} is not one of gelu, gelu_tanh')


class CausalSelfAttention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head_dim)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate='tanh' if config.activation == 'gelu_tanh' else 'none')
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # recompute each block in the backward pass: less memory, more time
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # tied, as in GPT-2
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith('c_proj.weight'):
                # each block adds to the residual stream twice; this keeps its variance (GPT-2 paper, section 2.3)
                nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        """
        idx (B, T) token ids, T <= block_size; targets (B, T), where -1 does not count.
        Returns (logits, loss): with targets the logits of all positions (B, T, vocab_size) and the mean cross
        entropy in nats; without, the logits of the last position (B, 1, vocab_size) and None.
        ValueError if T is longer than block_size.
        """
        B, T = idx.shape
        if T > self.config.block_size:
            raise ValueError(f'a sequence of {T} tokens is longer than block_size={self.config.block_size}')
        pos = torch.arange(T, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))  # (B, T, n_embd)
        for block in self.transformer.h:
            if self.gradient_checkpointing and self.training:
                x = recompute_in_backward(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None  # only the last position is of use in generation
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """idx (B, T) with its continuation, (B, T + max_new_tokens). The other options stand in common/generate.py."""
        return generate.generate(self, idx, max_new_tokens, temperature=temperature, top_k=top_k, **options)

    def get_num_params(self, non_embedding=True):
        """How many parameters; without the position embeddings by default. The tied head counts once."""
        count = sum(p.numel() for p in self.parameters())
        return count - self.transformer.wpe.weight.numel() if non_embedding else count

    def flops_per_token(self):
        """FLOPs to train on one token, forward and backward: 6N + 12 L H Q T (PaLM, appendix B)."""
        c = self.config
        return 6 * self.get_num_params() + 12 * c.n_layer * c.n_embd * c.block_size

    def crop_block_size(self, block_size):
        """Shorten the longest context, by dropping position embeddings."""
        if block_size > self.config.block_size:
            raise ValueError(f'block_size={block_size} is above the {self.config.block_size} of these weights')
        self.config.block_size = block_size
        self.transformer.wpe = nn.Embedding.from_pretrained(self.transformer.wpe.weight[:block_size].detach().clone(),
                                                            freeze=False)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        """AdamW. Matrices and embeddings decay; biases and norms do not."""
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [{'params': [p for p in params if p.dim() >= 2], 'weight_decay': weight_decay},
                  {'params': [p for p in params if p.dim() < 2], 'weight_decay': 0.0}]
        fused = device_type in ('cuda', 'cpu')  # one kernel for all parameters, which can skip an update by itself
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)

    @classmethod
    def from_checkpoint(cls, source, **overrides):
        """
        The model in a checkpoint: a file, a run's out_dir, or a dict that checkpoint.load returned, ours or the
        original nanoGPT's. `overrides` replace entries of its GPTConfig, such as dropout.
        FileNotFoundError or ValueError where there is no usable checkpoint.
        """
        if not isinstance(source, dict):
            source = checkpoint_file.load(checkpoint_file.weights_path(source))
        known = {field.name for field in fields(GPTConfig)}
        model_args = {key: value for key, value in source['model_args'].items() if key in known}
        model = cls(GPTConfig(**{**model_args, **overrides}))
        try:
            model.load_state_dict(source['model'])
        except RuntimeError as error:
            problem = str(error).splitlines()[1].strip()
            raise ValueError(f'the weights in the checkpoint do not fit this GPT: {problem}') from None
        return model

    @classmethod
    def from_pretrained(cls, model_type, override_args=None):
        """
        GPT-2 weights in safetensors, as Hugging Face keeps them: 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl'
        (OpenAI's), any repository id, or a local folder with config.json and model.safetensors.
        override_args: {'dropout': p} or nothing. ValueError if it cannot be had, or is not a GPT-2.
        """
        config, weights = read_pretrained(model_type if os.path.isdir(model_type) else download(model_type))
        model = cls(GPTConfig(**{**gpt2_config(config, model_type), **(override_args or {})}))
        theirs = {key.removeprefix('transformer.'): value for key, value in weights.items()}
        with torch.no_grad():
            for name, p in model.named_parameters():
                key = name.removeprefix('transformer.')
                if key not in theirs:
                    raise ValueError(f'{model_type} is not a GPT-2: it has no {key}')
                value = theirs[key]
                # OpenAI's Conv1D keeps its matrices (in, out), nn.Linear (out, in)
                if name.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight')):
                    value = value.t()
                if value.shape != p.shape:
                    raise ValueError(f'{model_type}: {key} is {tuple(value.shape)}, expected {tuple(p.shape)}')
                p.copy_(value)
        return model


def download(model_type):
    """The local folder of a Hugging Face repository, fetched once and cached by huggingface_hub."""
    from huggingface_hub import snapshot_download
    repo = f'openai-community/{model_type}' if model_type in OPENAI else model_type
    try:
        return snapshot_download(repo, allow_patterns=['config.json', '*.safetensors', '*.safetensors.index.json'])
    except Exception as error:  # its errors for no network, no such name and no access have no common base
        reason = str(error).strip().split('\n')[0]
        close = difflib.get_close_matches(model_type, [*OPENAI, 'scratch', 'resume', 'auto'], n=1, cutoff=0.8)
        hint = f'did you mean {close[0]}?' if close and close[0] != model_type else (
            'without a network, name a folder with its config.json and model.safetensors instead')
        raise ValueError(f'{model_type} is no file or folder here, and {repo} cannot be fetched from Hugging Face '
                         f'({type(error).__name__}: {reason}); {hint}') from None


def read_pretrained(folder):
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


def load_weights(source, **overrides):
    """
    (model, checkpoint): a GPT by the name that a user gives it, which is a checkpoint file, a run's out_dir, or what
    from_pretrained takes. The checkpoint's dict is None for the last. `overrides` as in from_checkpoint.
    """
    is_run = os.path.isdir(source) and not os.path.exists(os.path.join(source, 'config.json'))
    if not is_run and not os.path.isfile(source) and not source.endswith('.pt'):
        return GPT.from_pretrained(source, overrides), None
    checkpoint = checkpoint_file.load(checkpoint_file.weights_path(source))
    return GPT.from_checkpoint(checkpoint, **overrides), checkpoint
