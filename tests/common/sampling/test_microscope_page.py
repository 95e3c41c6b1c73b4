"""The page of the microscope: what is packed comes out again, in Python and in a browser, and every control works."""
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from common import generate
from common.sampling import analysis, microscope, microscope_page
from common.tokenizer import BPETokenizer, CharTokenizer, train_bpe
from pages import unpacked

TEXT = 'The cat, 가 안🙂\nthe cat!!'  # with one table a model says at first what it has read: the second ! is right
TOKENIZER = BPETokenizer(train_bpe(['the cat 가나 가나다'] * 3, 270))  # most characters of Hangul are several tokens


@pytest.fixture(scope='module')
def readers(model):
    """Two models with the shape of `model` but a vocabulary of TEXT's bytes, the second after some 'training'."""
    torch.manual_seed(0)
    first = type(model)(dataclasses.replace(model.config, vocab_size=TOKENIZER.vocab_size, block_size=32)).eval()
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.1 * torch.randn_like(p))
    second = type(model)(first.config).eval()
    return first, second


@pytest.fixture(scope='module')
def records(readers):
    return [microscope_page.record(name, model, TOKENIZER, analysis.analyze(model, TOKENIZER, TEXT))
            for name, model in zip(('first <model>', 'out-2'), readers)]


@pytest.fixture(scope='module')
def whole(records):
    return microscope_page.page(records, 1, 'a <title> & {more}', 'en')


def test_what_is_packed_comes_out_again(records, whole):
    header, found = unpacked(whole)
    assert header['shown'] == 1 and header['top_ps'] == microscope.TOP_PS and len(found) == 2
    for (ours, arrays), (theirs, same) in zip(records, found):
        assert json.loads(json.dumps(ours)) == {key: theirs[key] for key in json.loads(json.dumps(ours))}
        assert arrays.keys() == same.keys() and all(np.array_equal(arrays[key], same[key]) for key in arrays)


def test_attention_in_16_bits_is_right_to_one_part_in_100_000(readers, records):
    for model, (header, arrays) in zip(readers, records):
        weights = microscope.look(model, torch.tensor(header['ids']), TOKENIZER.vocab_size)['attention']
        rows, columns = np.tril_indices(header['n'])
        assert np.abs(arrays['attention'] / 65535 - weights.numpy()[:, :, rows, columns]).max() < 1e-5


def test_the_header_names_every_id_that_is_shown(records):
    for header, arrays in records:
        shown = set(header['ids']).union(*(arrays[key].flatten().tolist() for key in arrays if key.endswith('_ids')))
        assert shown <= header['texts'].keys() and all(header['texts'].values())
        assert ''.join(text for text, _ in header['pieces']) == TEXT
        assert sum(tokens for _, tokens in header['pieces']) == len(header['tokens'])
        assert {text for text, tokens in header['pieces'] if tokens > 1} >= {'안', '🙂'}
        assert header['m'] == len(header['tokens']) == header['n'] - 1 == len(header['ids']) - 1


def test_the_page_loads_nothing_and_escapes_what_it_shows(whole):
    assert '<title>a &lt;title&gt; &amp; {more}</title>' in whole and '<model>' not in whole
    assert not re.search(r'(src|href)="(?!data:,)|@import|fetch\(|https?://(?!www\.w3\.org/2000/svg)', whole)
    for mark in ('TITLE', 'WORDS', 'DATA', 'CODE'):
        assert f'/*{mark}*/' not in whole


def test_all_words_are_there_in_both_languages():
    words = json.loads((microscope_page.Path(microscope_page.__file__).with_name('microscope.json')).read_text())
    code, frame = (microscope_page.Path(microscope_page.__file__).with_name(f'microscope.{kind}').read_text()
                   for kind in ('js', 'html'))
    for key, (english, korean) in words.items():
        if isinstance(english, list):
            assert len(english) == len(korean) and all(english) and all(korean)
        else:
            assert sorted(re.findall(r'\{\w*\}', english)) == sorted(re.findall(r'\{\w*\}', korean)) and english
        if not re.search('[가-힣]', ''.join(korean)):
            assert key in ('language', 'mlp'), f'{key} is not translated'
    used = set(re.findall(r"""word\(\s*['"](\w+)['"]""", code)) | set(re.findall('data-word="(\\w+)"', frame))
    used |= {f'{why}_why' for why in re.findall('data-why="(\\w+)"', frame)}
    assert used <= words.keys()
    used |= {f'a_{unit}' for unit in ('token', 'character', 'byte')} | {'wpe_text', 'rope_text'}  # put together
    assert [key for key in words if key not in used and not re.search(rf"['.]{key}\b", code)] == []


