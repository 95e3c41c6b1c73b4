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
import functools
import math
import os
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from common import checkpoint as checkpoint_file
from common import generate, huggingface
from common.muon import MuonAdamW
from common.settings import check_shape

LOSS_CHUNK = 1024  # tokens whose logits are in memory at once: with GPT-2's vocabulary 0.2 GB in float32


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
    modern: bool = False      # no longer GPT-2, but learns several times faster: RoPE, QK-norm, ReLU^2, each token's
                              # embedding with a share of the one before, norms without weights, an untied output
                              # layer; what each of them brings: docs/recipe.md

    def __post_init__(self):
        check_shape(self.n_embd, self.n_head, self.modern, self.activation)


def rotary(positions, head_dim):
    """cos and sin (*shape, head_dim / 2) of the angles by which RoPE turns pairs of channels at positions (*shape)."""
    frequencies = 10000.0 ** -torch.linspace(0, 1, head_dim // 2 + 1, device=positions.device)[:-1]
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotary position embedding of x (B, T, heads, head_dim). Su et al. 2021, https://arxiv.org/abs/2104.09864"""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def attend(q, k, v, scale, dropout, mask=None):
    """
    Attention of q (B, n_head, T, head_dim) to k, v (B, n_head, S, head_dim): the weighted means of v, like q. To where
    mask (B, 1, T, S) is True or, without one, causally if T = S, and to everything if not.
    """
    T = q.size(2)
    if not (q.device.type == 'cpu' and q.dtype == torch.bfloat16 and q.requires_grad and T <= 512):
        causal = mask is None and T == k.size(2)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scale)
    # on a CPU in bfloat16 the fused kernel takes, with its backward pass, 1.1 times (T = 512) to 2 or 3 times (T = 64)
    # as long as these products, which for longer T take more memory
    with torch.autocast('cpu', enabled=False):  # or softmax would be in float32
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
        weights = (q * scale @ k.mT + future).softmax(dim=-1)
        return F.dropout(weights, dropout) @ v


