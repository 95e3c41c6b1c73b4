"""
A model as a GGUF file, for llama.cpp and the programs that are built on it, and its use there. A model or vocabulary
that llama.cpp does not have is refused. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
import functools
import json
import sys

import numpy as np
import torch

from common.tokenizer import END_OF_TEXT, CharTokenizer, decode_bytes

PRECISIONS = {'float32': ('F32', 'ALL_F32'), 'float16': ('F16', 'MOSTLY_F16'), 'int8': ('Q8_0', 'MOSTLY_Q8_0')}
BLOCK = 32  # values in a row that have a scale in common in Q8_0
MODULES = {'ln_1': 'attn_norm', 'attn.c_attn': 'attn_qkv', 'attn.c_proj': 'attn_output',
           'ln_2': 'ffn_norm', 'mlp.c_fc': 'ffn_up', 'mlp.c_proj': 'ffn_down'}
NOT_A_MERGE = f'{END_OF_TEXT} {END_OF_TEXT}'  # no text has it: each half would have to be merged before


def tensors(model, vocab_size):
    """(name, tensor) of all that llama.cpp's gpt2 has; missing biases are 0, the vocabulary is without its padding."""
    yield 'token_embd.weight', model.transformer.wte.weight[:vocab_size]  # and the output layer, which is tied to it
    yield 'position_embd.weight', model.transformer.wpe.weight
    modules = {f'h.{layer}.{name}': f'blk.{layer}.{theirs}' for layer in range(model.config.n_layer)
               for name, theirs in MODULES.items()}
    for name, theirs in {**modules, 'ln_f': 'output_norm'}.items():
        module = model.transformer.get_submodule(name)
        yield f'{theirs}.weight', module.weight
        yield f'{theirs}.bias', module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias


def char_tokens(tokenizer):
    """
    The characters, written as llama.cpp's `rwkv` tokenizer wants them. It takes the longest token that fits, so that
    each character is one id, and has no end of a text. The others have one even if the file names none (`gpt2`: id 11),
    and would stop at that character.
    """
    return [char if char.isprintable() and char != '\\' else
            ''.join(f'\\x{byte:02x}' for byte in tokenizer.bytes_of(i)) for i, char in enumerate(tokenizer.chars)]


def byte_level_tokens(tokenizer):
    """
    (tokens, merges) of a byte-level BPE that splits words as GPT-2 does, as train_bpe() learns it: llama.cpp's `gpt-2`.
    ValueError for any other, whose ids llama.cpp would get wrong.
    """
    content = json.loads(tokenizer.to_json())
    bpe, words = content['model'], content.get('pre_tokenizer') or {}
    odd = [key for key in ('dropout', 'unk_token', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback',
                           'ignore_merges') if bpe.get(key)]
    odd += [key for key in ('normalizer', 'post_processor', 'truncation', 'padding') if content.get(key)]
    for token in content['added_tokens']:
        if token['content'] == END_OF_TEXT:
            odd += [f'{key} at {END_OF_TEXT}' for key in ('lstrip', 'rstrip', 'single_word', 'normalized')
                    if token.get(key)]
        else:
            odd.append(f'the special token {token["content"]}')
    if (words.get('type'), words.get('add_prefix_space')) != ('ByteLevel', False) or not words.get('use_regex', True):
        odd.append('words that are not split as GPT-2 splits them')
    ids = {token['content']: token['id'] for token in content['added_tokens']}
    if bpe['type'] != 'BPE':
        odd.append(f'a model of the type {bpe["type"]}')
    else:
        ids = bpe['vocab'] | ids
        if sorted(ids.values()) != list(range(len(ids))):
            odd.append('ids with gaps')
    if odd:
        raise ValueError("llama.cpp has no tokenizer with the same ids: this one is no byte-level BPE like GPT-2's, it "
                         f'has {", ".join(odd)}; --format=hf and onnx take it')
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in bpe['merges']]
    return sorted(ids, key=ids.get), merges or [NOT_A_MERGE]  # llama.cpp refuses an empty list


def check(config, tokenizer):
    """ValueError for a model or a vocabulary that llama.cpp does not have."""
    if config.modern or config.softcap > 0.0:
        raise ValueError(f'llama.cpp cannot compute a {"modern model" if config.modern else "GPT-2 with a softcap"}')
    if tokenizer is not None and not isinstance(tokenizer, CharTokenizer):
        byte_level_tokens(tokenizer)


def differences(config, tokenizer):
    """Lines that say where llama.cpp will not be quite the same."""
    if config.activation == 'gelu':
        yield 'llama.cpp computes GELU by the tanh approximation: its logits differ a little'
    if isinstance(tokenizer, CharTokenizer) and not ''.join(tokenizer.chars).isascii():
        yield ('llama.cpp must be given only text in the characters that the model knows: many others make its '
               'tokenizer run until memory is full')