@pytest.mark.parametrize('lang, environment, expected', [
    ('auto', 'ko_KR.UTF-8', 'ko'), ('auto', 'en_US.UTF-8', 'auto'), ('en', 'ko_KR.UTF-8', 'en'), ('ko', 'C', 'ko')])
def test_the_language_is_the_one_asked_for_or_that_of_the_environment(records, monkeypatch, lang, environment, expected):
    monkeypatch.setenv('LC_ALL', environment)
    assert f'{{"language": "{expected}"' in microscope_page.page(records[:1], 0, '', lang)


def test_control_characters_are_shown_and_not_obeyed(model):
    odd = CharTokenizer('\n\x1b\x9b[2J\r')
    small = type(model)(dataclasses.replace(model.config, vocab_size=7)).eval()
    header, _ = microscope_page.record('\x1b', small, odd, analysis.analyze(small, odd, '\x1b[2J\x9b\r\n'))
    shown = ''.join([header['name'], *(text for text, _ in header['pieces']), *header['texts'].values()])
    assert header['name'] == r'\x1b' and not set(shown) & set('\x1b\x9b\r') and r'\x9b' in shown


def test_a_perplexity_beyond_a_float_is_unknown_in_the_json(model):
    letters = CharTokenizer(list('\nabc'))
    wild = type(model)(dataclasses.replace(model.config, vocab_size=4)).eval()
    with torch.no_grad():
        wild.lm_head.weight.mul_(1e5)
    record = microscope_page.record('x', wild, letters, analysis.analyze(wild, letters, 'abcabc'))
    assert record[0]['perplexity'] is None and record[0]['bits_per_token'] > 1000
    assert unpacked(microscope_page.page([record], 0, ''))[1][0][0]['perplexity'] is None


def test_a_character_vocabulary_and_half_a_text(model):
    """The context holds 15 characters behind the start; the rest is in the text, but not looked at."""
    letters = CharTokenizer(sorted('\n' + 'abcdefg'))
    small = type(model)(dataclasses.replace(model.config, vocab_size=8)).eval()
    header, arrays = microscope_page.record('x', small, letters, analysis.analyze(small, letters, 'abcdefg' * 5))
    assert len(header['tokens']) == 35 and header['n'] == header['m'] == 16 and len(header['ids']) == 17
    assert arrays['top_ids'].shape == (16, 8) and arrays['near_ids'].shape[1] == 7


def test_kept_weights_are_found_early_to_late_and_thinned(tmp_path):
    with pytest.raises(ValueError, match='--keep_interval=100'):
        microscope_page.snapshots(str(tmp_path))
    with pytest.raises(ValueError, match='no iter_'):
        microscope_page.snapshots(str(tmp_path / 'missing'))
    for i in [*range(0, 2001, 100), 1000000]:
        (tmp_path / f'iter_{i:06d}.pt').touch()
    (tmp_path / 'iter_x.pt').touch()
    found = microscope_page.snapshots(str(tmp_path))
    assert len(found) == microscope_page.CHECKPOINTS and found[0] == (0, str(tmp_path / 'iter_000000.pt'))
    assert found[-1] == (1000000, str(tmp_path / 'iter_1000000.pt'))
    numbers = [iteration for iteration, _ in found]
    assert numbers == sorted(set(numbers))
    for path in list(tmp_path.glob('iter_*0.pt'))[1:]:
        path.unlink()
    assert len(microscope_page.snapshots(str(tmp_path))) == 1


# -----------------------------------------------------------------------------
# in a browser

@pytest.fixture
def opened(tab, whole, tmp_path):
    (tmp_path / 'page.html').write_text(whole)
    tab.goto((tmp_path / 'page.html').as_uri())
    tab.wait_for_selector('html[data-ready]')
    yield tab
    assert all(url.startswith(('file:', 'data:')) for url in tab.asked)


def inked(tab, selector):
    """Whether a canvas has more than one colour."""
    return tab.evaluate('''selector => { const canvas = document.querySelector(selector)
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        return new Set(Array.from({length: data.length / 4}, (_, i) => data.slice(4 * i, 4 * i + 3).join())).size > 1
    }''', selector)


