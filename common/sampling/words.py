"""The language that the user reads, as the environment says. It has no texts."""
import os
import re

VARIABLES = 'LC_ALL', 'LC_MESSAGES', 'LANG'  # in POSIX's order: the first that is set and not empty decides


def language(environ=os.environ):
    """'ko' where the locale is Korean, such as ko_KR.UTF-8; else 'en'."""
    locale = next(filter(None, map(environ.get, VARIABLES)), '')
    return 'ko' if re.split('[_.@-]', locale.lower())[0] == 'ko' else 'en'
