// The words in which the two columns' answers to a message differ. They are marked by ranges over the
// text as it is shown (the CSS Custom Highlight API): the document stays as it is, so that no answer
// can bring marks or markup of its own, and what is copied, kept or sent stays the plain answer.
const differences = {
  MOST: 1e7, // comparisons of one pair, some 50 ms; longer answers stay unmarked

  // Where each word and each sign begins and ends; also in languages that write no spaces
  words(text) {
    differences.segmenter ??= new Intl.Segmenter(undefined, { granularity: "word" });
    return [...differences.segmenter.segment(text)]
      .filter(({ segment }) => segment.trim())
      .map(({ segment, index }) => ({ word: segment, start: index, end: index + segment.length }));
  },

  // [[start, end], ...] for each of two texts: what is not part of a longest common sequence of
  // words. Neighbours are one stretch. Nothing where the texts are too long to compare.
  compare(left, right) {
    const [one, two] = [left, right].map(differences.words);
    const same = (i, j) => one[i].word === two[j].word;
    let first = 0, a = one.length, b = two.length;
    while (first < a && first < b && same(first, first)) first++;
    while (a > first && b > first && same(a - 1, b - 1)) { a--; b--; }
    const [rows, columns] = [a - first, b - first];
    if (rows * columns > differences.MOST) return [[], []];
    const width = columns + 1, common = new Uint16Array((rows + 1) * width); // of what follows
    for (let i = rows - 1; i >= 0; i--) {
      for (let j = columns - 1; j >= 0; j--) {
        common[i * width + j] = same(first + i, first + j) ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
      }
    }
    const found = [[], []];
    for (let i = 0, j = 0; i < rows || j < columns;) {
      if (i < rows && j < columns && same(first + i, first + j)) { i++; j++; continue; }
      const below = i < rows && (j === columns
        || common[(i + 1) * width + j] >= common[i * width + j + 1]);
      if (below) found[0].push(first + i++);
      else found[1].push(first + j++);
    }
    return [differences.stretches(found[0], one), differences.stretches(found[1], two)];
  },

  stretches(places, words) {
    const found = [];
    places.forEach((place, n) => {
      if (n && places[n - 1] === place - 1) found.at(-1)[1] = words[place].end;
      else found.push([words[place].start, words[place].end]);
    });
    return found;
  },

  // The text of an answer as it is shown, and which of its nodes begins where
  read(answer) {
    const apart = "p, li, tr, td, th, pre, div, h1, h2, h3, h4, h5, h6, blockquote, br, hr";
    const unread = "button, style, .katex"; // of Gradio, or drawn twice
    const nodes = [], head = answer.firstElementChild;
    let text = "";
    const walk = (node) => {
      if (node.nodeType === Node.TEXT_NODE) {
        nodes.push({ node, start: text.length });
        text += node.data;
      } else if (node !== head && node.nodeType === Node.ELEMENT_NODE && !node.matches(unread)) {
        if (node.matches(apart)) text += "\n";
        node.childNodes.forEach(walk);
        if (node.matches(apart)) text += "\n";
      }
    };
    answer.childNodes.forEach(walk);
    return { text, nodes };
  },

  ranges({ nodes }, stretches) {
    const at = (offset) => nodes.findLast(({ start }) => start <= offset);
    return stretches.map(([start, end]) => {
      const range = new Range(), [from, to] = [at(start), at(end - 1)];
      range.setStart(from.node, start - from.start);
      range.setEnd(to.node, end - to.start);
      return range;
    });
  },

  // Both columns' answers to the same message, those that are complete: they say what kind they are
  pairs() {
    const [left, right] = ["left", "right"].map((side) =>
      [...document.querySelectorAll(`#chat-${side} .bot.message .md`)]);
    const complete = (answer) => answer?.firstElementChild?.matches(".source:has(.label)");
    return left.map((answer, n) => [answer, right[n]]).filter((pair) => pair.every(complete));
  },

  known: new Map(), // what was found, of the pairs on the page
  draw() {
    if (!window.CSS?.highlights) return; // an older browser: nothing is marked
    const known = new Map(), ranges = [];
    for (const pair of differences.on ? differences.pairs() : []) {
      const read = pair.map(differences.read), key = JSON.stringify(read.map(({ text }) => text));
      const found = differences.known.get(key) ?? differences.compare(...read.map((r) => r.text));
      known.set(key, found);
      read.forEach((each, n) => ranges.push(...differences.ranges(each, found[n])));
    }
    differences.known = known;
    CSS.highlights.set("differs", new Highlight(...ranges));
  },

  on: true,
  turn(on) {
    differences.on = on;
    try { localStorage.setItem("sst-differences", on ? "on" : "off"); }
    catch { /* a frame of another site may keep nothing */ }
    differences.draw();
  },
  kept() {
    try { return localStorage.getItem("sst-differences") !== "off"; } catch { return true; }
  },

  // Once the columns have come to rest, not while an answer streams; they may be put up anew
  watch() {
    const columns = document.getElementById("columns");
    if (!columns || columns === differences.watched) return;
    differences.watched = columns;
    const box = document.querySelector("#differences input");
    if (box?.checked && !differences.kept()) box.click();
    new MutationObserver(() => {
      clearTimeout(differences.soon);
      differences.soon = setTimeout(differences.draw, 150);
    }).observe(columns, { childList: true, subtree: true, characterData: true });
    differences.draw();
  },
};
setInterval(differences.watch, 500);
