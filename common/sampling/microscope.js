// The page of the microscope: draws what microscope_page.py has packed. No library, no network.
'use strict'
const element = id => document.getElementById(id)
const words = JSON.parse(element('words').textContent)
const TOP_KS = [1, 2, 3, 5, 10, 20, 50, 100, 200, 0]  // the last: all
// what the reader has chosen: a model, a cell of its text, a head, how to draw
const chosen = {language: 0, model: 0, cell: 1, layer: 0, head: 0, temperature: 0, topK: TOP_KS.length - 1, topP: 0}
let page, models, it  // everything; its models; the one that is shown

// ---- small helpers

function word(key, values = {}) {
  if (typeof values !== 'object') values = {'': values}
  return words[key][chosen.language].replace(/\{(\w*)\}/g, (place, name) => name in values ? values[name] : place)
}

function make(parent, tag, text, attributes = {}) {
  const made = parent.appendChild(tag === 'text' ? document.createElementNS('http://www.w3.org/2000/svg', tag)
                                                 : document.createElement(tag))
  if (text !== undefined) made.textContent = text
  for (const name in attributes) made.setAttribute(name, attributes[name])
  return made
}

const fill = (id, text) => { element(id).textContent = text }
const clear = id => { const found = element(id); found.replaceChildren(); return found }
const percent = p => (100 * p).toFixed(p > 0 && p < 1e-4 ? 6 : 2) + '%'
const sum = values => values.reduce((total, value) => total + value, 0)
const range = (from, to) => Array.from({length: Math.max(0, to - from)}, (_, i) => from + i)
// a token in one line, with its blanks and line ends to be seen
const label = text => visible(text).replace(/ /g, '␣').replace(/\t/g, '⇥').replace(/\r/g, '\\r')
// line ends, and what has no width of its own, to be seen and hit
const visible = text => text.replace(/\n/g, '↵').replace(/^[\p{Cf}\p{M}]+$/u, marks =>
  Array.from(marks, mark => `\\u${mark.codePointAt(0).toString(16).padStart(4, '0')}`).join(''))
const signed = value => (value < 0 ? '−' : '+') + Math.abs(value).toFixed(3)
const quoted = cell => `‘${label(cell.text)}’`

// a colour of the style sheet, by its name there: three numbers, or one with a share of it
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim().split(/\s+/).map(Number)
const rgb = (name, share = 1) => `rgb(${colour(name).join(' ')} / ${(100 * share).toFixed(1)}%)`
// behind text, which stays readable: a contrast of 4.5 and more
const tint = (name, share) => rgb(name, share * colour('--most')[0])
// red for positive values, blue for negative ones, up to a scale
const sign = value => value < 0 ? '--cold' : '--hot'
const heat = (value, scale) => tint(sign(value), scale > 0 ? Math.min(1, Math.abs(value) / scale) : 0)
const surprise = bits => tint('--hot', Math.min(1, bits / 16))

// a picture of rows x columns from values -1 to 1, a pixel each
function paint(canvas, rows, columns, value) {
  Object.assign(canvas, {width: columns, height: rows})
  const [paper, hot, cold] = ['--paper', '--hot', '--cold'].map(colour)
  const context = canvas.getContext('2d'), image = context.createImageData(columns, rows)
  for (let i = 0, at = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const v = value(i, j), share = Math.min(1, Math.abs(v)), ink = v < 0 ? cold : hot
      for (let c = 0; c < 3; c++) image.data[at++] = paper[c] + (ink[c] - paper[c]) * share
      image.data[at++] = 255
    }
  }
  context.putImageData(image, 0, 0)
}

