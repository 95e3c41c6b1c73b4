"""
Take a trained model elsewhere, and prove that it arrived there.

python export.py --out_dir=out-shakespeare-char                 # for transformers: out-shakespeare-char/hf
python export.py --out_dir=out-quickstart --format=onnx         # for onnxruntime, with a KV cache: out-quickstart/onnx
python export.py --out_dir=out-quickstart --format=safetensors  # the weights alone, for sample.py and train.py too
python export.py --init_from=gpt2 --format=onnx                 # OpenAI's weights, without training: gpt2-onnx

Each export is read again by the other library; the largest difference of its logits from ours is printed, and whether
64 greedy tokens are the same. If not, nothing is deleted, the exit code is 1, and a line says what differs.
"""
import os

# -----------------------------------------------------------------------------
format = 'hf'          # hf (a GPT2LMHeadModel), onnx, safetensors
init_from = 'resume'   # resume: the best weights in out_dir; a checkpoint file; gpt2, gpt2-medium, gpt2-large, gpt2-xl,
                       # or any GPT-2 on Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run
to = ''                # the folder to write, not there yet or empty; '': FORMAT in out_dir, else NAME-FORMAT
verify = True          # read it again with the other library, and compare
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

from common import bins, checkpoint as checkpoint_file, generate, hardware, huggingface, modelcard, onnx_graph
from common.tokenizer import check_same, from_meta
from model import load_weights

TOLERANCE = 1e-4     # of the logits, relative to their standard deviation where that is above 1
GREEDY = 64          # tokens
PIECE = 64           # tokens whose logits are in memory at once
MOST_LOGITS = 2**24  # that are all compared; of more, those of every 16th token
TO_WRITE = {'hf': ['safetensors', 'tokenizers'], 'onnx': ['onnx', 'onnxscript', 'tokenizers'],
            'safetensors': ['safetensors']}
TO_VERIFY = {'hf': ['transformers'], 'onnx': ['onnxruntime'], 'safetensors': []}
TEXT = """It was a quiet evening in the harbour. Two ships had come in with the tide, and 12 men were carrying
sacks of grain ashore; "Hurry up," said the old captain, "the rain won't wait for us!" Nobody answered him.
"""


def check_packages():
    """ValueError with the line to type if a package is missing."""
    if format not in TO_WRITE:
        raise ValueError(f'format={format!r} is not one of {", ".join(TO_WRITE)}')
    needed = TO_WRITE[format] + (TO_VERIFY[format] if verify else [])
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f'--format={format} needs packages that are not here: pip install {" ".join(missing)}')


def find_places():
    """(what to load, the folder to write). ValueError if the one is not there, or the other not empty."""
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
    needed = 4.2 * sum(p.numel() for p in model.parameters())  # bytes, with what stands beside the weights
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f'{folder} needs about {needed / 1e6:.0f} MB, its disk has {free / 1e6:.0f} MB free')


def real_text(model, tokenizer, meta, settings):
    """
    block_size ids (1, T): of the run's validation split if that is here, else of TEXT, or where the vocabulary has no
    letters for it, such as the model writes.
    """
    count = model.config.block_size
    try:
        folder = bins.find(root, settings['dataset'])
        if bins.read_meta(folder).get('sha256') == meta['sha256']:
            tokens = bins.open_tokens(folder, 'val', meta)[:count]
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


