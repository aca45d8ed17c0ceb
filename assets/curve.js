// The curve and its table. They are drawn here, from what the controls say at this moment, as soon
// as something moves; the server is told when the movement has ended, and its answer is drawn the
// same way: an older one says nothing of a control that has moved meanwhile. What only the server
// knows (signal, forecast, warnings) stays as it was drawn last.
const curve = (() => {
  const SHAPE = ["peak", "width", "threshold"];
  const DIALS = [...SHAPE, "strength", "attention", "mlp"];
  const PAUSE = 150; // ms without a movement after which a key's movement has ended
  const HEIGHT = 240, ROW = 18, LEFT = 34, RIGHT = 8, TOP = 22, BOTTOM = 38;
  let data = null, root = null, tell = null; // what the server said, the element, its event
  let drawn = null, seen = ""; // the weights, alphas and scales on the screen; of what
  let drag = null; // what the pointer holds
  const pending = []; // lists of cells that the server has not answered yet, the oldest first
  // Of the plot and the table, and how far that is scrolled: asking the page costs a layout.
  const size = { wide: 0, table: 0, from: 0 };
  const held = new Set(); // boxes and sliders that moved, and Gradio does not know yet
  let pause = 0, sliding = false, later = false; // `later`: Apply was pressed, and waits for cells

  // --- what the controls say ---------------------------------------------------------------------
  const part = (name, kind) => document.querySelector(`#${name} input[type=${kind}]`);
  const chosen = () => document.querySelector("#profile input:checked")?.value ?? data.profile;
  function put(name, value) {
    const [box, slider] = [part(name, "number"), part(name, "range")];
    box.value = slider.value = value;
    filled(slider);
    held.add(slider);
  }
  function filled(slider) { // the part of its track that is coloured; Gradio does it later
    const share = (slider.value - slider.min) / (slider.max - slider.min);
    slider.style.setProperty("--range_progress", `${100 * share}%`);
  }
  function pinned(overrides) { // with the cells that are on their way
    const cells = Object.fromEntries(
      Object.keys(data.kinds).map((kind) => [kind, { ...overrides[kind] }]));
    for (const [kind, layer, text] of [...pending.flat(), ...(drag?.cells ?? [])]) {
      const value = parseFloat(text.replace("−", "-").replace(",", "."));
      if (!text.trim()) delete cells[kind][layer];
      else if (sound("overrides", value)) cells[kind][layer] = value;
    }
    return cells;
  }
  function sound(name, value) {
    const [low, high] = data.limits[name];
    return value >= low && value <= high;
  }
  // The weights, or null while a box holds no sound number; `moved`: the server's are others.
  function weights() {
    const said = data.weights, now = {};
    for (const name of DIALS) {
      const box = part(name, "number");
      now[name] = box ? parseFloat(box.value) : said[name] ?? said.modules[name];
    }
    const limited = (name) => (name in data.limits ? name : "modules");
    if (!DIALS.every((name) => sound(limited(name), now[name]))) return null;
    const left = data.profile === "table" && chosen() !== "table";
    const bell = SHAPE.some((name) => now[name] !== said[name])
      ? { curve: null, peaks: {}, widths: {} } : said;
    const found = {
      ...said, ...bell, ...Object.fromEntries([...SHAPE, "strength"].map((n) => [n, now[n]])),
      modules: { ...said.modules, attention: now.attention, mlp: now.mlp },
      overrides: pinned(left ? {} : said.overrides),
    };
    const dials = ["attention", "mlp"].every((n) => now[n] === (said.modules[n] ?? 1));
    const moved = !dials || bell !== said || now.strength !== said.strength || left
      || pending.length > 0 || Boolean(drag?.cells);
    return { ...found, moved };
  }

  // --- drawing -----------------------------------------------------------------------------------
  const write = (node, name, words) => { if (node[name] !== words) node[name] = words; };
  const text = (value) => (value ? value.toFixed(3).replace(/\.?0+$/, "") : "0");
  const safe = (words) => words.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  function draw() {
    if (!data || !size.wide) return; // or nothing of it can be seen
    const now = weights();
    for (const name of DIALS) { // in a table of single cells these change nothing
      const block = document.getElementById(name);
      if (block) block.inert = chosen() === "table";
    }
    const key = JSON.stringify([now, chosen(), size.wide]);
    if (!now || key === seen) return;
    seen = key;
    const kinds = Object.keys(data.kinds);
    const alpha = now.moved ? kernel.table(now, data.layers, kinds) : data.alpha;
    const bell = now.moved ? kernel.bell(now, data.layers) : data.kernel;
    drawn = { ...now, alpha, bell, ...scales(alpha) };
    const figure = root.querySelector(".figure");
    figure.innerHTML = shading() + grid() + band() + bars() + hill() + forecast() + lines() + handles();
    figure.setAttribute("aria-label", summary());
    cells();
  }
  function scales(alpha) {
    const { wide } = size, tall = HEIGHT - TOP - BOTTOM;
    const all = [...alpha.flat(), ...data.predicted.flatMap(({ values }) => values)];
    const top = Math.max(1.12, ...all.map((value) => value * 1.12));
    const bottom = Math.min(0, ...all.map((value) => value * 1.12));
    const unit = (wide - LEFT - RIGHT) / (data.layers + 0.2); // pixels from layer to layer
    return {
      top, bottom, unit, tall, wide,
      x: (layer) => LEFT + (layer + 0.6) * unit,
      y: (value) => TOP + ((top - value) / (top - bottom)) * tall,
    };
  }
  const hundredths = (value) => Math.round(value * 100) / 100;
  const within = (value, low, high) => Math.min(high, Math.max(low, value));
  const round = (number) => Math.round(number * 10) / 10;
  const path = (points) => points
    .map(([x, y], n) => `${n ? "L" : "M"}${round(x)} ${round(y)}`).join("");
  const label = (x, y, anchor, words, kind = "") =>
    `<text class="${kind}" x="${round(x)}" y="${round(y)}" text-anchor="${anchor}">`
    + `${safe(String(words))}</text>`;
  const box = (kind, x, y, width, height) => // of an SVG
    `<rect class="${kind}" x="${round(x)}" y="${round(y)}" `
    + `width="${round(width)}" height="${round(height)}"/>`;
  const used = (layer) => drawn.alpha[layer].some((value) => value !== 0);
  const hasBell = () => !drawn.curve && chosen() !== "table"
    && !Object.keys({ ...drawn.peaks, ...drawn.widths }).length;
  function shading() { // the first quarter, where it is touched
    const last = (data.layers - 1) * data.early;
    const touched = kernel.positions(data.layers)
      .some((place, layer) => place < data.early && used(layer));
    if (data.early === null || !touched) return "";
    return box("early", LEFT, TOP, drawn.x(last) - LEFT, drawn.tall);
  }
  function grid() {
    const span = drawn.top - drawn.bottom;
    const step = [0.25, 0.5, 1, 2, 5, 10].find((each) => span / each <= 6) ?? 50;
    const every = Math.max(1, Math.floor(data.layers / 12)), end = drawn.wide - RIGHT;
    let marks = "";
    for (let n = Math.ceil(drawn.bottom / step); n * step <= drawn.top; n++) {
      const y = round(drawn.y(n * step));
      marks += `<path class="grid${n ? "" : " zero"}" d="M${LEFT} ${y}H${end}"/>`
        + label(LEFT - 6, y + 4, "end", n * step);
    }
    for (let layer = 0; layer < data.layers; layer += every) {
      marks += label(drawn.x(layer), HEIGHT - BOTTOM + 16, "middle", layer);
    }
    return marks + label(LEFT, HEIGHT - 4, "start", data.texts.hint, "hint")
      + label(end, HEIGHT - 4, "end", data.texts.layer);
  }
  function measured(value) { // where a value of the statistic lies: it has a unit of its own, and
    const most = Math.max(1e-9, ...data.signal); // zero at the same height; a wide interval is cut
    const ends = (data.interval ?? []).map((each) => Math.min(each[1] ?? 0, 1.25 * most));
    const place = drawn.y((value / (Math.max(most, ...ends) * 1.12)) * drawn.top);
    return within(place, TOP, HEIGHT - BOTTOM);
  }
  function band() { // of the statistic's intervals
    if (!data.signal || !data.interval) return "";
    return data.interval.map(([low, high], layer) => {
      if (low === null || high === null) return "";
      const [from, to] = [measured(low), measured(high)];
      return box("interval", drawn.x(layer) - drawn.unit / 2, to, drawn.unit, from - to);
    }).join("");
  }
  function bars() { // the statistic
    if (!data.signal) return "";
    const kind = data.doubtful ? "stat doubtful" : "stat";
    return data.signal.map((value, layer) => {
      const [from, to] = [drawn.y(0), measured(value ?? 0)];
      return box(`${kind}${used(layer) ? "" : " faint"}`, drawn.x(layer) - 0.375 * drawn.unit,
        Math.min(from, to), 0.75 * drawn.unit, Math.abs(from - to));
    }).join("");
  }
  function hill() { // the bell between the layers too: what one can take hold of
    if (!hasBell()) return "";
    const last = data.layers - 1, points = [];
    const factor = Math.max(...Object.keys(data.kinds).map((kind) => drawn.modules[kind] ?? 1));
    for (let n = 0; n <= 96; n++) {
      const place = n / 96;
      const value = drawn.strength * factor * kernel.gaussian(place, drawn.peak, drawn.width);
      points.push([drawn.x(place * last), drawn.y(value)]);
    }
    const foot = `V${round(drawn.y(0))}H${round(drawn.x(0))}Z`;
    return `<path class="hill" data-drag="peak" d="${path(points)}${foot}"/>`;
  }
  function forecast() { // pale while it is of other weights than are drawn
    return data.predicted.map(({ key, values }) => {
      let pen = "M";
      const d = values.map((value, layer) => {
        if (value === null) { pen = "M"; return ""; }
        const point = `${pen}${round(drawn.x(layer))} ${round(drawn.y(value))}`;
        pen = "L";
        return point;
      }).join("");
      return `<path class="forecast ${key}${drawn.moved ? " old" : ""}" d="${d}"/>`;
    }).join("");
  }
  function lines() { // the last kind lies below: where both are one point, the first is taken
    return Object.keys(data.kinds).map((kind, column) => {
      const dots = { point: "", idle: "", pin: "" }, size = column ? 4 : 5.5;
      const places = drawn.alpha.map((row, layer) => [drawn.x(layer), drawn.y(row[column])]);
      places.map((place) => place.map(round)).forEach(([x, y], layer) => {
        if (layer in drawn.overrides[kind]) {
          dots.pin += `M${x} ${y - size}l${size} ${size}l-${size} ${size}l-${size} -${size}Z`;
        } else dots[drawn.alpha[layer][column] === 0 ? "idle" : "point"] += `M${x} ${y}h0`;
      });
      return `<g class="${kind}"><path class="line" d="${path(places)}"/>`
        + Object.entries(dots).map(([name, d]) => `<path class="${name}" d="${d}"/>`).join("")
        + "</g>";
    }).reverse().join("");
  }
  // The point under the pointer, as [kind, layer], or null.
  function under(event) {
    const frame = root.querySelector(".figure").getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    const reach = within(drawn.unit / 2, 4, 10), middle = Math.round((x - LEFT) / drawn.unit - 0.6);
    let found = null, nearest = reach ** 2;
    for (let layer = middle - 1; layer <= middle + 1; layer++) {
      Object.keys(data.kinds).forEach((kind, column) => {
        const value = drawn.alpha[layer]?.[column] ?? NaN;
        const away = (x - drawn.x(layer)) ** 2 + (y - drawn.y(value)) ** 2;
        if (away < nearest) [nearest, found] = [away, [kind, layer]];
      });
    }
    return found;
  }
  function handles() { // a bar above the bell: its middle moves it, its ends make it wider
    if (!hasBell()) return "";
    const at = (place) => round(drawn.x(within(place, 0, 1) * (data.layers - 1)));
    const [from, x, to] = [-1, 0, 1].map((side) => at(drawn.peak + side * drawn.width));
    const words = data.texts.bell.replace("{peak}", drawn.peak.toFixed(2))
      .replace("{width}", drawn.width.toFixed(2));
    const end = to > drawn.wide - 150;
    const grip = (what, content) => `<g class="grip" data-drag="${what}">${content}</g>`;
    const side = (x) => grip("width", box("reach", x - 9, 0, 18, 18) + box("", x - 2, 3, 4, 12));
    return `<path class="peak" d="M${x} ${TOP}V${HEIGHT - BOTTOM}"/>`
      + `<path class="span" d="M${from} 9H${to}"/>`
      + label(end ? from - 9 : to + 9, 13, end ? "end" : "start", words)
      + side(from) + side(to)
      + grip("peak", box("reach", x - 9, 0, 18, 18) + `<circle cx="${x}" cy="9" r="5"/>`);
  }
  function summary() {
    const count = drawn.alpha.filter((row, layer) => used(layer)).length;
    const largest = drawn.alpha.flat().reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
    return data.texts.summary.replace("{count}", count).replace("{layers}", data.layers)
      .replace("{largest}", text(largest));
  }
  function legend() {
    const entry = (name, words) => `<span class="${name}"><i></i>${safe(words)}</span>`;
    return (data.signal ? entry(data.doubtful ? "signal doubtful" : "signal", data.texts.signal) : "")
      + Object.entries(data.kinds).map(([kind, name]) => entry(kind, name)).join("")
      + data.predicted.map(({ key, name }) => entry(key, name)).join("");
  }

  // --- the table: as many rows as can be seen, and some more -------------------------------------
  const rows = new Map(); // layer -> its row
  function cells() {
    const body = root.querySelector("tbody");
    const first = Math.max(0, Math.floor(size.from / ROW) - 4);
    const last = Math.min(data.layers, first + Math.ceil(size.table / ROW) + 8);
    const [above, below] = [body.firstElementChild, body.lastElementChild];
    above.style.height = `${first * ROW}px`;
    below.style.height = `${(data.layers - last) * ROW}px`;
    for (const [layer, row] of rows) {
      if (layer < first || layer >= last) { row.remove(); rows.delete(layer); }
    }
    let before = above;
    for (let layer = first; layer < last; layer++) {
      if (!rows.has(layer)) rows.set(layer, made(layer));
      const row = rows.get(layer);
      if (before.nextElementSibling !== row) before.after(row);
      shown(row, layer);
      before = row;
    }
  }
  function made(layer) {
    const row = document.createElement("tr");
    row.setAttribute("aria-rowindex", layer + 2);
    row.innerHTML = `<th scope="row">${layer}</th><td></td>`
      + Object.keys(data.kinds).map((kind) => `<td><input data-kind="${kind}" `
        + `data-layer="${layer}" inputmode="decimal" autocomplete="off"></td>`).join("");
    return row;
  }
  function shown(row, layer) {
    write(row.children[1], "textContent", text(drawn.bell[layer]));
    Object.entries(data.kinds).forEach(([kind, name], column) => {
      const box = row.children[column + 2].firstElementChild, pin = layer in drawn.overrides[kind];
      const words = data.texts.cell.replace("{kind}", name).replace("{layer}", layer);
      write(box, "ariaLabel", pin ? `${words} ${data.texts.pinned}` : words);
      box.parentElement.classList.toggle("pinned", pin);
      if (box !== document.activeElement || box.value === box.dataset.said) {
        write(box, "value", text(drawn.alpha[layer][column]));
        box.dataset.said = box.value;
      }
    });
  }
  function typed(box) {
    if (box.value !== box.dataset.said) {
      pin([[box.dataset.kind, Number(box.dataset.layer), box.value]]);
      box.dataset.said = box.value; // from now on it shows what it comes to
      draw();
    }
  }
  function stepped(event) { // Enter and the arrows go to the next layer, Escape takes it back
    const box = event.target, down = { Enter: 1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { box.value = box.dataset.said; box.select(); }
    if (!down || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    typed(box);
    const next = Number(box.dataset.layer) + down;
    root.querySelector(`input[data-kind="${box.dataset.kind}"][data-layer="${next}"]`)?.focus();
  }

  // --- what is told the server -------------------------------------------------------------------
  function pin(list) {
    release();
    pending.push(list);
    tell("input", { cells: list });
    draw();
  }
  function answered() { // of the oldest cells on their way, well or not
    pending.shift();
    draw();
    if (later && !pending.length) { later = false; document.getElementById("apply")?.click(); }
  }
  function release() { // Gradio hears of what moved, once
    clearTimeout(pause);
    const moved = [...held];
    held.clear();
    for (const box of moved) {
      const event = new Event("input", { bubbles: true });
      event.released = true;
      box.dispatchEvent(event);
    }
  }
  document.addEventListener("input", (event) => {
    const box = event.target;
    if (event.released || !DIALS.some((name) => box.closest?.(`#${name}`))) return;
    event.stopImmediatePropagation();
    held.add(box);
    if (box.type === "range") {
      box.closest(".block").querySelector("input[type=number]").value = box.value;
      filled(box);
    }
    draw();
    clearTimeout(pause);
    if (!sliding) pause = setTimeout(release, PAUSE);
  }, true);
  document.addEventListener("change", ({ target }) => target.closest?.("#profile") && draw());
  document.addEventListener("pointerdown", (event) => {
    release();
    sliding = event.target.type === "range";
  }, true);
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => { if (sliding) { sliding = false; release(); } }, true);
  }
  document.addEventListener("blur", release, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Enter") release(); }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#apply")) return;
    release();
    if (pending.length) { later = true; event.stopImmediatePropagation(); }
  }, true);

  // --- dragging ----------------------------------------------------------------------------------
  function grab(event) {
    const [kind, layer] = under(event) ?? [];
    const what = kind ? "cell" : event.target.closest("[data-drag]")?.dataset.drag;
    if (!what || event.button) return;
    event.preventDefault();
    document.activeElement?.blur(); // what is being typed counts
    const from = event.clientX - event.currentTarget.getBoundingClientRect().left;
    drag = {
      what, kind, layer, x: event.clientX, y: event.clientY, peak: drawn.peak, width: drawn.width,
      value: drawn.alpha[layer]?.[Object.keys(data.kinds).indexOf(kind)],
      side: from < drawn.x(drawn.peak * (data.layers - 1)) ? -1 : 1, // of the bell
    };
    event.currentTarget.setPointerCapture(event.pointerId);
  }
  function move(event) {
    if (!drag) {
      root.querySelector(".figure").classList.toggle("over", Boolean(under(event)));
      return tip(event);
    }
    const along = (event.clientX - drag.x) / (drawn.unit * Math.max(data.layers - 1, 1));
    if (drag.what === "cell") { // step by step: the scale may grow with the point
      const unit = (drawn.top - drawn.bottom) / drawn.tall;
      drag.value = within(drag.value + (drag.y - event.clientY) * unit, ...data.limits.overrides);
      drag.y = event.clientY;
      drag.cells = [[drag.kind, drag.layer, String(hundredths(drag.value))]];
    } else if (drag.what === "peak") {
      put("peak", hundredths(within(drag.peak + along, 0, 1)));
    } else {
      const { min, max } = part("width", "range");
      put("width", hundredths(within(drag.width + along * drag.side, Number(min), Number(max))));
    }
    draw();
    tip(event);
  }
  function drop(event) {
    const cells = event.type === "pointerup" && drag?.cells; // else the page scrolls: never mind
    drag = null;
    release();
    if (cells) pin(cells);
    else draw();
  }
  function tip(event) {
    const words = root.querySelector(".tip");
    const frame = root.querySelector(".figure").getBoundingClientRect();
    const layer = drag?.cells ? drag.layer
      : Math.round((event.clientX - frame.left - LEFT) / drawn.unit - 0.6);
    if (!(layer >= 0 && layer < data.layers)) return hide();
    const entry = (kind, name, value) =>
      `<span class="${kind}"><i></i>${safe(name)}<b>${value}</b></span>`;
    const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
    const weighed = Object.entries(data.kinds)
      .map(([kind, name], column) => entry(kind, name, text(drawn.alpha[layer][column])));
    const [low, high] = (data.interval?.[layer] ?? []).map((end) => end?.toPrecision(2));
    const ends = low && high ? ` (${low} … ${high})` : "";
    const level = (data.signal?.[layer]?.toPrecision(3) ?? "–") + ends;
    const signal = data.signal ? [entry("signal", data.texts.signal, level)] : [];
    const told = data.predicted
      .map(({ key, name, values }) => entry(key, name, share(values[layer])));
    words.innerHTML = `<span>${safe(data.texts.layer)} ${layer}</span>`
      + [...weighed, ...signal, ...told].join("");
    words.hidden = false;
    const x = drawn.x(layer);
    const left = x < frame.width / 2 ? x + 12 : Math.max(0, x - 12 - words.offsetWidth);
    words.style.left = `${left}px`;
  }
  function hide() { if (!drag) root.querySelector(".tip").hidden = true; }

  // --- the component -----------------------------------------------------------------------------
  function frame() {
    const heads = ["#", data.texts.kernel, ...Object.values(data.kinds)];
    root.innerHTML = `<div class="both"><div class="plot"><div class="names"></div>
      <svg class="figure" role="img" height="${HEIGHT}"></svg><div class="tip" hidden></div></div>
      <div class="cells"><table aria-rowcount="${data.layers + 1}"><thead><tr aria-rowindex="1">
      ${heads.map((name, n) => `<th scope="col"${n ? ` tabindex="0" title="${safe(data.means[n - 1])}"` : ""
      }>${safe(name)}</th>`).join("")}</tr></thead>
      <tbody><tr aria-hidden="true"></tr><tr aria-hidden="true"></tr></tbody></table></div></div>`;
    rows.clear();
    size.from = 0;
    const figure = root.querySelector(".figure"), table = root.querySelector(".cells");
    figure.addEventListener("pointerdown", grab);
    figure.addEventListener("pointermove", move);
    figure.addEventListener("pointerleave", hide);
    for (const end of ["pointerup", "pointercancel"]) figure.addEventListener(end, drop);
    figure.addEventListener("touchstart", (event) => { // a finger on a point does not scroll
      if (under(event.touches[0])) event.preventDefault();
    }, { passive: false });
    table.addEventListener("scroll", () => { size.from = table.scrollTop; cells(); });
    table.addEventListener("focusin", (event) => event.target.select?.());
    table.addEventListener("change", (event) => typed(event.target));
    table.addEventListener("keydown", stepped);
  }
  function measure() {
    size.wide = root.querySelector(".plot")?.clientWidth ?? 0;
    size.table = root.querySelector(".cells")?.clientHeight ?? 0;
    draw();
  }
  function take(value) { // the server's word
    if (!value) return;
    const same = data?.layers === value.layers && root.firstElementChild
      && data.texts.layer === value.texts.layer;
    [data, seen] = [value, ""];
    if (!same) frame();
    root.querySelector(".names").innerHTML = legend();
    measure();
  }
  function start(element, props, trigger, watch) {
    [root, tell] = [element, trigger];
    watch("value", () => take(props.value));
    new ResizeObserver(measure).observe(element);
    // Gradio has written a control: a slider's track is of another length, a profile is marked
    new MutationObserver((changes) => changes.some(({ target }) =>
      target.type === "range" || target.parentElement?.closest("#profile")) && draw(),
    ).observe(document.body, { subtree: true, attributeFilter: ["style", "class"] });
    take(props.value);
  }
  // A profile was picked: its numbers, where the page has them, and nothing where not.
  function shaped(numbers) {
    numbers.forEach((value, n) => {
      const [box, slider] = [part(SHAPE[n], "number"), part(SHAPE[n], "range")];
      [box.value, slider.value] = [value, value];
      filled(slider);
    });
    if (data) draw();
    return numbers;
  }
  return { start, answered, shaped };
})();
