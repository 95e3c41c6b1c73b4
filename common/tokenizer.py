"""
Text to ids and back, as a dataset's meta.json describes it. It knows no model. A model may have more ids than the
tokenizer (GPT-2's 50257 are padded to 50304); sampling excludes those.
"""
import codecs
import functools
import hashlib
import json
import re
import sys

import numpy as np

END_OF_TEXT = '<|endoftext|>'


def decode_bytes(content):
    """
    UTF-8 as a str, whatever the bytes are: those that are no character become escapes such as \\xec, and a character
    that is not complete at the end is left out.
    """
    return codecs.utf_8_decode(content, 'backslashreplace', False)[0]


def token_text(tokenizer, i):
    """The text of one id alone. What is no whole character becomes escapes, so it is never empty for a known id."""
    return tokenizer.bytes_of(i).decode('utf-8', 'backslashreplace')


def quoted(text):
    """A text in quotes on one line, with escapes for what cannot be printed; unlike repr() it leaves each \\ alone."""
    mark = '"' if "'" in text else "'"
    return mark + ''.join(char if char.isprintable() else repr(char)[1:-1] for char in text) + mark


def check_text(text, name='the text'):
    """ValueError that names the first place where a str is no text: half a character, or a byte that was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at, code = error.start, ord(text[error.start])
        # Python reads a byte that is not UTF-8 as one of these (PEP 383)
        what = (f'the byte \\x{code - 0xdc00:02x}, which is not UTF-8,' if 0xdc80 <= code <= 0xdcff else
                f'half a character, the surrogate \\u{code:04x},')
        before = f', after {quoted(text[max(0, at - 20):at])}' if at else ''
        raise ValueError(f'{name} cannot be encoded: it has {what} at character {at + 1}{before}') from None


def examples(chars):
    """Characters in quotes: all of them, or twenty that are spread over them and how many more there are."""
    if len(chars) <= 20:
        return quoted(''.join(chars))
    return f'{quoted("".join(chars[i * len(chars) // 20] for i in range(20)))} and {len(chars) - 20:,} more'


class CharTokenizer:
    """One id per character, in the order of `chars`."""

    def __init__(self, chars):
        self.chars, self.vocab_size = chars, len(chars)
        self.ids = {char: i for i, char in enumerate(chars)}
        self.start_id = self.ids.get('\n', 0)  # where generation from an empty prompt starts
        self.end_id = None

    def encode(self, text):
        """ValueError names the characters that the vocabulary lacks, or what is no text."""
        check_text(text)
        if unknown := [char for char in dict.fromkeys(text) if char not in self.ids]:
            raise ValueError(f'the model does not know the characters {examples(unknown)}; it was trained on '
                             f'{examples(self.chars)}')
        return [self.ids[char] for char in text]

    def decode(self, ids):
        return ''.join(self.chars[i] for i in ids)

    def bytes_of(self, i):
        return self.chars[i].encode('utf-8', 'surrogatepass')

    def to_json(self):
        """A tokenizer.json of Hugging Face's tokenizers that gives the same ids."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        same = Tokenizer(models.WordLevel(self.ids))
        same.pre_tokenizer, same.decoder = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated'), decoders.Fuse()
        return same.to_str()


# How GPT-2 splits text into words: tiktoken's pattern, with everything that needs no lookahead in one group. A faster
# regex engine handles that group, which makes encoding 1.5 times as fast. The ids are the same.
GPT2_PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s++$|\s+(?!\S)|\s"


