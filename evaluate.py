"""
How good is a model? In figures that others use, too: bits per byte of a text, accuracy on published benchmarks.

python evaluate.py --out_dir=out-quickstart                              # its validation data, as train.py scores them
python evaluate.py --out_dir=out-quickstart --text=book.txt              # any text
python evaluate.py --init_from=gpt2 --dataset=shakespeare_char           # the validation data of any dataset
python evaluate.py --init_from=gpt2 --tasks=hellaswag,arc_easy,arc_challenge,piqa,lambada
python evaluate.py --out_dir=out --tasks=arc_easy --shots=5 --fraction=0.1
python evaluate.py --out_dir=out --tasks=hellaswag --input=hellaswag_val.jsonl  # without a network
python evaluate.py --out_dir=out --tasks=mine.jsonl --json=True          # a question a line: docs/evaluating.md

Stopped while it asks questions, the same command goes on from the last answers.
"""
import math
import os
import sys
from json import dumps

# -----------------------------------------------------------------------------
# what to score; with none of the three the validation data of the run
tasks = ''             # hellaswag, arc_easy, arc_challenge, piqa, lambada, or files of questions; several with commas
text = ''              # a file of text
dataset = ''           # a folder in data/, or a path to one; in another vocabulary it is decoded and encoded again
# how
input = ''             # the file with the questions of the task, in place of a download
shots = 0              # solved examples before each question
examples = ''          # a file to draw them from; '': the task's own, but with input its other questions
fraction = 1.0         # of the questions, evenly spread, or of the text, from its beginning
# model
init_from = 'resume'   # resume: the best weights in out_dir; or a model by any name: the folder of a run, a checkpoint
                       # file, an export (hf, safetensors), gpt2, gpt2-medium, gpt2-large, gpt2-xl, or any GPT-2 on
                       # Hugging Face or in a folder
out_dir = 'out'        # the folder of a training run
# system
device = 'auto'        # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'         # of the weights: float32, bfloat16, float16; auto: what the GPU is fast in, on a CPU float32
json = False           # one JSON object per result, and nothing else on stdout
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

from common import console, prompts
from common.options import find_model
from common.tasks import SUFFIXES, load as load_questions

results = sys.stdout
if json:
    sys.stdout = sys.stderr
names = [os.path.expanduser(name.strip()) for name in tasks.split(',') if name.strip()]
with console.exit_on_error():
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f'fraction={fraction} is not above 0 and at most 1')
    if input and (len(names) != 1 or names[0].endswith(SUFFIXES)):
        raise ValueError(f'input={input!r} is the file of one task; name it, as in --tasks=hellaswag')
    if examples and not shots:
        raise ValueError(f'examples={examples!r} needs --shots=N, how many of them stand before each question')
    if shots and not names:
        raise ValueError(f'shots={shots} needs questions, as in --tasks=arc_easy')
    source = find_model(init_from, out_dir)
    whole = prompts.read_file(text if text.startswith('FILE:') else f'FILE:{text}', 'text') if text else ''
    questions = {name: load_questions(name, shots, input, examples) for name in names}  # before a model is loaded

import torch

from common import dataset as datasets, inference
from common.device import is_out_of_memory, resolve_device, resolve_dtype
from common.evaluating import answers, texts
from common.tokenizer import from_meta
from model import load_weights


def evaluate():
    """Yields results: (a line for the terminal, a dict)."""
    model, checkpoint = load_weights(source, dropout=0.0)
    meta = datasets.meta_of(root, checkpoint, model.config.vocab_size)
    tokenizer = from_meta(meta)
    inference.convert(model.eval(), place, resolved)
    about = {'model': source, 'iter': checkpoint.get('iter_num'), 'dtype': resolved}
    if text:
        yield texts.score_text(model, tokenizer, whole[:math.ceil(fraction * len(whole))], {**about, 'text': text})
    if dataset or not (text or names):
        name = dataset or texts.own_dataset(checkpoint.get('config'), source)
        yield texts.score_dataset(model, tokenizer, meta, datasets.find(root, name), fraction, about)
    for name in names:
        yield answers.score_task(model, tokenizer, name, questions[name], shots, fraction, about)


try:
    with console.exit_on_error():
        place = resolve_device(device)
        resolved = resolve_dtype(dtype, place, training=False)
        for line, result in evaluate():
            print(dumps(console.finite(result), ensure_ascii=False) if json else line, file=results, flush=True)
except KeyboardInterrupt:
    print('stopped; the same command goes on from the last answer', file=sys.stderr)
    sys.exit(130)
except (RuntimeError, MemoryError) as error:
    if not is_out_of_memory(error):
        raise
    console.stop(f'out of memory: try --dtype=bfloat16, or --device=cpu ({str(error).partition(chr(10))[0]})', code=1)
