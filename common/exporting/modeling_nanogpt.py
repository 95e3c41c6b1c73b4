"""
A GPT of nanoGPT-V100 for transformers, where no architecture of transformers computes the same: a modern model, or
logits with a bound. export.py copies this file into the folder of such a model, where trust_remote_code=True executes
it. It therefore stands alone: it imports torch and transformers only, and opens no files and no network.

The names of parameters, and what is computed in which order, are those of nanoGPT-V100's model.py.
"""
import math

import torch
import torch.nn as nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

SMEARED = 3  # tokens before each one whose embeddings a modern model mixes in
# what transformers calls the cache: past_key_values in version 4, cache in later ones
CACHE = 'cache' if 'cache' in CausalLMOutputWithPast.__dataclass_fields__ else 'past_key_values'


class NanoGPTConfig(PretrainedConfig):
    model_type = 'nanogpt'
    keys_to_ignore_at_inference = ['past_key_values', 'cache']
    attribute_map = {'hidden_size': 'n_embd', 'num_attention_heads': 'n_head', 'max_position_embeddings': 'block_size'}

    def __init__(self, block_size=1024, vocab_size=50304, n_layer=12, n_head=12, n_embd=768, dropout=0.0, bias=True,
                 activation='gelu', modern=False, softcap=0.0, use_cache=True, **more):
        self.block_size, self.vocab_size, self.dropout, self.bias = block_size, vocab_size, dropout, bias
        self.n_layer, self.n_head, self.n_embd = n_layer, n_head, n_embd
        self.activation, self.modern, self.softcap, self.use_cache = activation, modern, softcap, use_cache
        # a classic model has one matrix for both, which transformers has not to tie
        super().__init__(**{**more, 'tie_word_embeddings': False})

    @property
    def num_hidden_layers(self):
        """Of a cache: a modern model's has one more than there are blocks, the first, for the embeddings."""
        return self.n_layer + self.modern


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


def relu_squared(x):
    """ReLU^2 of x, any shape. So et al. 2021, "Primer", https://arxiv.org/abs/2109.08668"""
    x = F.relu(x)
    return x * x


def bounded(logits, softcap):
    """softcap * tanh(logits / softcap), in place where there is no gradient to compute; softcap=0: the logits."""
    if softcap == 0.0:
        return logits
    if torch.is_grad_enabled():
        return softcap * torch.tanh(logits / softcap)
    return logits.div_(softcap).tanh_().mul_(softcap)


class CausalSelfAttention(nn.Module):

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_head = layer + config.modern, config.n_head  # layer: of the cache
        # QK-norm keeps the products small, so attention may be sharper than GPT-2's: 2 was the best of 1, 2, 4
        self.scale = math.sqrt((2 if config.modern else 1) / (config.n_embd // config.n_head))
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, mask, S, cache):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.n_head, -1) for y in self.c_attn(x).split(C, dim=2))  # (B, T, n_head, head_dim)
        if rope is not None:  # QK-norm: Henry et al. 2020
            q, k = rotate(norm(torch.stack((q, k))), *rope).to(v.dtype)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, n_head, T, head_dim)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # (B, n_head, S, head_dim)
            if k.size(2) != S:
                raise ValueError(f'{type(cache).__name__} is no cache for this model: it must grow, as DynamicCache')
        dropout, causal = self.dropout if self.training else 0.0, mask is None and T == k.size(2)
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=self.scale)
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

    def forward(self, x, *where):
        x = x + self.attn(self.ln_1(x), *where)
        x = x + self.mlp(self.ln_2(x))
        return x


class NanoGPTForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NanoGPTConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ['Block']
    _supports_cache_class = _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=None if config.modern else nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)]),
            ln_f=layer_norm(config),
        ))
        if config.modern:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
            self.smear = nn.Parameter(torch.zeros(SMEARED, config.n_embd))
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def set_input_embeddings(self, wte):
        self.transformer.wte = wte

    def get_output_embeddings(self):
        return self.lm_head if self.config.modern else None

    def set_output_embeddings(self, lm_head):
        self.lm_head = lm_head

    def layout(self, input_ids, attention_mask, seen):
        """
        (positions, is_text, mask) of new tokens (B, T) after `seen` others, S in all. positions (T,), or (B, T) with
        padding, where each row counts from its first real token; is_text (B, T) is False at padding, None without any;
        mask (1 or B, 1, T, S) is True where they may attend, None if it is causal or they are one token.
        """
        B, T, S = *input_ids.shape, seen + input_ids.size(1)
        if S > self.config.block_size:
            raise ValueError(f'a text of {S} tokens is longer than block_size={self.config.block_size}')
        if attention_mask is not None and attention_mask.shape != (B, S):
            raise ValueError(f'attention_mask is {tuple(attention_mask.shape)}, and should be (batch, tokens): {B, S}')
        keys = torch.arange(S, device=input_ids.device)
        queries = keys[seen:]
        past = (keys <= queries[:, None])[None, None]
        if attention_mask is None or attention_mask.all():
            return queries, None, past if seen > 0 and T > 1 else None
        real = attention_mask.bool()
        positions, is_text = (real.cumsum(dim=1) - 1).clamp(min=0)[:, seen:], real[:, seen:]
        # padding attends to padding, because a row without any key gives nan
        return positions, is_text, past & (real[:, None, None] | ~is_text[:, None, :, None])

    def embed(self, input_ids, positions, is_text, cache):
        """(x, rope) of token ids (B, T): the input of the first block (B, T, n_embd); what rotate() takes, or None."""
        x, T = self.transformer.wte(input_ids), input_ids.size(1)
        if not self.config.modern:
            return x + self.transformer.wpe(positions), None
        x = norm(x)  # (B, T, n_embd)
        longer = x if is_text is None else x * is_text[..., None]
        if cache is not None:  # as keys and values (B, 1, S, n_embd / 2), which beam search takes along
            halves = cache.update(*longer[:, None].chunk(2, dim=-1), 0)
            longer = torch.cat([half[:, 0, -(SMEARED + T):] for half in halves], dim=-1)
        longer = F.pad(longer, (0, 0, SMEARED + T - longer.size(1), 0))
        for back, share in enumerate(self.smear, start=1):
            x = x + share * longer[:, SMEARED - back:SMEARED - back + T]
        return x, rotary(positions, self.config.n_embd // self.config.n_head)

    def forward(self, input_ids, past_key_values=None, attention_mask=None, labels=None, use_cache=None,
                logits_to_keep=0, num_items_in_batch=None, output_hidden_states=None, return_dict=None, cache=None,
                **unknown):
        """
        input_ids (B, T) follow those in the cache, by its name in any version of transformers. attention_mask (B, S) is
        0 at padding. labels (B, T), usually input_ids: -100 does not count. Its loss is the mean cross entropy in nats,
        or the sum divided by num_items_in_batch. ValueError if S is longer than block_size.
        """
        unknown = [name for name, value in unknown.items() if value is not None and value is not False]
        if unknown:
            raise ValueError(f'this model takes no {", ".join(unknown)}')
        cache = past_key_values if cache is None else cache
        recompute = self.gradient_checkpointing and self.training
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if use_cache and cache is None and not recompute:
            cache = DynamicCache()
        seen = 0 if cache is None else cache.get_seq_length()
        positions, is_text, mask = self.layout(input_ids, attention_mask, seen)
        x, rope = self.embed(input_ids, positions, is_text, cache)
        x, states, where = self.transformer.drop(x), [], (rope, mask, seen + input_ids.size(1), cache)
        for block in self.transformer.h:
            if output_hidden_states:
                states.append(x)
            x = self._gradient_checkpointing_func(block.__call__, x, *where) if recompute else block(x, *where)
        x = self.transformer.ln_f(x)
        kept = x[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        logits = self.lm_head(kept) if self.config.modern else F.linear(kept, self.transformer.wte.weight)
        logits, loss = bounded(logits, self.config.softcap), None
        if labels is not None:
            targets = labels[:, 1:].flatten()
            counted = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets, reduction='sum') / counted
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache if use_cache else None},
                                        hidden_states=(*states, x) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, cache=None, **kwargs):
        """The arguments of forward() for the next step of generate()."""
        cache = past_key_values if cache is None else cache
        seen = 0 if cache is None else cache.get_seq_length()
        return {'input_ids': input_ids[:, seen:], CACHE: cache, 'attention_mask': attention_mask,
                **{key: kwargs.get(key) for key in ('use_cache', 'output_hidden_states')},
                'logits_to_keep': kwargs.get('logits_to_keep', 0)}
