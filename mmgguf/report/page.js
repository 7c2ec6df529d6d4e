"use strict";
// Everything from the file reaches the page as text nodes, never as markup.
(async () => {
  const PAGE = 200; // rows that are shown at a time

  const el = (tag, options = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
    return node;
  };

  const unpack = async () => {
    const raw = atob(document.getElementById("data").textContent.trim());
    const bytes = Uint8Array.from(raw, (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  const short = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
  };
  const bytes = (value) => {
    if (value === null) return "?";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return unit ? `${value.toFixed(1)} ${units[unit]}` : `${value} B`;
  };
  const percent = (value) => (typeof value === "number" ? `${(100 * value).toFixed(2)} %` : short(value));

  // Names sort by the numbers in them, numbers by size, what is missing comes last.
  const collator = new Intl.Collator("en", { numeric: true });
  const order = (a, b) => {
    const missing = (x) => x === null || x === undefined || x === "";
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return collator.compare(String(a), String(b));
  };

  const main = document.getElementById("main");
  const nav = document.getElementById("nav");
  const section = (id, title, note) => {
    const node = el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title));
    if (note) node.append(el("p", { class: "soft" }, note));
    nav.append(el("a", { href: `#${id}` }, title));
    main.append(node);
    return node;
  };

  // columns: {title, kind: "number" | "text" | "name", show: value → text, at: index in the row}
  const table = (parent, label, columns, rows, options = {}) => {
    let sorted = null, down = false, shown = PAGE, words = [];
    const body = el("tbody");
    const status = el("span", { class: "soft", role: "status" });
    const more = el("button", { type: "button", onclick: () => { shown += 5 * PAGE; draw(); } }, "Show more");
    const search = el("input", { type: "search", "aria-label": `Search ${label}`, placeholder: `Search ${label}` });
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        words = search.value.toLowerCase().split(" ").filter(Boolean);
        shown = PAGE;
        draw();
      }, 120);
    });
    const heads = columns.map((column, index) => {
      const button = el("button", { type: "button", onclick: () => {
        down = sorted === index ? !down : column.kind === "number";
        sorted = index;
        heads.forEach((head, i) => head.setAttribute("aria-sort", i !== index ? "none" : down ? "descending" : "ascending"));
        draw();
      } }, column.title);
      return el("th", { scope: "col", class: column.kind, "aria-sort": "none" }, button);
    });
    const text = (row) => columns.map((column) => row[column.at] ?? "").join(" ").toLowerCase();
    const draw = () => {
      let found = words.length ? rows.filter((row) => { const t = text(row); return words.every((w) => t.includes(w)); }) : rows;
      if (sorted !== null) {
        const { at } = columns[sorted];
        found = [...found].sort((a, b) => {
          const last = (x) => x === null || x === undefined || x === "";
          return down && !last(a[at]) && !last(b[at]) ? order(b[at], a[at]) : order(a[at], b[at]);
        });
      }
      body.replaceChildren(...found.slice(0, shown).map((row) => {
        const cells = columns.map((column) => {
          const value = (column.show ?? short)(row[column.at]);
          const mark = options.mark && column.at === options.mark ? ` ${row[column.at]}` : "";
          return el("td", { class: column.kind + mark }, value);
        });
        const line = el("tr", {}, ...cells);
        if (options.pick) {
          cells[0].replaceChildren(el("button", { type: "button", onclick: () => options.pick(row) }, (columns[0].show ?? short)(row[columns[0].at])));
          cells[0].firstChild.style.cssText = "all:unset;cursor:pointer;text-decoration:underline dotted";
        }
        return line;
      }));
      const count = found.length.toLocaleString("en");
      status.textContent = found.length > shown ? `${shown.toLocaleString("en")} of ${count}` : count;
      more.hidden = found.length <= shown;
    };
    parent.append(
      el("div", { class: "tools" }, search, status, more),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
        el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)),
    );
    draw();
    return { search, draw };
  };

  const number = (title, at, show) => ({ title, kind: "number", at, show });
  const name = (title, at) => ({ title, kind: "name", at, show: String });
  const words = (title, at) => ({ title, kind: "text", at, show: (value) => (value === null ? "" : String(value)) });

  // Charts.

  const models = [];
  const paint = () => {
    const text = "#333333", line = "#a0a7b0", grid = "#e6e9ec";
    const set = (model, values) => {
      for (const [key, value] of Object.entries(values)) if (key in model.properties) model[key] = value;
    };
    for (const root of models) {
      for (const model of root.references()) {
        set(model, {
          axis_label_text_color: text, major_label_text_color: text, label_text_color: text, title_text_color: text,
          axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null, grid_line_color: grid,
          axis_label_text_font_style: "normal",
        });
      }
    }
  };
  const chart = async (parent, place, label) => {
    if (!(place in data.charts)) return null;
    const target = el("div", { class: "chart", id: `chart-${place}`, role: "img", "aria-label": label });
    parent.append(target);
    const view = await Bokeh.embed.embed_item(data.charts[place], target.id);
    const root = (view.roots ?? [...view])[0].model;
    models.push(root);
    return root;
  };
  const named = (root, wanted) => [...root.references()].find((model) => model.name === wanted);

  const data = await unpack();
  Bokeh.set_log_level("error");
  document.title = `${data.title} – GGUF report`;
  document.getElementById("title").textContent = data.title;
  main.replaceChildren();

  const list = el("dl", { class: "summary" });
  for (const [label, value] of data.summary) list.append(el("dt", {}, label), el("dd", {}, value));
  main.append(list);

  // Findings first: they decide whether the rest is to be trusted.
  if (data.findings) {
    const bad = data.findings.filter((row) => row[0] !== "note").length;
    const part = section("findings", "Findings", bad ? `${bad} of them are errors or warnings.` : "No errors or warnings.");
    if (data.findings.length) {
      table(part, "findings", [words("severity", 0), words("kind", 1), name("where", 2), number("byte", 3), words("what", 4), name("file", 5)], data.findings, { mark: 0 });
    }
  }

  if (data.comparison) {
    const { comparison } = data;
    const part = section("comparison", "Comparison", comparison.summary);
    await chart(part, "errors", "NMSE by layer and kind of tensor, as a power of ten");
    const measures = (from) => ["NMSE", "RMSE", "greatest error"].map((title, i) => number(title, from + i));
    if (comparison.types.length) {
      part.append(el("h3", {}, "By type"));
      table(part, "types", [words("from", 0), words("to", 1), number("tensors", 2), number("weights", 3), ...measures(4)], comparison.types);
    }
    if (comparison.tensors.length) part.append(el("h3", {}, "By tensor"));
    if (comparison.tensors.length) table(part, "compared tensors", [name("tensor", 0), words("from", 1), words("to", 2), ...measures(3), number("cosine", 6, (x) => (typeof x === "number" ? x.toFixed(6) : short(x))), number("KL", 7), number("not finite", 8)],
      comparison.tensors);
    if (comparison.structure.length) {
      part.append(el("h3", {}, "Metadata and structure"));
      table(part, "differences", [words("change", 0), words("kind", 1), name("name", 2), words("what", 3)], comparison.structure);
    }
  }

  const mapPart = section("map", "Map of the file", "To scale: the header, the tensors in the colour of their type, and holes. Drag to move; the tools zoom.");
  await chart(mapPart, "map", "The file as a bar, to scale");

  if (data.charts.types || data.charts.layers) {
    const part = section("types", "Types");
    await chart(part, "types", "Share of each ggml type");
    if (data.charts.layers) {
      part.append(el("h3", {}, "By layer"));
      await chart(part, "layers", "Bytes of each layer by ggml type");
      part.append(el("h3", {}, "Bits per weight along the depth"));
      await chart(part, "depth", "Bits per weight of each layer");
    }
  }

  // Statistics.
  let showHistogram = () => {};
  if (data.charts.heat) {
    const hasStats = Boolean(data.charts.histogram);
    const part = section("statistics", "Layers and kinds", hasStats ? "Choose what the colours show." : null);
    const tools = el("div", { class: "tools" });
    part.append(tools);
    const root = await chart(part, "heat", "Statistics by layer and kind of tensor");
    const source = named(root, "heat-source"), mapper = named(root, "heat-mapper"), rects = named(root, "heat-rects");
    const select = el("select", { "aria-label": "What the colours show" });
    for (const [key, label] of Object.entries(data.metrics)) {
      if (hasStats || key === "bpw") select.append(el("option", { value: key }, label));
    }
    select.addEventListener("change", () => {
      const all = Array.from(source.data[select.value]);
      // Vectors, such as norms, have numbers of their own; the colours are for the matrices.
      const some = all.filter((value, i) => source.data.matrix[i] && Number.isFinite(value));
      const values = some.length ? some : all.filter(Number.isFinite);
      if (!values.length) return;
      mapper.low = Math.min(...values);
      mapper.high = Math.max(...values);
      rects.glyph.fill_color = { field: select.value, transform: mapper };
    });
    tools.append(select);
    source.selected.properties.indices.change.connect(() => {
      const [index] = source.selected.indices;
      if (index !== undefined) showHistogram(source.data.name[index]);
    });
  }

  if (data.charts.histogram) {
    const part = section("histogram", "Histogram", "Of the weights of one tensor; what lies beyond eight standard deviations is left out. A tensor can be chosen in the heat map and in the table too.");
    const rows = data.tensors.filter((row) => row[13] && row[13][2].length);
    const select = el("select", { "aria-label": "Tensor" }, ...rows.map((row) => el("option", { value: row[0] }, row[0])));
    part.append(el("div", { class: "tools" }, select));
    const root = await chart(part, "histogram", "Histogram of a tensor's weights");
    const source = named(root, "histogram-source");
    showHistogram = (wanted) => {
      const row = rows.find((one) => one[0] === wanted);
      if (!row) return;
      select.value = wanted;
      const [low, high, counts] = row[13];
      const step = (high - low) / counts.length;
      source.data = { left: counts.map((_, i) => low + i * step), right: counts.map((_, i) => low + (i + 1) * step), top: counts };
    };
    select.addEventListener("change", () => showHistogram(select.value));
    const largest = rows.reduce((a, b) => (b[3] > (a?.[3] ?? 0) ? b : a), null);
    if (largest) showHistogram(largest[0]);
  }

  if (data.outliers.length) {
    const part = section("outliers", "Outliers", "The weights that lie furthest out, in standard deviations of their tensor.");
    table(part, "outliers", [number("deviations", 0), name("tensor", 1), words("index", 2), number("value", 3)], data.outliers);
  }

  const tensorPart = section("tensors", "Tensors", data.tensorCount > data.tensors.length ? `The first ${data.tensors.length} of ${data.tensorCount}.` : null);
  const statistics = data.charts.histogram
    ? [number("min", 6), number("max", 7), number("mean", 8), number("std", 9), number("RMS", 10), number("zeros", 11, percent), number("not finite", 12)]
    : [];
  table(tensorPart, "tensors", [name("name", 0), words("type", 1), words("shape", 2), number("weights", 3), number("size", 4, bytes), number("byte", 5), ...statistics], data.tensors, data.charts.histogram ? { pick: (row) => {
    showHistogram(row[0]);
    document.getElementById("histogram").scrollIntoView();
  } } : {});

  const metaPart = section("metadata", "Metadata");
  table(metaPart, "metadata", [name("key", 0), words("type", 1), words("value", 2)], data.metadata);

  if (data.templates.length) {
    const part = section("templates", "Chat template");
    for (const [key, value] of data.templates) {
      if (data.templates.length > 1) part.append(el("h3", {}, key));
      part.append(el("pre", { tabindex: "0" }, value));
    }
  }

  if (data.tokens) {
    const { tokens } = data;
    const kinds = ["undefined", "normal", "unknown", "control", "user defined", "unused", "byte"];
    const part = section("tokenizer", "Tokenizer", `${tokens.count.toLocaleString("en")} tokens${tokens.model ? `, ${tokens.model}` : ""}${tokens.merges ? `, ${tokens.merges[0].toLocaleString("en")} merges` : ""}.`);
    const columns = [number("id", 0, String), name("token", 1)];
    if (tokens.token_type) columns.push(words("kind", 2));
    if (tokens.scores) columns.push(number("score", 3));
    table(part, "tokens", columns, tokens.tokens.map((token, id) => [id, token, tokens.token_type ? kinds[tokens.token_type[id]] ?? String(tokens.token_type[id]) : null, tokens.scores ? tokens.scores[id] : null]));
    if (tokens.merges && tokens.merges[1].length) {
      part.append(el("details", {}, el("summary", {}, `The first ${tokens.merges[1].length} merges`), el("pre", { tabindex: "0" }, tokens.merges[1].join("\n"))));
    }
  }

  paint();
  document.documentElement.dataset.ready = "yes";
})().catch((error) => {
  // Old browsers, mostly: DecompressionStream came in 2023 to the last of them.
  const note = document.createElement("p");
  note.textContent = `This page could not be shown: ${error}`;
  document.getElementById("main").append(note);
  document.documentElement.dataset.ready = "failed";
});
