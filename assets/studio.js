// Keys and the theme switch; everything else is Gradio's.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const apply = document.querySelector("button#apply, #apply button");
    if (apply) { event.preventDefault(); apply.click(); }
  }
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#theme-switch")) document.body.classList.toggle("dark");
});
