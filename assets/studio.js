// Keys and the switches of theme and language; everything else is Gradio's.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const apply = document.querySelector("button#apply, #apply button");
    if (apply) { event.preventDefault(); apply.click(); }
  }
  const writing = event.target.matches?.("input, textarea, select, [contenteditable=true]");
  const box = document.querySelector("#box textarea");
  if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey && box?.offsetParent) {
    event.preventDefault();
    box.focus();
  }
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#theme-switch")) document.body.classList.toggle("dark");
  const language = event.target.closest("#language-switch")?.dataset.language;
  if (language) { // in a frame of another site, as a Space is shown, only a cookie like this is kept
    const kept = location.protocol === "https:" ? "SameSite=None; Secure" : "SameSite=Lax";
    document.cookie = `sst-language=${language}; path=/; max-age=31536000; ${kept}`;
    location.reload();
  }
});

// What each control and each choice is (presets/definitions.yaml; the page's head has them in its
// language): a tip for the pointer, a description for screen readers. Gradio fills tabs, accordions
// and menus when they open, so they are looked for again.
const MEANS = JSON.parse(document.getElementById("definitions")?.textContent ?? "{}");
const FIELDS = "input, textarea, select, [contenteditable=true]";
function tip(place, text) {
  if (text && place.title !== text) place.title = text;
}
function describe(field, text) {
  if (text && field.getAttribute("aria-description") !== text) {
    field.setAttribute("aria-description", text);
  }
}
function define() {
  if (document.hidden) return;
  for (const [id, { what, choices }] of Object.entries(MEANS)) {
    const block = document.getElementById(id) ?? document.getElementById(`${id}-decades`);
    if (!block) continue;
    for (const place of [block, document.getElementById(`${id}-decades`)]) {
      if (!place) continue;
      tip(place, what);
      for (const field of place.matches("button") ? [place] : place.querySelectorAll(FIELDS)) {
        const own = field.type === "radio" ? choices[field.value] : "";
        if (own) tip(field.parentElement, own);
        const name = field.ariaLabel?.replace(/^(number input|range slider) for /, "");
        if (name !== field.ariaLabel && !/^[ -~]*$/.test(name)) field.ariaLabel = name; // English
        describe(field, own || [what, choices[field.value]].filter(Boolean).join(" "));
      }
    }
    const menu = block.querySelector("[aria-expanded=true]")?.getAttribute("aria-controls");
    for (const option of document.getElementById(menu)?.children ?? []) {
      tip(option, choices[option.ariaLabel]);
      describe(option, choices[option.ariaLabel]);
    }
  }
}
setInterval(define, 1000);
document.addEventListener("focusin", () => setTimeout(define, 150));

// The same for eyes that follow the keyboard: below whatever Tab or an arrow reaches.
let keyed = false;
const hint = Object.assign(document.createElement("div"), { id: "hint", hidden: true });
hint.setAttribute("aria-hidden", "true"); // its description is read out already
document.addEventListener("keydown", ({ key }) => {
  keyed = key === "Tab" || key.startsWith("Arrow");
  if (!keyed) hint.hidden = true;
}, true);
document.addEventListener("pointerdown", () => { keyed = false; hint.hidden = true; }, true);
document.addEventListener("focusout", () => { hint.hidden = true; });
document.addEventListener("focusin", ({ target }) => setTimeout(() => {
  const text = target.getAttribute("aria-description") || target.closest("[title]")?.title;
  if (!keyed || !text || document.activeElement !== target) return;
  hint.textContent = text;
  hint.hidden = false;
  document.body.append(hint);
  const { left, top, bottom } = target.getBoundingClientRect();
  const { offsetWidth: wide, offsetHeight: high } = hint;
  const above = bottom + high + 6 > innerHeight;
  hint.style.left = `${Math.max(4, Math.min(left, innerWidth - wide - 4))}px`;
  hint.style.top = `${above ? top - high - 6 : bottom + 6}px`;
}, 200));

