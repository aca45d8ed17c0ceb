// The token view: every token of a conversation against every layer, drawn from what the server
// found (widgets/token_grid.py). What the cells show and whose numbers they are is chosen here; a
// click on a token is the server's business.
const tokens = (() => {
  const VIEWS = ["place", "kl", "lens"], WHO = ["base", "edited", "difference"];
  const HEIGHT = 230, UPRIGHT = 66, FLAT = 20, ROW = 3, WORDS = 13; // pixels
  const CLIPPED = 0.02; // share of the largest numbers that a scale leaves out
  let data = null, root = null, tell = null;
  const NEAR = 1.5; // of a projection from the middle between harmless and harmful
  const now = { view: "place", who: "edited" };
  let size = null; // of the drawing: columns, rows, pixels of each
  let over = null; // [token, layer] under the pointer

  const safe = (words) => String(words).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  // A token with its blanks to be seen.
  const blanks = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u3000": "□" };
  const plain = (words) => words.replace(/[ \n\t\r\u3000]/g, (sign) => blanks[sign]);
  const marked = (words) => safe(words)
    .replace(/[ \n\t\r\u3000]/g, (sign) => `<i>${blanks[sign]}</i>`) || "<i>∅</i>";
  const part = (selector) => root.querySelector(selector);
  const place = (token, layer) => layer * data.tokens.length + token;

  // --- numbers -----------------------------------------------------------------------------------
  function values() { // of every cell, layer by layer; null while there are none
    const pick = (pair) => now.who === "difference"
      ? pair[1].map((value, n) => value - pair[0][n]) : pair[WHO.indexOf(now.who)];
    if (now.view === "kl") return data.kl;
    if (now.view === "place") return pick(data.place);
    if (!data.top) return null;
    const best = (who) => data.shares[who].filter((_, n) => n % data.k === 0).map((x) => x / 1000);
    if (now.who !== "difference") return best(WHO.indexOf(now.who));
    return best(1).map((share, n) => (changed(n) ? share : 0));
  }
  const changed = (cell) => data.top[0][cell * data.k] !== data.top[1][cell * data.k];
  function reach(numbers) { // the size of all but a few
    const sorted = numbers.map(Math.abs).sort((a, b) => a - b);
    return sorted[Math.floor((sorted.length - 1) * (1 - CLIPPED))] ?? 0;
  }
  function scaling(numbers) { // number -> −1 to 1, with the numbers at its ends
    if (now.view === "lens") return { low: 0, high: 1, of: (x) => x };
    if (now.view === "kl") { // small ones are the most, and are to be told apart
      const high = Math.max(0.01, reach(numbers));
      return { low: 0, high, of: (x) => Math.sqrt(Math.min(1, x / high)) };
    }
    const middle = now.who === "difference" ? 0 : 0.5;
    // what lies far out, as in the first layers, must not take the colours from all others
    const span = middle ? NEAR : Math.max(0.1, Math.min(NEAR, reach(numbers)));
    return {
      low: middle - span, high: middle + span, diverging: true,
      of: (x) => Math.max(-1, Math.min(1, (x - middle) / span)),
    };
  }

  // --- colours -----------------------------------------------------------------------------------
  function palette() {
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi)
      .map((pair) => parseInt(pair, 16));
    const warm = { lens: "--likely", kl: "--apart", place: "--warm" }[now.view];
    const end = now.view === "lens" && now.who === "difference" ? "--apart" : warm;
    return { ground: read("--cell"), cool: read("--cool"), warm: read(end) };
  }
  const mix = (from, to, share) => from.map((x, n) => Math.round(x + (to[n] - x) * share));
  const shade = (colours, t) => mix(colours.ground, t < 0 ? colours.cool : colours.warm, Math.abs(t));
  const rgb = (colour) => `rgb(${colour.join(",")})`;
  const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 150 ? "#1b2227" : "#ffffff");

  // --- drawing -----------------------------------------------------------------------------------
  function sizes() {
    const lens = now.view === "lens", count = data.tokens.length;
    const wide = part(".pane").clientWidth;
    const column = Math.max(lens ? 62 : 18, Math.min(lens ? 90 : 64, Math.floor(wide / count)));
    const flat = column >= 40;
    const strip = flat ? FLAT : UPRIGHT;
    const row = Math.max(ROW, Math.floor((HEIGHT - strip) / data.layers));
    return { column, row, flat, wide: column * count, tall: row * data.layers, strip };
  }
  function draw() {
    if (!data || !root.clientWidth || !part(".pane")) return;
    size = sizes();
    const numbers = values(), lens = now.view === "lens";
    const whole = part(".whole");
    whole.classList.toggle("flat", size.flat);
    whole.style.setProperty("--column", `${size.column}px`);
    whole.style.setProperty("--strip", `${size.strip}px`);
    part(".who").toggleAttribute("inert", now.view === "kl");
    part(".wait").hidden = Boolean(numbers);
    paint(numbers, lens);
    side();
    strip();
    mark();
  }
  function paint(numbers, lens) {
    const canvas = part("canvas"), colours = palette();
    const sharp = Math.min(window.devicePixelRatio || 1, 16000 / size.wide);
    canvas.width = size.wide * sharp;
    canvas.height = size.tall * sharp;
    canvas.style.width = `${size.wide}px`;
    canvas.style.height = `${size.tall}px`;
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    pen.fillStyle = rgb(colours.ground);
    pen.fillRect(0, 0, size.wide, size.tall);
    part(".scale").style.visibility = numbers ? "" : "hidden";
    if (!numbers) return;
    const scale = scaling(numbers), { column, row } = size;
    const gap = column > 12 && row > 6 ? 1 : 0;
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (let layer = 0; layer < data.layers; layer++) {
      const y = (data.layers - 1 - layer) * row;
      for (let token = 0; token < data.tokens.length; token++) {
        const cell = place(token, layer), colour = shade(colours, scale.of(numbers[cell]));
        pen.fillStyle = rgb(colour);
        pen.fillRect(token * column, y, column - gap, row - gap);
        if (lens && row >= WORDS) word(pen, cell, token * column, y, colour);
      }
    }
    legend(scale, colours);
    canvas.setAttribute("aria-label", `${data.texts[now.view]}: ${data.tokens.length} × ${data.layers}`);
  }
  function word(pen, cell, x, y, colour) {
    const who = now.who === "base" ? 0 : 1;
    if (now.who === "difference" && !changed(cell)) return;
    const text = plain(data.words[data.top[who][cell * data.k]]);
    const room = size.column - 7;
    let shown = text.slice(0, 14);
    while (shown.length > 1 && pen.measureText(shown).width > room) shown = shown.slice(0, -1);
    pen.fillStyle = ink(colour);
    pen.fillText(shown.length < text.length ? `${shown.slice(0, -1)}…` : shown, x + 3, y + size.row / 2);
  }
  function legend(scale, colours) {
    const stops = scale.diverging ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
    const unit = { place: now.who === "difference" ? "" : data.texts.probe, kl: "nats", lens: "p" };
    const brief = (x) => (Math.abs(x) >= 10 ? x.toFixed(0) : String(+x.toFixed(2))).replace("-", "−");
    // between its ends the scale of the KL grows with the root
    part(".scale").innerHTML = `<span>${brief(scale.low)}</span>`
      + `<i style="background:linear-gradient(90deg,${stops.map((t) => rgb(shade(colours, t)))})"></i>`
      + `<span>${brief(scale.high)}</span><span class="unit">${safe(unit[now.view])}</span>`;
  }
  function side() { // the numbers of the layers, from the lowest up
    const every = Math.ceil(14 / size.row);
    const marks = [];
    for (let layer = 0; layer < data.layers; layer += every) {
      marks.push(`<span style="top:${(data.layers - 0.5 - layer) * size.row}px">${layer}</span>`);
    }
    part(".side").innerHTML = `${marks.join("")}<em class="${data.texts.layer.length > 2 ? "up" : ""}">`
      + `${safe(data.texts.layer)}</em>`;
    part(".side").style.height = `${size.tall}px`;
  }
  function strip() {
    part(".strip").innerHTML = data.tokens.map((text, n) => {
      const at = data.first + n, kind = at < data.prompt ? "asked" : "said";
      const end = ["template", "instruction"].includes(data.places[n]) ? " end" : "";
      return `<button type="button" tabindex="-1" class="${kind}${end}" data-token="${n}" `
        + `${end && `title="${safe(data.texts.hint)}" `}aria-label="${at + 1}: ${safe(plain(text))}"><b>${marked(text)}</b></button>`;
    }).join("");
    part(".strip").style.width = `${size.wide}px`;
    const first = part(".strip .end") ?? part(".strip button");
    if (first) first.tabIndex = 0;
    measured();
  }
  function measured() { // the token where the direction is measured, as the controls say
    for (const button of root.querySelectorAll(".strip .end")) {
      const here = data.places[button.dataset.token] === data.position;
      button.classList.toggle("now", here);
      button.toggleAttribute("aria-current", here);
    }
  }

  // --- what is under the pointer -----------------------------------------------------------------
  function mark() { // the cell and its column
    const box = part(".cell"), line = part(".line");
    box.hidden = line.hidden = !over;
    if (!over) return;
    const [token, layer] = over;
    Object.assign(line.style, { left: `${token * size.column}px`, width: `${size.column}px`,
      height: `${size.tall}px` });
    Object.assign(box.style, { left: `${token * size.column}px`, width: `${size.column}px`,
      top: `${(data.layers - 1 - layer) * size.row}px`, height: `${size.row}px` });
  }
  function under(event) {
    const frame = part("canvas").getBoundingClientRect();
    const token = Math.floor((event.clientX - frame.left) / size.column);
    const layer = data.layers - 1 - Math.floor((event.clientY - frame.top) / size.row);
    const inside = token >= 0 && token < data.tokens.length && layer >= 0 && layer < data.layers;
    return inside ? [token, layer] : null;
  }
  function point(cell) {
    over = cell;
    mark();
    const words = part(".tip");
    words.hidden = !over;
    if (!over) return;
    words.innerHTML = told(...over);
    const outer = part(".whole").getBoundingClientRect(), frame = part("canvas").getBoundingClientRect();
    const left = frame.left - outer.left + over[0] * size.column;
    const room = left + size.column + 10 + words.offsetWidth <= outer.width;
    words.style.left = `${Math.max(0, room ? left + size.column + 10 : left - 10 - words.offsetWidth)}px`;
    const y = frame.top - outer.top + (data.layers - 1 - over[1]) * size.row;
    words.style.top = `${Math.max(24, Math.min(y - 20, outer.height - words.offsetHeight))}px`;
  }
  function told(token, layer) {
    const cell = place(token, layer), { texts } = data;
    const head = `<h4><code>${marked(data.tokens[token])}</code><span>${safe(texts.layer)} ${layer}</span></h4>`;
    if (now.view === "lens") return head + (data.top ? guesses(cell) : safe(texts.waiting));
    if (now.view === "kl") {
      return `${head}<p><span>${safe(texts.kl)}</span><b>${data.kl ? `${data.kl[cell].toPrecision(3)} nats` : "…"}</b></p>`;
    }
    const sign = (x, digits) => x.toFixed(digits).replace("-", "−");
    const line = (name, kind, value, more) => `<p class="${kind}"><span>${safe(name)}</span>`
      + `<b>${sign(value, 2)}</b><small>${more}</small></p>`;
    const [before, after] = data.place.map((each) => each[cell]);
    return head + [texts.base, texts.edited].map((name, who) => line(
      name, `is-${WHO[who]}`, data.place[who][cell], `r̂·x ${sign(data.along[who][cell], 2)}`)).join("")
      + line(texts.difference, "", after - before, "");
  }
  function guesses(cell) { // the five most likely next tokens, of both
    const column = (who) => {
      const rows = [];
      for (let n = cell * data.k; n < (cell + 1) * data.k; n++) {
        const share = data.shares[who][n] / 1000;
        rows.push(`<li style="--share:${share}"><code>${marked(data.words[data.top[who][n]])}</code>`
          + `<b>${share < 0.001 ? "<.001" : share.toFixed(3).replace(/^0/, "")}</b></li>`);
      }
      return `<div class="is-${WHO[who]}"><h5>${safe(data.texts[WHO[who]])}</h5><ol>${rows.join("")}</ol></div>`;
    };
    const nats = data.kl ? `<p><span>${safe(data.texts.kl)}</span><b>${data.kl[cell].toPrecision(3)} nats</b></p>` : "";
    return `<div class="guesses">${column(0)}${column(1)}</div>${nats}`;
  }
  function pick(token) {
    tell("click", { pick: data.places[token] });
  }
  function keyed(event) { // along the tokens by the arrows, up and down the layers
    const button = event.target.closest(".strip button");
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [];
    if (!button || x === undefined) return;
    event.preventDefault();
    const within = (n, count) => Math.max(0, Math.min(count - 1, n));
    const token = within(Number(button.dataset.token) + x, data.tokens.length);
    button.tabIndex = -1;
    const next = part(".strip").children[token];
    next.tabIndex = 0;
    next.focus();
    point([token, within((over?.[1] ?? 0) + y, data.layers)]);
  }

  // --- the component -----------------------------------------------------------------------------
  function choices(name, options, chosen) {
    return options.map((option) => `<label><input type="radio" name="token-${name}" value="${option}"`
      + `${option === chosen ? " checked" : ""}><span>${safe(data.texts[option])}</span></label>`).join("");
  }
  function frame() {
    const { texts } = data;
    root.innerHTML = `<div class="whole"><div class="choices">
      <div class="view" role="radiogroup" aria-label="${safe(texts.view)}">${choices("view", VIEWS, now.view)}</div>
      <div class="who" role="radiogroup" aria-label="${safe(texts.whose)}">${choices("who", WHO, now.who)}</div>
      <div class="scale"></div><div class="count"></div></div>
      <div class="grid"><div class="side"></div><div class="pane"><div class="map">
      <canvas role="img"></canvas><div class="line" hidden></div><div class="cell" hidden></div></div>
      <div class="strip" role="group"></div></div>
      <div class="wait" hidden>${safe(texts.waiting)}</div></div><div class="tip" hidden></div></div>`;
    root.querySelectorAll("[type=radio]").forEach((box) => box.addEventListener("change", (event) => {
      event.stopPropagation();
      const pane = part(".pane"), half = pane.clientWidth / 2;
      const middle = (pane.scrollLeft + half) / size.column;
      now[box.name.slice(6)] = box.value;
      point(null);
      draw();
      pane.scrollLeft = middle * size.column - half;
    }));
    const canvas = part("canvas"), line = part(".strip");
    canvas.addEventListener("pointermove", (event) => point(under(event)));
    canvas.addEventListener("pointerleave", () => point(null));
    canvas.addEventListener("click", (event) => { const cell = under(event); if (cell) pick(cell[0]); });
    line.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) pick(Number(button.dataset.token));
    });
    line.addEventListener("keydown", keyed);
    line.addEventListener("focusout", () => point(null));
    part(".pane").addEventListener("scroll", () => point(null));
  }
  function take(value) { // the server's word
    if (!value) return;
    const found = JSON.parse(value);
    if (found.empty !== undefined) {
      data = null;
      root.innerHTML = `<p class="empty">${safe(found.empty)}</p>`;
      return;
    }
    const same = data && part(".pane") && data.texts.view === found.texts.view;
    const talk = (one) => JSON.stringify([one?.first, one?.tokens]);
    const other = talk(data) !== talk(found);
    data = found;
    over = null;
    if (!same) frame();
    part(".tip").hidden = true;
    part(".count").textContent = data.texts.shown;
    part(".count").title = `${data.texts.edited}: ${data.variant}`;
    draw();
    if (other && size) toAnswer();
  }
  function toAnswer() { // to where it begins
    const pane = part(".pane");
    pane.scrollLeft = (data.prompt - data.first) * size.column - pane.clientWidth / 2;
  }
  function start(element, props, trigger, watch) {
    [root, tell, data] = [element, trigger, null];
    watch("value", () => take(props.value));
    let wide = 0;
    new ResizeObserver(() => {
      if (root.clientWidth !== wide) { wide = root.clientWidth; draw(); }
    }).observe(element);
    new MutationObserver(draw).observe(document.body, { attributeFilter: ["class"] }); // light, dark
    take(props.value);
  }
  function at(position) { // the control has another value
    if (!data) return;
    data.position = position;
    measured();
  }
  return { start, at };
})();
