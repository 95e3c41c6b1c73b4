"""
TinyStories (Eldan and Li 2023): 2.1 million short stories in the words of a four-year-old, 1.9 GB. It has its own
validation split.

python data/tinystories/prepare.py                      # GPT-2's vocabulary
python data/tinystories/prepare.py --vocab_size=4096    # its own vocabulary, for a small model
python data/tinystories/prepare.py --input=TinyStories-train.txt --val_input=TinyStories-valid.txt    # from files
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(
    __file__, __doc__, config='train_tinystories.py',
    source='hf://datasets/roneneldan/TinyStories/data/train-*.parquet',
    val_source='hf://datasets/roneneldan/TinyStories/data/validation-*.parquet',
    others="""Others: --source='hf://datasets/roneneldan/TinyStories@refs/convert/parquet/default/train/*.parquet' """
           """--val_input='hf://datasets/roneneldan/TinyStories@refs/convert/parquet/default/validation/*.parquet', """
           'or TinyStories-train.txt and TinyStories-valid.txt by --input and --val_input')
