"""
Look at a dataset: is it still as it was made, and what has an interrupted preparation left beside it?

python data/corpus.py check data/shakespeare              # recount and re-hash it, show a piece of it
python data/corpus.py clean data/shakespeare --dry_run    # what is unfinished there, and how large it is
python data/corpus.py clean data/shakespeare              # remove that
"""
import os
import sys
from argparse import RawDescriptionHelpFormatter

from corpus import begin  # the folder corpus, which Python prefers to this file
from corpus.inspection import check
from corpus.plan import dataset_folder
from corpus.shards import clean
from common.console import exit_on_error, stop  # importing corpus has put common/ into sys.path
from common.options import Parser

begin()
parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
for name, purpose in (('check', 'recount and re-hash a dataset'), ('clean', 'remove unfinished work beside it')):
    commands.add_parser(name, help=purpose).add_argument('dataset', help='a name in data/, or a folder')
commands.choices['clean'].add_argument('--dry_run', action='store_true', help='only say what is there')
options = parser.parse_args()
if not options.dataset:
    stop("dataset='' names no folder; name one in data/, or the path of another")
folder = dataset_folder(options.dataset)
with exit_on_error():
    if options.command == 'check':
        check(folder)
    elif not os.path.isdir(folder):
        stop(f'there is no folder {options.dataset}')
    elif not clean(folder, options.dry_run):
        sys.exit(2)
