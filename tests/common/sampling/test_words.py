"""The language that the user reads."""
import pytest

from common.sampling.words import language


@pytest.mark.parametrize('value, expected', [
    ('ko_KR.UTF-8', 'ko'), ('ko_KR.eucKR', 'ko'), ('ko', 'ko'), ('ko_KP', 'ko'), ('KO_KR', 'ko'), ('ko-KR', 'ko'),
    ('ko@hangul', 'ko'), ('ko.UTF-8', 'ko'), ('en_US.UTF-8', 'en'), ('C.UTF-8', 'en'), ('C', 'en'), ('POSIX', 'en'),
    ('', 'en'), ('kok_IN', 'en'), ('en_KR', 'en'), ('de_DE@ko', 'en')])
def test_a_korean_locale_is_one_whose_language_is_ko(value, expected):
    assert language({'LANG': value}) == expected


@pytest.mark.parametrize('environ, expected', [
    ({}, 'en'), ({'LC_MESSAGES': 'ko_KR'}, 'ko'), ({'LC_ALL': 'ko_KR'}, 'ko'),
    ({'LC_ALL': 'ko_KR', 'LC_MESSAGES': 'C', 'LANG': 'C'}, 'ko'), ({'LC_ALL': 'C', 'LANG': 'ko_KR'}, 'en'),
    ({'LC_MESSAGES': 'C', 'LANG': 'ko_KR'}, 'en'), ({'LC_MESSAGES': 'ko_KR', 'LANG': 'C'}, 'ko'),
    ({'LC_ALL': '', 'LC_MESSAGES': '', 'LANG': 'ko_KR'}, 'ko'), ({'LC_CTYPE': 'ko_KR', 'LANG': 'C'}, 'en')])
def test_the_first_variable_of_posix_that_is_set_and_not_empty_decides(environ, expected):
    assert language(environ) == expected


def test_it_is_read_when_it_is_needed(monkeypatch):
    for value, expected in (('ko_KR.UTF-8', 'ko'), ('C.UTF-8', 'en')):
        monkeypatch.setenv('LC_ALL', value)
        assert language() == expected
