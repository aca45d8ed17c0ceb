// The weight kernel, as sst_ui/maths/kernel.py computes it: for what moves under the pointer. What
// is applied is the server's; a test compares the two.
const kernel = {
  // [layers] positions l / (L - 1); a single layer sits at 0
  positions: (layers) => Array.from({ length: layers }, (_, l) => l / Math.max(layers - 1, 1)),

  gaussian: (position, peak, width) => Math.exp(-(((position - peak) / width) ** 2) / 2),

  // [layers] after the threshold: the bell of a kind of module, or the table's own curve
  bell({ peak, width, threshold, curve, peaks, widths }, layers, kind = "") {
    const values = curve && !(kind in peaks || kind in widths) ? curve
      : kernel.positions(layers).map(
        (place) => kernel.gaussian(place, peaks[kind] ?? peak, widths[kind] ?? width));
    return values.map((value) => (Math.abs(value) >= threshold ? value : 0));
  },

  // [layers][kinds]: strength x kernel x factor, then overrides
  table(weights, layers, kinds) {
    const columns = kinds.map((kind) => kernel.bell(weights, layers, kind).map((value, layer) =>
      weights.overrides[kind]?.[layer] ?? weights.strength * value * (weights.modules[kind] ?? 1)));
    return Array.from({ length: layers }, (_, layer) => columns.map((column) => column[layer]));
  },
};
