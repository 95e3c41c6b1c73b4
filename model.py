"""
GPT-2: the model, the weights that it can start from, and the parameter groups of its optimizer.
It knows no tokenizer, no data and no settings of a run.

    from model import GPT, GPTConfig
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384))   # from scratch
    model = GPT.from_pretrained('gpt2')                       # OpenAI's weights, or any GPT-2 in safetensors
    model = GPT.from_checkpoint('out/ckpt.pt')                # ours, or the original nanoGPT's

References: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; OpenAI's TensorFlow code,
https://github.com/openai/gpt-2/blob/master/src/model.py; https://github.com/karpathy/nanoGPT, whose names for
parameters and settings are kept, so that its checkpoints load.
"""
import math
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from common import generate, weights
from common.device import autocast_dtype
from common.settings import SMEARED, check_shape
from common.training import attention, muon
from common.training.activation import relu_squared
from common.training.loss import bounded, linear_cross_entropy

LOGITS_AT_ONCE = 2**27  # in training: 0.5 GB in float32. Eager code takes three times that, compiled code less
EVAL_CHUNK = 256        # tokens whose logits are in float32 at once in an evaluation


@dataclass
class GPTConfig:
    block_size: int = 1024    # longest context, in tokens
    vocab_size: int = 50304   # GPT-2's 50257, padded to a multiple of 64 for the tensor cores
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True         # in Linear and LayerNorm, as in GPT-2; False is a little faster and as good
    activation: str = 'gelu'  # 'gelu' is exact, as nanoGPT trained; 'gelu_tanh' is what OpenAI trained GPT-2 with
    modern: bool = False      # not GPT-2, but learns several times faster: RoPE, QK-norm, ReLU^2, a share of the
                              # previous tokens' embeddings (smear), norms without weights, an untied output layer.
                              # What each of them brings: docs/recipe.md
    softcap: float = 0.0      # the logits' bound: softcap * tanh(logits / softcap); 0: none

    def __post_init__(self):
        check_shape(self.n_embd, self.n_head, self.modern, self.activation)


def norm(x):
    """LayerNorm over the last dimension, without weights."""
    return F.layer_norm(x, x.shape[-1:])


