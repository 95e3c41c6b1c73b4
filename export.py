"""
Export a trained model to other libraries, and prove that it is still the same model.

python export.py --out_dir=out-shakespeare-char                 # for transformers: out-shakespeare-char/hf
python export.py --out_dir=out-quickstart --format=onnx         # for onnxruntime, with a KV cache: out-quickstart/onnx
python export.py --out_dir=out-quickstart --format=safetensors  # the weights alone, for sample.py and train.py too
python export.py --init_from=gpt2 --format=onnx                 # OpenAI's weights, without training: gpt2-onnx

Each export is loaded by the other library. The largest difference between its logits and ours is printed, and whether
64 greedy tokens are the same. If not, nothing is deleted, a line says what differs, and the exit code is 1.
"""
import os

# -----------------------------------------------------------------------------
format = 'hf'          # hf (a GPT2LMHeadModel), onnx, safetensors
init_from = 'resume'   # resume: the best weights in out_dir; a checkpoint file; gpt2, gpt2-medium, gpt2-large, gpt2-xl,
                       # or any GPT-2 on Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run
to = ''                # the folder to write, new or empty; '': FORMAT in out_dir, else NAME-FORMAT
verify = True          # load it with the other library, and compare
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import importlib.util
import itertools
import shutil
import sys
import time
from dataclasses import asdict

import numpy as np
import torch

from common import checkpoint, dataset, generate, weights
from common.console import stop
from common.exporting import modelcard, onnx_graph
from common.files import free_bytes
from common.tokenizer import check_same, from_meta
from model import load_weights

TOLERANCE = 1e-4     # of the logits, relative to their standard deviation where that is above 1
GREEDY_TOKENS = 64
PIECE = 64           # tokens whose logits are in memory at once
MOST_LOGITS = 2**24  # with more than this, only every 16th position is compared
# packages for each format
TO_WRITE = {'hf': ['safetensors', 'tokenizers'], 'onnx': ['onnx', 'onnxscript', 'tokenizers'],
            'safetensors': ['safetensors']}
TO_VERIFY = {'hf': ['transformers'], 'onnx': ['onnxruntime'], 'safetensors': []}
TEXT = """It was a quiet evening in the harbour. Two ships had come in with the tide, and 12 men were carrying
sacks of grain ashore; "Hurry up," said the old captain, "the rain won't wait for us!" Nobody answered him.
"""


def check_packages():
    """ValueError, with the line to type, if a package is missing."""
    if format not in TO_WRITE:
        raise ValueError(f'format={format!r} is not one of {", ".join(TO_WRITE)}')
    needed = TO_WRITE[format] + (TO_VERIFY[format] if verify else [])
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f'--format={format} needs packages that are not here: pip install {" ".join(missing)}')


def find_places():
    """(what to load, the folder to write). ValueError if the first does not exist, or the second is not empty."""
    source = out_dir if init_from == 'resume' else init_from
    if init_from == 'resume' and not os.path.isdir(out_dir):
        raise ValueError(f'no folder {out_dir!r} with a trained model here; --out_dir=FOLDER names one')
    name = os.path.basename(os.path.normpath(source)).removesuffix('.pt').removesuffix('.safetensors')
    folder = to or (os.path.join(out_dir, format) if init_from == 'resume' else f'{name}-{format}')
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise ValueError(f'{folder} is not an empty folder; --to=FOLDER names another one')
    return source, os.path.normpath(folder)


def check_disk(folder, model):
    """ValueError if the disk is too small."""
    needed = 4.2 * sum(p.numel() for p in model.parameters())  # bytes, with a margin for the smaller files
    free = free_bytes(folder)
    if needed > free:
        raise ValueError(f'{folder} needs about {needed / 1e6:.0f} MB, its disk has {free / 1e6:.0f} MB free')


def real_text(model, tokenizer, meta, settings):
    """
    block_size ids (1, T) of real text: from the validation split of the run if it is here, else from TEXT. If TEXT has
    characters that the vocabulary lacks, the model generates the ids.
    """
    count = model.config.block_size
    try:
        folder = dataset.find(root, settings['dataset'])
        if dataset.read_meta(folder).get('sha256') == meta['sha256']:
            tokens = dataset.open_tokens(folder, 'val', meta)[:count]
            if len(tokens) == count:
                return torch.from_numpy(tokens.astype(np.int64))[None]
    except (KeyError, ValueError, OSError):
        pass
    try:
        return torch.tensor([tokenizer.encode(TEXT * count)[:count]])
    except ValueError:
        generator = torch.Generator().manual_seed(0)
        return model.generate(torch.tensor([[tokenizer.start_id]]), count - 1, vocab_size=tokenizer.vocab_size,
                              generator=generator)


