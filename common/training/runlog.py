"""
What is recorded of a run while it trains: settings.json, metrics.jsonl (one JSON object a line), samples/, a line per
iteration on stdout and, if wanted, Weights & Biases and TensorBoard. It takes numbers and texts and knows no model. An
unknown number is None, never made up.
"""
import contextlib
import json
import math
import os
import sys
import time

from common.console import SEPARATOR, duration, perplexity, print_flush
from common.device import synchronize
from common.files import write_whole


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
        config: a dict of all settings. run: the checkpoint.Progress of the run, which its methods read, too.
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
        self.wandb = start_wandb(config) if config['wandb_log'] else None
        self.board = start_tensorboard(self.out_dir, run.iter_num) if config['tensorboard_log'] else None
        write_settings(os.path.join(self.out_dir, 'settings.json'), config)
        path = os.path.join(self.out_dir, 'metrics.jsonl')
        cut(path, run)
        cut(os.path.join(self.out_dir, 'spikes.jsonl'), run)
        self.file = open(path, 'a', encoding='utf-8')

    def iteration(self, run, loss, lr, grad_norm, mem_gb):
        """The iteration before run.iter_num, with the mean speed since the last line, on stdout and in the file."""
        iter_num = run.iter_num - 1
        seconds = self.s_per_iter = (run.train_s - self.last_s) / (run.iter_num - self.last_iter)
        self.last_iter, self.last_s = run.iter_num, run.train_s
        tok_s = self.tokens_per_iter / seconds
        mfu = tok_s * self.flops_per_token / self.peak_flops if self.peak_flops else None
        left = duration(seconds * (self.max_iters - run.iter_num))
        print_flush(f'iter {iter_num}: loss {loss:.4f}, time {1000 * seconds:.2f}ms, '
                    f'mfu {"n/a" if mfu is None else f"{100 * mfu:.2f}%"}, {tok_s:,.0f} tok/s, {left} left')
        self.write(iter=iter_num, loss=loss, lr=lr, grad_norm=None if grad_norm is None else float(grad_norm),
                   ms=1000 * seconds, tok_s=tok_s, mfu=mfu, mem_gb=mem_gb, tokens=run.tokens, train_s=run.train_s)

    def show_progress(self, run):
        """A line that the next one overwrites, at most ten times a second; on a terminal only."""
        if self.s_per_iter is None or not sys.stdout.isatty() or time.monotonic() < self.shown_at + 0.1:
            return
        self.shown_at = time.monotonic()
        left = duration(self.s_per_iter * (self.max_iters - run.iter_num))
        print_flush(f'{run.iter_num:,} of {self.max_iters:,} iterations, {left} left'.ljust(60), end='\r')

    def evaluation(self, run, train_loss, val_loss, val_acc, texts):
        """One evaluation after run.iter_num updates. The sample texts go to samples/iter_000500.txt."""
        self.write(iter=run.iter_num, train_loss=train_loss, val_loss=val_loss, val_ppl=perplexity(val_loss),
                   val_acc=val_acc, tokens=run.tokens, train_s=run.train_s)
        self.texts = texts
        if texts:
            with warn_on_disk_error():
                folder = os.path.join(self.out_dir, 'samples')
                os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, f'iter_{run.iter_num:06d}.txt'), 'w', encoding='utf-8') as f:
                    f.write(SEPARATOR.join(texts) + '\n')

    def skipped(self, iter_num, loss, starts, decode):
        """A skipped update, with the positions of its sequences in train.bin and their texts, in spikes.jsonl."""
        try:
            texts = decode()
        except Exception as error:  # a tokenizer that cannot be loaded now is no reason to end a run
            print_flush(f'not decoded: {error}')
            texts = None
        print_flush(f'iter {iter_num}: loss {loss:.4f}, update skipped (a spike, or not finite); see '
                    f'{self.out_dir}/spikes.jsonl')
        values = dict(iter=iter_num, loss=loss if math.isfinite(loss) else None, starts=starts, texts=texts)
        with warn_on_disk_error(), open(os.path.join(self.out_dir, 'spikes.jsonl'), 'a', encoding='utf-8') as f:
            f.write(json.dumps(values, ensure_ascii=False) + '\n')

    def close(self, run, done):
        """The end: of the run if it is `done`, with what to do next, else of a process that was stopped."""
        if done:
            self.write(iter=run.iter_num, done=True, best_val_loss=run.best_val_loss, train_s=run.train_s)
        else:  # for the queue: torchrun hides the exit code that says so
            self.write(iter=run.iter_num, stopped=True, train_s=run.train_s)
        with warn_on_disk_error():
            self.file.close()
        if self.wandb:
            self.wandb.finish()
        if self.board:
            self.board.close()
        if sys.stdout.isatty():
            print_flush(' ' * 60, end='\r')  # over the progress line
        best = f'best val loss {run.best_val_loss:.4f}'
        if not done:
            print_flush(f'stopped and saved after {run.iter_num} iterations; continue with the same command and '
                        '--init_from=auto')
        elif run.iter_num == self.first_iter > 0:
            print_flush(f'nothing is left to do: this run ended after {run.iter_num} iterations, {best}; to '
                        'continue, raise --max_iters or --patience')
        else:
            if self.texts:
                print_flush('\nin its own words:\n\n' + SEPARATOR.join(self.texts))
            written = [name for name in ('ckpt.pt', 'last.pt', 'metrics.jsonl', 'samples')
                       if os.path.exists(os.path.join(self.out_dir, name))]
            early = '; ended by --patience, as nothing better came' if run.iter_num < self.max_iters else ''
            print_flush(f'\ntrained {run.iter_num} iterations in {duration(run.train_s)}, {best}{early}\n'
                        f'wrote {", ".join(written)} in {self.out_dir} (ckpt.pt has the best weights, last.pt resumes)'
                        f'\nsample more: python sample.py --out_dir={self.out_dir}')

    def write(self, **values):
        """Add a line. What is not finite becomes null, as JSON cannot express it."""
        values = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in values.items()}
        with warn_on_disk_error():
            self.file.write(json.dumps(values) + '\n')
            self.file.flush()
        if self.wandb:
            self.wandb.log(values, step=values['iter'])
        if self.board:
            for key, value in values.items():
                if key != 'iter' and value is not None:
                    self.board.add_scalar(key, value, values['iter'])


