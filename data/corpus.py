"""
Look at a dataset: is it still as it was made, and what has an interrupted preparation left beside it?

python data/corpus.py check data/shakespeare              # recount and re-hash it, show a piece of it
python data/corpus.py clean data/shakespeare --dry_run    # what is unfinished there, and how large it is
python data/corpus.py clean data/shakespeare              # remove that
"""
import os
import sys

from corpus import begin  # the folder corpus, which Python prefers to this file
from corpus.inspection import check
from corpus.plan import dataset_folder
from corpus.shards import clean
from common.console import exit_on_error, stop  # importing corpus has put common/ into sys.path

begin()
words = sys.argv[1:]
if words in (['--help'], ['-h']):
    print(__doc__.strip())
    sys.exit()
dry_run = words[:1] == ['clean'] and '--dry_run' in words[1:]
if dry_run:
    words.remove('--dry_run')
if len(words) != 2 or words[0] not in ('check', 'clean') or not words[1] or words[1].startswith('-'):
    stop('to check a dataset: python data/corpus.py check data/NAME; to remove what unfinished preparations have left '
         'there: python data/corpus.py clean data/NAME, with --dry_run only to see it')
folder = dataset_folder(words[1])
with exit_on_error():
    if words[0] == 'check':
        check(folder)
    elif not os.path.isdir(folder):
        stop(f'there is no folder {words[1]}')
    elif not clean(folder, dry_run):
        sys.exit(2)
