"""What those who carry on rely on: CHANGELOG.md says which checkpoints a version reads, LOG.md when what failed."""
import os
import re
from datetime import date

import pytest

from common import checkpoint
from running import ROOT


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


def versions():
    """[(heading without ##, the text below it)] of CHANGELOG.md, the newest first."""
    parts = re.split(r'^## (.*)$', read('CHANGELOG.md'), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2]))


def test_the_newest_version_names_the_format_of_its_checkpoints():
    """Else a release would keep older versions from its checkpoints, and nobody would be told."""
    _, text = versions()[0]
    assert re.findall(r'^Checkpoints: format (\d+)\.', text, re.MULTILINE) == [str(checkpoint.FORMAT)]


def test_versions_descend_and_only_the_newest_may_be_without_a_date():
    form = r'(\d+)\.(\d+)\.(\d+) - (unreleased|\d{4}-\d\d-\d\d)'
    headings = [re.fullmatch(form, heading) for heading, _ in versions()]
    assert headings and all(headings)
    numbers = [tuple(map(int, heading.groups()[:3])) for heading in headings]
    assert numbers == sorted(set(numbers), reverse=True)
    dates = [heading[4] for heading in headings if heading is not headings[0] or heading[4] != 'unreleased']
    assert dates == sorted((date.fromisoformat(day).isoformat() for day in dates), reverse=True)


def tables(path):
    """The rows of each table of a page, without its head, each a list of cells."""
    found = re.findall(r'^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)', read(path), re.MULTILINE)
    return [[[cell.strip() for cell in row.strip('|').split(' | ')] for row in table.splitlines()] for table in found]


@pytest.mark.parametrize('rows', tables('LOG.md'), ids=lambda rows: rows[0][1][:30])
def test_a_failed_experiment_has_a_date_and_the_newest_is_on_top(rows):
    dates = [row[0] for row in rows]
    assert dates == sorted((date.fromisoformat(day).isoformat() for day in dates), reverse=True)
    assert len({len(row) for row in rows}) == 1 and all(cell for row in rows for cell in row[:3])
