"""A model as an ONNX graph, and its use in onnxruntime."""
import logging
import os
import warnings

import torch
import torch.nn as nn

from common.settings import SMEARED


class Past:
    """A cache whose keys and values are tensors (n_layer, B, n_head, S, head_dim): inputs and outputs of a graph."""

    def __init__(self, keys, values, embeddings, T):
        self.past_keys, self.past_values, self.embeddings = keys, values, embeddings
        self.keys, self.values = [], []
        self.positions = torch.arange(T) + keys.size(3)
        self.mask = (torch.arange(T + keys.size(3)) <= self.positions[:, None])[None, None]

    def update(self, layer, k, v):
        self.keys.append(torch.cat((self.past_keys[layer], k), dim=2))
        self.values.append(torch.cat((self.past_values[layer], v), dim=2))
        return self.keys[layer], self.values[layer], self.mask

    def after_previous(self, x, count):
        longer = torch.cat((self.embeddings, x), dim=1)
        self.embeddings = longer[:, -count:]
        return longer


class Graph(nn.Module):
    """A GPT with its cache as inputs and outputs; if that is empty, the plain model. `vocab_size`: without padding."""

    def __init__(self, model, vocab_size):
        super().__init__()
        self.model, self.vocab_size = model, vocab_size

    def forward(self, input_ids, past_keys, past_values, past_embeddings):
        cache = Past(past_keys, past_values, past_embeddings, input_ids.size(1))
        logits, _ = self.model(input_ids, targets=input_ids, cache=cache)  # targets: for the logits of all positions
        return logits[..., :self.vocab_size], torch.stack(cache.keys), torch.stack(cache.values), cache.embeddings


INPUTS = 'input_ids', 'past_keys', 'past_values', 'past_embeddings'
OUTPUTS = 'logits', 'present_keys', 'present_values', 'present_embeddings'


def zero_past(config, batch, tokens=0):
    """past_keys, past_values and past_embeddings of so many tokens, all zeros; only a modern model uses the last."""
    keys = torch.zeros(config.n_layer, batch, config.n_head, tokens, config.n_embd // config.n_head)
    return keys, keys.clone(), torch.zeros(batch, SMEARED, config.n_embd)


def write(model, vocab_size, folder):
    """Write folder/model.onnx, and its weights in folder/model.onnx.data. Needs onnx and onnxscript."""
    example = torch.zeros(2, 3, dtype=torch.int64), *zero_past(model.config, 2, 2)
    batch, tokens, past = (torch.export.Dim(name) for name in ('batch', 'tokens', 'past'))
    shapes = {0: batch, 1: tokens}, {1: batch, 3: past}, {1: batch, 3: past}, {0: batch}
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # else it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(Graph(model, vocab_size).eval(), example, dynamo=True, dynamic_shapes=shapes,
                                    input_names=INPUTS, output_names=OUTPUTS, verbose=False)
    program.save(os.path.join(folder, 'model.onnx'), external_data=True)


class Session:
    """model.onnx in onnxruntime. ImportError without it."""

    def __init__(self, folder, config):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False  # it never gives memory back
        options.add_session_config_entry('session.disable_prepacking', '1')  # prepacking copies all weights
        path = os.path.join(folder, 'model.onnx')
        self.session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        self.config = config

    def run(self, ids, past):
        values = dict(zip(INPUTS, (ids, *past)))
        outputs = self.session.run(None, {i.name: values[i.name].numpy() for i in self.session.get_inputs()})
        return [torch.from_numpy(output) for output in outputs]

    def logits(self, pieces):
        """Yield the logits (B, T, vocab_size) of each of the consecutive pieces (B, T) of texts."""
        past = zero_past(self.config, pieces[0].size(0))
        for piece in pieces:
            logits, *past = self.run(piece, past)
            yield logits

    def greedy(self, ids, count):
        """ids (1, T) and their greedy continuation, a list; each step takes one token and the cache."""
        text, past = ids, zero_past(self.config, 1)
        for _ in range(count):
            logits, *past = self.run(ids, past)
            ids = logits[:, -1:].argmax(dim=-1)
            text = torch.cat((text, ids), dim=1)
        return text[0].tolist()