// ---- the data: a header of JSON and arrays behind it, as microscope_page.pack() writes them

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), char => char.charCodeAt(0))
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))
  const buffer = await new Response(stream).arrayBuffer()
  const length = new DataView(buffer).getUint32(0, true)
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)))
  const begin = 4 + 4 * Math.ceil(length / 4)
  const kinds = {float32: Float32Array, uint16: Uint16Array, int32: Int32Array}
  for (const model of header.models) {
    model.arrays = {}
    for (const [name, [kind, shape, offset]] of Object.entries(model.places)) {
      const values = new kinds[kind](buffer, begin + offset, shape.reduce((a, b) => a * b, 1))
      model.arrays[name] = {values, shape}
    }
    prepare(model)
  }
  return header
}

// a value, or a row of values where fewer indices are given than there are dimensions
function at(name, ...indices) {
  const {values, shape} = it.arrays[name]
  let offset = 0, size = values.length
  indices.forEach((index, i) => { size /= shape[i]; offset += index * size })
  return indices.length === shape.length ? values[offset] : values.subarray(offset, offset + size)
}

// cells: whole characters, {text, first, last, begin}: the positions of their tokens, of which 0 is the start, and
// where they begin in the text
function prepare(model) {
  model.cells = [{text: '', first: 0, last: 0, begin: -1, kind: 'start'}]
  let position = 1, begin = 0
  for (const [text, tokens] of model.pieces) {
    model.cells.push({text, first: position, last: position + tokens - 1, begin, kind: 'text',
                      bits: sum(model.tokens.slice(position - 1, position - 1 + tokens).map(token => token[2]))})
    position += tokens
    begin += text.length
  }
  if (model.n > model.m) model.cells.push({text: '', first: model.n, last: model.n, begin, kind: 'next'})
  for (const cell of model.cells) cell.isExamined = cell.last <= model.m || cell.kind === 'next'
  model.seen = model.cells.filter(cell => cell.last < model.n)  // that a head can look at and from
}

// the cell at a place in the text, else the last one in front of it, that a model has examined
function cellAt(model, begin) {
  const before = model.cells.filter(cell => cell.isExamined && cell.begin <= begin)
  return model.cells.indexOf(before[before.length - 1])
}

const text = id => it.texts[id]
// the text of several ids, whose bytes, such as \xeb, may be a character together
const joined = ids => ids.map(text).join('').replace(/(\\x[89a-f][0-9a-f]){2,}/g, bytes => {
  try {
    const values = bytes.match(/[0-9a-f]{2}/g).map(hex => parseInt(hex, 16))
    const decoded = new TextDecoder('utf-8', {fatal: true}).decode(Uint8Array.from(values))
    return /[\x80-\x9f]/.test(decoded) ? bytes : decoded  // control characters stay as they are shown
  } catch {
    return bytes
  }
})
const named = id => `‘${label(text(id))}’`
const name = cell => cell.kind === 'text' ? quoted(cell) : word(cell.kind)
const positions = cell => range(cell.first, cell.last + 1)
const current = () => it.cells[chosen.cell]
const counted = number => number.toLocaleString('en')
const modelName = model => model.iteration === null ? model.name : word('iteration', counted(model.iteration))

// ---- 1: what was expected

// how the ids at a position are drawn: how many are left, and the probability of one by its logit and rank
function drawing(position) {
  const temperature = page.temperatures[chosen.temperature - 1], logits = at('top_logits', position)
  if (chosen.temperature === 0) return {kept: 1, probability: (logit, rank) => +(rank === 1)}
  const topK = TOP_KS[chosen.topK], topP = page.top_ps[chosen.topP]
  let kept, normalizer
  if (topK === 0 || topK >= it.vocabulary) {
    kept = at('kept', position, chosen.temperature - 1, chosen.topP)
    normalizer = at('normalizers', position, chosen.temperature - 1, chosen.topP)
  } else {
    const shares = Array.from(logits.subarray(0, topK), logit => Math.exp(logit / temperature))
    const left_out = topP < 1 ? (1 - topP) * sum(shares) : -1
    kept = topK
    for (let out = shares[kept - 1]; kept > 1 && out <= left_out; out += shares[kept - 1]) kept--
    normalizer = Math.log(sum(shares.slice(0, kept)))
  }
  return {kept, probability: (logit, rank) => rank <= kept ? Math.exp(logit / temperature - normalizer) : 0}
}

