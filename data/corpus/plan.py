"""What is decided before the first id is written: the files, how val is split off, and the vocabulary."""
import math
import os
import shlex
import signal
from dataclasses import asdict, dataclass

from common import dataset
from common.console import visible
from common.files import free_bytes
from common.tokenizer import BPETokenizer, GPT2Tokenizer, train_bpe
from corpus import ROOT, charsets, sources
from corpus.encoding import cut_up

BPE_TEXT = 2**28  # characters to learn a vocabulary from; each file contributes its share
FEW = 10          # if val would get fewer documents than about this, each document is cut instead


@dataclass(kw_only=True)
class Job:
    """What the command line asks for. A hash of these values, in this order, identifies a dataset."""
    format: int = 1      # raised when the same text would give other bins
    train: list          # patterns as sources.find takes them
    val: list            # the same; if empty, val is split off from train
    prompt: str          # the template of instructions and answers; None for other text
    tokenizer: str       # gpt2, char, or the folder of a dataset
    vocab_size: int      # of a BPE to learn; 0: none
    text_key: str        # the field or column with the text
    fraction: float      # the part of the documents to use
    val_fraction: float  # the part of the documents that goes to val
    cut: float           # the part of each document that goes to train, if there are few
    encoding: str = None   # of text files that are not UTF-8
    normalize: str = None  # the Unicode normal form of the text

    def identity(self):
        """What the hash is of. Options younger than the format are left out unless they are given."""
        return {key: value for key, value in asdict(self).items()
                if value is not None or key not in ('encoding', 'normalize')}


@dataclass
class Plan:
    """How a job is done. The manifest keeps it, so that a restart does the same."""
    files: list          # as sources.find returns them, each with its 'split', some with a 'copy'; those of val first
    rule: str            # what decides on train or val: 'files', a 'hash' of the document, or a 'cut' within it
    val_fraction: float  # for 'hash': as in the job, or what gives each split a document
    cut: float           # as in the job, for 'cut'
    masked: bool         # whether some text does not count in the loss
    vocabulary: dict     # the part of meta.json that says what the ids mean

    def split_of(self, document, file):
        """Which split a document, or each part of it, goes to: [(split, parts, whether the document begins there)]."""
        begins = document.begin == 0.0
        if self.rule == 'files':
            return [(file['split'], document.parts, begins)]
        if self.rule == 'hash':  # of the text: a document and its copies stay in one split when the corpus grows
            return [('val' if document.key < self.val_fraction else 'train', document.parts, begins)]
        (text, _), = document.parts
        share = (self.cut - document.begin) / (document.end - document.begin)
        place = int(len(text) * min(max(share, 0.0), 1.0))
        return [(split, [(piece, True)], begins if split == 'train' else share >= 0.0)
                for split, piece in (('train', text[:place]), ('val', text[place:])) if piece]


def make_plan(work, job, found, named, read):
    """
    The plan for a job, whose unfinished work is in the folder `work`. `found`: {pattern: files} of those on this disk.
    `named`: its named_vocabulary().
    """
    files = {}
    for split, patterns in (('val', job.val), ('train', job.train)):  # val first: train is compared with it
        for pattern in patterns:
            for file in found[pattern] if pattern in found else find_on_hub(pattern, job):
                key = sources.identity(file['path'])
                kept = files.setdefault(key, {**file, 'split': split})  # a file named twice is used once
                if kept['split'] != split:
                    print(f'{visible(file["path"])} is for validation, and so left out of the text to train on')
    plan = Plan(list(files.values()), 'files', job.val_fraction, job.cut, job.prompt is not None, named)
    for path in (file['path'] for file in plan.files):
        if plan.masked and sources.suffix(path) not in ('.jsonl', '.parquet'):
            raise ValueError(f'{path} is plain text; instructions and answers come in .jsonl and .parquet files')
    charsets.copy_others(plan.files, job.encoding, work)
    if not job.val:
        keys = keys_of(plan, read, enough=FEW / job.val_fraction)
        plan.rule = 'hash' if plan.masked or len(keys) >= FEW / job.val_fraction else 'cut'
        if keys:  # neither split stays empty, unless all documents are the same
            plan.val_fraction = min(max(plan.val_fraction, math.nextafter(min(keys), 1)), max(keys))
    check_disk(os.path.dirname(work), job, plan)
    plan.vocabulary = named or find_vocabulary(job, plan, read)
    return plan


