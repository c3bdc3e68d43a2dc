"use strict";
(() => {
  const form = document.querySelector(".filter");
  const samples = [...document.querySelectorAll(".sample")];

  function wanted() {
    const hash = location.hash.split("?");
    return new URLSearchParams(hash[0] === "#samples" ? hash[1] : "");
  }

  function show(filter) {
    const outcome = filter.get("show") || "", tool = filter.get("tool") || "";
    const text = (filter.get("text") || "").toLowerCase();
    let shown = 0;
    for (const sample of samples) {
      const fits = (!outcome || sample.dataset.outcome === outcome) &&
        (!tool || sample.dataset.tools.includes(` ${tool} `)) &&
        (!text || sample.textContent.toLowerCase().includes(text));
      sample.hidden = !fits;
      shown += fits;
    }
    for (const button of form.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(button.dataset.show === outcome));
    form.elements.tool.value = tool;
    if (form.elements.text.value.toLowerCase() !== text) form.elements.text.value = filter.get("text") || "";
    form.querySelector("output").textContent = `${shown} of ${samples.length}`;
  }

  function change(name, value) {
    const filter = wanted();
    value ? filter.set(name, value) : filter.delete(name);
    const query = filter.toString();
    history.replaceState(null, "", `#samples${query ? "?" + query : ""}`);
    show(filter);
  }

  if (form) {
    form.hidden = false;
    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("click", event => {
      const button = event.target.closest("button");
      if (button) change("show", button.dataset.show);
    });
    form.elements.tool.addEventListener("change", event => change("tool", event.target.value));
    form.elements.text.addEventListener("input", event => change("text", event.target.value));
    addEventListener("hashchange", () => show(wanted()));
    show(wanted());
    if (location.hash.startsWith("#samples?")) document.getElementById("samples").scrollIntoView();
  }

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(table, head, column));
    });
  }

  function sort(table, head, column) {
    const rising = head.getAttribute("aria-sort") === "descending";
    const units = { k: 1e3, M: 1e6, G: 1e9 };
    const key = row => {
      const text = row.cells[column].textContent.trim(), found = /^(-?[\d.]+(?:e[-+]?\d+)?)([kMG]?)$/.exec(text);
      return found ? Number(found[1]) * (units[found[2]] || 1) : text;
    };
    const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    if (!rising) rows.reverse();
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  }

  const live = document.querySelector("time[data-live]");
  if (live) {
    const minutes = Math.round((Date.now() - Date.parse(live.dateTime)) / 60000);
    if (minutes >= 10) {
      const age = minutes < 120 ? `${minutes} minutes` : minutes < 2880 ? `${Math.round(minutes / 60)} hours` : `${Math.round(minutes / 1440)} days`;
      live.after(` (${age} ago: if nothing is running any more, it was killed)`);
    }
  }
})();
