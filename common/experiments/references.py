"""
Validation losses to expect, as rows of data: for which runs, after how many tokens, and from where. docs/curves.md
shows the same numbers, which a test compares. It knows settings.json and no run.
"""
import math
import os
from typing import NamedTuple

from common.experiments.runs import is_figure

BATCH = ('gradient_accumulation_steps', 'batch_size')  # only their product with block_size matters
BEYOND = 1.05  # how far behind its last point, as a share of the tokens, a reference still holds
LONGER = 1.25  # a schedule so many times as long as another one makes another curve


class Reference(NamedTuple):
    """What is expected of runs with these data and this model; `recipe` is how the reference itself was trained."""
    name: str
    datasets: tuple = ()  # names of folders with this text
    tokenizer: str = ''
    val_sha256: str = ''  # of its val.bin; '': not known, or different with each way of preparing it
    model: dict = {}      # settings that must be the same
    recipe: dict = {}     # settings that may differ, as far as they are known
    points: list = []     # (tokens, lowest, highest validation loss), by tokens
    source: str = ''
    tolerance: str = ''   # where lowest and highest come from


def batch(settings):
    """The settings that make the global batch, as far as they are there."""
    return {key: settings[key] for key in (*BATCH, 'block_size') if is_figure(settings.get(key))}


def tokens_per_iter(settings):
    """Tokens in an iteration, of all processes together; None if the settings do not say it."""
    sizes = batch(settings)
    return math.prod(sizes.values()) if len(sizes) == 3 else None


def horizon(settings):
    """Tokens until the learning rate has come down; None if it never does, or if that is not known."""
    iterations, tokens = settings.get('lr_decay_iters'), tokens_per_iter(settings)
    if settings.get('decay_lr') is False or not is_figure(iterations) or tokens is None:
        return None
    return iterations * tokens


def fits(reference, settings):
    """Whether a run with these settings has the data and the model of a reference."""
    data = settings.get('data', {})
    if reference.val_sha256 and data.get('val_sha256'):
        same = data['val_sha256'] == reference.val_sha256
    else:
        name = os.path.basename(os.path.normpath(str(settings.get('dataset'))))
        same = name in reference.datasets and data.get('tokenizer', reference.tokenizer) == reference.tokenizer
    return same and all(settings.get(key, False) == value for key, value in reference.model.items())


def expected(reference, tokens):
    """(lowest, highest) loss after so many tokens, on a straight line in log(tokens); None outside of the points."""
    points = reference.points
    if not points[0][0] <= tokens <= BEYOND * points[-1][0]:
        return None
    after = next((i for i, point in enumerate(points) if point[0] >= tokens), len(points) - 1)
    (end, *highs), (begin, *lows) = points[after], points[max(0, after - 1)]
    share = min(1.0, math.log(tokens / begin) / math.log(end / begin)) if end > begin else 1.0
    return tuple(low + share * (high - low) for low, high in zip(lows, highs))


def around(points, below, above=None):
    """Points from (tokens, loss) with so much room below and above."""
    above = below if above is None else above
    return [(tokens, round(loss - below, 4), round(loss + above, 4)) for tokens, loss in points]


SEEDS = 'where another seed ends 19 times in 20, by the deviation of {} seeds (Student\'s t)'
SHAKESPEARE = dict(datasets=('shakespeare_char',), tokenizer='char',
                   val_sha256='d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1')
FAST = dict(gradient_accumulation_steps=1, batch_size=12, block_size=64, shuffle=True, optimizer='muon', muon_lr=0.025,
            learning_rate=5e-3, embed_lr=0.1, vector_lr=0.1, dropout=0.0, schedule='linear', warmup_iters=0,
            lr_decay_iters=300, min_lr=1.5e-4)
CLASSIC = dict(gradient_accumulation_steps=1, batch_size=12, block_size=64, shuffle=False, optimizer='adamw',
               learning_rate=1e-3, dropout=0.0, schedule='cosine', warmup_iters=100, lr_decay_iters=2000, min_lr=1e-4)
GPT2 = dict(n_layer=12, n_embd=768, modern=False)
STEP = 524_288  # tokens in an iteration of llm.c and modded-nanogpt
LLMC = dict(gradient_accumulation_steps=32, batch_size=16, block_size=1024, optimizer='adamw', learning_rate=6e-4,
            dropout=0.0, schedule='cosine', warmup_iters=700, lr_decay_iters=19560, min_lr=0.0)