@pytest.mark.slow
def test_every_panel_is_drawn(opened, records):
    header = records[1][0]
    cells = len(header['pieces'])
    assert opened.locator('#title').inner_text() == 'a <title> & {more}'
    assert opened.locator('#text button').count() == cells + 2  # the start, and what comes next
    assert opened.locator('#alternatives tbody tr').count() == 10
    assert opened.locator('#heads button').count() == 4 and inked(opened, '#heads canvas') and inked(opened, '#full')
    assert opened.locator('#looks span').count() == cells + 1
    assert opened.locator('#lens-table tbody tr').count() == 3
    assert opened.locator('#lens-table tbody td.decided').count() == cells + 1
    assert opened.locator('#bars tr').count() in (6, 7)  # a modern model has no bias in its last norm
    for table in ('adds', 'off-here', 'off-all'):
        assert opened.locator(f'#{table} td[title]').count() == 4
    assert opened.locator('#near tbody tr').count() == 10 and inked(opened, '#positions')
    assert opened.locator('#map text').count() == TOKENIZER.vocab_size
    assert opened.locator('#rows tbody tr').count() == 2
    assert opened.locator('.why li').count() == 18 and all(opened.locator('.why li').all_inner_texts())


@pytest.mark.slow
def test_every_control_works(opened, records):
    cells = [text for text, _ in records[1][0]['pieces']]

    def text(selector):
        return opened.locator(selector).inner_text()

    followers = '#alternatives', '#parts-name', '#looks-text', '#lens-text', '#near', '#off-here', '#rows'
    before = [text(selector) for selector in followers]
    opened.click('#text button:nth-child(4)')
    assert not [selector for selector, shown in zip(followers, before) if text(selector) == shown]
    opened.keyboard.press('ArrowRight')
    assert opened.locator('#text [aria-selected=true]').inner_text() == cells[3] and opened.evaluate('chosen.cell') == 4
    for key, cell in (('End', 'next'), ('Home', 'start')):
        opened.keyboard.press(key)
        assert opened.evaluate('current().kind') == cell
    opened.click('#text button:nth-child(3)')
    for slider, value in (('temperature', 0), ('temperature', 20), ('top_k', 1), ('top_p', 0)):
        shown = text('#alternatives')
        opened.locator(f'#{slider}').fill(str(value))
        assert text('#alternatives') != shown or slider == 'top_p', slider
    assert text('output[for=temperature]') == '2.0' and text('output[for=top_k]') == '2'
    opened.click('#heads button:nth-child(4)')
    assert text('#head-name').startswith('Layer 2, head 2')
    opened.keyboard.press('ArrowUp')
    assert text('#head-name').startswith('Layer 1, head 2')
    opened.hover('#looks span:nth-child(6)')
    assert text('#looks-text').startswith(f'‘{cells[4].replace(" ", "␣")}’ looks at')
    opened.hover('#full', position={'x': 1, 'y': 60})
    assert '(start)' in text('#full-text')
    opened.click('#full', position={'x': 1, 'y': 1})
    assert opened.evaluate('chosen.cell') == 0
    shown = text('#lens-text')
    opened.click('#lens-table tbody tr:nth-child(2) td:nth-child(3)')
    assert text('#lens-text') != shown and 'layer 2 ‘' in text('#lens-text')
    assert opened.evaluate('chosen.cell') == 2
    opened.click('#rows tbody tr:nth-child(1)')
    assert 'first <model>' in text('#summary') and text('#model-name') == 'first <model>'
    opened.locator('#model').fill('1')
    assert 'out-2' in text('#summary')
    opened.click('#language')
    assert opened.evaluate('document.documentElement.lang') == 'ko' and '1. 무엇을 예상했나' in text('#expected h2')
    opened.emulate_media(color_scheme='dark')
    opened.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(24, 26, 29)'")
    opened.evaluate('new Promise(requestAnimationFrame)')
    corner = "element('full').getContext('2d').getImageData(it.seen.length - 1, 0, 1, 1).data"
    assert opened.evaluate(f'Array.from({corner})') == [24, 26, 29, 255]


@pytest.mark.slow
@pytest.mark.parametrize('temperature, top_k, top_p', [(10, 0, 1.0), (7, 0, 0.9), (15, 5, 1.0), (3, 50, 0.5),
                                                       (0, 0, 1.0)])