def rotary(positions, head_dim):
    """cos and sin (*shape, head_dim / 2) of the angles by which RoPE rotates channels at positions (*shape)."""
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
    Attention of q (B, n_head, T, head_dim) to k, v (B, n_head, S, head_dim): the weighted means of v, shaped like q.
    mask (B, 1, T, S): True means attend. Without a mask: causal if T == S, else unmasked (decoding).
    """
    if attention.is_faster_than_fused(q):
        return attention.causal_attention(q, k, v, scale, dropout)
    causal = mask is None and q.size(2) == k.size(2)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scale)


class CausalSelfAttention(nn.Module):

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        # QK-norm keeps the products small, so attention may be sharper than GPT-2's: 2 was the best of 1, 2, 4
        self.scale = math.sqrt((2 if config.modern else 1) / (config.n_embd // config.n_head))
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope=None, cache=None):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.n_head, -1) for y in self.c_attn(x).split(C, dim=2))  # (B, T, n_head, head_dim)
        if rope is not None:  # QK-norm: Henry et al. 2020. On a GPU autocast computes norms in float32
            q, k = rotate(norm(torch.stack((q, k))), *rope).to(v.dtype)  # one norm for both is faster
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, n_head, T, head_dim)
        dtype, mask = q.dtype, None
        if cache is not None:  # which may keep keys and values in another dtype
            k, v, mask = cache.update(self.layer, k, v)
        y = attend(q.to(k.dtype), k, v, self.scale, self.dropout if self.training else 0.0, mask).to(dtype)
        y = y.transpose(1, 2).reshape(B, T, C)  # concatenate the heads
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
        x = relu_squared(x) if self.modern else self.gelu(x)
        return self.dropout(self.c_proj(x))


def layer_norm(config):
    """LayerNorm; without weights in a modern model, where the next matrix can learn them."""
    return nn.LayerNorm(config.n_embd, elementwise_affine=not config.modern, bias=config.bias)


class Block(nn.Module):

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, x, rope=None, cache=None, recompute=False):
        if recompute:  # here and not around the block, whose call FSDP hooks into
            return recompute_in_backward(self.residual, x, rope, use_reentrant=False)
        return self.residual(x, rope, cache)

    def residual(self, x, rope, cache=None):
        x = x + self.attn(self.ln_1(x), rope, cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):

    def __init__(self, config, zero_init=False):
        super().__init__()
        self.config = config
        self.cache_dtype = None  # of keys and values in a KVCache; None: the cache's own choice
        self.gradient_checkpointing = False  # recompute blocks in the backward pass: less memory, more time
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=None if config.modern else nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)]),
            ln_f=layer_norm(config),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.modern:
            self.smear = nn.Parameter(torch.zeros(SMEARED, config.n_embd))
        else:
            self.transformer.wte.weight = self.lm_head.weight  # tied, as in GPT-2
        self.init_weights(zero_init)

    def init_weights(self, zero_init):
        """
        All initialisation, std of normal distributions:

        | parameters               | classic: GPT-2           | modern                                              |
        | ------------------------ | ------------------------ | --------------------------------------------------- |
        | matrices, lm_head        | 0.02                     | 0.02                                                |
        | attn.c_proj, mlp.c_proj  | 0.02 / sqrt(2 n_layer)   | the same; GPT-2 paper, section 2.3: each block adds |
        |                          |                          | to the residual stream twice                        |
        | wte                      | tied to lm_head          | 0.3: a norm follows, so the scale only sets the     |
        |                          |                          | relative size of AdamW's steps; better than 1       |
        | wpe                      | 0.02                     | none: RoPE                                          |
        | LayerNorm                | weights 1, biases 0      | none                                                |
        | biases, smear            | 0                        | 0                                                   |
        | c_proj with zero_init    | 0: blocks do nothing yet | 0, and lm_head, too                                 |
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.config.modern:
            nn.init.normal_(self.transformer.wte.weight, std=0.3)
        for name, p in self.named_parameters():
            if name.endswith('c_proj.weight'):
                nn.init.normal_(p, std=0.0 if zero_init else 0.02 / math.sqrt(2 * self.config.n_layer))
        if zero_init and self.config.modern:
            nn.init.zeros_(self.lm_head.weight)

    def embed(self, idx, cache):
        """(x, rope) of token ids (B, T): the input of the first block (B, T, n_embd); what rotate() takes, or None."""
        T, device = idx.size(1), idx.device
        positions = torch.arange(T, device=device) if cache is None else cache.positions
        x = self.transformer.wte(idx)
        if not self.config.modern:
            return x + self.transformer.wpe(positions), None
        x = norm(x)  # (B, T, n_embd)
        longer = F.pad(x, (0, 0, SMEARED, 0)) if cache is None else cache.after_previous(x, SMEARED)
        for back, share in enumerate(self.smear, start=1):
            x = x + share * longer[:, SMEARED - back:SMEARED - back + T]
        return x, rotary(positions, self.config.n_embd // self.config.n_head)

    def forward(self, idx, targets=None, cache=None):
        """
        idx (B, T) token ids, T <= block_size; targets (B, T), where -1 does not count. With a cache, idx follows the
        ids that the cache has seen (generate.feed).
        Returns (logits, loss): with targets the logits of all positions (B, T, vocab_size) and the mean cross entropy
        in nats (0 if no target counts); without, the logits of the last position (B, 1, vocab_size) and None. In
        training the logits have no gradient, and are None where they would be more than LOGITS_AT_ONCE.
        ValueError if T is longer than block_size.
        """
        if idx.size(1) > self.config.block_size:
            raise ValueError(f'a sequence of {idx.size(1)} tokens is longer than block_size={self.config.block_size}')
        x, rope = self.embed(idx, cache)
        # under autocast the residual stream is in 16 bits, too: half the memory to read and write, and in compiled code
        # and on a CPU half of it to keep
        x = self.transformer.drop(x.to(autocast_dtype(x)))
        recompute = self.gradient_checkpointing and self.training
        for block in self.transformer.h:
            x = block(x, rope, cache, recompute)
        return self.head(x, targets)

    def head(self, x, targets):
        """
        What forward() returns, from the output of the last block (B, T, n_embd). A function of its own, as FSDP's hooks
        keep forward() from being compiled, but not what it calls.
        """
        x, softcap = self.transformer.ln_f(x), self.config.softcap
        if targets is None:
            return bounded(self.lm_head(x[:, -1:]), softcap), None  # generation needs the last position only
        counted = (targets >= 0).sum().clamp(min=1)
        learning = self.training and torch.is_grad_enabled()
        if learning and targets.numel() * self.config.vocab_size > LOGITS_AT_ONCE:
            weight, ids = self.lm_head.weight, targets.flatten()
            return None, linear_cross_entropy(x.flatten(0, 1), weight, ids, LOGITS_AT_ONCE, softcap) / counted
        logits = bounded(self.lm_head(x), softcap)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction='sum')
        else:  # evaluating: only a chunk of the logits is in float32 at a time; in compiled code none is
            chunks = zip(logits.flatten(0, 1).split(EVAL_CHUNK), targets.flatten().split(EVAL_CHUNK))
            loss = sum(F.cross_entropy(*chunk, ignore_index=-1, reduction='sum') for chunk in chunks)
        # detached, or a compiled backward pass would take a gradient of the logits, too: as many zeros
        return logits.detach() if learning else logits, loss / counted

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """idx (B, T) with its continuation, (B, T + max_new_tokens). Other options: common/generate.py."""
        return generate.generate(self, idx, max_new_tokens, temperature=temperature, top_k=top_k, **options)

    def get_num_params(self, non_embedding=True):
        """The number of parameters, by default without position embeddings. The tied head counts once."""
        count = sum(p.numel() for p in self.parameters())
        has_positions = not self.config.modern
        return count - self.transformer.wpe.weight.numel() if non_embedding and has_positions else count

    def flops_per_token(self):
        """FLOPs to train on one token, forward and backward: 6N + 12 L H Q T (PaLM, appendix B)."""
        c = self.config
        lookup = self.transformer.wte.weight.numel() if c.modern else 0  # not tied to lm_head: no matmul
        return 6 * (self.get_num_params() - lookup) + 12 * c.n_layer * c.n_embd * c.block_size

    def crop_block_size(self, block_size):
        """Shorten the context, by dropping position embeddings."""
        if block_size > self.config.block_size:
            raise ValueError(f'block_size={block_size} is above that of these weights; try '
                             f'--block_size={self.config.block_size}')
        self.config.block_size = block_size
        if not self.config.modern:
            kept = self.transformer.wpe.weight[:block_size].detach().clone()
            self.transformer.wpe = nn.Embedding.from_pretrained(kept, freeze=False)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, muon_lr=None, muon_dtype=None,
                             embed_lr=None, vector_lr=None):
        """
        AdamW, with weight decay for matrices and embeddings, not for vectors. With muon_lr, Muon instead for the
        matrices of the blocks, at that rate and in muon_dtype; then only these decay, and embeddings and vectors may
        have rates of their own (common/training/muon.py). Each group has lr_ratio, its rate relative to learning_rate.
        """
        fused = device_type in ('cuda', 'cpu')  # one kernel for all parameters, which can skip an update on the device
        params = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if muon_lr is None:
            groups = [{'params': [p for name, p in params.items() if not muon.is_vector(name, p)],
                       'weight_decay': weight_decay},
                      {'params': [p for name, p in params.items() if muon.is_vector(name, p)], 'weight_decay': 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)
        else:
            groups = muon.param_groups(params, self.lm_head.weight, muon_lr, embed_lr, vector_lr, weight_decay)
            optimizer = muon.MuonAdamW(groups, muon_dtype, lr=learning_rate, betas=betas, eps=1e-10, fused=fused)
        for group in optimizer.param_groups:
            group['lr_ratio'] = group['lr'] / (learning_rate or 1.0)
        held = [p for group in optimizer.param_groups for p in group['params']]
        assert len(held) == len(params) and set(held) == set(params.values()), 'each parameter must be in one group'
        return optimizer

    @classmethod
    def from_checkpoint(cls, source, **overrides):
        """
        The model in a checkpoint: a file, a run's out_dir, or a dict from checkpoint.load, ours or the original
        nanoGPT's, whose tensors it takes over. `overrides` replace entries of its GPTConfig, such as dropout.
        FileNotFoundError or ValueError if there is no usable checkpoint.
        """
        if not isinstance(source, dict):
            source = weights.load(source)
        known = {field.name for field in fields(GPTConfig)}
        model_args = {key: value for key, value in source['model_args'].items() if key in known}
        with weights.not_filled():  # no memory and no time for weights that are replaced at once
            model = cls(GPTConfig(**{**model_args, **overrides}))
        try:
            model.load_state_dict({key: value.float().contiguous() for key, value in source['model'].items()},
                                  assign=True)
        except RuntimeError as error:
            problem = str(error).splitlines()[1].strip()
            raise ValueError(f'the weights do not fit this GPT: {problem}') from None
        if not model.config.modern:
            model.transformer.wte.weight = model.lm_head.weight  # `assign` has untied them
        return model

    @classmethod
    def from_pretrained(cls, model_type, override_args=None):
        """
        GPT-2 weights in safetensors from Hugging Face: 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl' (OpenAI's), any
        repository id, or a local folder with config.json and model.safetensors.
        override_args: {'dropout': p} or nothing. ValueError if they cannot be downloaded, or are not a GPT-2's.
        """
        return cls.from_checkpoint(weights.load_gpt2(model_type), **(override_args or {}))


def load_weights(source, **overrides):
    """
    (model, checkpoint) by any name: a checkpoint file, a run's out_dir, or what from_pretrained takes. `overrides` are
    those of from_checkpoint.
    """
    checkpoint = weights.load(source)
    try:
        return GPT.from_checkpoint(checkpoint, **overrides), checkpoint
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None