def write_settings(path, config):
    """All settings as JSON. When a run is resumed, init_from stays what it began with."""
    with warn_on_disk_error():
        if config.get('init_from') in ('auto', 'resume'):
            config = {**config, 'init_from': 'scratch'}
            with contextlib.suppress(FileNotFoundError, ValueError), open(path, encoding='utf-8') as f:
                config['init_from'] = json.load(f)['init_from']
        with write_whole(path) as f:
            json.dump(config, f, indent=1)


@contextlib.contextmanager
def warn_on_disk_error():
    """Print a line if the log cannot be written, on a full disk for example: that must not end the run."""
    try:
        yield
    except OSError as error:
        print_flush(f'not logged: {error}')


def cut(path, run):
    """Remove from a metrics.jsonl what a resumed run writes again, and lines that a crash left incomplete."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding='utf-8') as f:
        for line in f:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if values['iter'] < run.iter_num or ('val_loss' in values and values['iter'] <= run.evaluated_at):
                kept.append(line)
    with write_whole(path) as f:
        f.writelines(kept)


def evaluation_line(iter_num, train_loss, val_loss, val_acc):
    """The line of an evaluation on stdout: the original's, with more at its end."""
    return (f'step {iter_num}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, '
            f'perplexity {perplexity(val_loss):.2f}, accuracy {100 * val_acc:.1f}%')


def start_tensorboard(out_dir, first_iter):
    """A writer to out_dir/tensorboard; what a resumed run writes again is hidden there."""
    from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=first_iter)


def read_env(path='.env'):
    """Lines such as WANDB_API_KEY=... in a file become environment variables, unless these are set already."""
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as f:
            for line in f:
                key, equals, value = line.strip().removeprefix('export ').partition('=')
                if equals and key.startswith('WANDB_'):
                    os.environ.setdefault(key, value.strip('\'"'))


def start_wandb(config):
    """A W&B run; without an account or a network, an offline one and a line that says so."""
    import wandb
    read_env()
    settings = dict(project=config['wandb_project'], name=config['wandb_run_name'], config=config)
    if os.environ.get('WANDB_MODE', 'online') != 'online':
        return wandb.init(**settings)
    reason = 'no account on this machine; wandb login makes one known'
    try:
        if wandb.login(prompt=False):
            return wandb.init(**settings)
    except wandb.errors.Error as error:
        reason = str(error).strip().split('\n')[0]
    print(f'wandb: logging offline ({reason}); wandb sync uploads it later', flush=True)
    return wandb.init(**settings, mode='offline')
