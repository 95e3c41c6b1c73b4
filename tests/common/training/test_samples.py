"""The fixed prompts of a run."""
from common.training import samples

CHAR = {'tokenizer': 'char', 'vocab_size': 3, 'chars': '\nab'}


def test_prompts_are_split_and_an_empty_one_starts_a_text(tmp_path):
    assert samples.encode_prompts(CHAR, '|ab') == [[0], [1, 2]]
    assert samples.encode_prompts(CHAR, '') == []
    (tmp_path / 'prompts.txt').write_text('ab\nb\n')
    assert samples.encode_prompts(CHAR, f'FILE:{tmp_path}/prompts.txt') == [[1, 2], [2]]
