"""
Merging bytes by hand: how a vocabulary such as GPT-2's is learned (byte-pair encoding, BPE).

A text begins as bytes, 256 possible tokens. The most frequent pair of neighbours becomes a token of its own, again and
again. A letter of English is one byte, a Korean character three: so the first merges put Korean characters together,
where in English they already make pieces of words. Until then a token can be a part of a character: shown as hex.

    python docs/ladder/bpe_by_hand.py [MERGES]

Expect English to go from 1.00 tokens a character to 0.52, Korean from 2.49 to 1.35, with 60 merges each.

To try (answers.md has the answers):
1. 0, 20 and 200 merges. Which text is shorter at the end, in tokens?
2. Encode the Korean text with the merges of the English one. Why does OpenAI's GPT-2 do badly in Korean?
3. Let no merge reach over a space, as GPT-2 does. Which tokens are gone?
"""
import sys
from collections import Counter

# articles 1, 3, 4, 5 and 6 of the Universal Declaration of Human Rights
ENGLISH = '''All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience
and should act towards one another in a spirit of brotherhood. Everyone has the right to life, liberty and security of
person. No one shall be held in slavery or servitude; slavery and the slave trade shall be prohibited in all their
forms. No one shall be subjected to torture or to cruel, inhuman or degrading treatment or punishment. Everyone has the
right to recognition everywhere as a person before the law.'''
KOREAN = '''모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았으며
서로 형제애의 정신으로 행동하여야 한다. 모든 사람은 생명과 신체의 자유와 안전에 대한 권리를 가진다. 어느 누구도 노예상태
또는 예속상태에 놓여지지 아니한다. 모든 형태의 노예제도와 노예매매는 금지된다. 어느 누구도 고문, 또는 잔혹하거나
비인도적이거나 굴욕적인 처우 또는 형벌을 받지 아니한다. 모든 사람은 어디에서나 법 앞에 인간으로서 인정받을 권리를 가진다.'''
count = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def merged(tokens, pair):
    """The tokens with each occurrence of the pair made one."""
    out = []
    for token in tokens:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out


def shown(token):
    text = token.decode(errors='replace')
    return token.hex(' ') if '\ufffd' in text else repr(text)  # hex: a part of a character is in it


for name, text in ('English', ENGLISH), ('Korean', KOREAN):
    tokens = [bytes([byte]) for byte in text.encode()]
    print(f'\n{name}: {len(text)} characters, {len(tokens)} bytes, {len(tokens) / len(text):.2f} tokens a character')
    merges = []
    while len(merges) < count:
        pair, times = Counter(zip(tokens, tokens[1:])).most_common(1)[0]
        if times == 1:
            break
        tokens = merged(tokens, pair)
        merges.append(pair)
        print(f'{len(merges)}: {shown(pair[0])} + {shown(pair[1])} = {shown(pair[0] + pair[1])}, {times} times')
    parts = sum('\ufffd' in token.decode(errors='replace') for token in tokens)
    print(f'{name} now: {len(tokens)} tokens, {len(tokens) / len(text):.2f} tokens a character; '
          f'{parts} tokens have a part of a character in them')
    assert b''.join(tokens).decode() == text  # nothing is lost
    print(' | '.join(map(shown, tokens[:20])))