function drawAlternatives() {
  const place = clear('alternatives'), cell = current()
  if (cell.kind === 'start') { make(place, 'p', word('nothing')); return }
  for (const position of positions(cell).map(p => p - 1)) {
    const {kept, probability} = drawing(position), own = position < it.m ? it.ids[position + 1] : null
    const box = make(place, 'div'), table = make(box, 'table')
    const caption = make(table, 'caption', word('comes'))
    if (own !== null) {
      const rank = at('own_ranks', position), p = probability(at('own_logits', position), rank)
      caption.textContent = word('came', {token: named(own), probability: percent(p), rank,
                                          bits: it.tokens[position][2].toFixed(2)})
    }
    const head = make(make(table, 'thead'), 'tr'), body = make(table, 'tbody')
    for (const heading of ['token', 'probability']) make(head, 'th', word(heading), {scope: 'col'})
    make(head, 'td')
    at('top_ids', position).forEach((id, i) => {
      const p = probability(at('top_logits', position, i), i + 1)
      const row = make(body, 'tr', undefined, id === own ? {class: 'is-own'} : {})
      make(row, 'td', label(text(id)), {class: 'token'})
      make(row, 'td', percent(p))
      make(make(row, 'td'), 'span', undefined, {class: 'bar', style: `width:${(14 * p).toFixed(2)}em`})
    })
    make(box, 'small', word('kept', {count: counted(kept), all: counted(it.vocabulary)}))
  }
}

function drawSliders() {
  const temperature = page.temperatures[chosen.temperature - 1] ?? 0  // 0 stands in front of them
  const shown = {temperature: temperature.toFixed(1), top_k: TOP_KS[chosen.topK] || word('all'),
                 top_p: page.top_ps[chosen.topP]}
  for (const id in shown) {
    document.querySelector(`output[for=${id}]`).textContent = shown[id]
    element(id).setAttribute('aria-valuetext', shown[id])
  }
}

// ---- 2: attention

// of a head, a function of two cells: the share of the first that comes from the other, the sum over the tokens of that
// and the mean over its own
function weights(layer, head) {
  const triangle = at('attention', layer, head)  // its rows one behind the other
  return (from, to) => {
    let total = 0
    for (let i = from.first; i <= from.last; i++) {
      for (let j = to.first; j <= Math.min(i, to.last); j++) total += triangle[i * (i + 1) / 2 + j]
    }
    return total / 65535 / (from.last - from.first + 1)
  }
}

// a map of all cells, each row as bright as its root says, as small weights are many
function paintHead(canvas, layer, head) {
  const {seen} = it, share = weights(layer, head)
  paint(canvas, seen.length, seen.length, (i, j) => j > i ? 0 : Math.sqrt(share(seen[i], seen[j])))
}

function kind(layer, head) {
  const scores = Array.from(at('head_scores', layer, head)), best = Math.max(...scores)
  return best < page.clear ? word('mixed') : words.kinds[chosen.language][scores.indexOf(best)]
}

const headName = (layer, head) => word('head', {layer: layer + 1, head: head + 1, kind: kind(layer, head)})

function drawHeads() {
  const grid = clear('heads')
  grid.setAttribute('aria-label', word('attention'))
  grid.style.gridTemplateColumns = `repeat(${it.heads}, 66px)`
  for (const layer of range(0, it.layers)) {
    for (const head of range(0, it.heads)) {
      const title = headName(layer, head)
      const button = make(grid, 'button', undefined, {type: 'button', title, 'aria-label': title})
      paintHead(make(button, 'canvas', undefined, {'aria-hidden': true}), layer, head)
      make(button, 'span', kind(layer, head) === word('mixed') ? `${layer + 1}.${head + 1}` : kind(layer, head))
      button.addEventListener('click', () => {
        Object.assign(chosen, {layer, head})
        markHead()
        drawHead()
      })
    }
  }
  markHead()
}