def test_the_page_computes_the_probabilities_of_sampling(opened, readers, records, temperature, top_k, top_p):
    model, ids = readers[1], torch.tensor(records[1][0]['ids'])
    logits = model(ids[None], ids[None])[0][0, :, :TOKENIZER.vocab_size].detach()
    if temperature:
        kept, found = generate.candidates(logits, temperature / 10, top_k, top_p)
        shares = torch.zeros_like(logits).scatter(
            1, torch.arange(logits.size(1)).expand_as(logits) if found is None else found, kept.softmax(dim=1))
    else:
        shares = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.size(1)).float()
    opened.evaluate(f'''Object.assign(chosen, {{temperature: {temperature}, topK: TOP_KS.indexOf({top_k}),
                                                topP: page.top_ps.indexOf({top_p})}})''')
    shown = opened.evaluate('''range(0, it.n).map(p => Array.from(
        at('top_logits', p), (logit, i) => drawing(p).probability(logit, i + 1)))''')
    order = shares.sort(dim=1, descending=True).values
    assert np.abs(np.array(shown) - order.numpy()[:, :len(shown[0])]).max() < 1e-5
    own = opened.evaluate("range(0, it.m).map(p => drawing(p).probability(at('own_logits', p), at('own_ranks', p)))")
    assert np.abs(np.array(own) - shares[:-1].gather(1, ids[1:, None])[:, 0].numpy()).max() < 1e-5


@pytest.mark.slow
def test_a_character_of_several_tokens_is_one_cell_everywhere(opened, readers, records):
    """Attention to it is the sum over its tokens, of it their mean; what is added to its logits is their sum."""
    cells = opened.evaluate('it.cells.map(({text, first, last}) => [text, first, last])')
    assert [text for text, *_ in cells[1:-1]] == [text for text, _ in records[1][0]['pieces']]
    index = next(i for i, (text, first, last) in enumerate(cells) if text == '안')
    _, first, last = cells[index]
    assert last > first
    ids = torch.tensor(records[1][0]['ids'])
    found = microscope.look(readers[1], ids, TOKENIZER.vocab_size)
    own = slice(first, last + 1)
    to = opened.evaluate(f'weights(1, 1)(it.cells[it.cells.length - 2], it.cells[{index}])')
    assert to == pytest.approx(found['attention'][1, 1, -1, own].sum().item(), abs=2e-5 * (last + 1 - first))
    rows = opened.evaluate(f'it.seen.map(cell => weights(1, 1)(it.cells[{index}], cell))')
    assert sum(rows) == pytest.approx(1, abs=1e-3)
    assert rows[0] == pytest.approx(found['attention'][1, 1, own, 0].mean().item(), abs=1e-5)
    opened.click(f'#text button:nth-child({index + 1})')
    assert opened.locator('#alternatives table').count() == opened.locator('#near table').count() == last + 1 - first
    for layer in range(3):
        said, own_ids = found['lens_ids'][layer, first - 1:last, 0].tolist(), ids[first:last + 1].tolist()
        until = next((i + 1 for i, (one, other) in enumerate(zip(said, own_ids)) if one != other), len(said))
        assert opened.evaluate(f'guess({layer}, it.cells[{index}]).ids') == ','.join(map(str, said[:until]))
    parts = ids[first:last + 1].tolist()
    assert opened.evaluate(f'joined({parts})') == '안' and '\\x' in opened.evaluate(f'joined({parts[:1]})')
    total = found['parts'][:, first - 1:last].sum().item()
    assert f': {total:.2f}' in opened.locator('#parts-name').inner_text()