// The bars of running jobs. Gradio would look at the whole page for each of their steps.
let asking = false;
setInterval(async () => {
  const bars = [...document.querySelectorAll("[data-progress]")];
  if (!bars.length || asking || document.hidden) return;
  asking = true;
  try {
    const names = [...new Set(bars.map((bar) => bar.dataset.progress))].join(",");
    const latest = await (await fetch(`${page().root}/progress-bars?of=${names}`)).json();
    for (const bar of bars) {
      const html = latest[bar.dataset.progress];
      if (html && html !== bar.dataset.shown) {
        bar.dataset.shown = html;
        bar.innerHTML = html;
      }
    }
  } catch { /* the server is away: Gradio says so */ }
  asking = false;
}, 500);

// Gradio marks all inputs of an event that has ended as inputs of a stream, for ever, and writes the
// state of whatever is marked at every later word from the server: half of what the page had to do.
// Only microphones and cameras stream, and this page has none.
const tracker = performance.getEntriesByType("resource")
  .find(({ name }) => /\/statustracker-[^/]*\.js$/.test(name))?.name;
if (tracker) import(tracker).then((parts) => {
  const states = Object.values(parts).find((part) => part?.prototype?.resolve_args)?.prototype;
  if (!states) return;
  const resolved = states.resolve_args;
  states.resolve_args = function (told) {
    return resolved.call(this, { ...told, stream_state: null });
  };
});

// The first three things to do stand in the header until they are done, or hidden; the browser
// remembers which are.
const STEPS = {
  ask: () => document.querySelector("#chat-right .bot.message"),
  change: () => document.querySelectorAll(".variant:not(.heads)").length > 1,
  compare: () => stepped.has("change")
    && /\d/.test(document.querySelector(".variant.current span")?.textContent),
};
const WHERE = { ask: "#box textarea", change: "#strength input[type=range]", compare: "#metrics" };
const stepped = new Set();
try { JSON.parse(localStorage.getItem("sst-first-steps") ?? "[]").forEach((s) => stepped.add(s)); }
catch { /* a frame that may keep nothing, or something else under that name */ }
function step(name) {
  if (name) stepped.add(name);
  document.body.dataset.steps = [...stepped].join(" ");
  try { localStorage.setItem("sst-first-steps", JSON.stringify([...stepped])); } catch { /* ditto */ }
}
step();
const stepping = setInterval(() => {
  if (stepped.has("over")) { clearInterval(stepping); return; }
  const done = Object.keys(STEPS).filter((name) => !stepped.has(name) && STEPS[name]());
  done.forEach(step);
  if (Object.keys(STEPS).every((name) => stepped.has(name)) && !done.length) step("over");
}, 2000);
document.addEventListener("click", (event) => {
  const name = event.target.closest("[data-step]")?.dataset.step;
  if (name === "over") step(name);
  const place = name && document.querySelector(WHERE[name]);
  place?.scrollIntoView({ block: "center" });
  place?.focus();
});

// What a validator says of a control. Gradio shows it too, but takes it away as soon as any other
// function of the page reports (a running metric, say), and shows nothing in a closed accordion.
// Here it stays until the control's value changes or a button asks again.
const said = new Map(); // block -> its values when it was said
const values = (block) => [...block.querySelectorAll("input, textarea")]
  .map((field) => (/radio|checkbox/.test(field.type) ? field.checked : field.value)).join("\n");
