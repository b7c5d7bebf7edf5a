// light where the reader's system is, dark where that is, the other on a click
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = (on) => root.classList.toggle("dark", on);
paint(dark.matches);
dark.addEventListener("change", (event) => paint(event.matches));
document.getElementById("theme").addEventListener("click", () => paint(!root.classList.contains("dark")));
