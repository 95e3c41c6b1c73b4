"""
Tiny Shakespeare (1.1 MB, public domain) in GPT-2's byte-pair encoding.

python data/shakespeare/prepare.py                 # downloads it, once
python data/shakespeare/prepare.py --input=FILE    # without a network

Expect 1,115,394 characters; train has 301,966 tokens, val has 36,059.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(
    __file__, __doc__, expected=(301966, 36059), config='finetune_shakespeare.py --init_from=gpt2',
    source='https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt',
    sha256='86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed')
