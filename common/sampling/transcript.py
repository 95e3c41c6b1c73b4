"""A conversation in a file: as text to read, or as JSON that a chat can continue. It knows no model."""
import json
import os

from common import files
from common.sampling.speaker import Turn


def is_json(path):
    return path.lower().endswith('.json')


def write(path, system, speakers):
    """The exact text of all turns, in a new file. ValueError if it cannot be written, or is already there."""
    if is_json(path):
        text = json.dumps({'system': system, 'conversations': [
            {'model': speaker.name, 'turns': [{'said': turn.text, 'answer': turn.answer, 'ended': turn.ended}
                                              for turn in speaker.turns]} for speaker in speakers]},
            ensure_ascii=False, indent=1) + '\n'
    else:
        text = '\n'.join([f'[{speaker.name}]\n{system}\n' + ''.join(
            f'\n> {turn.text}\n{turn.answer}\n' for turn in speaker.turns) for speaker in speakers])
    try:
        for name in (path, f'{path}.tmp'):  # write_whole would replace both
            if os.path.lexists(name):
                raise ValueError(f'{name} is already there')
        with files.write_whole(path, 'wb') as f:
            f.write(text.encode('utf-8', 'backslashreplace'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be written ({getattr(error, "strerror", None) or error}); choose another name'
                         ) from None


def read(path):
    """(system, turns of the first speaker, without ids) of a JSON that write() has made. ValueError if it is none."""
    with open(path, encoding='utf-8-sig') as f:
        try:
            saved = json.load(f)
            turns = [Turn(turn['said'], [], turn['answer'], [], bool(turn['ended']))
                     for turn in saved['conversations'][0]['turns']]
            texts = [saved['system'], *(text for turn in turns for text in (turn.text, turn.answer))]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError('a text is none')
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f'{path} is not a conversation that /save has written') from None
    return saved['system'], turns