// the chosen head; the arrow keys go to the others, so that Tab passes them at once
function markHead() {
  Array.from(element('heads').children).forEach((button, i) => {
    const isChosen = i === chosen.layer * it.heads + chosen.head
    button.classList.toggle('chosen', isChosen)
    button.setAttribute('aria-pressed', isChosen)
    button.tabIndex = isChosen ? 0 : -1
  })
}

function drawHead() {
  const {seen} = it, {layer, head} = chosen
  fill('head-name', headName(layer, head))
  fill('head-scores', words.kinds[chosen.language].map((kind, i) =>
    `${kind} ${percent(at('head_scores', layer, head, i))}`).join(' · '))
  const canvas = element('full'), scale = Math.max(4, Math.min(24, Math.floor(560 / seen.length)))
  paintHead(canvas, layer, head)
  Object.assign(canvas.style, {width: `${scale * seen.length}px`, height: `${scale * seen.length}px`})
  for (const id of ['full-left', 'full-top']) {  // where there is room for them
    const names = clear(id)
    names.style.fontSize = `${Math.min(15, scale - 3)}px`
    if (scale > 11) for (const cell of seen) make(names, 'span', cell.kind === 'start' ? '·' : label(cell.text))
  }
  canvas.setAttribute('aria-label', `${word('full')} ${headName(layer, head)}`)
  fill('full-text', word('full'))
  const looks = clear('looks')
  for (const cell of seen) {
    const isStart = cell.kind === 'start'
    const span = make(looks, 'span', isStart ? word('start') : cell.text, isStart ? {class: 'mark'} : {})
    span.addEventListener('pointerenter', () => drawLooks(cell))
    span.addEventListener('click', () => choose(it.cells.indexOf(cell)))
  }
  drawLooks()
}

// where a cell looks; without one, the chosen cell, or the last one where that looks at nothing
function drawLooks(cell) {
  const {seen} = it
  const from = cell || (seen.includes(current()) ? current() : seen[seen.length - 1])
  const shares = seen.map(to => weights(chosen.layer, chosen.head)(from, to)), best = Math.max(...shares)
  Array.from(element('looks').children).forEach((span, i) => {
    span.style.background = tint('--hot', best > 0 ? shares[i] / best : 0)
    span.classList.toggle('chosen', seen[i] === from)
  })
  const rows = 100 / seen.length  // in percent of the map
  Object.assign(element('full-row').style, {top: `${rows * seen.indexOf(from)}%`, height: `${rows}%`})
  const order = range(0, seen.length).sort((a, b) => shares[b] - shares[a]).slice(0, 5).filter(i => shares[i] >= 5e-5)
  const list = order.map(i => `${name(seen[i])} ${percent(shares[i])}`).join(', ')
  fill('looks-text', word('looks', {token: name(from), list}))
}

// ---- 3: the logit lens

// what a layer says in the place of a cell, up to the first token that is wrong: what it says behind that is an answer
// to the token that came
function guess(layer, cell) {
  const before = positions(cell).map(p => p - 1), said = before.map(p => at('lens_ids', layer, p, 0))
  const wrong = said.findIndex((id, i) => id !== it.ids[before[i] + 1])
  const ids = wrong < 0 ? said : said.slice(0, wrong + 1)
  return {ids: ids.join(), isRight: wrong < 0 && cell.kind === 'text', text: joined(ids),
          probability: ids.reduce((product, _, i) => product * at('lens_probs', layer, before[i], 0), 1)}
}

// the first layer from which on nothing changes any more
function decision(cell) {
  let layer = it.layers
  while (layer > 0 && guess(layer - 1, cell).ids === guess(it.layers, cell).ids) layer--
  return layer
}

const layerName = layer => layer ? word('layer', layer) : word('embedding')

