"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();

  // Four significant digits, as in the tables of the terminal.
  function shown(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    if (value === 0) return "0";
    const digits = Math.max(0, Math.min(9, 3 - Math.floor(Math.log10(Math.abs(value)))));
    const text = value.toFixed(digits);
    return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }

  // Tables: each header becomes a button, and a field filters the rows by their words.
  function key(row, place) {
    const cell = row.cells[place];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim();
  }

  function compared(a, b) {
    if (typeof a === typeof b && typeof a === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // undefined numbers stay last
    return a.localeCompare(b, "en", { numeric: true });
  }

  function sort(table, place) {
    const heads = [...table.tHead.rows[0].cells];
    const down = heads[place].getAttribute("aria-sort") === "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[place].setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, place), row]);
    rows.sort(([a], [b]) => {
      const order = compared(a, b);
      return down && typeof a === typeof b ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  // Words, and phrases in quotation marks.
  function wordsOf(text) {
    return [...text.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map((found) => found[1] ?? found[0]);
  }

  function filter(table, words, status) {
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const kept = rows.filter((row) => !row.hidden).length;
    status.textContent = `${kept} of ${rows.length} rows`;
  }

  function interactive(box) {
    const table = box.querySelector("table");
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent || table.caption.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(table, place));
    });
    const bar = document.createElement("div");
    const label = document.createElement("label");
    const field = document.createElement("input");
    const status = document.createElement("span");
    bar.className = "filter";
    field.type = "search";
    field.placeholder = 'words, or "a phrase"';
    field.setAttribute("aria-controls", table.id);
    status.setAttribute("role", "status");
    status.className = "soft";
    label.append("Show rows with ", field);
    bar.append(label, status);
    box.prepend(bar);
    field.addEventListener("input", () => {
      filter(table, wordsOf(field.value), status);
    });
  }

  // Plots: one specification each; the rows are those that the reader's choices leave.
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function luminance(color) {
    const parts = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16) / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function lighter(color) {
    const mixed = [1, 3, 5].map((at) => {
      const part = parseInt(color.slice(at, at + 2), 16);
      return Math.round(part + (255 - part) * 0.15).toString(16).padStart(2, "0");
    });
    return `#${mixed.join("")}`;
  }

  // On a dark page, colours that would not stand out (contrast below 3 to 1) become lighter.
  function visible(color) {
    const back = luminance(css("--back"));
    while ((luminance(color) + 0.05) / (back + 0.05) < 3) color = lighter(color);
    return color;
  }

  function config(width, longest) {
    const [text, soft, line] = ["--text", "--soft", "--line"].map(css);
    return {
      aria: false,
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: text, titleColor: text, gridColor: line, domainColor: soft, tickColor: soft,
        labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelOverlap: true,
        labelSeparation: 4,
      },
      axisY: { labelLimit: Math.max(90, Math.min(300, width * 0.36)) },
      legend: {
        labelColor: text, titleColor: text, labelFontSize: 12, orient: "top", title: null,
        columns: Math.max(1, Math.floor(width / (7 * longest + 36))), labelLimit: width - 40,
        symbolSize: 90, symbolBaseFillColor: soft, symbolBaseStrokeColor: soft,
      },
      text: { color: text, fontSize: 12 },
    };
  }

  function chosen(figure) {
    const lists = [...figure.querySelectorAll("select[data-field]")];
    const made = Object.fromEntries(lists.map((list) => [list.dataset.field, list.value]));
    return { ...plots[figure.dataset.plot].choices, ...made };
  }

  function rowsOf(plot, choices) {
    const value = (field, given) => (field in plot.levels ? plot.levels[field][given] : given);
    const rows = plot.rows.map((row) =>
      Object.fromEntries(plot.fields.map((field, i) => [field, value(field, row[i])])));
    return rows.filter((row) => Object.keys(plot.choices).every((field) => String(row[field]) === choices[field]));
  }

  function specOf(plot, choices) {
    let text = JSON.stringify(plot.spec).replace(/\{(\w+)\}/g, (whole, field) =>
      field in choices ? JSON.stringify(choices[field]).slice(1, -1) : whole);
    if (dark.matches) text = text.replace(/"(#[0-9a-fA-F]{6})"/g, (_, color) => `"${visible(color)}"`);
    return JSON.parse(text);
  }

  async function draw(figure) {
    const plot = plots[figure.dataset.plot];
    const target = figure.querySelector(".canvas");
    const choices = chosen(figure);
    const rows = rowsOf(plot, choices);
    drawn.get(figure)?.finalize();
    drawn.delete(figure);
    if (!rows.length) {
      target.textContent = "There are no numbers for this choice.";
      return;
    }
    const spec = { ...specOf(plot, choices), datasets: { rows } };
    if (plot.rising) spec.height = plot.rising[1] * new Set(rows.map((row) => row[plot.rising[0]])).size;
    const made = await vegaEmbed(target, spec, {
      mode: "vega-lite", actions: false, renderer: "svg", ast: true, defaultStyle: false,
      tooltip: { disableDefaultStyle: true }, config: config(target.clientWidth, plot.longest),
    });
    drawn.set(figure, made.view);
  }

  function fillTable(figure) {
    const plot = plots[figure.dataset.plot];
    const all = rowsOf(plot, chosen(figure));
    const step = Math.ceil(all.length / plot.most) || 1;
    const rows = all.filter((_, place) => place % step === 0).map((row) => {
      const line = document.createElement("tr");
      plot.columns.forEach((field, place) => {
        const cell = document.createElement(place ? "td" : "th");
        if (!place) cell.scope = "row";
        cell.textContent = shown(row[field]);
        line.append(cell);
      });
      return line;
    });
    figure.querySelector("details.data tbody").replaceChildren(...rows);
  }

  async function start() {
    document.querySelectorAll(".table[data-interactive]").forEach(interactive);
    const figures = [...document.querySelectorAll("figure[data-plot]")];
    for (const figure of figures) {
      figure.querySelectorAll("select[data-field]").forEach((list) => {
        list.addEventListener("change", () => { fillTable(figure); draw(figure); });
      });
    }
    const all = async () => { for (const figure of figures) await draw(figure); };
    dark.addEventListener("change", all);
    let folded = [];
    addEventListener("beforeprint", () => {
      folded = [...document.querySelectorAll("details.more:not([open])")];
      folded.forEach((part) => { part.open = true; });
    });
    addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
    await all();
    document.documentElement.dataset.plots = "drawn";
  }
  start();
})();