def add_tokenizer(writer, tokenizer, vocab_size):
    """The vocabulary; without a tokenizer, placeholders that only have ids, none of which ends a text."""
    from gguf import TokenType
    if tokenizer is None or isinstance(tokenizer, CharTokenizer):
        tokens = [f'<{i}>' for i in range(vocab_size)] if tokenizer is None else char_tokens(tokenizer)
        writer.add_tokenizer_model('rwkv')
    else:
        tokens, merges = byte_level_tokens(tokenizer)
        writer.add_tokenizer_model('gpt2')
        writer.add_tokenizer_pre('gpt-2')
        writer.add_token_merges(merges)
        writer.add_bos_token_id(tokenizer.start_id)
        writer.add_eos_token_id(tokenizer.end_id)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token == END_OF_TEXT else TokenType.UNUSED if tokenizer is None else
                            TokenType.NORMAL for token in tokens])
    writer.add_add_bos_token(False)  # nor does encode() begin a text with one


def write(model, tokenizer, path, precision='float32'):
    """
    Write a classic GPT with its tokenizer (None: placeholders, for ids alone). precision: float32, float16 or int8,
    which is Q8_0; position embeddings, LayerNorms and biases are float32 in each. Needs gguf. ValueError for a model or
    a vocabulary that llama.cpp does not have.
    """
    check(model.config, tokenizer)
    c = model.config
    if precision == 'int8' and c.n_embd % BLOCK:
        raise ValueError(f'n_embd={c.n_embd} is no multiple of {BLOCK}, which int8 (Q8_0) needs; float16 takes it')
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
    kind, file_type = PRECISIONS[precision]
    kind, vocab_size = GGMLQuantizationType[kind], tokenizer.vocab_size if tokenizer else c.vocab_size
    writer = GGUFWriter(path, 'gpt2')
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(LlamaFileType[file_type])
    add_tokenizer(writer, tokenizer, vocab_size)
    for name, p in tensors(model, vocab_size):
        value = p.detach().float().cpu().numpy()
        if value.ndim == 1 or name == 'position_embd.weight' or precision == 'float32':
            writer.add_tensor(name, np.ascontiguousarray(value))
        else:
            writer.add_tensor(name, quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@functools.cache  # it is kept, as llama.cpp may call it as long as this process lives
def print_errors_only():
    """Else llama.cpp warns of every context below 256 tokens."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level, text, _):
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            print(text.decode(errors='replace'), end='', file=sys.stderr)
    llama_cpp.llama_log_set(log, None)
    return log


def obstacle():
    """Why a Session cannot be made, in words; None if it can."""
    try:
        import llama_cpp  # noqa
    except Exception as error:  # RuntimeError, OSError, AttributeError: a library that is missing, broken or another's
        if isinstance(error, ModuleNotFoundError) and error.name == 'llama_cpp':
            return 'llama_cpp is not installed; pip install llama-cpp-python builds it, with a compiler'
        return f'llama_cpp is here, but cannot be imported ({type(error).__name__}: {error})'
    return None


class Session:
    """model.gguf in llama.cpp, with keys and values in float32. Raises what the import of llama_cpp does."""

    def __init__(self, path, config):
        print_errors_only()
        self.path, self.block_size = path, config.block_size

    def new(self):
        """A context without tokens."""
        from llama_cpp import Llama
        threads = torch.get_num_threads()
        # n_batch: the logits of so many tokens are in memory twice
        return Llama(self.path, n_ctx=self.block_size, n_batch=64, logits_all=True, type_k=0, type_v=0,
                     n_threads=threads, n_threads_batch=threads, verbose=False)

    def logits(self, pieces):
        """Yield the logits (B, T, vocab_size) of each of the consecutive pieces (B, T) of texts."""
        rows = [self.new() for _ in pieces[0]]  # an object has the cache of one text; the weights are mapped once
        for piece in pieces:
            for row, ids in zip(rows, piece.tolist()):
                row.eval(ids)
            yield torch.stack([torch.from_numpy(row.scores[:row.n_tokens][-piece.size(1):]) for row in rows])

    def greedy(self, ids, count):
        """ids (1, T) and their greedy continuation, a list."""
        text, llama = ids[0].tolist(), self.new()
        llama.eval(text)
        for _ in range(count):
            text.append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(text[-1:])
        return text

    def tokens(self, text):
        """(ids, the text of these ids, the id of the end of a text or None)."""
        llama = self.new()
        ids, end = llama.tokenize(text.encode(), special=True), llama.token_eos()
        return ids, decode_bytes(llama.detokenize(ids, special=True)), end if end >= 0 else None