@pytest.mark.slow
def test_the_tables_and_pictures_show_the_figures(opened, readers, records):
    (header, arrays), found = records[1], microscope.look(readers[1], torch.tensor(records[1][0]['ids']), 270)
    cells = opened.evaluate('it.cells.map(({text, first, last}) => [text, first, last])')
    index = next(i for i, (text, first, last) in enumerate(cells) if text == ',')
    place = cells[index][1] - 1  # whose prediction is compared
    opened.click(f'#text button:nth-child({index + 1})')

    def numbers(selector):
        texts = opened.locator(selector).all_inner_texts()
        return torch.tensor([float(text.replace('−', '-')) for text in texts])

    def shown(selector):
        return [text.replace('␣', ' ').replace('↵', '\n') for text in opened.locator(selector).all_inner_texts()]

    def close(one, other, places=3):
        return torch.allclose(one, other.flatten(), rtol=0, atol=0.51 * 10 ** -places)

    parts = found['parts'][:, place]
    parts = parts if parts[-1] else parts[:-1]
    assert close(numbers('#bars tr td:last-child'), torch.cat((parts, parts.sum()[None])))
    widths = opened.evaluate("Array.from(document.querySelectorAll('#bars i'), bar => parseFloat(bar.style.width))")
    assert close(torch.tensor(widths), 50 * parts.abs() / parts.abs().max(), places=2)
    assert close(numbers('#off-here td[title]'), found['ablation'][:, :, place])
    assert close(numbers('#off-all td[title]'), found['ablation'].mean(dim=2))
    assert close(numbers('#adds td[title]'), found['head_parts'][:, :, place])
    if header['has_bias']:  # what is not of any head
        rest = found['parts'][1:-1:2, place] - found['head_parts'][:, :, place].sum(dim=1)
        assert close(numbers('#adds tr td:last-child:not(:empty)'), rest)
    row = header['distinct'].index(header['ids'][place + 1])
    assert close(numbers('#near tbody td:last-child'), found['near_cosines'][row])
    assert shown('#near tbody td:first-child') == [header['texts'][i] for i in found['near_ids'][row].tolist()]
    lens = opened.evaluate('''Array.from(document.querySelectorAll('#lens-table tbody tr'), row => Array.from(
        row.querySelectorAll('td'), box => [box.textContent, box.style.fontWeight === '700',
                                            box.classList.contains('decided'), parseFloat(box.style.background.match(
                                            /[\\d.]+(?=\\))/)[0])])).reverse()''')  # from the embedding on
    right = 0
    for i, (_, first, last) in enumerate(cells[1:]):
        if first == last < header['n']:
            said = found['lens_ids'][:, first - 1, 0]
            texts, bold, decided, shades = zip(*(lens[layer][i] for layer in range(3)))
            assert list(texts) == [label(header['texts'][one]) for one in said.tolist()]
            assert list(bold) == [one == header['ids'][first] for one in said.tolist()]
            assert decided.index(True) == min(layer for layer in range(3) if (said[layer:] == said[2]).all())
            assert sum(decided) == 1 and close(torch.tensor(shades), 0.6 * found['lens_probs'][:, first - 1, 0], places=2)
            right += sum(bold)
    assert right > 0 or readers[1].config.modern
    x = numbers_of(opened, '#map text', 'x')
    spread = found['map_places'][:, 0]
    assert torch.allclose(x, 14 + 492 * (spread - spread.min()) / (spread.max() - spread.min()), atol=0.1)
    picture = opened.evaluate('''Array.from(element('full').getContext('2d').getImageData(
        0, 0, it.seen.length, it.seen.length).data)''')
    picture = torch.tensor(picture).view(len(cells) - 1, -1, 4)[..., 2]  # blue: 255 on paper, 20 in full ink
    weights = torch.tensor(opened.evaluate('it.seen.map(from => it.seen.map(to => weights(0, 0)(from, to)))'))
    assert (picture - (255 - 235 * weights.sqrt())).abs().max() <= 1.5
    best = weights[index].argmax().item()
    assert re.search(r'looks at (\S+) ([\d.]+)%', opened.locator('#looks-text').inner_text())[2] == (
        f'{100 * weights[index, best]:.2f}')
    assert f'{header["bits_per_byte"]:.2f} a byte' in opened.locator('#summary').inner_text()
    assert opened.locator('#alternatives small').first.inner_text().startswith('270 of 270')
    bits = header['tokens'][place][2]
    shade = opacity(opened.locator(f'#text button:nth-child({index + 1})'))
    assert shade == pytest.approx(0.6 * min(1, bits / 16), abs=0.005)


def label(text):
    return text.replace(' ', '␣').replace('\n', '↵')


def opacity(made):
    colour = made.evaluate('made => getComputedStyle(made).backgroundColor')
    return float(re.fullmatch(r'rgba\(.*, ([\d.]+)\)', colour)[1])


def numbers_of(tab, selector, attribute):
    return torch.tensor(tab.evaluate(f'''Array.from(document.querySelectorAll({selector!r}),
                                                    made => parseFloat(made.getAttribute({attribute!r})))'''))