def pieces_of(ids):
    """ids (B, T) in pieces that are fed one after the other; several texts in two at least, for the cache's sake."""
    B, T = ids.shape
    return ids.split(PIECE if B == 1 else max(1, min(PIECE, T // 2)), dim=1)


def thinned(logits, count):
    """Of the logits (B, T, V) of a piece all positions or, where `count` says that there are many, every 16th."""
    step = 1 if count <= MOST_LOGITS else 16
    return logits[:, (logits.size(1) - 1) % step::step].clone()


def expected(ours, text):
    """
    What our model makes of a text (1, block_size): ([(ids, how many logits they have, those that are compared, of each
    piece)] of 1 and 3 sequences of several lengths; the ids of a greedy continuation, how many of them are its prompt,
    and the logits of all of them).
    """
    cases, T = [], text.size(1)
    for batch, length in itertools.product((1, 3), sorted({1, min(7, T), T})):
        ids = torch.cat([text.roll(-7 * row, dims=1)[:, :length] for row in range(batch)])
        count = ids.numel() * ours.vocab_size
        cases.append((ids, count, [thinned(logits, count) for logits in ours.logits(pieces_of(ids))]))
    prompt = text[:, :max(1, min(16, T - GREEDY))]
    greedy = torch.tensor([ours.greedy(prompt, min(GREEDY, T - prompt.size(1)))])
    return cases, greedy, prompt.size(1), torch.cat(list(ours.logits([greedy])), dim=1)[0]


def compare(theirs, cases, greedy, prompt_tokens, logits):
    """Whether another library's model gives the same, within TOLERANCE; prints how far it is off, and where."""
    same, allowed = True, TOLERANCE * max(1.0, logits.std().item())
    for ids, count, ours in cases:
        worst = torch.zeros(())
        for piece, found in zip(ours, theirs.logits(pieces_of(ids))):
            difference = (piece - thinned(found, count)).abs_()
            if not difference.max() <= worst:  # nan is worse than any
                worst = difference.max()
                token = difference.argmax().item() % difference.size(-1)
        right = bool(worst <= allowed)
        where = '' if right else f': more than {allowed:.1g}, most in the logit of id {token}'
        print(f'{ids.size(0)} x {ids.size(1)} tokens: logits differ by {worst:.2g}{where}', flush=True)
        same = same and right
    ours, count = greedy[0].tolist(), greedy.size(1) - prompt_tokens
    written = theirs.greedy(greedy[:, :prompt_tokens], count)
    agreeing = next((i for i, (a, b) in enumerate(zip(ours, written)) if a != b), min(len(ours), len(written)))
    print(f'greedy: {agreeing - prompt_tokens} of {count} tokens are the same', flush=True)
    if agreeing < len(ours):
        gap = logits[agreeing - 1, ours[agreeing]] - logits[agreeing - 1, written[agreeing]] \
            if agreeing < len(written) else torch.tensor(torch.inf)
        print(f'the first other one is less likely by {gap:.2g} in its logit', flush=True)
        same = same and bool(gap <= 2 * allowed)  # as good as equally likely
    return same


class Ours:
    """A GPT of this project, to ask as onnx_graph.Session is asked."""

    def __init__(self, model, vocab_size):
        self.model, self.vocab_size = model.eval(), vocab_size

    def logits(self, pieces):
        """(B, T, vocab_size) of each of the pieces (B, T) of texts, which follow each other."""
        cache = generate.KVCache(sum(piece.size(1) for piece in pieces))
        for piece in pieces:
            cache.expect(piece.size(1), piece.device)
            yield self.model(piece, targets=piece, cache=cache)[0][..., :self.vocab_size]
            cache.length += piece.size(1)

    def greedy(self, ids, count):
        """ids (1, T) and their likeliest continuation, a list."""
        return self.model.generate(ids, count, temperature=0.0, vocab_size=self.vocab_size)[0].tolist()


class Transformers:
    """A folder in transformers, to ask as Ours."""

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
    """The exported model, read again."""
    if format == 'hf':
        return Transformers(folder)
    if format == 'onnx':
        return onnx_graph.Session(folder, config)
    return Ours(load_weights(os.path.join(folder, 'model.safetensors'))[0], vocab_size)


def same_tokens(folder, tokenizer, text):
    """Whether the tokenizer in an hf folder makes of a text what ours does, both ways."""
    from transformers import AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text)
    same = theirs(text).input_ids == ids and theirs.decode(ids) == tokenizer.decode(ids)
    same = same and theirs.eos_token_id == tokenizer.end_id
    print(f'tokenizer: {"the same" if same else "NOT the same"} {len(ids)} ids and text', flush=True)
    return same


def export():
    """Write the folder, and prove it. False if it is not the same model."""
    check_packages()
    source, folder = find_places()
    model, checkpoint = load_weights(source)
    if format == 'hf' and model.config.modern:
        raise ValueError('a modern model fits no architecture of transformers exactly (each embedding has a share of '
                         'the one before, queries and keys have LayerNorm); --format=onnx and safetensors take it')
    config, meta = model.config, bins.meta_of(root, checkpoint, model.config.vocab_size)
    check_same(meta, None, config.vocab_size)
    tokenizer = from_meta(meta)
    about = {key: value for key, value in (checkpoint or {}).items()
             if key in ('config', 'iter_num', 'best_val_loss')}  # not the weights and moments, whose memory it frees
    about.update(model_args=asdict(config), meta=meta)
    checkpoint = None
    check_disk(folder, model)
    text = real_text(model, tokenizer, meta, about.get('config', {}))
    proof = expected(Ours(model, tokenizer.vocab_size), text) if verify else None
    begin, partial = time.perf_counter(), f'{folder}.partial'
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
    os.makedirs(partial)
    try:
        if format == 'hf':
            huggingface.write_gpt2(model, tokenizer, meta, partial)
        elif format == 'onnx':
            print('writing the graph; this takes up to a minute', flush=True)
            onnx_graph.write(model, tokenizer.vocab_size, partial)
            huggingface.write_tokenizer(tokenizer, meta, config.block_size, partial)
        else:
            checkpoint_file.save_safetensors(model, about, os.path.join(partial, 'model.safetensors'))
        modelcard.write(partial, folder, format, config, about, tokenizer.decode(text[0, :4].tolist()), source)
    except KeyboardInterrupt:
        shutil.rmtree(partial)
        raise
    except Exception as error:  # SafetensorError, for a full disk, and what ONNX raises have no common base
        raise ValueError(f'{partial} could not be written ({type(error).__name__}: {error})') from None
    for entry in os.scandir(partial):
        os.chmod(entry.path, 0o644)  # safetensors makes files for their owner alone
    os.replace(partial, folder)
    size = sum(entry.stat().st_size for entry in os.scandir(folder))
    print(f'wrote {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s', flush=True)
    if not verify:
        return True
    del model
    try:
        same = compare(reload(folder, config, tokenizer.vocab_size), *proof)
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
    hardware.stop(error)