# the mean of two logs where both were read, else the first alone
LLMC_LOSSES = [(STEP * i, loss) for i, loss in (
    (250, 6.1638), (500, 5.386), (750, 4.7097), (1000, 4.3191), (1250, 4.1334), (2000, 3.8585), (3000, 3.6973),
    (5000, 3.5546), (7500, 3.4566), (10000, 3.3953), (15000, 3.3003), (19560, 3.2727))]
MUON = dict(gradient_accumulation_steps=32, batch_size=16, block_size=1024, optimizer='muon', muon_lr=0.025,
            learning_rate=0.004, dropout=0.0, schedule='wsd', cooldown=0.7, warmup_iters=0,
            lr_decay_iters=3250, min_lr=0.0)
MUON_LOSSES = [(STEP * i, loss) for i, loss in (
    (125, 4.5862), (250, 4.0985), (375, 3.925), (500, 3.8278), (750, 3.724), (1000, 3.6522), (1500, 3.5385),
    (2000, 3.4538), (2500, 3.3793), (3000, 3.3035), (3250, 3.2772))]
EDU = ('derived: that of FineWeb, 0.30 lower to 0.05 higher. In the first hundred iterations the two are alike '
       '(AGNDM/build-nanogpt, log/log.txt), at the end FineWeb-Edu is 0.24 lower')

