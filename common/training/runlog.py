"""
What is recorded of a run while it trains: settings.json, metrics.jsonl (one JSON object a line), samples/, a line per
iteration on stdout and, if wanted, Weights & Biases and TensorBoard. It takes numbers and texts and knows no model. An
unknown number is None, never made up.
"""
import contextlib
import json
import math
import os
import shlex
import stat
import sys
import time
import uuid

from common.console import SEPARATOR, duration, finite, perplexity
from common.device import synchronize
from common.distributed import world_size
from common.files import exists, free_name, write_whole


class TrainingClock:
    """Counts the seconds of training in run.train_s, without evaluations and saves."""

    def __init__(self, run, device):
        self.run, self.device = run, device
        self.start = time.perf_counter()

    def update(self):
        """Count the time until now."""
        now = time.perf_counter()
        self.run.train_s += now - self.start
        self.start = now

    @contextlib.contextmanager
    def paused(self):
        """What happens in the block does not count."""
        synchronize(self.device)
        self.update()
        yield
        self.start = time.perf_counter()


class RunLog:
    """
    The log of one run, written by rank 0. On resume, lines from run.iter_num on are cut, so that metrics.jsonl reads as
    one uninterrupted run.
    """

    def __init__(self, config, run, tokens_per_iter, flops_per_token, peak_flops):
        """
        config: a dict of all settings. run: the states.Progress of the run, which its methods read, too.
        peak_flops: FLOP/s of all devices together, None if not known.
        """
        self.out_dir = config['out_dir']
        self.max_iters = config['max_iters']
        self.tokens_per_iter = tokens_per_iter
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.texts = []  # the last samples
        self.first_iter = run.iter_num
        self.last_iter, self.last_s = run.iter_num, run.train_s  # at the last line of an iteration
        self.s_per_iter, self.shown_at = None, 0.0  # of the progress line
        for name in ('metrics', 'spikes'):  # first: an OSError here ends a run that has changed nothing yet
            cut(os.path.join(self.out_dir, f'{name}.jsonl'), run)
        write_settings(os.path.join(self.out_dir, 'settings.json'), config)
        self.wandb = start_wandb(config) if config['wandb_log'] else None
        self.board = start_tensorboard(self.out_dir, run.iter_num) if config['tensorboard_log'] else None
        self.file, self.unwritten = None, ''  # metrics.jsonl, and lines that could not be written yet

    def iteration(self, run, loss, lr, grad_norm, mem_gb):
        """The iteration before run.iter_num, with the mean speed since the last line, on stdout and in the file."""
        iter_num = run.iter_num - 1
        seconds = self.s_per_iter = (run.train_s - self.last_s) / (run.iter_num - self.last_iter)
        self.last_iter, self.last_s = run.iter_num, run.train_s
        tok_s = self.tokens_per_iter / seconds
        mfu = tok_s * self.flops_per_token / self.peak_flops if self.peak_flops else None
        left = duration(seconds * (self.max_iters - run.iter_num))
        print(f'iter {iter_num}: loss {loss:.4f}, time {1000 * seconds:.2f}ms, '
              f'mfu {"n/a" if mfu is None else f"{100 * mfu:.2f}%"}, {tok_s:,.0f} tok/s, {left} left')
        self.write(iter=iter_num, loss=loss, lr=lr, grad_norm=None if grad_norm is None else float(grad_norm),
                   ms=1000 * seconds, tok_s=tok_s, mfu=mfu, mem_gb=mem_gb, tokens=run.tokens, train_s=run.train_s)

    def show_progress(self, run):
        """A line that the next one overwrites, at most ten times a second; on a terminal only."""
        if self.s_per_iter is None or not sys.stdout.isatty() or time.monotonic() < self.shown_at + 0.1:
            return
        self.shown_at = time.monotonic()
        left = duration(self.s_per_iter * (self.max_iters - run.iter_num))
        print(f'{run.iter_num:,} of {self.max_iters:,} iterations, {left} left'.ljust(60), end='\r')

    def evaluation(self, run, train_loss, val_loss, val_acc, bits_per_byte, texts, tasks):
        """
        One evaluation after run.iter_num updates. The sample texts go to samples/iter_000500.txt. tasks: the figures of
        benchmarks, {'hellaswag_acc': 0.31}.
        """
        self.write(iter=run.iter_num, train_loss=train_loss, val_loss=val_loss, val_ppl=perplexity(val_loss),
                   val_acc=val_acc, bits_per_byte=bits_per_byte, tokens=run.tokens, train_s=run.train_s, **tasks)
        self.texts = texts
        if texts:
            with warn_on_error():
                folder = os.path.join(self.out_dir, 'samples')
                os.makedirs(folder, exist_ok=True)
                with write_whole(os.path.join(folder, f'iter_{run.iter_num:06d}.txt')) as f:
                    f.write(SEPARATOR.join(texts) + '\n')

    def skipped(self, iter_num, loss, starts, decode):
        """A skipped update, with the positions of its sequences in train.bin and their texts, in spikes.jsonl."""
        try:
            texts = decode()
        except Exception as error:  # a tokenizer that cannot be loaded now is no reason to end a run
            print(f'not decoded: {error}')
            texts = None
        print(f'iter {iter_num}: loss {loss:.4f}, update skipped (a spike, or not finite); see '
              f'{self.out_dir}/spikes.jsonl')
        values = dict(iter=iter_num, loss=loss if math.isfinite(loss) else None, starts=starts, texts=texts)
        with warn_on_error(), open(os.path.join(self.out_dir, 'spikes.jsonl'), 'a', encoding='utf-8') as f:
            f.write(json.dumps(values, ensure_ascii=False) + '\n')

    def close(self, run, done):
        """The end: of the run if it is `done`, with what to do next, else of a process that was stopped."""
        if done:
            self.write(iter=run.iter_num, done=True, best_val_loss=run.best_val_loss, train_s=run.train_s)
        else:  # for the queue: torchrun hides the exit code that says so
            self.write(iter=run.iter_num, stopped=True, train_s=run.train_s)
        for log in (self.file, self.board):
            if log:
                with warn_on_error():
                    log.close()
        if self.wandb:
            with warn_on_error():
                self.wandb.finish()
        if sys.stdout.isatty():
            print(' ' * 60, end='\r')  # over the progress line
        best = f'best val loss {run.best_val_loss:.4f}'
        if not done:
            print(f'stopped and saved after {run.iter_num} iterations; continue with the same command and '
                  '--init_from=auto')
        elif run.iter_num == self.first_iter > 0:
            print(f'nothing is left to do: this run ended after {run.iter_num} iterations, {best}; to '
                  'continue, raise --max_iters or --patience')
        else:
            if self.texts:
                print('\nin its own words:\n\n' + SEPARATOR.join(self.texts))
            written = [name for name in ('ckpt.pt', 'last.pt', 'metrics.jsonl', 'samples')
                       if os.path.exists(os.path.join(self.out_dir, name))]
            early = '; ended by --patience, as nothing better came' if run.iter_num < self.max_iters else ''
            what = ('ckpt.pt has the best weights, last.pt resumes' if 'ckpt.pt' in written else
                    'last.pt has the newest weights: no evaluation was better than that of the untrained model')
            print(f'\ntrained {run.iter_num} iterations in {duration(run.train_s)}, {best}{early}\n'
                  f'wrote {", ".join(written)} in {self.out_dir} ({what})'
                  f'\nsample more: {shlex.join(["python", "sample.py", f"--out_dir={self.out_dir}"])}')

    def write(self, **values):
        """Add a line. What is not finite becomes null."""
        values = finite(values)
        self.unwritten += json.dumps(values) + '\n'
        with warn_on_error():
            self.file = self.file or open(os.path.join(self.out_dir, 'metrics.jsonl'), 'a', encoding='utf-8')
            self.file.write(self.unwritten)
            self.unwritten = ''  # what cannot be flushed now stays in the file's buffer
            self.file.flush()
        if self.wandb:
            with warn_on_error():
                self.wandb.log(values, step=values['iter'])
        if self.board:
            with warn_on_error():
                for key, value in values.items():
                    if key != 'iter' and value is not None:
                        self.board.add_scalar(key, value, values['iter'])


