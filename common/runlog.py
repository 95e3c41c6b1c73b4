"""
What is recorded of a run while it trains: settings.json, metrics.jsonl (one JSON object a line), samples/, the line of
an iteration on stdout, and Weights & Biases and TensorBoard when asked. It takes numbers and texts and knows no model;
an unknown number is None, never made up.
"""
import contextlib
import json
import math
import os
import sys
import time

SEPARATOR = '\n---------------\n'  # between sample texts


class RunLog:
    """
    The log of one run, kept by one process. When the run resumes at first_iter, lines from there on are cut, so that
    metrics.jsonl reads as one uninterrupted run.
    """

    def __init__(self, config, first_iter, evaluated_at, train_s, tokens_per_iter, flops_per_token, peak_flops):
        """
        config: all settings, a dict. evaluated_at: the iteration of the last evaluation. train_s: seconds trained so
        far. peak_flops: FLOP/s that all devices can reach, None if not known.
        """
        self.out_dir = config['out_dir']
        self.max_iters = config['max_iters']
        self.tokens_per_iter = tokens_per_iter
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.texts = []  # the last samples
        self.first_iter = first_iter
        self.last_iter, self.last_s = first_iter, train_s  # of the last line that a time was measured for
        self.s_per_iter, self.shown_at = None, 0.0  # of the progress line
        self.wandb = start_wandb(config) if config['wandb_log'] else None
        self.board = start_tensorboard(self.out_dir, first_iter) if config['tensorboard_log'] else None
        write_settings(os.path.join(self.out_dir, 'settings.json'), config)
        path = os.path.join(self.out_dir, 'metrics.jsonl')
        cut(path, first_iter, evaluated_at)
        cut(os.path.join(self.out_dir, 'spikes.jsonl'), first_iter, evaluated_at)
        self.file = open(path, 'a', encoding='utf-8')

    def iteration(self, iter_num, loss, lr, grad_norm, train_s, mem_gb):
        """One iteration, with the speed since the last one logged: on stdout and in the file."""
        seconds = self.s_per_iter = (train_s - self.last_s) / (iter_num + 1 - self.last_iter)
        self.last_iter, self.last_s = iter_num + 1, train_s
        tok_s = self.tokens_per_iter / seconds
        mfu = tok_s * self.flops_per_token / self.peak_flops if self.peak_flops else None
        left = duration(seconds * (self.max_iters - iter_num - 1))
        say(f'iter {iter_num}: loss {loss:.4f}, time {1000 * seconds:.2f}ms, '
            f'mfu {"n/a" if mfu is None else f"{100 * mfu:.2f}%"}, {tok_s:,.0f} tok/s, {left} left')
        self.write(iter=iter_num, loss=loss, lr=lr, grad_norm=None if grad_norm is None else float(grad_norm),
                   ms=1000 * seconds, tok_s=tok_s, mfu=mfu, mem_gb=mem_gb,
                   tokens=(iter_num + 1) * self.tokens_per_iter, train_s=train_s)

    def progress(self, iter_num):
        """How far the run is, ten times a second at most; on a terminal only, where the next line replaces it."""
        if self.s_per_iter is None or not sys.stdout.isatty() or time.monotonic() < self.shown_at + 0.1:
            return
        self.shown_at = time.monotonic()
        left = duration(self.s_per_iter * (self.max_iters - iter_num))
        say(f'{iter_num:,} of {self.max_iters:,} iterations, {left} left'.ljust(60), end='\r')

    def evaluation(self, iter_num, train_loss, val_loss, val_acc, train_s, texts):
        """One evaluation of the weights after iter_num updates; the texts they wrote go to samples/iter_000500.txt."""
        self.write(iter=iter_num, train_loss=train_loss, val_loss=val_loss, val_ppl=perplexity(val_loss),
                   val_acc=val_acc, tokens=iter_num * self.tokens_per_iter, train_s=train_s)
        self.texts = texts
        if texts:
            with whatever_the_disk_says():
                folder = os.path.join(self.out_dir, 'samples')
                os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, f'iter_{iter_num:06d}.txt'), 'w', encoding='utf-8') as f:
                    f.write(SEPARATOR.join(texts) + '\n')

    def skipped(self, iter_num, loss, starts, decode):
        """A skipped update, with where the sequences of its batch start in train.bin and their texts: spikes.jsonl."""
        try:
            texts = decode()
        except Exception as error:  # a tokenizer that cannot be had now is no reason to end a run
            say(f'not decoded: {error}')
            texts = None
        say(f'iter {iter_num}: loss {loss:.4f}, update skipped (a spike, or not finite); see '
            f'{self.out_dir}/spikes.jsonl')
        values = dict(iter=iter_num, loss=loss if math.isfinite(loss) else None, starts=starts, texts=texts)
        with whatever_the_disk_says(), open(os.path.join(self.out_dir, 'spikes.jsonl'), 'a', encoding='utf-8') as f:
            f.write(json.dumps(values, ensure_ascii=False) + '\n')

    def close(self, done, iter_num, best_val_loss, train_s):
        """The end of a process: of the run (`done`) with its last line and what to do next, or one to resume from."""
        if done:
            self.write(iter=iter_num, done=True, best_val_loss=best_val_loss, train_s=train_s)
        else:  # torchrun hides the exit code that says so
            self.write(iter=iter_num, stopped=True, train_s=train_s)
        with whatever_the_disk_says():
            self.file.close()
        if self.wandb:
            self.wandb.finish()
        if self.board:
            self.board.close()
        if sys.stdout.isatty():
            say(' ' * 60, end='\r')  # over the progress line
        if not done:
            return say(f'stopped after {iter_num} iterations, and saved; go on with the same command and '
                       f'--init_from=auto')
        if iter_num == self.first_iter > 0:
            return say(f'nothing is left to do: this run ended after {iter_num} iterations, best val loss '
                       f'{best_val_loss:.4f}; a higher --max_iters, or --patience, goes on')
        if self.texts:
            say('\nin its own words:\n\n' + SEPARATOR.join(self.texts))
        written = [name for name in ('ckpt.pt', 'last.pt', 'metrics.jsonl', 'samples')
                   if os.path.exists(os.path.join(self.out_dir, name))]
        early = '; ended by --patience, as nothing better came' if iter_num < self.max_iters else ''
        say(f'\ntrained {iter_num} iterations in {duration(train_s)}, best val loss {best_val_loss:.4f}{early}\n'
            f'wrote {", ".join(written)} in {self.out_dir} (ckpt.pt has the best weights, last.pt resumes)\n'
            f'sample more: python sample.py --out_dir={self.out_dir}')

    def write(self, **values):
        """Add a line. What is not finite becomes null, as JSON has no word for it."""
        values = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in values.items()}
        with whatever_the_disk_says():
            self.file.write(json.dumps(values) + '\n')
            self.file.flush()
        if self.wandb:
            self.wandb.log(values, step=values['iter'])
        if self.board:
            for key, value in values.items():
                if key != 'iter' and value is not None:
                    self.board.add_scalar(key, value, values['iter'])


