"""The variants of the fast recipe in config/ablations change what they say, each of them, and all are in the list."""
import json
import re

from running import ROOT, ok, python

CHANGE, LIST = (f'{ROOT}/config/ablations/{name}' for name in ('change.py', 'list.conf'))

# a training step with each variant, in a fork of its own: losses before and after it, and what there is to learn
STEPS = """
import json, os, sys
import torch
sys.path.insert(0, {root!r})
import model

def step(variant):
    if variant:
        exec(compile(open({change!r}).read(), 'change.py', 'exec'), dict(variant=variant, __name__='config'))
    torch.manual_seed(0)
    gpt = model.GPT(model.GPTConfig(block_size=16, vocab_size=32, n_layer=2, n_head=2, n_embd=32, modern=True))
    optimizer = gpt.configure_optimizers(0.0, 1e-2, (0.8, 0.95), 'cpu', muon_lr=0.05, muon_dtype=torch.float32,
                                         embed_lr=0.1, vector_lr=0.1)
    ids, losses = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(0)), []
    for _ in range(4):
        for group in optimizer.param_groups:
            group['momentum'] = 0.85
        loss = gpt(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

for variant in {variants!r}:
    if os.fork() == 0:
        torch.set_num_threads(1)
        print(json.dumps([variant, step(variant)]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_variant_changes_the_run_and_still_learns(tmp_path):
    variants = sorted(set(re.findall(r'--variant=(\w+)', open(LIST).read())))
    functions = set(re.findall(r'^def (\w+)\(\):', open(CHANGE).read(), re.MULTILINE))
    assert set(variants) == functions and len(variants) >= 17
    script = tmp_path / 'steps.py'
    script.write_text(STEPS.format(root=ROOT, change=CHANGE, variants=['', *variants]))
    losses = dict(map(json.loads, ok(python(script, cwd=tmp_path)).stdout.splitlines()))
    plain = losses.pop('')
    assert set(losses) == set(variants)
    for variant, ours in losses.items():
        assert ours != plain and ours[-1] < ours[0] - 0.1, variant
    late = [variant for variant, ours in losses.items() if ours[0] == plain[0]]  # those of the optimizer, and the smear
    assert {'no_smear', 'smear_of_one', 'five_steps', 'two_steps', 'jordans_five_steps', 'query_key_value_as_one',
            'momentum_not_warmed_up'} == set(late)


def test_the_list_has_each_variant_with_the_same_seeds():
    seeds = {}
    for name, seed, words in re.findall(r'^([\w.-]+)-(\d+): (.*)$', open(LIST).read(), re.MULTILINE):
        assert f'--seed={seed}' in words.split()
        seeds.setdefault(name, []).append(seed)
    assert len(seeds) >= 30 and len(set(map(tuple, seeds.values()))) == 1 and len(seeds['recipe']) >= 3


def test_a_variant_that_is_not_there_is_refused(tmp_path):
    done = python(f'{ROOT}/train.py', '--variant=smeer', CHANGE, cwd=tmp_path)
    assert done.returncode == 2 and "variant='smeer' is no function of this file" in done.stderr
