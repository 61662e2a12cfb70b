"use strict";
// The arithmetic of moesim/advice/expression.py, and a form that shows its results.

function evaluate(expression, values) {
  if (typeof expression === "string") {
    if (!Object.hasOwn(values, expression)) throw new Error("no variable " + expression);
    return values[expression];
  }
  if (!Array.isArray(expression)) return expression;
  const [name, ...rest] = expression;
  if (name === "interp") return interpolated(evaluate(rest[0], values), rest[1], rest[2]);
  const numbers = rest.map((each) => evaluate(each, values));
  switch (name) {
    case "+": return numbers.reduce((a, b) => a + b, 0);
    case "*": return numbers.reduce((a, b) => a * b, 1);
    case "/": return numbers[0] / numbers[1];
    case "min": return Math.min(...numbers);
    case "max": return Math.max(...numbers);
    case "floor": return Math.floor(numbers[0]);
  }
  throw new Error("no operation " + name);
}

function interpolated(x, xs, ys) {
  if (xs.length === 1) return ys[0];
  let place = 0;
  while (place < xs.length - 2 && x >= xs[place + 1]) place += 1;
  const share = (x - xs[place]) / (xs[place + 1] - xs[place]);
  return ys[place] + share * (ys[place + 1] - ys[place]);
}

const GIB = 2 ** 30;

// Return the bytes of each part and what is left; null where the size of a memory is not known.
function memoryOf(data, settings) {
  const parts = data.memory[[settings.format, settings.kv, settings.ubatch].join(" ")];
  const found = {};
  for (const place of ["gpu", "host"]) {
    found[place] = Object.entries(parts[place]).map(
      ([name, expression]) => [name, Math.max(0, evaluate(expression, settings))]);
  }
  const total = (place) => found[place].reduce((sum, part) => sum + part[1], 0);
  found.gpuLeft = settings.vram * GIB - total("gpu");
  found.hostLeft = settings.ram === null ? null : settings.ram * GIB - total("host");
  found.fits = found.gpuLeft >= 0 && (found.hostLeft === null || found.hostLeft >= 0);
  return found;
}

// Return the fewest layers with their experts on the CPU that fit, or null.
function fewestLayers(data, settings) {
  for (let n = 0; n <= data.layers; n += 1) {
    if (memoryOf(data, { ...settings, n }).gpuLeft >= 0) return n;
  }
  return null;
}

// Return seconds, or the reason why a formula does not hold.
function secondsOf(data, formula, settings) {
  if (!formula) return { reason: "not computed for these weights with this batch" };
  for (const [name, [low, high]] of Object.entries(formula.holds)) {
    const close = 1e-9 * Math.abs(settings[name]);
    if (settings[name] < low - close || settings[name] > high + close) {
      const ends = low === high ? "at " + short(low) : short(low) + " to " + short(high);
      return { reason: "only computed for " + data.names[name] + " " + ends };
    }
  }
  return { value: evaluate(formula.expression, settings) };
}

// Return all that the page shows: speeds in tokens/s with intervals, seconds, and bytes.
function answer(data, settings) {
  const key = [settings.format, settings.kv];
  const decode = secondsOf(data, data.decode_s[key.join(" ")], settings);
  const prompt = secondsOf(data, data.prompt_s[[...key, settings.ubatch].join(" ")], settings);
  const some = settings.n > 0 ? 1 : 0;
  const rate = (time, [low, high]) => time.reason ? time :
    { value: 1 / time.value, low: low / time.value, high: high / time.value };
  const found = { memory: memoryOf(data, settings), decode: rate(decode, data.intervals.decode[some]) };
  found.prompt = prompt.reason ? prompt : rate(prompt, data.intervals.prompt[some]);
  const tokens = evaluate(data.prompt_tokens, settings);
  let speed = found.prompt;
  const usual = data.usual_s[[...key, settings.ubatch].join(" ")];
  if (usual) {
    const time = secondsOf(data, usual, settings);
    speed = time.reason ? time : rate(time, data.intervals.prompt[some]);
  }
  found.first = speed.reason ? speed :
    { value: tokens / speed.value, low: tokens / speed.high, high: tokens / speed.low };
  return found;
}

function flagsOf(data, engine, settings) {
  const forms = data.flags[engine][[settings.kv, settings.ubatch].join(" ")];
  return forms[settings.n > 0 ? 1 : 0]
    .replace("{tokens}", String(settings.context * data.load))
    .replace("{layers}", String(data.first_layers[settings.n]));
}

// Three digits, and all before the point.
function short(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(3);
}

function gib(bytes) {
  return (bytes / GIB).toFixed(2) + " GiB";
}