def split(ids):
    """ids (B, T) in consecutive pieces; a batch of several texts in two at least, so that the cache is tested."""
    B, T = ids.shape
    return ids.split(PIECE if B == 1 else max(1, min(PIECE, T // 2)), dim=1)


def subsample(logits, count):
    """The logits (B, T, V) of a piece at all positions; at every 16th if the `count` logits of all pieces are many."""
    step = 1 if count <= MOST_LOGITS else 16
    return logits[:, (logits.size(1) - 1) % step::step].clone()


def make_reference(ours, text):
    """
    What our model computes from a text (1, block_size): a list of (ids, how many logits they have, those that are
    compared, per piece) for 1 and 3 sequences of several lengths; the ids of a greedy continuation, how many of them
    are its prompt, and the logits of all of them.
    """
    cases, T = [], text.size(1)
    for batch, length in itertools.product((1, 3), sorted({1, min(7, T), T})):
        ids = torch.cat([text.roll(-7 * row, dims=1)[:, :length] for row in range(batch)])
        count = ids.numel() * ours.vocab_size
        cases.append((ids, count, [subsample(logits, count) for logits in ours.logits(split(ids))]))
    prompt = text[:, :max(1, min(16, T - GREEDY_TOKENS))]
    greedy = torch.tensor([ours.greedy(prompt, min(GREEDY_TOKENS, T - prompt.size(1)))])
    return cases, greedy, prompt.size(1), torch.cat(list(ours.logits([greedy])), dim=1)[0]


def compare(theirs, cases, greedy, prompt_tokens, logits):
    """Whether another library's model gives the same within TOLERANCE; prints how far it is off, and where."""
    same, allowed = True, TOLERANCE * max(1.0, logits.std().item())
    for ids, count, ours in cases:
        worst = torch.zeros(())
        for piece, found in zip(ours, theirs.logits(split(ids))):
            difference = (piece - subsample(found, count)).abs_()
            if not difference.max() <= worst:  # true for nan, too
                worst = difference.max()
                token = difference.argmax().item() % difference.size(-1)
        within = bool(worst <= allowed)
        where = '' if within else f': more than {allowed:.1g}, most in the logit of id {token}'
        print(f'{ids.size(0)} x {ids.size(1)} tokens: logits differ by {worst:.2g}{where}', flush=True)
        same = same and within
    ours, count = greedy[0].tolist(), greedy.size(1) - prompt_tokens
    written = theirs.greedy(greedy[:, :prompt_tokens], count)
    agreeing = next((i for i, (a, b) in enumerate(zip(ours, written)) if a != b), min(len(ours), len(written)))
    print(f'greedy: {agreeing - prompt_tokens} of {count} tokens are the same', flush=True)
    if agreeing < len(ours):
        gap = logits[agreeing - 1, ours[agreeing]] - logits[agreeing - 1, written[agreeing]] \
            if agreeing < len(written) else torch.tensor(torch.inf)
        print(f'the first token that differs has a logit lower by {gap:.2g}', flush=True)
        same = same and bool(gap <= 2 * allowed)  # practically as likely
    return same


class Ours:
    """A GPT of this project, with the methods of onnx_graph.Session."""

    def __init__(self, model, vocab_size):
        self.model, self.vocab_size = model.eval(), vocab_size

    def logits(self, pieces):
        """Yield the logits (B, T, vocab_size) of each of the consecutive pieces (B, T) of texts."""
        cache = generate.KVCache(sum(piece.size(1) for piece in pieces))
        for piece in pieces:
            cache.expect(piece.size(1), piece.device)
            yield self.model(piece, targets=piece, cache=cache)[0][..., :self.vocab_size]
            cache.length += piece.size(1)

    def greedy(self, ids, count):
        """ids (1, T) and their greedy continuation, a list."""
        return self.model.generate(ids, count, temperature=0.0, vocab_size=self.vocab_size)[0].tolist()


class Transformers:
    """A folder opened by transformers, with the same methods."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
        logging.disable_progress_bar()
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logits(self, pieces):
        past = None
        for piece in pieces:
            found = self.model(piece, past_key_values=past, use_cache=True)
            past = found.past_key_values
            yield found.logits

    def greedy(self, ids, count):
        return self.model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)[0].tolist()


def reload(folder, config, vocab_size):
    """The exported model, loaded by the library that it is for."""
    if format == 'hf':
        return Transformers(folder)
    if format == 'onnx':
        return onnx_graph.Session(folder, config)
    return Ours(load_weights(os.path.join(folder, 'model.safetensors'))[0], vocab_size)


def same_tokens(folder, tokenizer, text):
    """Whether the tokenizer in an hf folder encodes and decodes a text as ours does."""
    from transformers import AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text)
    same = theirs(text).input_ids == ids and theirs.decode(ids) == tokenizer.decode(ids)
    same = same and theirs.eos_token_id == tokenizer.end_id
    print(f'tokenizer: {"the same" if same else "NOT the same"} {len(ids)} ids and text', flush=True)
    return same


def write(folder, model, tokenizer, about, prompt, source):
    """Write the export into a folder of its own, which becomes `folder` when it is complete."""
    begin, partial = time.perf_counter(), f'{folder}.partial'
    shutil.rmtree(partial, ignore_errors=True)  # from an export that was interrupted
    os.makedirs(partial)
    try:
        if format == 'hf':
            weights.write_gpt2(model, tokenizer, about['meta'], partial)
        elif format == 'onnx':
            print('writing the graph; this takes up to a minute', flush=True)
            onnx_graph.write(model, tokenizer.vocab_size, partial)
            weights.write_tokenizer(tokenizer, about['meta'], model.config.block_size, partial)
        else:
            checkpoint.save_safetensors(model, about, os.path.join(partial, 'model.safetensors'))
        modelcard.write(partial, folder, format, model.config, about, prompt, source)
    except KeyboardInterrupt:
        shutil.rmtree(partial)
        raise
    except Exception as error:  # SafetensorError, for a full disk, and the errors of ONNX have no common base
        raise ValueError(f'{partial} could not be written ({type(error).__name__}: {error})') from None
    for entry in os.scandir(partial):
        os.chmod(entry.path, 0o644)  # safetensors makes its files readable by their owner alone
    os.replace(partial, folder)
    size = sum(entry.stat().st_size for entry in os.scandir(folder))
    print(f'wrote {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s', flush=True)


def export():
    """Write the folder, and verify it. False if it is not the same model."""
    check_packages()
    source, folder = find_places()
    model, saved = load_weights(source)
    config = model.config
    if format == 'hf' and config.modern:
        raise ValueError('a modern model fits no architecture of transformers exactly (each embedding has a share of '
                         'the one before, queries and keys have LayerNorm); --format=onnx and safetensors take it')
    meta = dataset.meta_of(root, saved, config.vocab_size)
    check_same(meta, None, config.vocab_size)
    tokenizer = from_meta(meta)
    about = {key: value for key, value in (saved or {}).items() if key in ('config', 'iter_num', 'best_val_loss')}
    about.update(model_args=asdict(config), meta=meta)
    saved = None  # frees its weights and moments
    check_disk(folder, model)
    text = real_text(model, tokenizer, meta, about.get('config', {}))
    reference = make_reference(Ours(model, tokenizer.vocab_size), text) if verify else None
    write(folder, model, tokenizer, about, tokenizer.decode(text[0, :4].tolist()), source)
    if not verify:
        return True
    del model
    try:
        same = compare(reload(folder, config, tokenizer.vocab_size), *reference)
        return same and (format != 'hf' or same_tokens(folder, tokenizer, tokenizer.decode(text[0].tolist())))
    except Exception as error:  # whatever the other library raises
        print(f'it cannot be read again ({type(error).__name__}: {error})', flush=True)
        return False


try:
    with torch.no_grad():
        if not export():
            print('NOT THE SAME MODEL: do not use what was written', file=sys.stderr)
            sys.exit(1)
except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    sys.exit(130)
except (ValueError, OSError) as error:
    stop(error)
