"""
Your own text: .txt, .md, .jsonl and .parquet files.

python data/text/prepare.py --input=book.txt                              # one file
python data/text/prepare.py --input letters notes/*.md --out=data/mine    # a folder and files, as a dataset "mine"
python data/text/prepare.py --input='logs/**/*.jsonl' --text_key=message  # the text is in the field "message"
python data/text/prepare.py --input=book.txt --tokenizer=char             # one id per character
python data/text/prepare.py --input=stories --vocab_size=4096             # its own vocabulary: not only for Korean
python data/text/prepare.py --input=old.txt --encoding=cp949              # a text that is not UTF-8
python data/text/prepare.py --input=mac.txt --normalize=NFC               # accents and Hangul in parts are composed

In .txt and .md files <|endoftext|> separates documents; a file without it is one document. A tenth of the documents
become val or, if there are fewer than a hundred, the last tenth of each.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(__file__, __doc__)
