# The fast recipe with one part changed: what does it bring? The part is named by `variant`, which must come before this
# file, and is one of the functions below; each replaces a piece of model.py or of the optimizer.
#
#   python train.py config/train_shakespeare_char_fast.py --variant=gelu config/ablations/change.py
#
# list.conf in this folder has all of them, and the variants that need no more than a setting; docs/recipe.md has what
# came of it. A checkpoint of such a run does not know of the change: sample.py would use it as if there were none.
import math

import torch
from torch import nn
from torch.nn import functional as F

import model
from common.training import muon


def _after_init(cls, change):
    """change(self) at the end of each __init__ of a class."""
    def init(self, *args, before=cls.__init__, **kwargs):
        before(self, *args, **kwargs)
        change(self)
    cls.__init__ = init


# ---- the model

def gelu():
    model.relu_squared = F.gelu


def leaky_relu_squared():
    model.relu_squared = lambda x: F.leaky_relu(x, 0.5).square()


def _smear_of(reach):
    def embed(self, idx, cache, before=model.GPT.embed):
        smear = self.smear
        try:
            self._parameters['smear'] = smear * (torch.arange(len(smear), device=smear.device) < reach)[:, None]
            return before(self, idx, cache)
        finally:
            self._parameters['smear'] = smear
    model.GPT.embed = embed


def no_smear():
    _smear_of(0)


def smear_of_one():
    _smear_of(1)


def learned_positions():
    def embed(self, idx, cache, before=model.GPT.embed):
        x, rope = before(self, idx, cache)
        return x + self.transformer.wpe.weight[:idx.size(1)], rope

    def change(gpt):
        gpt.transformer.wpe = nn.Embedding(gpt.config.block_size, gpt.config.n_embd)
        nn.init.normal_(gpt.transformer.wpe.weight, std=0.02)
    _after_init(model.GPT, change)
    model.GPT.embed, model.rotate = embed, lambda x, cos, sin: x


def half_rope():
    def rotary(positions, head_dim, before=model.rotary):
        cos, sin = before(positions, head_dim // 2)
        return F.pad(cos, (0, head_dim // 4), value=1.0), F.pad(sin, (0, head_dim // 4))
    model.rotary = rotary


def rope_base_1024():
    def rotary(positions, head_dim):
        channels = torch.arange(head_dim // 2, device=positions.device)
        angles = positions[..., None] * 1024.0 ** (-channels / (head_dim // 2))
        return angles.cos(), angles.sin()
    model.rotary = rotary


def no_qk_norm():
    model.norm = lambda x, before=model.norm: x if x.dim() == 5 else before(x)  # query and key, stacked
    plain_scale()


def plain_scale():
    def change(attention):
        attention.scale /= math.sqrt(2)
    _after_init(model.CausalSelfAttention, change)


def no_embedding_norm():
    model.norm = lambda x, before=model.norm: x if x.dim() == 3 else before(x)


def rms_norm():
    model.norm = lambda x: F.rms_norm(x, x.shape[-1:])
    model.layer_norm = lambda config: nn.RMSNorm(config.n_embd, elementwise_affine=False)


def tied_output():  # such a run cannot be resumed
    def change(gpt):
        gpt.transformer.wte.weight = gpt.lm_head.weight
    _after_init(model.GPT, change)


# ---- Muon

def five_steps():
    muon.SMALL = 0


def two_steps():
    muon.COEFFICIENTS = muon.COEFFICIENTS[:2]


def jordans_five_steps():
    muon.SMALL, muon.COEFFICIENTS = 0, ((3.4445, -4.7750, 2.0315),) * 5


def query_key_value_as_one():
    def param_groups(*args, before=muon.param_groups):
        return [{**group, **({'pieces': 1} if 'pieces' in group else {})} for group in before(*args)]
    muon.param_groups = param_groups


def momentum_not_warmed_up():
    def step(self, before=muon.MuonAdamW.step):
        for group in self.param_groups:
            group['momentum'] = 0.95
        before(self)
    muon.MuonAdamW.step = step


if variant.startswith('_') or getattr(globals().get(variant), '__module__', None) != __name__:
    raise ValueError(f'variant={variant!r} is no function of this file; put --variant=NAME before it')
globals()[variant]()
