"""
A model as an ONNX graph, and its use by onnxruntime. One graph does it all: ids and the keys and values of the tokens
before them go in, logits and all keys and values come out; without any before, it is the plain model.
"""
import logging
import os
import warnings

import torch
import torch.nn as nn


class Past:
    """The keys and values so far as tensors (n_layer, B, n_head, S, head_dim), which a graph can take and give."""

    def __init__(self, keys, values, embedding, T):
        self.past, self.keys, self.values, self.embedding = (keys, values), [], [], embedding
        self.positions = torch.arange(T) + keys.size(3)
        self.mask = (torch.arange(T + keys.size(3)) <= self.positions[:, None])[None, None]

    def extend(self, layer, k, v):
        self.keys.append(torch.cat((self.past[0][layer], k), dim=2))
        self.values.append(torch.cat((self.past[1][layer], v), dim=2))
        return self.keys[layer], self.values[layer], self.mask

    def before(self, x):
        before = torch.cat((self.embedding, x[:, :-1]), dim=1)
        self.embedding = x[:, -1:]
        return before


class Graph(nn.Module):
    """A GPT whose cache goes in and out. `vocab_size`: without the padding of the vocabulary."""

    def __init__(self, model, vocab_size):
        super().__init__()
        self.model, self.vocab_size = model, vocab_size

    def forward(self, input_ids, past_keys, past_values, past_embedding):
        cache = Past(past_keys, past_values, past_embedding, input_ids.size(1))
        logits, _ = self.model(input_ids, targets=input_ids, cache=cache)  # with targets, for logits of all positions
        return logits[..., :self.vocab_size], torch.stack(cache.keys), torch.stack(cache.values), cache.embedding


INPUTS = 'input_ids', 'past_keys', 'past_values', 'past_embedding'
OUTPUTS = 'logits', 'present_keys', 'present_values', 'present_embedding'


def nothing_before(config, batch):
    """past_keys, past_values and past_embedding of no tokens; the last is of use to a modern model alone."""
    keys = torch.zeros(config.n_layer, batch, config.n_head, 0, config.n_embd // config.n_head)
    return keys, keys.clone(), torch.zeros(batch, 1, config.n_embd)


def write(model, vocab_size, folder):
    """Write folder/model.onnx, with its weights beside it in model.onnx.data. Needs onnx and onnxscript."""
    config = model.config
    example = torch.zeros(2, 3, dtype=torch.int64), *(
        torch.cat((part, torch.zeros(*part.shape[:3], 2, part.shape[4])), dim=3) if part.dim() == 5 else part
        for part in nothing_before(config, 2))
    batch, tokens, past = (torch.export.Dim(name) for name in ('batch', 'tokens', 'past'))
    shapes = {0: batch, 1: tokens}, {1: batch, 3: past}, {1: batch, 3: past}, {0: batch}
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # or it says that torchvision is not installed
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
        options.enable_cpu_mem_arena = False  # which keeps what it has once taken
        options.add_session_config_entry('session.disable_prepacking', '1')  # a second copy of all weights
        path = os.path.join(folder, 'model.onnx')
        self.session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        self.config = config

    def run(self, ids, past):
        values = dict(zip(INPUTS, (ids, *past)))
        outputs = self.session.run(None, {i.name: values[i.name].numpy() for i in self.session.get_inputs()})
        return [torch.from_numpy(output) for output in outputs]

    def logits(self, pieces):
        """(B, T, vocab_size) of each of the pieces (B, T) of texts, which follow each other."""
        past = nothing_before(self.config, pieces[0].size(0))
        for piece in pieces:
            logits, *past = self.run(piece, past)
            yield logits

    def greedy(self, ids, count):
        """ids (1, T) and their likeliest continuation, a list; each step takes one token and the cache."""
        text, past = ids, nothing_before(self.config, 1)
        for _ in range(count):
            logits, *past = self.run(ids, past)
            ids = logits[:, -1:].argmax(dim=-1)
            text = torch.cat((text, ids), dim=1)
        return text[0].tolist()
