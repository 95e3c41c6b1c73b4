"""
Text to ids and back, as a dataset's meta.json describes it. It knows no model: a model may have more ids than the
tokenizer (GPT-2's 50257 padded to 50304), and whoever samples leaves those out.
"""


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
        unknown = sorted(set(text) - set(self.chars))
        if unknown:
            raise ValueError(f'the model does not know the characters {"".join(unknown)!r}; '
                             f'it was trained on {"".join(self.chars)!r}')
        return [self.ids[char] for char in text]

    def decode(self, ids):
        return ''.join(self.chars[i] for i in ids)


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, 50257 ids, by tiktoken, which fetches its two files once and caches them."""

    vocab_size = 50257
    start_id = end_id = 50256  # <|endoftext|>

    def __init__(self):
        import tiktoken
        try:
            self.bpe = tiktoken.get_encoding('gpt2')
        except OSError as error:  # requests' errors are OSErrors
            raise ValueError(f"cannot fetch GPT-2's vocabulary ({type(error).__name__}); without a network, set "
                             'TIKTOKEN_CACHE_DIR to a folder where tiktoken has fetched it before') from None

    def encode(self, text):
        return self.bpe.encode(text, allowed_special={'<|endoftext|>'})

    def decode(self, ids):
        return self.bpe.decode(list(ids))


def from_meta(meta):
    """The tokenizer that a meta.json describes; ValueError for a kind that is not known here."""
    if meta['tokenizer'] == 'char':
        return CharTokenizer(meta['chars'])
    if meta['tokenizer'] == 'gpt2':
        return GPT2Tokenizer()
    raise ValueError(f'meta.json names the tokenizer {meta["tokenizer"]!r}; known are char and gpt2')


def encode_prompts(meta, texts):
    """The ids of each text, a list of lists; an empty text becomes the id that a new text starts with."""
    if not texts:
        return []
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts must be texts, as in ['one', 'two'], but are {texts!r}")
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
    for key in ('tokenizer', 'vocab_size', 'chars'):
        if theirs is not None and theirs.get(key) != meta.get(key):
            raise ValueError(f'the vocabularies differ: the dataset has {key}={meta.get(key)!r}, '
                             f'the checkpoint was trained on {key}={theirs.get(key)!r}')
    if vocab_size not in (meta['vocab_size'], padded_vocab_size(meta)):
        raise ValueError(f'the vocabularies differ: the dataset has {meta["vocab_size"]} ids '
                         f'({meta["tokenizer"]}), the model {vocab_size}')
