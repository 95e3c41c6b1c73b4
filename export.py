"""
Export a trained model to other libraries, and prove that it is still the same model.

python export.py --out_dir=out-shakespeare-char                 # for transformers: out-shakespeare-char/hf
python export.py --out_dir=out-quickstart --format=onnx         # for onnxruntime, with a KV cache: out-quickstart/onnx
python export.py --out_dir=out-quickstart --format=safetensors  # the weights alone, for sample.py and train.py too
python export.py --out_dir=out-shakespeare-char --format=gguf   # for llama.cpp: out-shakespeare-char/gguf
python export.py --init_from=gpt2 --format=onnx                 # OpenAI's weights, without training: gpt2-onnx

Each export is loaded by the other library. The largest difference between its logits and ours is printed, and whether
64 greedy tokens are the same. If not, nothing is deleted, a line says what differs, and the exit code is 1.
transformers opens a classic model as a GPT2LMHeadModel. A modern one, or one with softcap, comes with its own code in
modeling_nanogpt.py, which transformers executes if it is told to trust it.
"""
import os

# -----------------------------------------------------------------------------
format = 'hf'          # hf (for transformers), onnx, safetensors, gguf (for llama.cpp)
init_from = 'resume'   # resume: the best weights in out_dir; or a model by any name: the folder of a run, a checkpoint
                       # file, an export (hf, safetensors), gpt2, gpt2-medium, gpt2-large, gpt2-xl, or any GPT-2 on
                       # Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run
to = ''                # the folder to write, new or empty; '': FORMAT in out_dir, else NAME-FORMAT
verify = True          # load it with the other library, and compare
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import contextlib
import glob
import importlib.util
import itertools
import signal
import sys
import tempfile
import time
from dataclasses import asdict

import torch

from common import checkpoint, dataset, generate, gguf_file
from common.console import exit_on_error
from common.exporting import modelcard, onnx_graph, transformers_folder
from common.files import check_folder, existing_parent, free_bytes
from common.options import find_model
from common.tokenizer import from_meta
from model import load_weights

# How far the logits may differ, relative to their standard deviation where that is above 1. llama.cpp looks up GELU, by
# its tanh approximation, in a table of float16, which changes the logits of 12 layers by 2.4e-3
TOLERANCES = {'hf': 1e-4, 'onnx': 1e-4, 'safetensors': 1e-4, 'gguf': 1e-2}
GREEDY_TOKENS = 64
PIECE = 64           # tokens whose logits are in memory at once
MOST_LOGITS = 2**24  # with more than this, only every 16th position is compared
PACKAGES = {  # to write each format, to verify it
    'hf': (['safetensors', 'tokenizers'], ['transformers']),
    'onnx': (['onnx', 'onnxscript', 'tokenizers'], ['onnxruntime']),
    'safetensors': (['safetensors'], []),
    'gguf': (['gguf', 'tokenizers'], [])}  # verified if llama_cpp is here, which needs a compiler
TEXT = """It was a quiet evening in the harbour. Two ships had come in with the tide, and 12 men were carrying
sacks of grain ashore; "Hurry up," said the old captain, "the rain won't wait for us!" Nobody answered him.
"""


def check_packages():
    """ValueError, with the line to type, if a package is missing."""
    to_write, to_verify = PACKAGES[format]
    missing = [name for name in to_write + (to_verify if verify else []) if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'--format={format} needs packages that are not installed: pip install {" ".join(missing)}')


def find_places():
    """(what to load, the folder to write). ValueError if there is no such run, or if the folder cannot be written."""
    source = find_model(init_from, out_dir)
    name = os.path.basename(os.path.normpath(source)).removesuffix('.pt').removesuffix('.safetensors')
    folder = to or (os.path.join(out_dir, format) if init_from == 'resume' else f'{name}-{format}')
    check_empty(folder)
    check_folder(folder, 'to')
    if not os.access(existing_parent(folder), os.W_OK):
        raise ValueError(f'{folder} cannot be written in {existing_parent(folder)}; --to=FOLDER names another one')
    for left in glob.glob(f'{glob.escape(partial_name(folder))}*'):
        print(f'{left} is what an export that was killed has left, unless one is at work there; it can be deleted')
    return source, os.path.normpath(folder)


def partial_name(folder):
    """How the names of the folders begin in which an export to `folder` is written."""
    parent, name = os.path.split(os.path.normpath(folder))
    return os.path.join(parent, f'{name[:50]}.partial-')