REFERENCES = [
    Reference('quick start', ('pydoc_char',), 'char', '', dict(n_layer=2, n_embd=128, modern=True),
              {**FAST, 'lr_decay_iters': 900, 'eval_iters': 20},
              [(76_800, 2.014, 2.138), (153_600, 1.87, 1.979), (230_400, 1.805, 1.905),
               (307_200, 1.739, 1.834), (384_000, 1.688, 1.771), (460_800, 1.631, 1.715),
               (537_600, 1.575, 1.657), (614_400, 1.537, 1.619), (691_200, 1.505, 1.586)],
              "measured on Python 3.11's documentation, docs/curves.md", SEEDS.format(5)),
    Reference('tiny Shakespeare, fast, on a CPU', **SHAKESPEARE, model=dict(n_layer=2, n_embd=128, modern=True),
              recipe={**FAST, 'eval_iters': 0},
              points=[(19_200, 2.294, 2.328), (38_400, 2.114, 2.17), (57_600, 2.035, 2.091),
                      (76_800, 1.972, 2.038), (115_200, 1.915, 1.992), (153_600, 1.851, 1.929),
                      (192_000, 1.8, 1.88), (230_400, 1.759, 1.842)],
              source='measured, docs/curves.md', tolerance=SEEDS.format(5)),
    Reference('tiny Shakespeare, fast, on a CPU, --eval_iters=20', **SHAKESPEARE,
              model=dict(n_layer=2, n_embd=128, modern=True), recipe={**FAST, 'eval_iters': 20},
              points=[(19_200, 2.276, 2.31), (38_400, 2.092, 2.143), (57_600, 2.013, 2.065),
                      (76_800, 1.95, 2.009), (115_200, 1.898, 1.962), (153_600, 1.836, 1.901),
                      (192_000, 1.787, 1.851), (230_400, 1.748, 1.814)],
              source='measured, docs/curves.md', tolerance=SEEDS.format(5)),
    Reference('tiny Shakespeare, classic, on a CPU', **SHAKESPEARE, model=dict(n_layer=4, n_embd=128, modern=False),
              recipe={**CLASSIC, 'eval_iters': 0},
              points=[(76_800, 2.589, 2.649), (153_600, 2.452, 2.507), (230_400, 2.364, 2.46),
                      (307_200, 2.299, 2.393), (460_800, 2.197, 2.285), (614_400, 2.107, 2.191),
                      (768_000, 2.041, 2.121), (921_600, 1.987, 2.061), (1_075_200, 1.947, 2.013),
                      (1_228_800, 1.92, 1.981), (1_382_400, 1.892, 1.953), (1_536_000, 1.88, 1.939)],
              source='measured, docs/curves.md', tolerance=SEEDS.format(5)),
    Reference('tiny Shakespeare, classic, on a CPU, --eval_iters=20', **SHAKESPEARE,
              model=dict(n_layer=4, n_embd=128, modern=False), recipe={**CLASSIC, 'eval_iters': 20},
              points=[(76_800, 2.577, 2.618), (153_600, 2.437, 2.498), (230_400, 2.357, 2.431),
                      (307_200, 2.286, 2.369), (460_800, 2.167, 2.255), (614_400, 2.077, 2.17),
                      (768_000, 2.006, 2.094), (921_600, 1.951, 2.037), (1_075_200, 1.905, 1.993),
                      (1_228_800, 1.878, 1.968), (1_382_400, 1.852, 1.938), (1_536_000, 1.836, 1.924)],
              source='measured, docs/curves.md', tolerance=SEEDS.format(3)),
    Reference('tiny Shakespeare, classic, on a GPU', **SHAKESPEARE, model=dict(n_layer=6, n_embd=384, modern=False),
              recipe={**CLASSIC, 'batch_size': 64, 'block_size': 256, 'dropout': 0.2, 'lr_decay_iters': 5000,
                      'eval_iters': 200},
              points=around([(16_384 * i, loss) for i, loss in (
                  (250, 2.0676), (500, 1.7326), (750, 1.5917), (1000, 1.5219), (1250, 1.4919), (1500, 1.4852),
                  (1750, 1.4723), (2000, 1.4811), (2500, 1.4988), (3000, 1.5323), (3500, 1.5769), (4000, 1.6342),
                  (4500, 1.6789), (5000, 1.7093))], 0.04),
              source="nanoGPT's config on a Mac, a public log headed 'Shakespeared trained and sampled on Mac Mini 4 "
                     "16GB'; nanoGPT's README reports a best of 1.4697, issue 211 one of 1.48",
              tolerance='0.04 on each side: it and another such log differ by up to 0.03 at one iteration'),
    Reference('GPT-2 124M on FineWeb', ('fineweb', 'fineweb10B'), 'gpt2', '', GPT2, LLMC, around(LLMC_LOSSES, 0.05),
              'llm.c, discussion 481: its log in KellerJordan/modded-nanogpt, records/2024-10-13_llmc/main.log, and a '
              'repetition, SiddanthEmani/GPT-2-124M-CUDA, log124M/main.log',
              '0.05 on each side: the two differ by up to 0.023 until iteration 500 and by up to 0.008 from 1,000 on; '
              'another validation text and another framework make more'),
    Reference('GPT-2 124M on FineWeb-Edu', ('fineweb_edu',), 'gpt2', '', GPT2, LLMC, around(LLMC_LOSSES, 0.30, 0.05),
              'derived from llm.c on FineWeb; ends: Razvanip13/Reproducing-GPT2-small, README, 3.0283, and '
              'huggingface.co/bardiaegz/gpt2-124m-fineweb, 3.0771 after 7.3 billion tokens', EDU),
    Reference('GPT-2 124M on OpenWebText', ('openwebtext',), 'gpt2', '', GPT2,
              {**LLMC, 'gradient_accumulation_steps': 40, 'batch_size': 12, 'warmup_iters': 2000,
               'lr_decay_iters': 600_000, 'min_lr': 6e-5},
              around([(491_520 * 400_000, 2.905), (491_520 * 600_000, 2.85)], 0.03),
              'nanoGPT: 2.905 after 400,000 iterations, read from its plot in issue 644, and about 2.85 in its README',
              '0.03 on each side, as a plot is read; a run that was 0.045 above had a mistake in it (issue 644)'),
    Reference('GPT-2 124M, fast, on FineWeb', ('fineweb', 'fineweb10B'), 'gpt2', '', {**GPT2, 'modern': True}, MUON,
              around(MUON_LOSSES, 0.05), 'KellerJordan/modded-nanogpt, track 3, run 36: records/track_3_optimization/'
              'results/20260610_tuned_baseline_3250/263ea3c4-2b13-4adf-8a71-0410386b20e1.txt',
              '0.05 on each side: ten seeds end at 3.2787 on average, but the model here is not quite the same'),
    Reference('GPT-2 124M, fast, on FineWeb-Edu', ('fineweb_edu',), 'gpt2', '', {**GPT2, 'modern': True}, MUON,
              around(MUON_LOSSES, 0.30, 0.05), 'derived from modded-nanogpt, track 3, run 36, on FineWeb', EDU),
]
