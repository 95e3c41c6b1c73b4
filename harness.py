"""
EleutherAI's lm_eval with the models of this project, for the many benchmarks that evaluate.py does not have. It has
lm_eval's own command line (pip install lm_eval); --model=nanogpt is new, and takes evaluate.py's settings of the model.

python harness.py --model nanogpt --model_args out_dir=out-quickstart --tasks blimp
python harness.py --model nanogpt --model_args init_from=gpt2 --device cuda --tasks hellaswag --num_fewshot 5

In Python: lm_eval.simple_evaluate(model=harness.NanoGPT(out_dir='out-quickstart'), tasks=['hellaswag'])
"""
import itertools
import os
import sys

root = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [root] * (root not in sys.path)

import torch

from common import console, dataset, generate, inference, scoring
from common.device import resolve_device, resolve_dtype
from common.options import find_model, hint
from common.tokenizer import TextStream, from_meta
from model import load_weights

try:
    from lm_eval import models, utils  # noqa: models, which lm_eval looks for only until it has one
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    console.stop(f'this needs a package that is not installed: pip install lm_eval ({error})')


@register_model('nanogpt')
class NanoGPT(TemplateLM):
    """
    A model of this project as lm_eval takes one. Its batches are as large as memory allows, whatever batch_size says.
    ValueError or OSError if there is no such model, or if a task has characters that its vocabulary lacks.
    """

    def __init__(self, out_dir='out', init_from='resume', device='auto', dtype='auto', batch_size=None,
                 max_batch_size=None, **unknown):
        super().__init__()
        names = (os.path.expanduser(str(name)) for name in (init_from, out_dir))  # lm_eval takes 2024 for a number
        if unknown:
            name, known = next(iter(unknown)), ['out_dir', 'init_from', 'dtype']
            advice = hint(name, known, f'there are {", ".join(known)}')
            raise ValueError(f'unknown setting {name} in model_args{advice}')
        source = find_model(*names, otherwise='out_dir=FOLDER names one', dashes='')
        model, checkpoint = load_weights(source, dropout=0.0)
        meta = dataset.meta_of(root, checkpoint, model.config.vocab_size)
        self.model, self.bpe = model.eval(), from_meta(meta)  # `tokenizer` is transformers', for chat templates
        no_gpu = device == 'cuda:0' and not torch.cuda.is_available()  # lm_eval's default
        self.place = resolve_device('auto' if no_gpu else device)
        inference.convert(self.model, self.place, resolve_dtype(dtype, self.place, training=False))
        self.max_length = model.config.block_size

    @property
    def eot_token_id(self):
        return self.bpe.end_id

    @property
    def prefix_token_id(self):
        return self.bpe.start_id

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.bpe.encode(string)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """[(log-probability, whether the model would write it)] of [(_, context ids, ending ids)]."""
        groups = [(context, [ending for *_, ending in some])
                  for context, some in itertools.groupby(requests, lambda request: request[1])]
        found = [None] * len(groups)
        with tqdm(total=len(requests), disable=disable_tqdm) as progress:
            for number, scores in scoring.score_endings(self.model, groups, self.bpe.vocab_size):
                found[number] = scores
                progress.update(len(scores))
        return list(itertools.chain(*found))

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """The log-probability of each whole text, read in windows that do not overlap."""
        windows = [[utils.make_disjoint_window(pair) for pair in utils.get_rolling_token_windows(
            self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1)]
            for request in requests]
        scores = iter(self._loglikelihood_tokens([(None, *pair) for some in windows for pair in some], disable_tqdm))
        return [sum(logprob for logprob, _ in itertools.islice(scores, len(some))) for some in windows]

    def generate_until(self, requests, disable_tqdm=False):
        """What the model writes after each context, up to one of the texts in `until`."""
        return [self.write(*request.args) for request in tqdm(requests, disable=disable_tqdm)]

    def write(self, context, options):
        until = options.get('until') or []
        stream = TextStream(self.bpe, [until] if isinstance(until, str) else until)
        count = options.get('max_gen_toks', 256)
        ids = self.bpe.encode(context) or [self.bpe.start_id]
        if count < self.max_length:  # then all fits, as lm_eval has it; else the context moves on
            ids = ids[count - self.max_length:]
        sampling = {key: options.get(key) for key in ('top_k', 'top_p', 'min_p', 'repetition_penalty')}
        sampling['temperature'] = options.get('temperature', 1.0) if options.get('do_sample') else 0.0
        text = ''
        for token, _ in generate.stream(self.model, torch.tensor([ids], device=self.place), count,
                                        vocab_size=self.bpe.vocab_size, **sampling):
            text += stream.push(token.item())
            if stream.finished:
                break
        return text + stream.rest()


if __name__ == '__main__':
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        console.stop(error)