if (typeof document !== "undefined") {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("settings");
  const field = (name) => form.elements.namedItem(name);
  const element = (id) => document.getElementById(id);

  const read = () => {
    const settings = { ...data.base };
    for (const name of Object.keys(settings)) {
      const input = field(name);
      if (!input) continue;
      const number = input.value === "" ? NaN : Number(input.value);
      settings[name] = typeof settings[name] === "string" ? input.value : number;
    }
    return settings;
  };

  const showSpan = (id, span, unit) => {
    const output = element(id);
    output.dataset.value = span.reason ? "" : span.value;
    output.textContent = span.reason ? "— (" + span.reason + ")" :
      short(span.value) + " " + unit + " (" + short(span.low) + " to " + short(span.high) + ")";
  };

  const bar = (place, parts, size) => {
    const svg = element("bar-" + place);
    const total = Math.max(size || 0, parts.reduce((sum, part) => sum + part[1], 0)) || 1;
    let start = 0;
    svg.replaceChildren(...parts.map(([name, bytes]) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const wide = (100 * bytes) / total;
      for (const [key, value] of [["x", start], ["y", 0], ["height", 10], ["width", wide]]) {
        rect.setAttribute(key, value);
      }
      rect.setAttribute("class", "part-" + data.parts.indexOf(name));
      start += wide;
      return rect;
    }));
  };

  const showMemory = (settings, memory) => {
    const rows = element("memory-rows");
    const names = data.parts.filter((name) =>
      ["gpu", "host"].some((place) => memory[place].some((part) => part[0] === name)));
    const sizes = (name) => ["gpu", "host"].map((place) => {
      const part = memory[place].find((each) => each[0] === name);
      return part ? gib(part[1]) : "0";
    });
    const left = [memory.gpuLeft, memory.hostLeft].map((bytes) => bytes === null ? "?" : gib(bytes));
    rows.replaceChildren(...[...names.map((name) => [name, ...sizes(name)]), ["left", ...left]]
      .map(([name, ...cells]) => {
        const row = document.createElement("tr");
        const head = document.createElement("th");
        head.scope = "row";
        if (name !== "left") {
          head.className = "key-" + data.parts.indexOf(name);
        }
        head.textContent = name;
        row.append(head, ...cells.map((text) => {
          const cell = document.createElement("td");
          cell.textContent = text;
          return cell;
        }));
        return row;
      }));
    bar("gpu", memory.gpu, settings.vram * GIB);
    bar("host", memory.host, (settings.ram || 0) * GIB);
  };

  const fitText = (memory) => {
    if (memory.fits) return "It fits.";
    const missing = [];
    if (memory.gpuLeft < 0) missing.push(gib(-memory.gpuLeft) + " of GPU memory");
    if (memory.hostLeft !== null && memory.hostLeft < 0) {
      missing.push(gib(-memory.hostLeft) + " of host memory");
    }
    return "It does not fit: " + missing.join(" and ") + " missing.";
  };

  const update = () => {
    if (!form.checkValidity()) {
      element("fits").textContent = "A setting is out of its range.";
      element("results").classList.add("no");
      return;
    }
    const settings = read();
    const automatic = field("automatic");
    if (automatic && automatic.checked) {
      const fewest = fewestLayers(data, settings);
      settings.n = fewest === null ? data.layers : fewest;
      field("n").value = settings.n;
    }
    for (const output of form.querySelectorAll("output[data-of]")) {
      output.textContent = String(settings[output.dataset.of]);
    }
    const found = answer(data, settings);
    showSpan("decode", found.decode, "tokens/s");
    showSpan("prompt", found.prompt, "tokens/s");
    showSpan("first", found.first, "s");
    showMemory(settings, found.memory);
    element("fits").textContent = fitText(found.memory);
    element("results").classList.toggle("no", !found.memory.fits);
    for (const code of document.querySelectorAll("code[data-engine]")) {
      code.textContent = flagsOf(data, code.dataset.engine, settings);
    }
  };

  // `#n=10&context=8192` opens the page with these settings.
  const fromAddress = () => {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const input = field(name);
      if (!input || !Object.hasOwn(data.base, name)) continue;
      input.value = value;
      if (name === "n" && field("automatic")) field("automatic").checked = false;
    }
  };

  const copy = (button) => {
    const code = element(button.dataset.copies);
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    const done = document.execCommand("copy");
    button.textContent = done ? "copied" : "selected";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };

  for (const hidden of document.querySelectorAll("[data-script]")) hidden.hidden = false;
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.addEventListener("click", () => copy(button));
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("input", (event) => {
    const automatic = field("automatic");
    if (event.target.name === "n" && automatic) automatic.checked = false;
    update();
  });
  addEventListener("hashchange", () => { fromAddress(); update(); });
  fromAddress();
  update();
}
