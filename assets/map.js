// The map of residuals: harmful and harmless prompts of one layer as points, the direction across.
const residualMap = (() => {
  const HEIGHT = 226, LEFT = 56, RIGHT = 14, TOP = 10, BOTTOM = 30;
  let data = null, root = null, layer = 0, dots = [];

  const safe = (words) => String(words).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const part = (selector) => root.querySelector(selector);
  const round = (x) => Math.round(x * 10) / 10;

  function pairs(flat) {
    const found = [];
    for (let n = 0; n < flat.length; n += 2) found.push([flat[n], flat[n + 1]]);
    return found;
  }
  function scales(points) {
    const ends = (axis) => {
      const all = [0, ...points.map((point) => point[axis])];
      const [low, high] = [Math.min(...all), Math.max(...all)], air = (high - low) * 0.06 || 1;
      return [low - air, high + air];
    };
    const [[left, right], [low, high]] = [ends(0), ends(1)], wide = part(".figure").clientWidth;
    return {
      wide, left, right, low, high,
      x: (value) => LEFT + ((value - left) / (right - left)) * (wide - LEFT - RIGHT),
      y: (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    };
  }
  function steps(low, high, count) { // round numbers between the ends
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((each) => each >= rough);
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(+(n * step).toPrecision(6));
    return found;
  }
  function draw() {
    if (!data || !part(".figure")?.clientWidth) return;
    const { texts } = data, { harmful, harmless, means, shown } = data.planes[layer];
    dots = [["harmless", pairs(harmless)], ["harmful", pairs(harmful)]]
      .flatMap(([kind, list]) => list.map((point, n) => ({ kind, point, n })));
    const to = scales(dots.map(({ point }) => point));
    const minus = (x) => String(x).replace("-", "−");
    const grid = steps(to.left, to.right, 7).map((x) => `<path class="grid${x ? "" : " zero"}" `
      + `d="M${round(to.x(x))} ${TOP}V${HEIGHT - BOTTOM}"/><text x="${round(to.x(x))}" `
      + `y="${HEIGHT - BOTTOM + 14}" text-anchor="middle">${minus(x)}</text>`).join("")
      + steps(to.low, to.high, 4).map((y) => `<path class="grid${y ? "" : " zero"}" `
      + `d="M${LEFT} ${round(to.y(y))}H${to.wide - RIGHT}"/><text x="${LEFT - 6}" `
      + `y="${round(to.y(y)) + 4}" text-anchor="end">${minus(y)}</text>`).join("");
    const points = dots.map(({ kind, point }) => `<circle class="${kind}" `
      + `cx="${round(to.x(point[0]))}" cy="${round(to.y(point[1]))}" r="3.2"/>`).join("");
    const cross = means.map(([x, y], n) => `<path class="mean ${n ? "harmless" : "harmful"}" `
      + `d="M${round(to.x(x)) - 6} ${round(to.y(y))}h12m-6 -6v12"/>`).join("");
    const [from, end, at] = [to.x(0), to.x(means[0][0]), to.y(0)].map(round);
    const turn = end < from ? -1 : 1;
    const arrow = `<path class="arrow" d="M${from} ${at}H${end}m${-8 * turn} -5l${8 * turn} 5l${-8 * turn} 5"/>`
      + `<text class="name" x="${(from + end) / 2}" y="${at - 7}" text-anchor="middle">${safe(texts.direction)}</text>`;
    const names = `<text x="${to.wide - RIGHT}" y="${HEIGHT - 3}" text-anchor="end">${safe(texts.along)}</text>`
      + `<text transform="translate(11 ${(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${safe(texts.beside)}</text>`;
    part(".figure").innerHTML = grid + points + cross + arrow + names;
    part(".figure").setAttribute("aria-label", fill(texts.summary, {
      layer, harmful: data.prompts.harmful.length, harmless: data.prompts.harmless.length }));
    part("output").textContent = `${texts.layer} ${layer}`;
    part(".shown").textContent = fill(texts.shown, { percent: (100 * shown).toFixed(0) });
    const slider = part("[type=range]");
    slider.value = layer;
    slider.style.setProperty("--range_progress", `${(100 * layer) / Math.max(1, slider.max)}%`);
    dots.forEach((dot) => { dot.at = [to.x(dot.point[0]), to.y(dot.point[1])]; });
    tip(null);
  }
  function tip(event) { // the prompt of the nearest point
    const words = part(".tip"), ring = part(".ring");
    let found = null, nearest = 12 ** 2;
    if (event) {
      const box = part(".figure").getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      for (const dot of dots) {
        const away = (x - dot.at[0]) ** 2 + (y - dot.at[1]) ** 2;
        if (away < nearest) [nearest, found] = [away, dot];
      }
    }
    words.hidden = ring.hidden = !found;
    if (!found) return;
    words.innerHTML = `<b class="${found.kind}">${safe(data.texts[found.kind])}</b>`
      + safe(data.prompts[found.kind][found.n]);
    const top = (selector) => part(selector).getBoundingClientRect().top;
    const [x, y] = found.at, offset = top(".figure") - top(".whole");
    Object.assign(ring.style, { left: `${x - 6}px`, top: `${offset + y - 6}px` });
    const right = x + 14 + words.offsetWidth <= root.clientWidth;
    words.style.left = `${Math.max(0, right ? x + 14 : x - 14 - words.offsetWidth)}px`;
    words.style.top = `${offset + Math.max(0, y - 14)}px`;
  }
  function frame() {
    const { texts } = data;
    const key = (kind) => `<span class="key ${kind}"><i></i>${safe(texts[kind])}</span>`;
    root.innerHTML = `<div class="whole"><div class="choices"><output></output>
      <input type="range" min="0" max="${data.planes.length - 1}" step="1" aria-label="${safe(texts.layer)}">
      <span class="shown"></span>${key("harmless")}${key("harmful")}</div>
      <svg class="figure" role="img" height="${HEIGHT}"></svg>
      <div class="ring" hidden></div><div class="tip" hidden></div></div>`;
    part("[type=range]").addEventListener("input", (event) => {
      event.stopPropagation();
      layer = Number(event.target.value);
      draw();
    });
    part(".figure").addEventListener("pointermove", tip);
    part(".figure").addEventListener("pointerleave", () => tip(null));
  }
  function take(value) {
    if (!value) return;
    const found = JSON.parse(value);
    if (found.empty !== undefined) {
      data = null;
      root.innerHTML = `<p class="empty">${safe(found.empty)}</p>`;
      return;
    }
    // the layer that was chosen stays while it is the same model's map
    if (data?.planes.length !== found.planes.length) layer = found.layer;
    data = found;
    frame();
    draw();
  }
  function start(element, props, trigger, watch) {
    [root, data] = [element, null];
    watch("value", () => take(props.value));
    new ResizeObserver(draw).observe(element);
    take(props.value);
  }
  return { start };
})();