def write_settings(path, config):
    """All settings as JSON. When a run is resumed, init_from stays what it began with."""
    with warn_on_error():
        if config.get('init_from') in ('auto', 'resume'):
            config = {**config, 'init_from': 'scratch'}
            try:
                with open(path, 'rb') as f:
                    config['init_from'] = json.load(f)['init_from']
            except FileNotFoundError:
                pass
            except (ValueError, KeyError, TypeError):
                print(f'{path} is damaged and written anew; what init_from was at the beginning is lost')
        with write_whole(path) as f:
            json.dump(config, f, indent=1)


@contextlib.contextmanager
def warn_on_error():
    """Print a line if a log cannot be written, on a full disk or without a network: that must not end the run."""
    try:
        yield
    except Exception as error:  # those of W&B have no common base with the others
        print(f'not logged: {error}')


def cut(path, run):
    """
    Remove from a metrics.jsonl what a resumed run writes again. Lines that a crash or a power loss damaged are moved to
    metrics-damaged.jsonl.
    """
    if not exists(path):
        return
    if not stat.S_ISREG(os.stat(path).st_mode):  # a folder, or a pipe, which would wait for a reader
        os.replace(path, free_name(f'{path}.damaged'))
        print(f'{path} was no file; it is now {path}.damaged')
        return
    kept, damaged = [], []
    with open(path, 'rb') as f:
        for line in f:
            values = parse(line)
            if values is None:
                damaged.append(line)
            elif values['iter'] < run.iter_num or ('val_loss' in values and values['iter'] <= run.evaluated_at):
                kept.append(line)
    if damaged:
        aside = path.replace('.jsonl', '-damaged.jsonl')
        print(f'{path}: damaged lines, now in {aside}: {len(damaged)}')
        with open(aside, 'ab') as f:
            f.writelines(damaged)
    with write_whole(path, 'wb') as f:
        f.writelines(kept)