function unsay(block) {
  block?.querySelector(":scope > .said")?.remove();
  said.delete(block);
}
function say(block, text) {
  unsay(block);
  const message = document.createElement("div");
  message.className = "said";
  message.setAttribute("role", "alert");
  message.textContent = text;
  block.prepend(message);
  block.scrollIntoView({ block: "nearest" });
  said.set(block, values(block));
}
setInterval(() => said.forEach((then, block) => values(block) === then || unsay(block)), 200);
const page = () => window.gradio_config;
const element = (id) => {
  const known = page().components.find((component) => component.id === id);
  return document.getElementById(known?.props.elem_id || `component-${id}`);
};
function above(id, node = page().layout) { // the ids of what holds a component, outermost first
  for (const child of node.children ?? []) {
    const rest = child.id === id ? [] : above(id, child);
    if (rest) return [child.id, ...rest];
  }
  return null;
}
// Whether a control still holds what was sent; a newer value is judged by an event of its own.
function holds(block, sent) {
  const box = block.querySelector("input[type=number]");
  return !box || box.value === String(sent ?? "") || parseFloat(box.value) === parseFloat(sent);
}
async function show(id, text, sent) {
  for (const outer of above(id) ?? []) {
    const name = page().components.find((component) => component.id === outer)?.props.elem_id;
    document.getElementById(`${name}-button`)?.click(); // a tab
    element(outer)?.querySelector(":scope > button.label-wrap:not(.open)")?.click();
  }
  for (let tries = 0; tries < 600; tries++) { // an accordion or a tab fills itself when opened
    const block = element(id);
    if (block?.offsetParent) return holds(block, sent) && say(block, text);
    await new Promise((resume) => setTimeout(resume, 50));
  }
  say(document.getElementById("apply-bar"), text); // a control that cannot be shown
}
const ask = window.fetch;
window.fetch = async (...request) => {
  if (!String(request[0]).includes("/queue/join")) return ask(...request);
  const body = JSON.parse(request[1].body);
  const asked = page().dependencies.find(({ id }) => id === body.fn_index);
  if (asked?.targets.some(([, event]) => event === "click")) {
    asked.inputs.forEach((id) => unsay(element(id)));
  }
  const answer = await ask(...request);
  if (asked && answer.status === 422) {
    if (asked.targets.some(([, event]) => event === "input")) { // Apply shows that it is not that
      document.getElementById("unsound")?.click();
    }
    const { detail } = await answer.clone().json();
    if (Array.isArray(detail)) {
      detail.forEach((each, n) => each.is_valid || show(asked.inputs[n], each.message, body.data[n]));
    }
  }
  return answer;
};

// Peak, width or threshold moved by hand: the profile is a custom one. Heard here, where only what a
// visitor does is heard, and each of it once.
document.addEventListener("input", (event) => {
  if (event.target.closest?.("#peak, #width, #threshold")) document.getElementById("by-hand")?.click();
}, true);

// A number typed beyond the ends of a slider stays as it was typed: Gradio would put it to the
// nearest end when the box is left, and say nothing. What is wrong with it is said above.
document.addEventListener("blur", (event) => {
  const box = event.target;
  if (!box.matches?.(".block:has(input[type=range]) input[type=number]")) return;
  const [value, low, high] = [box.value, box.min, box.max].map((text) => parseFloat(text));
  if (!(value >= low && value <= high)) event.stopImmediatePropagation();
}, true);

// The line above an answer says where it came from; a copied answer takes it along as text.
// HTML and images in a message are kept from being read as such by an unseen sign, which nobody
// wants to copy.
const unseen = /(?<=[<!\]`])\u2060/g;
document.addEventListener("copy", (event) => {
  const text = String(getSelection());
  if (text.search(unseen) < 0) return;
  event.clipboardData.setData("text/plain", text.replace(unseen, ""));
  event.preventDefault();
});
const copy = navigator.clipboard?.writeText?.bind(navigator.clipboard);
if (copy) {
  navigator.clipboard.writeText = async (text) => {
    await copy(text.replace(
      /^<div class="source[^>]*>(.*?)<\/div>\n\n/,
      (_, html) => `[${new DOMParser().parseFromString(html, "text/html").body.textContent}]\n`,
    ).replace(unseen, ""));
    tell(navigator.language.startsWith("ja") ? "コピーしました" : "Copied");
  };
}

// A word at the foot of the page that goes by itself.
function tell(text) {
  const word = document.getElementById("told") ?? document.createElement("div");
  Object.assign(word, { id: "told", textContent: text });
  word.setAttribute("role", "status");
  document.body.append(word);
  clearTimeout(tell.gone);
  tell.gone = setTimeout(() => word.remove(), 2000);
}