@functools.cache  # it takes a third of a second
def load_gpt2():
    """tiktoken's GPT-2 encoding, with our pattern. OSError without a network."""
    import tiktoken
    gpt2 = tiktoken.get_encoding('gpt2')
    return tiktoken.Encoding('gpt2 in groups', pat_str=GPT2_PATTERN, mergeable_ranks=gpt2._mergeable_ranks,
                             special_tokens=gpt2._special_tokens)


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, 50257 ids, with tiktoken, which downloads its two files once and caches them."""

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
        """ValueError for what is no text."""
        check_text(text)
        return self.encode_to_numpy(text, {END_OF_TEXT}).tolist()

    def encode_corpus(self, texts):
        """An array of ids for each text, in which <|endoftext|> is ordinary text. Threads can run it in parallel."""
        # one call for all texts, or the threads would wait for each other and the reader after each one
        ids = self.encode_to_numpy(END_OF_TEXT.join(texts), {END_OF_TEXT})
        ends = np.flatnonzero(ids == self.end_id)
        if len(ends) == len(texts) - 1:
            return [part[i > 0:] for i, part in enumerate(np.split(ids, ends))]
        return [self.encode_to_numpy(text, set()) for text in texts]

    def encode_to_numpy(self, text, allowed_special):
        encode = functools.partial(self.bpe.encode_to_numpy, allowed_special=allowed_special, disallowed_special=())
        try:
            return encode(text)
        except ValueError:  # a million blanks in a row exceed the lookahead: cut them up
            cuts = [0, *(run.end() for run in re.finditer(r'\s{100000}', text)), len(text)]
            return np.concatenate([encode(text[a:b]) for a, b in zip(cuts, cuts[1:])])

    def decode(self, ids):
        return decode_bytes(self.bpe.decode_bytes(list(ids)))

    def bytes_of(self, i):
        return self.bpe.decode_single_token_bytes(i)

    def to_json(self):
        """A tokenizer.json of Hugging Face's tokenizers that gives the same ids, from OpenAI's two files."""
        from tiktoken.load import read_file_cached
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        merges = read_file_cached(f'{self.url}vocab.bpe').decode().splitlines()[1:]
        ids = json.loads(read_file_cached(f'{self.url}encoder.json'))
        same = Tokenizer(models.BPE(ids, [tuple(merge.split(' ')) for merge in merges]))
        same.pre_tokenizer, same.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        same.add_special_tokens([END_OF_TEXT])
        return same.to_str()


class BPETokenizer:
    """A byte-level BPE learned by train_bpe(); `content` is a tokenizer.json of Hugging Face's tokenizers."""

    def __init__(self, content):
        from tokenizers import Tokenizer
        self.content = content
        try:
            self.bpe, self.corpus_bpe = Tokenizer.from_str(content), Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f'the tokenizer.json of the vocabulary is damaged ({error})') from None
        self.corpus_bpe.encode_special_tokens = True  # as ordinary text
        self.vocab_size = self.bpe.get_vocab_size()
        self.start_id = self.end_id = self.bpe.token_to_id(END_OF_TEXT)
        if self.end_id is None:
            raise ValueError(f'the tokenizer.json of the vocabulary has no {END_OF_TEXT}')

    def encode(self, text):
        """ValueError for what is no text."""
        check_text(text)
        return self.bpe.encode(text).ids

    def encode_corpus(self, texts):
        """An array of ids for each text, in which <|endoftext|> is ordinary text."""
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in self.corpus_bpe.encode_batch_fast(texts)]

    def decode(self, ids):
        return decode_bytes(b''.join(map(self.bytes_of, ids)))

    def bytes_of(self, i):
        token, alphabet = self.bpe.id_to_token(i) or '', byte_alphabet()
        return bytes(map(alphabet.get, token)) if alphabet.keys() >= set(token) else token.encode()

    def to_json(self):
        return self.content


