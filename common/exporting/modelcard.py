"""The README.md of an exported model: what it is, how to use it, what it was trained on, and the loss it reached."""
import os

from common import gguf_file
from common.console import perplexity
from common.exporting.transformers_folder import needs_own_code
from common.settings import SMEARED

USES = {
    'hf': '''from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({folder!r}{trust})
model = AutoModelForCausalLM.from_pretrained({folder!r}{trust})
ids = tokenizer({prompt!r}, return_tensors='pt').input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens={new_tokens}, do_sample=True)[0]))''',
    'onnx': '''import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path!r})
# no tokens before these; the present_* that come back are the past_* of the next token
past = dict(past_keys=np.zeros(({n_layer}, 1, {n_head}, 0, {head_dim}), np.float32),
            past_values=np.zeros(({n_layer}, 1, {n_head}, 0, {head_dim}), np.float32),
            past_embeddings=np.zeros((1, {smeared}, {n_embd}), np.float32))
feeds = dict(past, input_ids=np.array([{ids}]))  # {prompt!r}
inputs = {{one.name: feeds[one.name] for one in session.get_inputs()}}  # past_embeddings is a modern model's
logits, keys, values, embeddings = session.run(None, inputs)''',
    'safetensors': '''from model import GPT  # of nanoGPT-V100
model = GPT.from_checkpoint({path!r})''',
    'gguf': '''from llama_cpp import Llama  # pip install llama-cpp-python
llama = Llama({path!r}, n_ctx={block_size}, verbose=False)
print(llama({prompt!r}, max_tokens={new_tokens})['choices'][0]['text'])''',
}
TRUST = ('`trust_remote_code=True` executes the file `modeling_nanogpt.py` of this folder, because no architecture of '
         'transformers computes this model. Read it first: it is short, imports only torch and transformers, and opens '
         'no files and no network.')
FILES = {'onnx': 'model.onnx', 'gguf': 'model.gguf'}
SETTINGS = ('optimizer', 'learning_rate', 'muon_lr', 'embed_lr', 'vector_lr', 'schedule', 'warmup_iters', 'max_iters',
            'batch_size', 'gradient_accumulation_steps', 'weight_decay', 'dropout', 'seed', 'dtype')
BY_MUON = 'muon_lr', 'embed_lr', 'vector_lr'  # which other optimizers have no use for


def write(to, folder, format, config, about, tokenizer, text, source):
    """
    Write to/README.md for an export that will be in `folder`. config: a GPTConfig. about: what the run saved with the
    weights. text: ids that the model knows, of which the example takes the first. source: where the weights come from.
    """
    settings, meta, loss = about.get('config', {}), about['meta'], float(about.get('best_val_loss', 'inf'))
    ids = text[:max(1, min(4, config.block_size // 2))]
    path = os.path.join(folder, FILES.get(format, 'model.safetensors'))
    own_code = format == 'hf' and needs_own_code(config)
    use = USES[format].format(folder=folder, path=path, ids=ids, prompt=tokenizer.decode(ids),
                              trust=', trust_remote_code=True' if own_code else '',
                              new_tokens=max(1, min(64, config.block_size - len(ids))),
                              head_dim=config.n_embd // config.n_head, smeared=SMEARED, **vars(config))
    kind = 'modern nanoGPT-V100 model' if config.modern else 'GPT-2'
    bound = f', logits bounded to {config.softcap:g} by tanh' if config.softcap > 0.0 else ''
    lines = ['---', f'library_name: {"transformers" if format == "hf" else format}', 'pipeline_tag: text-generation',
             '---', '', f'# {os.path.basename(os.path.normpath(source))}', '',
             f'A {kind} of {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels and a context of '
             f'{config.block_size} tokens{bound}, in float32, made with nanoGPT-V100.', '', '```python', use, '```', '']
    if own_code:
        lines += [TRUST, '']
    if format == 'gguf':
        lines += [f'{line}.\n' for line in gguf_file.differences(config, tokenizer)]
    if settings:
        data = os.path.basename(os.path.normpath(str(settings.get('dataset', 'not known'))))
        data += f' ({os.path.basename(str(meta["source"]))})' if meta.get('source') else ''
        data += f', {meta["train_tokens"]:,} tokens' if meta.get('train_tokens') else ''
        lines += ['## Training', '', f'- data: {data}', f'- iterations: {about.get("iter_num", 0):,}']
        if loss < 100:
            lines.append(f'- best validation loss of the run: {loss:.4f}, perplexity {perplexity(loss):.2f}')
        shown = [key for key in SETTINGS if key not in BY_MUON or settings.get('optimizer') == 'muon']
        lines += [f'- {key}: {settings[key]}' for key in shown if key in settings]
    with open(os.path.join(to, 'README.md'), 'w', encoding='utf-8') as f:
        f.write('\n'.join(lines) + '\n')