// what a layer says for each token of a cell: the likeliest five, and the token that came
function details(layer, cell) {
  return positions(cell).map(p => p - 1).map(p => {
    const probabilities = at('lens_probs', layer, p)
    const list = Array.from(at('lens_ids', layer, p), (id, i) => `${named(id)} ${percent(probabilities[i])}`)
    const own = p < it.m ? word('said', {token: named(it.ids[p + 1]), probability: percent(at('lens_own', layer, p)),
                                         rank: at('lens_ranks', layer, p)}) : ''
    return list.join(', ') + own
  }).join(' | ')
}

function drawLens() {
  const table = clear('lens-table'), cells = it.cells.filter(cell => cell.kind !== 'start' && cell.isExamined)
  const head = make(make(table, 'thead'), 'tr'), body = make(table, 'tbody')
  make(head, 'td')
  for (const cell of cells) {
    const heading = cell.kind === 'next' ? word('next') : label(cell.text)
    make(head, 'th', heading, {scope: 'col', 'data-cell': it.cells.indexOf(cell)})
  }
  const decided = cells.map(decision)
  for (const layer of range(0, it.layers + 1).reverse()) {
    const row = make(body, 'tr'), title = layerName(layer)
    make(row, 'th', title, {scope: 'row'})
    cells.forEach((cell, i) => {
      const said = guess(layer, cell)
      const box = make(row, 'td', label(said.text), {class: 'said', title: `${title}: ${details(layer, cell)}`})
      box.style.background = tint('--cold', said.probability)
      if (said.isRight) box.style.fontWeight = 700
      if (layer === decided[i]) box.classList.add('decided')
      box.addEventListener('click', () => choose(it.cells.indexOf(cell)))
    })
  }
  markLens()
}

// the chosen cell: its column, and in words what each layer says
function markLens() {
  const cell = current()
  const list = cell.kind === 'start' ? [] : range(0, it.layers + 1).map(layer => {
    const {text, probability} = guess(layer, cell)
    return `${layerName(layer)} ‘${label(text)}’ ${percent(probability)}`
  })
  fill('lens-text', list.length === 0 ? word('nothing') : word('decides', {
    token: name(cell), list: list.join(', '), layer: layerName(decision(cell))}))
  for (const box of element('lens-table').querySelectorAll('thead [data-cell]')) {
    box.classList.toggle('at', +box.dataset.cell === chosen.cell)
    if (+box.dataset.cell === chosen.cell) {  // the table alone scrolls, not the page
      const frame = element('lens-table').parentElement, side = box.offsetLeft - frame.clientWidth / 2
      frame.scrollLeft = Math.max(0, side)
    }
  }
}

// ---- 4: who adds what, and what is missed

function drawParts() {
  const cell = current()
  for (const id of ['bars', 'adds', 'off-here']) clear(id)
  drawTable('off-all', (layer, head) => sum(at('ablation', layer, head)) / it.m)
  if (cell.kind !== 'text') { fill('parts-name', word('no_token')); return }
  const own = positions(cell).map(p => p - 1), count = 2 * it.layers + 2
  const values = range(0, count).map(part => sum(own.map(p => at('parts', part, p))))
  const ofLayer = layer => [word('attn', layer + 1), word('mlp', layer + 1)]
  const names = [word('embedding'), ...range(0, it.layers).flatMap(ofLayer), word('bias')]
  const total = sum(values), largest = Math.max(...values.map(Math.abs), 1e-9)
  const heading = word('parts_name', {token: quoted(cell), total: total.toFixed(2)})
  fill('parts-name', heading + (it.softcap ? word('softcap') : ''))
  names.push(word('total'))
  values.push(total)
  values.forEach((value, i) => {
    if (i === count - 1 && value === 0) return  // there is no bias
    const row = make(element('bars'), 'tr'), share = 50 * Math.min(1, Math.abs(value) / largest)
    make(row, 'th', names[i], {scope: 'row'})
    const place = make(row, 'td')
    if (i < count) {  // the sum has no bar, or the others would be short
      const {style} = make(make(place, 'div', undefined, {class: 'both'}), 'i')
      Object.assign(style, {background: rgb(sign(value)), width: `${share}%`, left: `${value < 0 ? 50 - share : 50}%`})
    }
    make(row, 'td', signed(value))
  })
  const heads = layer => range(0, it.heads).map(head => sum(own.map(p => at('head_parts', layer, head, p))))
  const rest = range(0, it.layers).map(layer => values[1 + 2 * layer] - sum(heads(layer)))  // of the projection's bias
  drawTable('adds', (layer, head) => head < it.heads ? heads(layer)[head] : rest[layer], it.has_bias)
  drawTable('off-here', (layer, head) => sum(own.map(p => at('ablation', layer, head, p))))
}

