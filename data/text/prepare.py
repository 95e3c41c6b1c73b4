"""
Your own text: .txt, .md, .jsonl and .parquet files.

python data/text/prepare.py --input=book.txt                              # one file
python data/text/prepare.py --input letters notes/*.md --out=data/mine    # a folder and more, into a dataset "mine"
python data/text/prepare.py --input='logs/**/*.jsonl' --text_key=message  # the text is in the field "message"
python data/text/prepare.py --input=book.txt --tokenizer=char             # one id a character
python data/text/prepare.py --input=stories --vocab_size=4096             # a vocabulary of its own, for a small model

In .txt and .md files <|endoftext|> stands between documents; a file without it is one. A tenth of the documents become
val or, where there are fewer than a hundred, the last tenth of each.
"""
import os
import sys

folder = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(folder))
import corpus

corpus.prepare(folder, __doc__)