def parse(line):
    """The values of a line of metrics.jsonl (bytes); None if it is damaged."""
    try:
        values = json.loads(line)
        return values if isinstance(values, dict) and type(values['iter']) is int else None
    except (ValueError, KeyError, RecursionError):
        return None


def opening(dataset, data_size, parameters, variant, device, dtype, tokens_per_iter):
    """What a run says at its beginning: its data, of so many tokens {split: tokens}, its model and its machine."""
    return (f'data: {dataset}, {data_size["train"]:,} tokens to train on, {data_size["val"]:,} to validate\n'
            f'model: {parameters / 1e6:.2f}M parameters{f", variant {variant}" if variant else ""}\n'
            f'run: {device}, {dtype}, processes: {world_size()}, tokens per iteration will be: {tokens_per_iter:,}')


def evaluation_line(iter_num, train_loss, val_loss, val_acc, bits_per_byte):
    """The line of an evaluation on stdout: the original's, with more at its end."""
    bits = '' if bits_per_byte is None else f', bits per byte {bits_per_byte:.3f}'
    return (f'step {iter_num}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, '
            f'perplexity {perplexity(val_loss):.2f}, accuracy {100 * val_acc:.1f}%{bits}')


def start_tensorboard(out_dir, first_iter):
    """A writer to out_dir/tensorboard; what a resumed run writes again is hidden there."""
    from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=first_iter)


def read_env(path='.env'):
    """Lines such as WANDB_API_KEY=... in a file become environment variables, unless these are set already."""
    if os.path.isfile(path):
        with open(path, encoding='utf-8-sig', errors='replace') as f:
            for line in f:
                key, equals, value = line.strip().removeprefix('export ').partition('=')
                if equals and key.startswith('WANDB_'):
                    os.environ.setdefault(key, value.strip('\'"'))


def start_wandb(config):
    """
    A W&B run, the same one when a run is resumed: its id is in out_dir/wandb_id. Without an account or a network, an
    offline one and a line that says so.
    """
    import wandb
    read_env()
    path = os.path.join(config['out_dir'], 'wandb_id')
    if not exists(path):
        with write_whole(path) as f:
            f.write(uuid.uuid4().hex)
    with open(path, encoding='utf-8') as f:
        settings = dict(project=config['wandb_project'], name=config['wandb_run_name'], config=config,
                        id=f.read(), resume='allow', allow_val_change=True)
    if os.environ.get('WANDB_MODE', 'online') == 'online':
        reason = 'no account on this machine; wandb login makes one known'
        try:
            if wandb.login(prompt=False):
                return wandb.init(**settings)
        except wandb.errors.Error as error:
            reason = str(error).strip().split('\n')[0]
        print(f'wandb: logging offline ({reason}); wandb sync uploads it later')
        settings['mode'] = 'offline'
    try:
        return wandb.init(**settings)
    except wandb.errors.Error as error:
        raise ValueError(f'wandb does not start ({error}); leave out --wandb_log') from None