// a table of layers x heads, and of their bias if there is one
function drawTable(id, value, hasBias = false) {
  const table = clear(id), head = make(make(table, 'thead'), 'tr'), body = make(table, 'tbody')
  const values = range(0, it.layers).map(layer => range(0, it.heads + hasBias).map(head => value(layer, head)))
  const scale = Math.max(...values.flat().map(Math.abs))
  make(head, 'td')
  for (const i of range(0, it.heads)) make(head, 'th', i + 1, {scope: 'col'})
  if (hasBias) make(head, 'th', word('its_bias'), {scope: 'col'})
  values.forEach((row, layer) => {
    const line = make(body, 'tr')
    make(line, 'th', word('layer', layer + 1), {scope: 'row'})
    row.forEach((v, i) => {
      const box = make(line, 'td', signed(v), i < it.heads ? {title: headName(layer, i)} : {})
      box.style.background = heat(v, scale)
    })
  })
}

// ---- 5: embeddings and positions

function drawNear() {
  const place = clear('near')
  const own = current().kind === 'next' ? [] : positions(current()).map(p => it.ids[p])
  if (own.length === 0) make(place, 'p', word('no_token'))
  for (const id of own) {
    const row = it.distinct.indexOf(id), table = make(place, 'table')
    make(table, 'caption', named(id))
    const head = make(make(table, 'thead'), 'tr'), body = make(table, 'tbody')
    for (const heading of ['token', 'cosine']) make(head, 'th', word(heading), {scope: 'col'})
    Array.from(at('near_ids', row)).forEach((other, i) => {
      const line = make(body, 'tr')
      make(line, 'td', label(text(other)), {class: 'token'})
      make(line, 'td', at('near_cosines', row, i).toFixed(3))
    })
  }
  for (const point of element('map').children) point.classList.toggle('chosen', own.includes(+point.dataset.id))
}

function drawMap() {
  const svg = clear('map'), ids = Array.from(it.arrays.map_ids.values)
  const along = axis => ids.map((_, i) => at('map_places', i, axis)), scaled = (values, size) => {
    const low = Math.min(...values), high = Math.max(...values)
    return values.map(value => 14 + (size - 28) * (high > low ? (value - low) / (high - low) : .5))
  }
  const x = scaled(along(0), 520), y = scaled(along(1), 420)
  ids.forEach((id, i) => {
    make(svg, 'text', label(text(id)), {x: x[i].toFixed(1), y: (420 - y[i]).toFixed(1), 'data-id': id})
  })
  const isWhole = ids.length === it.vocabulary
  fill('map-name', word(isWhole ? 'map' : 'map_part'))
  svg.setAttribute('aria-label', word('map_text', {count: ids.length}))
}

function drawPositions() {
  const [rows, columns] = it.arrays.positions.shape, canvas = element('positions'), kind = it.modern ? 'rope' : 'wpe'
  paint(canvas, rows, columns, (i, j) => at('positions', i, j))
  const pixel = Math.max(1, Math.floor(320 / Math.max(rows, columns)))
  const width = Math.max(pixel * columns, Math.min(160, 10 * columns))  // RoPE has few columns
  Object.assign(canvas.style, {width: `${width}px`, height: `${pixel * rows}px`})
  fill('positions-name', word(kind))
  fill('positions-text', word(`${kind}_text`, {last: it.modern ? rows - 1 : it.context - 1, pairs: columns}))
  canvas.setAttribute('aria-label', element('positions-name').textContent)
}