class CausalSelfAttention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.n_head, head_dim = config.n_head, config.n_embd // config.n_head
        # after QK-norm no product is large, so that attention may be sharper than GPT-2's: 2 was the best of 1, 2, 4
        self.scale = math.sqrt((2 if config.modern else 1) / head_dim)
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, extend):
        B, T, C = x.shape
        qk, v = self.c_attn(x).view(B, T, -1, C // self.n_head).split((2 * self.n_head, self.n_head), dim=2)
        if rope is not None:
            qk = rotate(F.layer_norm(qk, qk.shape[-1:]), *rope)  # QK-norm, after Henry et al. 2020
            qk = qk.to(v.dtype)  # on a GPU autocast norms in float32
        q, k, v = (x.transpose(1, 2) for x in (*qk.chunk(2, dim=2), v))  # (B, n_head, T, head_dim)
        dtype = q.dtype
        k, v, mask = (k, v, None) if extend is None else extend(k, v)  # a cache may keep them in another dtype
        y = attend(q.to(k.dtype), k, v, self.scale, self.dropout if self.training else 0.0, mask).to(dtype)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.modern = config.modern
        self.gelu = nn.GELU(approximate='tanh' if config.activation == 'gelu_tanh' else 'none')
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = self.c_fc(x)
        if self.modern:
            x = F.relu(x)
            x = x * x  # ReLU^2: So et al. 2021, "Primer". square() would be in float32 under autocast on a GPU
        else:
            x = self.gelu(x)
        return self.dropout(self.c_proj(x))


def layer_norm(config):
    """LayerNorm; without weights of its own in a modern model, where the next matrix can learn them as well."""
    return nn.LayerNorm(config.n_embd, elementwise_affine=not config.modern, bias=config.bias)


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, x, rope, extend=None):
        x = x + self.attn(self.ln_1(x), rope, extend)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        # recompute blocks and logits in the backward pass: less memory, more time, and no logits from forward()
        self.gradient_checkpointing = False
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=None if config.modern else nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=layer_norm(config),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init_weights)
        if config.modern:
            self.smear = nn.Parameter(torch.zeros(config.n_embd))
            # its size is normalised away: it says how large a step of AdamW is beside it (0.3 was better than 1)
            nn.init.normal_(self.transformer.wte.weight, std=0.3)
        else:
            self.transformer.wte.weight = self.lm_head.weight  # tied, as in GPT-2
        for name, p in self.named_parameters():
            if name.endswith('c_proj.weight'):
                # each block adds to the residual stream twice; this keeps its variance (GPT-2 paper, section 2.3)
                nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def embed(self, idx, cache):
        """(x, rope) of token ids (B, T): what enters the first block (B, T, n_embd); what rotate() takes, or None."""
        T, device = idx.size(1), idx.device
        positions = torch.arange(T, device=device) if cache is None else cache.positions
        x = self.transformer.wte(idx)
        if not self.config.modern:
            return x + self.transformer.wpe(positions), None
        x = self.transformer.ln_f(x)  # it has no weights: the same serves here
        before = F.pad(x[:, :-1], (0, 0, 1, 0)) if cache is None else cache.before(x)
        return x + self.smear * before, rotary(positions, self.config.n_embd // self.config.n_head)

    def forward(self, idx, targets=None, cache=None):
        """
        idx (B, T) token ids, T <= block_size; targets (B, T), where -1 does not count. With a cache idx is what
        follows the ids that it has seen (generate.feed).
        Returns (logits, loss): with targets the logits of all positions (B, T, vocab_size) and the mean cross
        entropy in nats (0 if none counts); without, the logits of the last position (B, 1, vocab_size) and None. In
        training with gradient_checkpointing there are no logits, but None.
        ValueError if T is longer than block_size.
        """
        if idx.size(1) > self.config.block_size:
            raise ValueError(f'a sequence of {idx.size(1)} tokens is longer than block_size={self.config.block_size}')
        x, rope = self.embed(idx, cache)
        x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            if self.gradient_checkpointing and self.training:
                x = recompute_in_backward(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope, None if cache is None else functools.partial(cache.extend, layer))
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1:]), None  # only the last position is of use in generation
        if self.gradient_checkpointing and self.training:
            return None, self.loss_in_chunks(x.flatten(0, 1), targets.flatten())
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction='sum')
        return logits, loss / (targets >= 0).sum().clamp(min=1)

    def loss_in_chunks(self, x, targets):
        """The mean cross entropy of x (N, n_embd), with the logits of few tokens in memory at a time."""
        def summed_loss(x, targets):
            return F.cross_entropy(self.lm_head(x), targets, ignore_index=-1, reduction='sum')
        losses = [recompute_in_backward(summed_loss, *chunk, use_reentrant=False)
                  for chunk in zip(x.split(LOSS_CHUNK), targets.split(LOSS_CHUNK))]
        return sum(losses) / (targets >= 0).sum().clamp(min=1)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """idx (B, T) with its continuation, (B, T + max_new_tokens). The other options stand in common/generate.py."""
        return generate.generate(self, idx, max_new_tokens, temperature=temperature, top_k=top_k, **options)

    def get_num_params(self, non_embedding=True):
        """How many parameters; without the position embeddings by default. The tied head counts once."""
        count = sum(p.numel() for p in self.parameters())
        has_positions = not self.config.modern
        return count - self.transformer.wpe.weight.numel() if non_embedding and has_positions else count

    def flops_per_token(self):
        """FLOPs to train on one token, forward and backward: 6N + 12 L H Q T (PaLM, appendix B)."""
        c = self.config
        lookup = self.transformer.wte.weight.numel() if c.modern else 0  # untied, it multiplies nothing
        return 6 * (self.get_num_params() - lookup) + 12 * c.n_layer * c.n_embd * c.block_size

    def crop_block_size(self, block_size):
        """Shorten the longest context, by dropping position embeddings."""
        if block_size > self.config.block_size:
            raise ValueError(f'block_size={block_size} is above that of these weights; try '
                             f'--block_size={self.config.block_size}')
        self.config.block_size = block_size
        if not self.config.modern:
            kept = self.transformer.wpe.weight[:block_size].detach().clone()
            self.transformer.wpe = nn.Embedding.from_pretrained(kept, freeze=False)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, muon_lr=None, muon_dtype=None):
        """
        AdamW; matrices and embeddings decay, biases and norms do not. With muon_lr the matrices of the blocks go by
        Muon at that rate, in muon_dtype (common/muon.py), and nothing else decays. In every group lr_ratio is what its
        rate is to learning_rate.
        """
        fused = device_type in ('cuda', 'cpu')  # one kernel for all parameters, which can skip an update by itself
        params = [p for p in self.parameters() if p.requires_grad]
        if muon_lr is None:
            groups = [{'params': [p for p in params if p.dim() >= 2], 'weight_decay': weight_decay, 'lr_ratio': 1.0},
                      {'params': [p for p in params if p.dim() < 2], 'weight_decay': 0.0, 'lr_ratio': 1.0}]
            return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)
        matrices = {name: p for name, p in self.transformer.h.named_parameters() if p.requires_grad and p.dim() == 2}
        ours = {'lr': muon_lr, 'lr_ratio': muon_lr / learning_rate, 'weight_decay': weight_decay}
        groups = [{'params': [p for name, p in matrices.items() if 'c_attn' in name], 'pieces': 3, **ours},
                  {'params': [p for name, p in matrices.items() if 'c_attn' not in name], 'pieces': 1, **ours},
                  {'params': [p for p in params if all(p is not matrix for matrix in matrices.values())],
                   'lr_ratio': 1.0}]
        return MuonAdamW(groups, muon_dtype, lr=learning_rate, betas=betas, weight_decay=0.0, fused=fused)

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
        folder = model_type if os.path.isdir(model_type) else huggingface.download(model_type)
        config, weights = huggingface.read(folder)
        model = cls(GPTConfig(**{**huggingface.gpt2_config(config, model_type), **(override_args or {})}))
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


def load_weights(source, **overrides):
    """
    (model, checkpoint): a GPT by the name that a user gives it, which is a checkpoint file, a run's out_dir, or what
    from_pretrained takes. For the last the checkpoint's dict has what is known of its tokenizer ('meta'), or is None.
    `overrides` as in from_checkpoint.
    """
    is_run = os.path.isdir(source) and not os.path.exists(os.path.join(source, 'config.json'))
    if not is_run and not os.path.isfile(source) and not source.endswith('.pt'):
        model = GPT.from_pretrained(source, overrides)
        meta = huggingface.read_meta(source if os.path.isdir(source) else huggingface.download(source))
        return model, meta and {'meta': meta}
    checkpoint = checkpoint_file.load(checkpoint_file.weights_path(source))
    return GPT.from_checkpoint(checkpoint, **overrides), checkpoint
