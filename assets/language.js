// The language that the visitor chose (see studio.js). Gradio's page asks for the browser's once, when
// its own scripts begin; these run before.
(() => {
  const chosen = /(?:^|;\s*)sst-language=(\w+)/.exec(document.cookie)?.[1];
  if (!chosen) return;
  Object.defineProperty(navigator, "language", { get: () => chosen });
  Object.defineProperty(navigator, "languages", { get: () => [chosen] });
})();
