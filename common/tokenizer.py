"""
Text to ids and back, as a dataset's meta.json describes it. It knows no model: a model may have more ids than the
tokenizer (GPT-2's 50257 padded to 50304), and whoever samples leaves those out.
"""
import functools
import hashlib
import re
import sys

import numpy as np

END_OF_TEXT = '<|endoftext|>'


class CharTokenizer:
    """One id a character, in the order of `chars`."""

    def __init__(self, chars):
        self.chars = chars
        self.vocab_size = len(chars)
        self.ids = {char: i for i, char in enumerate(chars)}
        self.start_id = self.ids.get('\n', 0)  # what an empty prompt starts from
        self.end_id = None

    def encode(self, text):
        """ValueError naming the characters that the vocabulary lacks."""
        unknown = [char for char in dict.fromkeys(text) if char not in self.ids]
        if unknown:
            raise ValueError(f'the model does not know the characters {"".join(unknown)!r}; '
                             f'it was trained on {"".join(self.chars)!r}')
        return [self.ids[char] for char in text]

    def decode(self, ids):
        return ''.join(self.chars[i] for i in ids)

    def to_json(self):
        """The same as a tokenizer.json of Hugging Face's tokenizers."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        same = Tokenizer(models.WordLevel(self.ids))
        same.pre_tokenizer, same.decoder = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated'), decoders.Fuse()
        return same.to_str()


# How GPT-2 splits text into words: tiktoken's pattern, with all that needs no look ahead in a group. A faster engine
# takes that group, which makes the whole 1.5 times as fast; the ids are the same.
GPT2_PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s++$|\s+(?!\S)|\s"


@functools.cache  # it takes a third of a second
def load_gpt2():
    """tiktoken's GPT-2 encoding, with our pattern. OSError without a network."""
    import tiktoken
    gpt2 = tiktoken.get_encoding('gpt2')
    return tiktoken.Encoding('gpt2 in groups', pat_str=GPT2_PATTERN, mergeable_ranks=gpt2._mergeable_ranks,
                             special_tokens=gpt2._special_tokens)


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, 50257 ids, by tiktoken, which fetches its two files once and caches them."""

    vocab_size = 50257
    start_id = end_id = 50256  # <|endoftext|>
    url = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'

    def __init__(self):
        try:
            self.bpe = load_gpt2()
        except OSError as error:  # requests' errors are OSErrors
            files = '\n'.join(f'  {self.url}{name} as {hashlib.sha1((self.url + name).encode()).hexdigest()}'
                              for name in ('vocab.bpe', 'encoder.json'))
            raise ValueError(f"cannot fetch GPT-2's vocabulary ({type(error).__name__}). Without a network, put these "
                             f'two files into a folder, under these names, and set TIKTOKEN_CACHE_DIR to it:\n{files}'
                             ) from None

    def encode(self, text):
        return self.bpe.encode(text, allowed_special={END_OF_TEXT})

    def encode_corpus(self, texts):
        """The ids of each text, arrays; <|endoftext|> in it is text like any other. Threads can run it in parallel."""
        # one call for all, or the threads would wait for each other, and the reader, between any two texts
        ids = self.encode_to_numpy(END_OF_TEXT.join(texts), {END_OF_TEXT})
        ends = np.flatnonzero(ids == self.end_id)
        if len(ends) == len(texts) - 1:
            return [part[i > 0:] for i, part in enumerate(np.split(ids, ends))]
        return [self.encode_to_numpy(text, set()) for text in texts]

    def encode_to_numpy(self, text, allowed_special):
        try:
            return self.bpe.encode_to_numpy(text, allowed_special=allowed_special, disallowed_special=())
        except ValueError:  # a million blanks in a row are too many to look ahead over: some at a time
            cuts = [0, *(run.end() for run in re.finditer(r'\s{100000}', text)), len(text)]
            return np.concatenate([self.bpe.encode_to_numpy(text[a:b], allowed_special=allowed_special,
                                                            disallowed_special=()) for a, b in zip(cuts, cuts[1:])])

    def decode(self, ids):
        return self.bpe.decode(list(ids))

    def to_json(self):
        """The same as a tokenizer.json of Hugging Face's tokenizers, from OpenAI's own two files."""
        from json import loads
        from tiktoken.load import read_file_cached
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        merges = read_file_cached(f'{self.url}vocab.bpe').decode().splitlines()[1:]
        ids = loads(read_file_cached(f'{self.url}encoder.json'))
        same = Tokenizer(models.BPE(ids, [tuple(merge.split(' ')) for merge in merges]))
        same.pre_tokenizer, same.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        same.add_special_tokens([END_OF_TEXT])
        return same.to_str()


class BPETokenizer:
    """A byte-level byte-pair encoding of one's own; `content` is a tokenizer.json of Hugging Face's tokenizers."""

    def __init__(self, content):
        from tokenizers import Tokenizer
        self.content = content
        self.bpe, self.corpus_bpe = Tokenizer.from_str(content), Tokenizer.from_str(content)
        self.corpus_bpe.encode_special_tokens = True  # as text like any other
        self.vocab_size = self.bpe.get_vocab_size()
        self.start_id = self.end_id = self.bpe.token_to_id(END_OF_TEXT)

    def encode(self, text):
        return self.bpe.encode(text).ids

    def encode_corpus(self, texts):
        """The ids of each text, arrays; <|endoftext|> in it is text like any other."""
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in self.corpus_bpe.encode_batch_fast(texts)]

    def decode(self, ids):
        return self.bpe.decode(list(ids), skip_special_tokens=False)

    def to_json(self):
        return self.content


def train_bpe(texts, vocab_size):
    """
    The tokenizer.json of a byte-level byte-pair encoding of at most vocab_size tokens, learned from an iterator of
    texts: every byte and <|endoftext|> are tokens. ValueError if vocab_size is too small for these 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    if vocab_size < 257:
        raise ValueError(f'vocab_size={vocab_size} is below 257: the 256 bytes and {END_OF_TEXT}')
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits words as GPT-2 does
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stdout.isatty()))
    return bpe.to_str()