// ---- 6: several models

function drawModels() {
  const isOne = models.length === 1, table = clear('rows'), slider = element('model')
  element('over').hidden = element('training').hidden = isOne
  if (isOne) return
  Object.assign(slider, {max: models.length - 1, value: chosen.model})
  fill('model-name', modelName(it))
  slider.setAttribute('aria-valuetext', modelName(it))
  const head = make(make(table, 'thead'), 'tr'), body = make(table, 'tbody')
  for (const heading of ['model', 'bits_byte', 'this_token']) make(head, 'th', word(heading), {scope: 'col'})
  make(head, 'td')
  models.forEach((model, i) => {
    const row = make(body, 'tr', undefined, i === chosen.model ? {class: 'chosen'} : {})
    const button = make(make(row, 'td'), 'button', modelName(model), {type: 'button'})
    button.setAttribute('aria-pressed', i === chosen.model)
    const cell = model.cells.find(cell => cell.begin === current().begin && cell.text === current().text)
    make(row, 'td', model.bits_per_byte === null ? '' : model.bits_per_byte.toFixed(3))
    make(row, 'td', cell?.kind === 'text' ? cell.bits.toFixed(2) : '')
    const line = make(row, 'td')
    for (const cell of model.cells.filter(cell => cell.kind === 'text')) {
      make(line, 'span', cell.text).style.background = surprise(cell.bits)
    }
    row.addEventListener('click', () => {
      const isFocused = button === document.activeElement
      chooseModel(i)
      if (isFocused) table.querySelectorAll('button')[i].focus()
    })
  })
}

// ---- the text, and what happens on a choice

function drawText() {
  const place = clear('text')
  place.setAttribute('aria-label', word('text'))
  it.cells.forEach((cell, i) => {
    const isOpen = cell.isExamined, shown = cell.kind === 'text' ? visible(cell.text) : word(cell.kind)
    const made = make(place, isOpen ? 'button' : 'span', shown, cell.kind === 'text' ? {} : {class: 'mark'})
    if (cell.kind === 'text') {
      made.style.background = surprise(cell.bits)
      made.title = `${quoted(cell)} ${word('bits', cell.bits.toFixed(2))}`
    }
    if (!isOpen) return
    made.type = 'button'
    made.setAttribute('role', 'option')
    made.setAttribute('aria-label', name(cell))
    made.addEventListener('click', () => choose(i))
  })
  markText()
}

function markText(focus) {
  Array.from(element('text').children).forEach((made, i) => {
    if (made.tagName !== 'BUTTON') return
    made.setAttribute('aria-selected', i === chosen.cell)
    made.tabIndex = i === chosen.cell ? 0 : -1
    if (i === chosen.cell && focus) made.focus()
  })
}

function choose(cell, focus) {
  if (!it.cells[cell]?.isExamined) return
  chosen.cell = cell
  markText(focus)
  drawAlternatives()
  fill('spoken', element('alternatives').querySelector('caption, p').textContent)
  drawLooks()
  markLens()
  drawParts()
  drawNear()
  drawModels()
}

function chooseModel(index) {
  const {begin} = current()
  chosen.model = index
  it = models[index]
  chosen.cell = cellAt(it, begin)
  chosen.layer = Math.min(chosen.layer, it.layers - 1)
  chosen.head = Math.min(chosen.head, it.heads - 1)
  draw()
}