def write_settings(path, config):
    """All settings as JSON, whole or not at all; of a run that goes on, init_from is what it began with."""
    with whatever_the_disk_says():
        if config.get('init_from') in ('auto', 'resume'):
            config = {**config, 'init_from': 'scratch'}
            with contextlib.suppress(FileNotFoundError, ValueError), open(path, encoding='utf-8') as f:
                config['init_from'] = json.load(f)['init_from']
        with open(f'{path}.tmp', 'w', encoding='utf-8') as f:
            json.dump(config, f, indent=1)
        os.replace(f'{path}.tmp', path)


@contextlib.contextmanager
def whatever_the_disk_says():
    """A log that cannot be written, on a full disk say, is worth a line but not the run."""
    try:
        yield
    except OSError as error:
        say(f'not logged: {error}')


def cut(path, first_iter, evaluated_at):
    """Drop what a run from first_iter on writes again, and what a crash left half written, from a metrics.jsonl."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding='utf-8') as f:
        for line in f:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if values['iter'] < first_iter or ('val_loss' in values and values['iter'] <= evaluated_at):
                kept.append(line)
    with open(f'{path}.tmp', 'w', encoding='utf-8') as f:
        f.writelines(kept)
    os.replace(f'{path}.tmp', path)


def say(*args, end='\n'):
    """Print at once, even to a file. Where nobody reads any more, as in `train.py | head`, a run goes on unseen."""
    try:
        print(*args, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def evaluation_line(iter_num, train_loss, val_loss, val_acc):
    """The line of an evaluation on stdout, in the original's shape with more at its end."""
    return (f'step {iter_num}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, '
            f'perplexity {perplexity(val_loss):.2f}, accuracy {100 * val_acc:.1f}%')


def perplexity(loss):
    """e to the loss; infinity where a float cannot hold it, NaN for NaN."""
    return math.inf if loss > 700 else math.exp(loss)


def duration(seconds):
    """12s, 3m04s, 2h05m or 4d03h: as exact as a person needs it."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    if seconds < 86400:
        return f'{seconds // 3600}h{seconds // 60 % 60:02d}m'
    return f'{seconds // 86400}d{seconds // 3600 % 24:02d}h'


def start_tensorboard(out_dir, first_iter):
    """A writer of out_dir/tensorboard, where a resumed run hides what it writes again."""
    from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=first_iter)


def read_env(path='.env'):
    """Lines like WANDB_API_KEY=... of a file, as environment variables; those that are set already stay as they are."""
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as f:
            for line in f:
                key, equals, value = line.strip().removeprefix('export ').partition('=')
                if equals and key.startswith('WANDB_'):
                    os.environ.setdefault(key, value.strip('\'"'))


def start_wandb(config):
    """A W&B run; where there is no account or no network, one in its offline mode and a line that says so."""
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