def from_meta(meta):
    """The tokenizer that a meta.json describes, as bins.read_meta gives it; ValueError for a kind not known here."""
    if meta['tokenizer'] == 'char':
        return CharTokenizer(meta['chars'])
    if meta['tokenizer'] == 'gpt2':
        return GPT2Tokenizer()
    if meta['tokenizer'] == 'bpe':
        return BPETokenizer(meta['tokenizer_json'])
    raise ValueError(f'meta.json names the tokenizer {meta["tokenizer"]!r}; known are char, gpt2 and bpe')


class TextStream:
    """
    Text out of ids that come one by one: never a part of a character of several bytes, and nothing of a stop string,
    not even its beginning. `finished` is None, 'end' (end-of-text came) or 'stop' (a stop string did).
    """

    def __init__(self, tokenizer, stops=()):
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.ids, self.decoded = [], 0  # since the last whole character; characters of their text that were taken
        self.held, self.finished = '', None  # text that may yet turn out to be a stop string

    def push(self, token):
        """The text that is certain now."""
        if self.finished:
            return ''
        if token == self.tokenizer.end_id:
            self.finished = 'end'
            return self.rest()
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        certain = text.rstrip('\ufffd')  # which stands for the first bytes of a character, too
        self.held += certain[self.decoded:]
        self.ids, self.decoded = ([], 0) if certain == text else (self.ids, len(certain))
        found = [self.held.find(stop) for stop in self.stops if stop in self.held]
        if found:
            self.finished, self.held = 'stop', self.held[:min(found)]
            return self.rest()
        beginnings = [n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])]
        certain = len(self.held) - max(beginnings, default=0)
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def rest(self):
        """What was held back, when no more ids come."""
        text = self.held + ('' if self.finished == 'stop' else self.tokenizer.decode(self.ids)[self.decoded:])
        self.held, self.ids, self.decoded = '', [], 0
        return text


def encode_prompts(meta, prompts):
    """
    The ids of each of the `prompts`, a list of lists. They are one string with | between them, or FILE:PATH of a file
    with one a line; '' is none, and an empty one among several becomes the id that a new text starts with.
    """
    if not prompts:
        return []
    if prompts.startswith('FILE:'):
        try:
            with open(prompts.removeprefix('FILE:'), encoding='utf-8') as f:
                texts = f.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'sample_prompts={prompts!r} cannot be read: {error}') from None
    else:
        texts = prompts.split('|')
    tokenizer = from_meta(meta)
    return [tokenizer.encode(text) or [tokenizer.start_id] for text in texts]


def decode_all(meta, ids):
    """The text of each list of ids."""
    tokenizer = from_meta(meta) if ids else None
    return [tokenizer.decode(row) for row in ids]


def padded_vocab_size(meta):
    """How many ids a new model gets: GPT-2's 50257 become 50304, a multiple of 64, which tensor cores want."""
    size = meta['vocab_size']
    return size if meta['tokenizer'] == 'char' else -(-size // 64) * 64


def check_same(meta, theirs, vocab_size):
    """
    ValueError unless a model can go on with the dataset that `meta` describes. `theirs` is the meta.json of what it
    was trained on, or None where that is not known; `vocab_size` is the model's.
    """
    for key in ('tokenizer', 'vocab_size', 'chars', 'tokenizer_json'):
        if theirs is not None and theirs.get(key) != meta.get(key):
            raise ValueError(f'the vocabularies differ: the dataset has {key}={meta.get(key)!r:.200}, '
                             f'the checkpoint was trained on {key}={theirs.get(key)!r:.200}')
    if vocab_size not in (meta['vocab_size'], padded_vocab_size(meta)):
        raise ValueError(f'the vocabularies differ: the dataset has {meta["vocab_size"]} ids '
                         f'({meta["tokenizer"]}), the model {vocab_size}')