def find_on_hub(pattern, job):
    """sources.find() on Hugging Face. Without a network the message says how to do it with files."""
    try:
        return sources.find(pattern)
    except sources.Unreachable as error:
        lines = [str(error), 'Without a network, bring these files here, and name them:']
        for option, patterns in (('--input', job.train), ('--val_input', job.val)):
            for name, _, files in (match.groups() for match in map(sources.ON_HUB.fullmatch, patterns) if match):
                here = shlex.quote(f'{option}={os.path.basename(files)}')
                lines.append(f'  {files} from https://huggingface.co/datasets/{name}, as {here}')
        raise ValueError('\n'.join(lines)) from None


def keys_of(plan, read, enough):
    """The keys of the documents in the files; only of the first ones if those are `enough`."""
    keys = []
    for file in plan.files:
        for documents, _, _ in read(file, 0, bad_row=lambda describe: None):
            keys += [document.key for document in documents if document.begin == 0.0]
            if len(keys) >= enough:
                return keys
    return keys


def check_disk(folder, job, plan):
    """ValueError if the dataset will not fit on the disk, by a rough estimate."""
    # bytes to write per byte of text: 2 for a token of 4.4 bytes, or of 3.6 with a small vocabulary; 4 + 2 a character
    density = {'gpt2': 0.45, 'char': 6.0}.get('bpe' if job.vocab_size else job.tokenizer, 0.55) + 0.25 * plan.masked
    # a byte of parquet holds 1.6 bytes of text: fineweb-edu's 28.5 GB become 10 billion tokens, 20 GB
    text = sum(file['bytes'] * (1.6 if sources.suffix(file['path']) == '.parquet' else 1) for file in plan.files)
    needed, free = text * job.fraction * density, free_bytes(folder)
    if needed > free:
        raise ValueError(f'the dataset needs about {needed / 1e9:.1f} GB, but the disk of {folder} has '
                         f'{free / 1e9:.1f} GB free; make room, or choose another --out=FOLDER')


def named_vocabulary(job):
    """What the meta.json of the dataset in --tokenizer says about the ids; None if it names no dataset."""
    if job.tokenizer in ('gpt2', 'char'):
        return None
    folder = dataset_folder(job.tokenizer)
    if not os.path.isdir(folder):
        raise ValueError(f'--tokenizer={job.tokenizer} is neither gpt2 nor char nor the folder of a dataset')
    meta = dataset.read_meta(folder)
    if meta['tokenizer'] == 'ids':
        raise ValueError(f'--tokenizer={job.tokenizer} has ids that are no text')
    return {key: meta[key] for key in ('tokenizer', 'vocab_size', 'chars', 'tokenizer_file', 'tokenizer_json')
            if key in meta}


def dataset_folder(name):
    """The folder that a user names: a path, or a name in data/."""
    name = os.path.expanduser(name)
    return name if os.path.isdir(name) else os.path.join(ROOT, 'data', name.removeprefix('data/'))


def find_vocabulary(job, plan, read):
    """The part of meta.json that says what the ids mean. The characters of a text are known only at its end."""
    if job.vocab_size:
        print(f'learning a vocabulary of {job.vocab_size:,} tokens')
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would wait until everything is learned
        content = train_bpe(train_texts(plan, read), job.vocab_size)
        signal.signal(signal.SIGINT, before)
        size = BPETokenizer(content).vocab_size
        if size < job.vocab_size:
            print(f'the text has no more than {size:,} tokens to learn')
        return {'tokenizer': 'bpe', 'vocab_size': size, 'tokenizer_file': 'tokenizer.json', 'tokenizer_json': content}
    if job.tokenizer == 'gpt2':
        return {'tokenizer': 'gpt2', 'vocab_size': GPT2Tokenizer().vocab_size}  # fails now if its files are missing
    return {'tokenizer': 'char'}


def train_texts(plan, read):
    """Yields text of train to learn a vocabulary from: the beginning of each file, up to its share of BPE_TEXT."""
    for file in plan.files:
        left = BPE_TEXT * file['bytes'] / max(sum(each['bytes'] for each in plan.files), 1)
        for documents, _, _ in read(file, 0, bad_row=lambda describe: None):
            for document in documents:
                for split, parts, _ in plan.split_of(document, file):
                    if split == 'train':
                        yield from (piece for text, _ in parts for piece in cut_up(text))
                        left -= document.length
            if left <= 0:
                break
