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

from common import bins, checkpoint as checkpoint_file, hardware, huggingface, modelcard, onnx_graph
from common.tokenizer import check_same, from_meta
from model import load_weights

TOLERANCE = 1e-4      # of the logits, relative to the largest of them where that is above 1
GREEDY = 64           # tokens
MOST_LOGITS = 2**26   # in memory at once: 0.27 GB; with GPT-2's vocabulary not 3 times 1,024 tokens
PACKAGES = {'hf': ['safetensors', 'tokenizers', 'transformers'], 'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
            'safetensors': ['safetensors']}


def check_disk(folder, model):
    """ValueError if the disk is too small."""
    needed = 4.2 * sum(p.numel() for p in model.parameters())  # bytes, with what stands beside the weights
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f'{folder} needs about {needed / 1e6:.0f} MB, its disk has {free / 1e6:.0f} MB free')


def some_text(model, tokenizer, meta, settings):
    """block_size ids (1, T) of text: of the run's validation split if that is here, else such as the model writes."""
    count = model.config.block_size
    try:
        folder = bins.find(root, settings['dataset'])
        if bins.read_meta(folder).get('sha256') == meta['sha256']:
            tokens = bins.open_tokens(folder, 'val', meta)[:count]
            if len(tokens) == count:
                return torch.from_numpy(tokens.astype(np.int64))[None]
    except (KeyError, ValueError, OSError):
        pass
    generator = torch.Generator().manual_seed(0)
    return model.generate(torch.tensor([[tokenizer.start_id]]), count - 1, vocab_size=tokenizer.vocab_size,
                          generator=generator)


def expected(model, text, vocab_size):
    """
    What the model makes of a text (1, block_size): ([(ids, logits)] of 1 and 3 sequences of several lengths, the ids of
    a greedy continuation, how many of them are its prompt).
    """
    cases, T = [], text.size(1)
    for batch, length in itertools.product((1, 3), sorted({1, min(7, T), T})):
        if batch * length * vocab_size <= MOST_LOGITS:
            ids = torch.cat([text.roll(-7 * row, dims=1)[:, :length] for row in range(batch)])
            cases.append((ids, model(ids, targets=ids)[0][..., :vocab_size]))
    prompt = text[:, :max(1, min(16, T - GREEDY))]
    count = min(GREEDY, T - prompt.size(1))
    return cases, model.generate(prompt, count, temperature=0.0, vocab_size=vocab_size), prompt.size(1)


def compare(theirs, cases, greedy, prompt_tokens):
    """Whether another library's model gives the same, within TOLERANCE; prints how far it is off, and where."""
    same = True
    for ids, ours in cases:
        difference = (ours - theirs.logits(ids)).abs_()
        allowed = TOLERANCE * max(1.0, ours.abs().max().item())
        right = bool(difference.max() <= allowed)  # not for nan
        row, at, token = (int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        where = '' if right else f': more than {allowed:.1g}, at token {at} of text {row}, in the logit of id {token}'
        print(f'{ids.size(0)} x {ids.size(1)} tokens: logits differ by {difference.max():.2g}{where}', flush=True)
        same = same and right
    count = greedy.size(1) - prompt_tokens
    written = theirs.greedy(greedy[:, :prompt_tokens], count)
    agreeing = next((i for i, (a, b) in enumerate(zip(greedy[0].tolist(), written)) if a != b), len(written))
    print(f'greedy: {agreeing - prompt_tokens} of {count} tokens are the same', flush=True)
    if agreeing < greedy.size(1):
        print('(two tokens that are equally likely may change their places)')
    return same and agreeing == greedy.size(1)


class Reloaded:
    """A folder that was exported, in this project or in transformers: the same to ask, as onnx_graph.Session."""

    def __init__(self, folder, format, vocab_size):
        self.vocab_size = vocab_size
        if format == 'hf':
            from transformers import AutoModelForCausalLM
            self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        else:
            self.model = load_weights(os.path.join(folder, 'model.safetensors'), dropout=0.0)[0].eval()
        self.is_hf = format == 'hf'

    def logits(self, ids):
        return self.model(ids).logits if self.is_hf else self.model(ids, targets=ids)[0][..., :self.vocab_size]

    def greedy(self, ids, count):
        if self.is_hf:
            return self.model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)[0].tolist()
        return self.model.generate(ids, count, temperature=0.0, vocab_size=self.vocab_size)[0].tolist()


def export():
    """Write the folder, and prove it. False if it is not the same model."""
    if format not in PACKAGES:
        raise ValueError(f'format={format!r} is not one of {", ".join(PACKAGES)}')
    missing = [package for package in PACKAGES[format] if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f'--format={format} needs packages that are not here: pip install {" ".join(missing)}')
    source = out_dir if init_from == 'resume' else init_from
    folder = to or (os.path.join(out_dir, format) if init_from == 'resume'
                    else f'{os.path.splitext(os.path.basename(os.path.normpath(source)))[0]}-{format}')
    if os.path.isdir(folder) and os.listdir(folder):
        raise ValueError(f'{folder} is not empty; --to=FOLDER names another one')
    model, checkpoint = load_weights(source, dropout=0.0)
    model.eval()
    if format == 'hf' and model.config.modern:
        raise ValueError('a modern model fits no architecture of transformers exactly (each embedding has a share of '
                         'the one before, queries and keys have LayerNorm); --format=onnx and safetensors take it')
    meta = bins.meta_of(root, checkpoint, model.config.vocab_size)
    check_same(meta, None, model.config.vocab_size)
    tokenizer = from_meta(meta)
    checkpoint = {key: value for key, value in (checkpoint or {}).items() if key != 'model'}  # frees the weights
    check_disk(folder, model)
    if verify:
        text = some_text(model, tokenizer, meta, checkpoint.get('config', {}))
        proof = expected(model, text, tokenizer.vocab_size)
    begin = time.perf_counter()
    os.makedirs(folder, exist_ok=True)
    if format == 'hf':
        huggingface.write_gpt2(model, tokenizer, meta, folder)
    elif format == 'onnx':
        print('writing the graph; this takes up to a minute', flush=True)
        onnx_graph.write(model, tokenizer.vocab_size, folder)
    else:
        checkpoint_file.save_safetensors(model, {**checkpoint, 'model_args': asdict(model.config), 'meta': meta},
                                         os.path.join(folder, 'model.safetensors'))
    modelcard.write(folder, format, model.config, checkpoint, os.path.basename(os.path.normpath(source)))
    size = sum(entry.stat().st_size for entry in os.scandir(folder))
    print(f'wrote {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s', flush=True)
    if not verify:
        return True
    config = model.config
    del model
    theirs = onnx_graph.Session(folder, config) if format == 'onnx' else Reloaded(folder, format, tokenizer.vocab_size)
    return compare(theirs, *proof)


try:
    with torch.no_grad():
        if not export():
            print('NOT THE SAME MODEL: do not use what was written', file=sys.stderr)
            sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)
except (ValueError, OSError) as error:
    hardware.stop(error)