@pytest.fixture(scope='module')
def unlike(model):
    """A page of a text that is longer than the second model's context, which differs in all that it can."""
    torch.manual_seed(0)
    letters, text = CharTokenizer(sorted(set('\n the cats'))), 'the cat at the cat\n' * 3
    kinds = [dict(vocab_size=TOKENIZER.vocab_size, block_size=64, softcap=15.0),
             dict(vocab_size=letters.vocab_size, block_size=12, n_layer=1, n_head=4)]
    records = []
    for name, kind, tokenizer in zip((250, 'letters'), kinds, (TOKENIZER, letters)):
        one = type(model)(dataclasses.replace(model.config, **kind)).eval()
        records.append(microscope_page.record(name, one, tokenizer, analysis.analyze(one, tokenizer, text)))
    return records, microscope_page.page(records, 0, 'unlike')


@pytest.mark.slow
@pytest.mark.parametrize('locale', ['en-US', 'ko-KR'])
def test_models_that_differ_in_everything_stand_on_one_page(chromium, unlike, tmp_path, locale):
    (first, second), whole = unlike[0], unlike[1]
    (tmp_path / 'page.html').write_text(whole)
    context = chromium.new_context(locale=locale)
    tab, wrong = context.new_page(), []
    tab.on('pageerror', lambda error: wrong.append(str(error)))
    tab.goto((tmp_path / 'page.html').as_uri())
    tab.wait_for_selector('html[data-ready]')
    assert tab.evaluate('document.documentElement.lang') == locale[:2]
    assert tab.locator('#model-name').inner_text() == ('iteration 250' if locale == 'en-US' else '반복 250')
    assert 'softcap' in tab.locator('#parts-name').inner_text()
    tab.click('#heads button:nth-child(4)')
    last = tab.evaluate("it.cells.findLast(cell => cell.kind === 'text').begin")
    tab.evaluate("choose(it.cells.findLastIndex(cell => cell.kind === 'text'))")
    tab.locator('#model').fill('1')
    assert tab.evaluate('[chosen.layer, chosen.head]') == [0, 1] and tab.locator('#heads button').count() == 4
    assert tab.evaluate('current().begin') == 11 < last  # the last that this model has examined
    assert 'softcap' not in tab.locator('#parts-name').inner_text()
    summary = tab.locator('#summary').inner_text()
    assert ('the first 12 tokens' if locale == 'en-US' else '처음 12개 토큰만') in summary and tab.locator('#text span').count() == 57 - 12
    tab.evaluate('choose(1)')  # t
    same = tab.locator('#rows tbody tr td:nth-child(3)').all_inner_texts()
    begins_alike = first[0]['pieces'][0][0] == 't'
    assert same == [f'{first[0]["tokens"][0][2]:.2f}' if begins_alike else '', f'{second[0]["tokens"][0][2]:.2f}']
    tab.click('#heads button:nth-child(4)')
    assert tab.locator('#heads [tabindex="0"]').count() == 1
    assert tab.evaluate("element('full-row').style.top") == f'{100 / 12:.6g}%'  # of t, behind the start
    tab.focus('#rows tbody tr:nth-child(1) button')
    tab.keyboard.press('Enter')
    assert tab.evaluate('[chosen.layer, chosen.head]') == [0, 1]
    assert tab.evaluate('chosen.model') == 0 and tab.evaluate('document.activeElement.textContent').endswith('250')
    context.close()
    assert wrong == []


@pytest.mark.slow
def test_a_first_character_that_is_not_examined_whole_breaks_nothing(tab, model, tmp_path):
    tiny = type(model)(dataclasses.replace(model.config, vocab_size=TOKENIZER.vocab_size, block_size=2)).eval()
    record = microscope_page.record('x', tiny, TOKENIZER, analysis.analyze(tiny, TOKENIZER, '뷁 cat'))
    (tmp_path / 'page.html').write_text(microscope_page.page([record], 0, ''))
    tab.goto((tmp_path / 'page.html').as_uri())
    tab.wait_for_selector('html[data-ready]')
    assert tab.evaluate('current().kind') == 'start'


@pytest.mark.slow
def test_what_has_no_width_can_be_seen(opened):
    assert opened.evaluate("label('\u200d')") == r'\u200d' and opened.evaluate("label('a b\\n\\u0301')") == 'a␣b↵\u0301'


@pytest.mark.slow
def test_a_page_names_itself_to_screen_readers(opened):
    unnamed = opened.evaluate('''
        Array.from(document.querySelectorAll('button, input, canvas[role], svg[role], [role=listbox]'))
            .filter(made => !(made.textContent.trim() || made.getAttribute('aria-label') || made.labels?.length))
            .map(made => made.outerHTML)''')
    assert unnamed == []
    assert opened.locator('#text [role=option]').count() == opened.locator('#text button').count()
