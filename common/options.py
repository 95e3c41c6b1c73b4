"""
What the command lines of all scripts have in common: the answers to mistakes, and how a model is named. configurator.py
reads settings blocks, Parser is argparse for the scripts with commands or several values. It needs no torch.
"""
import argparse
import ast
import difflib
import os
import re
import shlex
import sys

from common.console import stop

ELSEWHERE = [  # (what others call it, what it is here, what else to say); the first row counts that the script has
    # models and sampling: llama.cpp, ollama, vLLM, transformers, nanochat
    ('model m model_name model_name_or_path model_path model_tag checkpoint ckpt checkpoint_dir pretrained hf_repo',
     'init_from', ''),
    ('resume resume_from_checkpoint resume_from_step continue', 'init_from', 'As in --init_from=resume'),
    ('prompt p text', 'start', ''),
    ('prompt', 'sample_prompts', ''),
    ('file f', 'start', 'As in --start=FILE:prompt.txt'),
    ('system system_prompt sys', 'start', 'In a chat it comes first'),
    ('n_predict num_predict predict max_tokens max_length max_gen_toks', 'max_new_tokens', ''),
    ('n', 'max_new_tokens num_samples', ''),
    ('num_return_sequences', 'num_samples', ''),
    ('repeat_penalty', 'repetition_penalty', ''),
    ('interactive i conversation cnv', 'chat', ''),
    ('reverse_prompt r', 'stop', ''),
    ('load_in_8bit q8_0', 'quantize', 'As in --quantize=int8'),
    # training: transformers, litgpt, nanochat
    ('lr', 'learning_rate', ''),
    ('epochs epoch num_epochs n_epochs max_epochs num_train_epochs', 'max_iters',
     'A run is counted in iterations, not in epochs'),
    ('steps max_steps num_steps num_iterations iterations', 'max_iters', ''),
    ('context_length ctx_size c n_ctx num_ctx seq_len max_seq_len max_seq_length', 'block_size', ''),
    ('batch bs device_batch_size micro_batch_size per_device_train_batch_size', 'batch_size', ''),
    ('global_batch_size total_batch_size grad_accum_steps', 'gradient_accumulation_steps', ''),
    ('depth layers num_layers num_hidden_layers', 'n_layer', ''),
    ('heads num_heads num_attention_heads', 'n_head', ''),
    ('width dim d_model hidden_size embed_dim', 'n_embd', ''),
    ('eval_every eval_steps save_every save_steps save_interval', 'eval_interval', 'A run saves when it evaluates'),
    ('max_grad_norm clip', 'grad_clip', ''),
    ('wandb report_to', 'wandb_log', ''),
    # the machine
    ('fp16 float16 half', 'dtype', 'As in --dtype=float16'),
    ('bf16 bfloat16', 'dtype', 'As in --dtype=bfloat16'),
    ('precision mixed_precision amp torch_dtype', 'dtype', ''),
    ('gpu cuda ngl n_gpu_layers device_type', 'device', 'As in --device=cuda'),
    ('gpus num_gpus n_gpu devices nproc nproc_per_node num_processes', 'device',
     'For several GPUs: torchrun --standalone --nproc_per_node=8 train.py'),
    ('gpu device devices', 'gpus', ''),
    ('num_gpus n_gpu nproc num_processes', 'nproc_per_node', ''),
    ('j n_jobs num_jobs parallel workers num_workers max_workers concurrency', 'jobs', ''),
    ('num_workers dataloader_num_workers num_proc workers', '', 'reading data takes no worker processes'),
    ('threads num_threads', '', 'OMP_NUM_THREADS=8 in front of the command sets their number'),
    # data
    ('data data_dir data_path dataset_name train_data', 'dataset', ''),
    ('file f', 'text', ''),
    ('dataset dataset_name url repo', 'source', 'As in --source=hf://datasets/OWNER/NAME/GLOB; files: --input=FILE'),
    ('file f files data data_dir data_path text train_data train_file corpus', 'input', ''),
    ('val val_data val_file valid validation_file eval_file', 'val_input', ''),
    ('val_ratio val_split val_size test_size valid_fraction validation_split validation_split_percentage',
     'val_fraction', ''),
    ('vocab n_vocab', 'vocab_size', ''),
    ('limit subset max_samples num_shards', 'fraction', ''),
    ('field key column text_column text_field', 'text_key', ''),
    ('ignore_errors skip_errors', 'skip_bad', ''),
    ('output output_dir output_path o', 'to', ''),
    ('output output_dir output_path o out_dir', 'out', ''),
    ('output output_dir output_path o', 'out_dir', ''),
    ('num_fewshot fewshot', 'shots', ''),
    # the queue
    ('file f config conf', 'list', ''),
    ('time partition gres account', 'sbatch', "As in --sbatch='--time=12:00:00'"),
    ('slurm', 'launcher', 'As in --launcher=slurm'),
    ('lines tail', '-n', ''),
    ('baseline reference compare', 'against', ''),
    ('resume continue', '', 'the same command goes on where it was interrupted'),
    ('config', '', 'a config file stands by itself, as in train.py config/quickstart.py')]
DASHES = '-–—－'  # what word processors make of a hyphen looks like one