def check_empty(folder):
    """ValueError if something is there that an export would replace."""
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise ValueError(f'{folder} is not an empty folder; --to=FOLDER names another one')


def real_text(model, tokenizer, meta, settings):
    """
    block_size ids (1, T) of real text: from the validation split of the run if it is here, else from TEXT. If TEXT has
    characters that the vocabulary lacks, the model generates the ids.
    """
    count = model.config.block_size
    tokens = dataset.validation_tokens(root, settings, meta)[:count]
    if len(tokens) == count:
        return torch.from_numpy(tokens.astype('int64'))[None]
    with contextlib.suppress(ValueError):
        return torch.tensor([tokenizer.encode(TEXT * count)[:count]])
    return model.generate(torch.tensor([[tokenizer.start_id]]), count - 1, vocab_size=tokenizer.vocab_size,
                          generator=torch.Generator().manual_seed(0))


def split(ids):
    """Consecutive pieces of ids (B, T); at least two of a batch of several texts, so that the cache is tested."""
    B, T = ids.shape
    return ids.split(PIECE if B == 1 else max(1, min(PIECE, T // 2)), dim=1)


def subsample(logits, tokens):
    """The logits (B, T, V) of a piece of `tokens`, but of many tokens only those at every 16th, the last included."""
    step = 1 if tokens * logits.size(2) <= MOST_LOGITS else 16
    return logits[:, (logits.size(1) - 1) % step::step].clone()


def probe(model, text):
    """
    What a model computes from a text (1, block_size): {(B, T): logits} of 1 and 3 sequences of several lengths, a
    greedy continuation (a list), and the logits that led to each of its ids.
    """
    cases, T = {}, text.size(1)
    for B, length in itertools.product((1, 3), sorted({1, min(7, T), T})):
        ids = torch.cat([text.roll(-7 * row, dims=1)[:, :length] for row in range(B)])
        pieces = [subsample(logits, ids.numel()) for logits in model.logits(split(ids))]
        cases[B, length] = torch.cat(pieces, dim=1)
    prompt = text[:, :max(1, min(16, T - GREEDY_TOKENS))]
    greedy = model.greedy(prompt, min(GREEDY_TOKENS, T - prompt.size(1)))
    logits = torch.cat(list(model.logits([torch.tensor([greedy])])), dim=1)[0, prompt.size(1) - 1:-1]
    return cases, greedy[prompt.size(1):], logits


def compare(ours, theirs):
    """Whether two results of probe() are the same within the tolerance; prints how far apart they are, and where."""
    (cases, greedy, logits), (their_cases, written, _) = ours, theirs
    same, allowed = True, TOLERANCES[format] * max(1.0, logits.std().item())
    for (B, T), expected in cases.items():
        difference = (expected - their_cases[B, T]).abs_()
        within = bool(difference.max() <= allowed)  # False for nan, too
        token = difference.argmax().item() % difference.size(-1)
        where = '' if within else f': more than {allowed:.1g}, most in the logit of id {token}'
        print(f'{B} x {T} tokens: logits differ by {difference.max():.2g}{where}')
        same = same and within
    agreeing = next((i for i, (a, b) in enumerate(zip(greedy, written, strict=True)) if a != b), len(greedy))
    print(f'greedy: {agreeing} of {len(greedy)} tokens are the same')
    if agreeing < len(greedy):
        gap = logits[agreeing, greedy[agreeing]] - logits[agreeing, written[agreeing]]
        print(f'the first token that differs has a logit lower by {gap:.2g}')
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
            cache.prepare(piece.size(1), piece.device)
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
        self.folder, self.model = folder, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

    def logits(self, pieces):
        from common.exporting.modeling_nanogpt import CACHE
        output = {CACHE: None}
        for piece in pieces:
            output = self.model(piece, use_cache=True, **{CACHE: output[CACHE]})
            yield output.logits

    def greedy(self, ids, count):
        return self.model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)[0].tolist()

    def tokens(self, text):
        """(ids, the text of these ids, the id of the end of a text or None)."""
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=True)
        ids = tokenizer(text).input_ids
        return ids, tokenizer.decode(ids), tokenizer.eos_token_id


def reload(folder, config, vocab_size):
    """The exported model, loaded by the library that it is for."""
    if format == 'hf':
        return Transformers(folder)
    if format == 'onnx':
        return onnx_graph.Session(folder, config)
    if format == 'gguf':
        return gguf_file.Session(os.path.join(folder, 'model.gguf'), config)
    return Ours(load_weights(os.path.join(folder, 'model.safetensors'))[0], vocab_size)


def same_tokens(theirs, tokenizer, text):
    """Whether the tokenizer of another library encodes and decodes a text as ours does."""
    ids = tokenizer.encode(text)
    same = theirs.tokens(text) == (ids, tokenizer.decode(ids), tokenizer.end_id)
    print(f'tokenizer: {"the same" if same else "NOT the same"} {len(ids)} ids and text')
    return same


def write(folder, model, tokenizer, about, text, source):
    """Write the export into a new folder beside `folder`, whose place it takes when it is complete."""
    begin, (parent, prefix) = time.perf_counter(), os.path.split(os.path.abspath(partial_name(folder)))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as place:
        partial = os.path.join(place, os.path.basename(folder))
        os.mkdir(partial)
        write_files(partial, model, tokenizer, about['meta'], about)
        modelcard.write(partial, folder, format, model.config, about, tokenizer, text, source)
        for entry in os.scandir(partial):
            os.chmod(entry.path, os.stat(partial).st_mode & 0o666)  # safetensors' files are for their owner alone
        check_empty(folder)  # another export may have been faster
        os.replace(partial, folder)
    size = sum(entry.stat().st_size for entry in os.scandir(folder))
    print(f'wrote {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s')


def write_files(folder, model, tokenizer, meta, about):
    """The files of the format. ValueError if that fails."""
    try:
        if format == 'hf':
            transformers_folder.write(model, tokenizer, meta, folder)
        elif format == 'onnx':
            print('writing the graph; this takes up to a minute')
            onnx_graph.write(model, tokenizer.vocab_size, folder)
            transformers_folder.write_tokenizer(tokenizer, meta, model.config.block_size, folder)
        elif format == 'gguf':
            gguf_file.write(model, tokenizer, os.path.join(folder, 'model.gguf'))
        else:
            checkpoint.save_safetensors(model, about, os.path.join(folder, 'model.safetensors'))
    except Exception as error:  # SafetensorError, for a full disk, and the errors of ONNX have no common base
        raise ValueError(f'the export could not be written ({type(error).__name__}: {error})') from None


def export():
    """Write the folder, and verify it. False if it is not the same model."""
    if format not in PACKAGES:
        raise ValueError(f'format={format!r} is not one of {", ".join(PACKAGES)}')
    source, folder = find_places()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as a shell expects; leaves nothing half written behind
    model, saved = load_weights(source)
    config = model.config
    if format == 'gguf' and transformers_folder.needs_own_code(config):
        kind, why = ('a modern model', 'it has RoPE, QK-norm and smear') if config.modern else (
            f'a model with softcap={config.softcap}', "GPT-2's logits have no bound")
        raise ValueError(f'{kind} fits no architecture of llama.cpp exactly ({why}); the other formats take it')
    check_packages()
    meta = dataset.meta_of(root, saved, config.vocab_size)
    tokenizer = from_meta(meta)
    if format == 'gguf':
        gguf_file.check(config, tokenizer)
        for line in gguf_file.differences(config, tokenizer):
            print(line)
    about = {key: value for key, value in saved.items() if key in ('config', 'iter_num', 'best_val_loss')}
    about.update(model_args=asdict(config), meta=meta)
    saved = None  # frees its weights and moments
    needed = 4.2 * sum(p.numel() for p in model.parameters())  # bytes, with a margin for the smaller files
    free = free_bytes(folder)
    if needed > free:
        raise ValueError(f'{folder} needs about {needed / 1e6:.0f} MB, its disk has {free / 1e6:.0f} MB free')
    text = real_text(model, tokenizer, meta, about.get('config', {}))
    obstacle = gguf_file.obstacle() if format == 'gguf' and verify else None
    ours = probe(Ours(model, tokenizer.vocab_size), text) if verify and not obstacle else None
    write(folder, model, tokenizer, about, text[0].tolist(), source)
    if ours is None:
        if obstacle:
            print(f'not verified: {obstacle}')
        return True
    del model
    try:
        theirs = reload(folder, config, tokenizer.vocab_size)
        same = compare(ours, probe(theirs, text))
        has_tokenizer = format in ('hf', 'gguf')
        return same and (not has_tokenizer or same_tokens(theirs, tokenizer, tokenizer.decode(text[0].tolist())))
    except Exception as error:  # whatever the other library raises
        print(f'the export cannot be read back ({type(error).__name__}: {error})')
        return False


try:
    with exit_on_error(), torch.no_grad():
        if not export():
            sys.exit('NOT THE SAME MODEL: do not use what was written')
except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    sys.exit(130)
