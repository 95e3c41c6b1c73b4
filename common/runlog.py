"""
What is recorded of a run while it trains: metrics.jsonl (one JSON object a line), samples/, the line of an iteration
on stdout, and Weights & Biases when asked. It takes numbers and texts and knows no model; an unknown number is None,
never made up.
"""
import json
import math
import os

SEPARATOR = '\n---------------\n'  # between sample texts


class RunLog:
    """
    The log of one run, kept by one process. When the run resumes at first_iter, lines from there on are cut, so that
    metrics.jsonl reads as one uninterrupted run.
    """

    def __init__(self, out_dir, config, first_iter, train_s, tokens_per_iter, wandb_settings=None,
                 flops_per_token=None, peak_flops=None):
        """
        config: all settings, a dict. train_s: seconds trained so far. peak_flops: FLOP/s that all devices can reach,
        None if not known. wandb_settings: None, or what wandb.init takes (project, name).
        """
        self.out_dir = out_dir
        self.max_iters = config['max_iters']
        self.tokens_per_iter = tokens_per_iter
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.last_iter, self.last_s = first_iter, train_s  # of the last line that a time was measured for
        self.wandb = start_wandb(wandb_settings, config) if wandb_settings else None
        path = os.path.join(out_dir, 'metrics.jsonl')
        cut(path, first_iter)
        self.file = open(path, 'a', encoding='utf-8')

    def iteration(self, iter_num, loss, lr, grad_norm, train_s, mem_gb):
        """One iteration, with the speed since the last one logged: on stdout and in the file."""
        seconds = (train_s - self.last_s) / (iter_num + 1 - self.last_iter)  # an iteration
        self.last_iter, self.last_s = iter_num + 1, train_s
        tok_s = self.tokens_per_iter / seconds
        mfu = tok_s * self.flops_per_token / self.peak_flops if self.peak_flops else None
        left = duration(seconds * (self.max_iters - iter_num - 1))
        print(f'iter {iter_num}: loss {loss:.4f}, time {1000 * seconds:.2f}ms, '
              f'mfu {"n/a" if mfu is None else f"{100 * mfu:.2f}%"}, {tok_s:,.0f} tok/s, {left} left', flush=True)
        self.write(iter=iter_num, loss=loss, lr=lr, grad_norm=None if grad_norm is None else float(grad_norm),
                   ms=1000 * seconds, tok_s=tok_s, mfu=mfu, mem_gb=mem_gb,
                   tokens=(iter_num + 1) * self.tokens_per_iter, train_s=train_s)

    def evaluation(self, iter_num, train_loss, val_loss, val_acc, train_s):
        """One evaluation, of the weights after iter_num updates. What it printed is the caller's."""
        self.write(iter=iter_num, train_loss=train_loss, val_loss=val_loss, val_ppl=perplexity(val_loss),
                   val_acc=val_acc, tokens=iter_num * self.tokens_per_iter, train_s=train_s)

    def samples(self, iter_num, texts):
        """Texts that the model wrote after iter_num updates, into samples/iter_000500.txt."""
        folder = os.path.join(self.out_dir, 'samples')
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f'iter_{iter_num:06d}.txt'), 'w', encoding='utf-8') as f:
            f.write(SEPARATOR.join(texts) + '\n')

    def done(self, iter_num, best_val_loss, train_s, texts):
        """The last line of a finished run; and on stdout its last sample texts, what it wrote and what to do next."""
        self.write(iter=iter_num, done=True, best_val_loss=best_val_loss, train_s=train_s)
        self.file.close()
        if self.wandb:
            self.wandb.finish()
        written = [name for name in ('ckpt.pt', 'last.pt', 'metrics.jsonl', 'samples')
                   if os.path.exists(os.path.join(self.out_dir, name))]
        if texts:
            print('\nin its own words:\n\n' + SEPARATOR.join(texts))
        print(f'\ntrained {iter_num} iterations in {duration(train_s)}, best val loss {best_val_loss:.4f}\n'
              f'wrote {", ".join(written)} in {self.out_dir} (ckpt.pt has the best weights, last.pt resumes)\n'
              f'sample more: python sample.py --out_dir={self.out_dir}')

    def write(self, **values):
        """Add a line. What is not finite becomes null, as JSON has no word for it."""
        values = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in values.items()}
        self.file.write(json.dumps(values) + '\n')
        self.file.flush()
        if self.wandb:
            self.wandb.log(values, step=values['iter'])


def cut(path, first_iter):
    """Drop the lines of a metrics.jsonl from first_iter on, and what a crash left half written."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding='utf-8') as f:
        for line in f:
            try:
                if json.loads(line)['iter'] >= first_iter:
                    continue
            except ValueError:
                continue
            kept.append(line)
    with open(f'{path}.tmp', 'w', encoding='utf-8') as f:
        f.writelines(kept)
    os.replace(f'{path}.tmp', path)


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


def start_wandb(settings, config):
    """A W&B run; where there is no account or no network, one in its offline mode and a line that says so."""
    import wandb
    if os.environ.get('WANDB_MODE', 'online') != 'online':
        return wandb.init(**settings, config=config)
    reason = 'no account on this machine; wandb login makes one known'
    try:
        if wandb.login(prompt=False):
            return wandb.init(**settings, config=config)
    except wandb.errors.Error as error:
        reason = str(error).strip().split('\n')[0]
    print(f'wandb: logging offline ({reason}); wandb sync uploads it later', flush=True)
    return wandb.init(**settings, config=config, mode='offline')
