"""The README.md of an exported model: what it is, how to use it, what it was trained on, and the loss it reached."""
import os

from common.console import perplexity

USES = {
    'hf': '''from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained('{folder}')
model = AutoModelForCausalLM.from_pretrained('{folder}')
ids = tokenizer({prompt!r}, return_tensors='pt').input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens={new_tokens}, do_sample=True)[0]))''',
    'onnx': '''import numpy as np, onnxruntime
session = onnxruntime.InferenceSession('{folder}/model.onnx')
# no tokens before these; the present_* that come back are the past_* of the next token
past = dict(past_keys=np.zeros(({n_layer}, 1, {n_head}, 0, {head_dim}), np.float32),
            past_values=np.zeros(({n_layer}, 1, {n_head}, 0, {head_dim}), np.float32),
            past_embedding=np.zeros((1, 1, {n_embd}), np.float32))
logits, keys, values, embedding = session.run(None, dict(past, input_ids=np.array([[1, 2, 3]])))''',
    'safetensors': '''from model import GPT  # of nanoGPT-V100
model = GPT.from_checkpoint('{folder}/model.safetensors')''',
}
SETTINGS = ('optimizer', 'learning_rate', 'muon_lr', 'schedule', 'warmup_iters', 'max_iters', 'batch_size',
            'gradient_accumulation_steps', 'weight_decay', 'dropout', 'seed', 'dtype')


def write(to, folder, format, config, about, prompt, source):
    """
    Write to/README.md for an export that will be in `folder`. config: a GPTConfig. about: what the run saved with the
    weights. prompt: a few words that the model knows. source: where the weights come from.
    """
    settings, meta, loss = about.get('config', {}), about['meta'], float(about.get('best_val_loss', 'inf'))
    use = USES[format].format(folder=folder, prompt=prompt, new_tokens=min(64, config.block_size - len(prompt)),
                              head_dim=config.n_embd // config.n_head, **vars(config))
    kind = 'modern nanoGPT-V100 model' if config.modern else 'GPT-2'
    lines = ['---', f'library_name: {"transformers" if format == "hf" else format}', 'pipeline_tag: text-generation',
             '---', '', f'# {os.path.basename(os.path.normpath(source))}', '',
             f'A {kind} of {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels and a context of '
             f'{config.block_size} tokens, in float32, made with nanoGPT-V100.', '', '```python', use, '```', '']
    if settings:
        data = os.path.basename(os.path.normpath(str(settings.get('dataset', 'not known'))))
        data += f' ({os.path.basename(str(meta["source"]))})' if meta.get('source') else ''
        data += f', {meta["train_tokens"]:,} tokens' if meta.get('train_tokens') else ''
        lines += ['## Training', '', f'- data: {data}', f'- iterations: {about.get("iter_num", 0):,}']
        if loss < 100:
            lines.append(f'- best validation loss of the run: {loss:.4f}, perplexity {perplexity(loss):.2f}')
        shown = [key for key in SETTINGS if key != 'muon_lr' or settings.get('optimizer') == 'muon']
        lines += [f'- {key}: {settings[key]}' for key in shown if key in settings]
    with open(os.path.join(to, 'README.md'), 'w', encoding='utf-8') as f:
        f.write('\n'.join(lines) + '\n')