function drawWords() {
  document.documentElement.lang = chosen.language ? 'ko' : 'en'
  fill('language', word('language'))
  for (const place of document.querySelectorAll('[data-word]')) place.textContent = word(place.dataset.word)
  for (const list of document.querySelectorAll('[data-why]')) {
    list.replaceChildren()
    for (const line of words[`${list.dataset.why}_why`][chosen.language]) make(list, 'li', line)
  }
  const bits = ['token', 'character', 'byte'].filter(unit => it[`bits_per_${unit}`] !== null)
  const {layers, heads, width, context} = it
  const notes = [word('summary', {
    name: modelName(it), layers, heads, width, context, tokens: it.tokens.length,
    perplexity: it.perplexity === null ? '∞' : it.perplexity.toFixed(2),
    accuracy: (100 * it.accuracy).toFixed(1) + '%',
    bits: bits.map(unit => word(`a_${unit}`, it[`bits_per_${unit}`].toFixed(2))).join(', ')})]
  if (it.tokens.length > context) notes.push(word('slides', {from: context + 1, half: (context + 1) >> 1, context}))
  if (it.tokens.length > it.m) notes.push(word('examined', {n: it.m}))
  fill('title', document.title)
  fill('summary', [...notes, word('colour')].join(' '))
}

function draw() {
  drawWords()
  drawText()
  drawSliders()
  drawAlternatives()
  drawHeads()
  drawHead()
  drawLens()
  drawParts()
  drawMap()
  drawNear()
  drawPositions()
  drawModels()
}

function listen() {
  element('text').addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, Home: -chosen.cell, End: it.cells.length - 1 - chosen.cell}[event.key]
    if (step === undefined) return
    event.preventDefault()
    let cell = chosen.cell + step
    while (cell > 0 && it.cells[cell] && !it.cells[cell].isExamined) cell--
    choose(cell, true)
  })
  element('heads').addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -it.heads, ArrowDown: it.heads}[event.key]
    const button = element('heads').children[chosen.layer * it.heads + chosen.head + step]
    if (!button) return
    event.preventDefault()
    button.click()
    button.focus()
  })
  const sliders = [['temperature', 'temperature', page.temperatures.length], ['top_k', 'topK', TOP_KS.length - 1],
                   ['top_p', 'topP', page.top_ps.length - 1]]
  for (const [id, key, max] of sliders) {
    Object.assign(element(id), {max, value: chosen[key]})
    element(id).addEventListener('input', event => {
      chosen[key] = +event.target.value
      drawSliders()
      drawAlternatives()
    })
  }
  element('model').addEventListener('input', event => chooseModel(+event.target.value))
  element('language').addEventListener('click', () => { chosen.language = 1 - chosen.language; draw() })
  const full = element('full'), cellsAt = event => {
    const box = full.getBoundingClientRect(), count = it.seen.length
    const place = (value, size) => Math.max(0, Math.min(count - 1, Math.floor(count * value / size)))
    return [it.seen[place(event.clientY - box.top, box.height)], it.seen[place(event.clientX - box.left, box.width)]]
  }
  full.addEventListener('pointermove', event => {
    const [from, to] = cellsAt(event)
    drawLooks(from)
    const share = weights(chosen.layer, chosen.head)(from, to)
    fill('full-text', word('looking', {from: name(from), to: name(to), weight: percent(share)}))
  })
  full.addEventListener('click', event => choose(it.cells.indexOf(cellsAt(event)[0])))
  for (const id of ['looks', 'full']) {
    element(id).addEventListener('pointerleave', () => {
      drawLooks()
      fill('full-text', word('full'))
    })
  }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
}

async function begin() {
  const settings = JSON.parse(element('data').textContent)
  const language = settings.language === 'auto' ? navigator.language : settings.language
  chosen.language = +language.toLowerCase().startsWith('ko')
  if (typeof DecompressionStream === 'undefined') { fill('message', word('old')); return }
  page = await unpack(settings.packed)
  models = page.models
  chosen.model = page.shown
  it = models[chosen.model]
  chosen.temperature = page.temperatures.indexOf(1) + 1
  chosen.topP = page.top_ps.length - 1
  chosen.cell = cellAt(it, 0)
  listen()
  draw()
  document.documentElement.dataset.ready = 'yes'
}

begin().catch(error => { fill('message', String(error)); throw error })