class IdTokenizer:
    """
    Ids that are no text (notes, k-mers, actions). They are written in decimal, each with a space before it, so that
    what is generated can stand behind any prompt; decode() leaves out the first space.
    """

    start_id = 0  # where generation from an empty prompt starts
    end_id = None

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def encode(self, text):
        """The ids between spaces, commas and line ends. ValueError names what is none."""
        words = text.replace(',', ' ').split()
        unknown = [word for word in dict.fromkeys(words)
                   if not re.fullmatch('[0-9]{1,10}', word) or int(word) >= self.vocab_size]
        if unknown:
            more = f' and {len(unknown) - 5:,} more' if len(unknown) > 5 else ''
            raise ValueError(f'the model knows the ids 0 to {self.vocab_size - 1}, with spaces between them, but not '
                             f'{", ".join(quoted(word[:40]) for word in unknown[:5])}{more}')
        return [int(word) for word in words]

    def decode(self, ids):
        return ' '.join(map(str, ids))

    def bytes_of(self, i):
        return f' {i}'.encode()

    def to_json(self):
        """A tokenizer.json of Hugging Face's tokenizers that gives the same ids."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        same = Tokenizer(models.WordLevel({str(i): i for i in range(self.vocab_size)}))
        same.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s,]+'), 'removed')
        return same.to_str()


@functools.cache
def byte_alphabet():
    """{character: byte}: how the tokens of a byte-level BPE are written, which is GPT-2's way."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def train_bpe(texts, vocab_size):
    """Learn a BPE of at most vocab_size tokens, including all bytes and <|endoftext|>. Returns its tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits words as GPT-2 does
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stdout.isatty()))
    return bpe.to_str()


def check_meta(meta):
    """
    ValueError unless `meta` describes a tokenizer, in the form of dataset.read_meta. What a meta.json, a checkpoint or
    an exported model says of itself is checked here, before anything relies on it.
    """
    if not isinstance(meta, dict):
        raise ValueError(f'the meta is a {type(meta).__name__}, not a dict')
    types = {'tokenizer': str, 'vocab_size': int, 'chars': (str, list), 'tokenizer_json': str, 'dtype': str,
             'sha256': dict, 'prompt': str, 'train_tokens': int, 'val_tokens': int}
    for key, expected in types.items():
        if key in meta and (not isinstance(meta[key], expected) or isinstance(meta[key], bool)):
            raise ValueError(f'the meta has {key}={meta[key]!r:.80}, a {type(meta[key]).__name__}')
    kind, size = meta.get('tokenizer'), meta.get('vocab_size', 0)
    if kind not in ('char', 'gpt2', 'bpe', 'ids'):
        raise ValueError(f'the tokenizer in the meta is {kind!r}; known are char, gpt2, bpe and ids')
    if size < 1:
        raise ValueError('the meta has no vocab_size, or one below 1')
    if kind == 'gpt2' and size != GPT2Tokenizer.vocab_size:
        raise ValueError(f"vocab_size={size} in the meta, but GPT-2's tokenizer has {GPT2Tokenizer.vocab_size} ids")
    if kind == 'char':
        chars = meta.get('chars', [])
        if len(chars) != size or len(set(map(str, chars))) != size or not all(
                isinstance(char, str) and len(char) == 1 for char in chars):
            raise ValueError(f'the meta has {len(chars)} chars for vocab_size={size}, or some that are no single '
                             'characters, or twice the same')
    if kind == 'bpe':
        if 'tokenizer_json' not in meta:
            raise ValueError('the meta has no tokenizer_json')
        found = BPETokenizer(meta['tokenizer_json']).vocab_size
        if found != size:
            raise ValueError(f'vocab_size={size} in the meta, but its tokenizer has {found} ids')


def from_meta(meta):
    """The tokenizer that a meta which passes check_meta() describes."""
    if meta['tokenizer'] == 'char':
        return CharTokenizer(meta['chars'])
    if meta['tokenizer'] == 'ids':
        return IdTokenizer(meta['vocab_size'])
    return GPT2Tokenizer() if meta['tokenizer'] == 'gpt2' else BPETokenizer(meta['tokenizer_json'])


def written(tokenizer, text):
    """What of a text has characters and bytes to count: not the ends of texts, and nothing where ids are no text."""
    if isinstance(tokenizer, IdTokenizer):
        return ''
    return text if tokenizer.end_id is None else text.replace(END_OF_TEXT, '')


class TextStream:
    """
    Decodes ids one by one, to what decode() gives for all of them, with the space before the first if they are no text.
    It never returns part of a multi-byte character, any part of a stop string, or half of a line end \\r\\n.
    """

    def __init__(self, tokenizer, stops=()):
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.behind = ''  # the end of a token, where stop strings are looked for
        if isinstance(tokenizer, IdTokenizer):  # they are whole ids: 7 is not in 77
            ids = [tokenizer.encode(stop) for stop in self.stops]
            if [] in ids:
                raise ValueError(f'stop={stops} has a text without an id')
            self.behind, self.stops = ' ', [f' {tokenizer.decode(each)} ' for each in ids]
        self.decoder = codecs.getincrementaldecoder('utf-8')('backslashreplace')
        self.held = ''  # text that may yet turn out to be a stop string
        self.finished = None  # 'end' after end-of-text, 'stop' after a stop string

    def push(self, token):
        """The text that is certain after this id."""
        if self.finished:
            return ''
        if token == self.tokenizer.end_id:
            self.finished = 'end'
            return self.rest()
        self.held += self.decoder.decode(self.tokenizer.bytes_of(token))
        text = self.held + self.behind
        if found := [text.find(stop) for stop in self.stops if stop in text]:
            self.finished, self.held = 'stop', self.held[:min(found)]
            return self.rest()
        beginnings = [n for stop in (*self.stops, '\r\n') for n in range(1, len(stop)) if self.held.endswith(stop[:n])]
        certain = len(self.held) - max(beginnings, default=0)
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def rest(self):
        """The text that was held back, after the last id."""
        text, self.held = self.held, ''
        self.decoder.reset()  # the beginning of a character is left out
        return text


def padded_vocab_size(meta):
    """The vocab_size of a new model. GPT-2's 50257 become 50304, a multiple of 64, for tensor cores."""
    return meta['vocab_size'] if meta['tokenizer'] in ('char', 'ids') else -(-meta['vocab_size'] // 64) * 64


def check_same(meta, theirs, vocab_size):
    """ValueError unless a model of vocab_size ids that was trained on `theirs` (None: unknown) can train on `meta`."""
    for key in ('tokenizer', 'vocab_size', 'chars', 'tokenizer_json'):
        if theirs is not None and theirs.get(key) != meta.get(key):
            raise ValueError(f'the vocabularies differ: the dataset has {key}={meta.get(key)!r:.200}, '
                             f'the checkpoint was trained on {key}={theirs.get(key)!r:.200}')
    if vocab_size not in (meta['vocab_size'], padded_vocab_size(meta)):
        raise ValueError(f'the vocabularies differ: the dataset has {meta["vocab_size"]} ids '
                         f'({meta["tokenizer"]}), the model {vocab_size}')
