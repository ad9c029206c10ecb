"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const figures = [...document.querySelectorAll(".gallery figure")];
  const shown = document.getElementById("shown");
  const value = (name) => (form.elements[name]?.value ?? "").trim().toLowerCase();
  const apply = () => {
    const [text, query, language, domain] = ["text", "query", "language", "domain"].map(value);
    let count = 0;
    for (const figure of figures) {
      const { l, h, q } = figure.dataset;
      const host = h.replace(/:\d+$/, "");
      const fits =
        (!text || figure.querySelector("figcaption").textContent.toLowerCase().includes(text)) &&
        (!query || q.split("|").some((one) => one.includes(query))) &&
        (!language || l.toLowerCase() === language) &&
        (!domain || host === domain || host.endsWith("." + domain) || h === domain);
      figure.hidden = !fits;
      count += fits ? 1 : 0;
    }
    shown.textContent = `${count} of ${figures.length} pairs`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