def hint(word, known, otherwise):
    """What to add to a message on an unknown option: the nearest of the `known` names, else `otherwise`."""
    name = word.partition('=')[0].lstrip(DASHES).rpartition('.')[2].replace('-', '_')  # litgpt has --train.max_steps
    rows = [(ours.split(), note) for theirs, ours, note in ELSEWHERE if name in theirs.split()]
    rows = [(ours, note) for ours, note in rows if not ours or set(ours) <= set(known)]
    close, note = rows[0] if rows else ([], '')
    if name in known:
        close, note = [name], 'Its dashes are no hyphens' * (word[:1] in DASHES[1:])
    if note and not close:
        return f'; there is no such setting: {note}'
    close = close or difflib.get_close_matches(name, known, n=2)
    close = close or [key for key in known if name and key.startswith(name)][:2]
    return f'; did you mean {" or ".join(close)}?{note and f" {note}"}' if close else f'; {otherwise}'


def literal(text):
    """What a word of a command line means as a Python literal, else the word itself."""
    try:  # a byte that is not UTF-8 stays what Python makes of it, '\\udcff', within quotes, too
        return ast.literal_eval(text.encode(errors='backslashreplace').decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def shown(value):
    """A value as a message shows it."""
    try:
        return f'{value!r:.200}'
    except ValueError:  # Python does not print so many digits
        return '(a number of more than 4300 digits)'


def expects(key, kind, example, value):
    """The message on a value of another type than `kind`. `example` is a word of a command line."""
    return f'{key} expects {kind.__name__}, as in {example}, but got {shown(value)}'


def is_model(name):
    """Whether this is the name of a model, but not the folder of a run: a file, an export, OpenAI's GPT-2."""
    return (os.path.isfile(name) and name.endswith(('.pt', '.safetensors'))
            or os.path.isfile(os.path.join(name, 'config.json'))
            or re.fullmatch('(openai-community/)?gpt2(-medium|-large|-xl)?', name) and not os.path.exists(name))


def find_model(init_from, out_dir, otherwise='--out_dir=FOLDER names one', dashes='--'):
    """
    The model that these two settings name, as common/weights.py takes it. ValueError if out_dir is no folder, with
    --init_from for a model of another kind, else with the advice `otherwise`.
    """
    if init_from != 'resume':
        return init_from
    if os.path.isdir(out_dir):
        return out_dir
    advice = f'did you mean {shlex.quote(f"{dashes}init_from={out_dir}")}?' if is_model(out_dir) else otherwise
    raise ValueError(f'no folder {out_dir!r} with a trained model here; {advice}')


class Parser(argparse.ArgumentParser):
    """
    argparse, but flags take True and False, and mistakes are answered, as by configurator.py. `loose`: the option that
    a word behind none is likely meant for. `otherwise`: the advice on an option that is like no other.
    """
    loose = otherwise = None

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message):
        """Exit code 2 with one line, in the configurator's words where it has some."""
        if found := re.fullmatch(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", message):
            what, value, names = found[1], found[2], re.findall(r'\w+', found[3])
            close = difflib.get_close_matches(value, names, n=1)
            stop(f'unknown {what.lower()} {value!r}; ' + (f'did you mean {close[0]}?' if close else
                                                          f'there are {", ".join(names)}'))
        if found := re.fullmatch('argument (?:-./)?(-+(.*)): (?:expected .*|invalid (.*) value: (.*))', message):
            option, name, kind, value = found.groups()
            action = self._option_string_actions[option]
            example = f'{option}={repr(action.default) if action.default else action.metavar or name.upper()}'
            stop(f'{option} needs a value, as in {example}' if kind is None else
                 expects(name, action.type, example, literal(literal(value))))
        if message.endswith(': COMMAND'):
            names = ', '.join(self._get_positional_actions()[0].choices)
            stop(f'name a command, one of {names} ({self.prog} --help explains them)')
        stop(f'{message} ({self.prog} --help lists the options)')

    def parse_known_args(self, words=None, namespace=None):
        """As argparse has it, but a mistake ends the script. The parser of a command is called through this, too."""
        words = self.plain_flags(sys.argv[1:] if words is None else words)
        by_themselves = [f'--{action.dest}' for action in self._get_positional_actions()]
        for word in words:
            name, _, value = word.partition('=')
            if name in by_themselves:
                stop(f'unknown setting {word}; it stands by itself, as in {self.prog} {shlex.quote(value or "NAME")}')
        found, rest = super().parse_known_args(words, namespace)
        if rest and rest[0].startswith(tuple(DASHES)):
            names = [name.removeprefix('--') for name in self._option_string_actions]
            otherwise = self.otherwise or f'{self.prog} --help lists them all'
            stop(f'unknown setting {rest[0]}{hint(rest[0], names, otherwise)}')
        if rest:
            advice = f'; did you mean {shlex.quote(f"{self.loose}={rest[0]}")}?' if self.loose else ''
            self.error(f'{rest[0]!r} belongs to no option{advice}')
        return found, rest

    def plain_flags(self, words):
        """`words` with --flag, or nothing, in place of --flag=True, --flag False and so on."""
        words, plain = list(words), []
        while words:
            word = words.pop(0)
            name, equals, text = word.partition('=')
            action = self._option_string_actions.get(name)
            if word == '--':  # what follows is not ours to read
                return [*plain, word, *words]
            if action is None or action.const is not True:
                plain.append(word)
                continue
            if not equals:
                text = words.pop(0) if words[:1] in (['True'], ['False']) else 'True'
            if text not in ('True', 'False'):
                stop(expects(name.lstrip('-'), bool, f'{name}=False', literal(text)))
            plain = [one for one in plain if one not in action.option_strings] + [name] * (text == 'True')
        return plain


def is_value(word, known):
    """
    Whether a word behind an option is its value, as -1 is, and options of another program, with spaces, in quotes, but
    not one of the `known` options.
    """
    return not word.startswith('--') or ' ' in word and word[2:].partition('=')[0] not in known
