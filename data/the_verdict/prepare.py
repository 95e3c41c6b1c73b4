"""
The Verdict, a short story by Edith Wharton (1908, public domain), in GPT-2's byte-pair encoding.

python data/the_verdict/prepare.py                 # downloads it, once
python data/the_verdict/prepare.py --input=FILE    # without a network

Expect 20,479 characters; train has 4,612 tokens, val has 534. The uncut text has 5,145.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(
    __file__, __doc__, expected=(4612, 534), config='train_the_verdict.py',
    source='https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt',
    sha256='b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f')
