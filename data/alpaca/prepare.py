"""
Alpaca: 52,002 instructions with answers, to teach a pre-trained model to answer. Only the answers count in the loss.

python data/alpaca/prepare.py                              # for GPT-2 and models with its vocabulary
python data/alpaca/prepare.py --tokenizer=tinystories      # for a model trained on data/tinystories
python data/alpaca/prepare.py --input=mine.jsonl           # your own: "instruction", "output", optionally "input"
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.documents import text_of
from corpus.pipeline import prepare

# Everything before the answer. meta.json and each checkpoint keep it, so that a chat can ask in the same form.
PROMPT = '### Instruction:\n{instruction}\n\n### Response:\n'


def to_parts(row):
    """A row as [(text, whether it counts in the loss)]. The "input" that some rows have follows the instruction."""
    instruction, answer = (text_of(row, key) for key in ('instruction', 'output'))
    if row.get('input'):
        instruction += '\n\n' + text_of(row, 'input')
    return [(PROMPT.format(instruction=instruction), False), (answer, True)]


prepare(
    __file__, __doc__, val_fraction=0.05, columns=['instruction', 'input', 'output'], to_parts=to_parts, prompt=PROMPT,
    config='finetune_alpaca.py', source='hf://datasets/tatsu-lab/alpaca/data/*.parquet',
    others="Others: --source='hf://datasets/tatsu-lab/alpaca@refs/convert/parquet/default/train/*.parquet', "
           "--source='hf://datasets/yahma/alpaca-cleaned@refs/convert/parquet/default/train/*.parquet'")
