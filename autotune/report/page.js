// Draws the figures, keeps colours alike in all of them, and makes the page usable.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const $ = (id) => document.getElementById(id);
  const PALETTES = {
    light: ["#2563a8", "#c8591b", "#23804f", "#8e44ad", "#b3304f", "#86690f", "#127f8c", "#6a6f78",
      "#a83c88", "#4b7a17", "#5a52c4", "#9a5436"],
    dark: ["#7fb2ea", "#f29a5d", "#63c793", "#c993e2", "#f0829a", "#d3b558", "#58c7d2", "#a7adb7",
      "#e78fcb", "#9aca61", "#a7a1f5", "#d09a7e"],
  };

  // --- theme and colours ---------------------------------------------------------------------
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = () => PALETTES[dark.matches ? "dark" : "light"];
  const choice = () => ($("colour-by") ? $("colour-by").value : null);
  const colourOf = (option) => {
    const index = (data.options[choice()] || []).indexOf(option);
    return index < 0 ? css("--soft") : palette()[index % palette().length];
  };
  const optionOf = (trial) => (data.trialOptions[trial] || {})[choice()];
  const fade = (colour, alpha) =>
    colour + Math.round(alpha * 255).toString(16).padStart(2, "0");
  const pointColours = (meta) => (meta.trials || []).map((trial, i) =>
    colourOf(meta.options ? meta.options[i][choice()] : optionOf(trial)));

  const narrow = () => window.innerWidth < 640;
  const axisTheme = () => ({
    gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true,
    title: { font: { size: 13, color: css("--soft") }, standoff: 8 },
    tickfont: { size: 12, color: css("--soft") }, exponentformat: "SI", minexponent: 4,
  });
  // Two levels deep is all that layouts need.
  const merged = (base, over) => {
    const result = { ...base };
    for (const [key, value] of Object.entries(over || {})) {
      result[key] = value && typeof value === "object" && !Array.isArray(value)
        ? merged(result[key] || {}, value) : value;
    }
    return result;
  };
  const themed = (layout) => {
    for (const name of ["xaxis", "yaxis"]) {
      // 1, 2 and 5 of each decade.
      if (layout[name] && layout[name].type === "log") layout = merged(layout, { [name]: { dtick: "D2" } });
    }
    const notes = (layout.annotations || []).map((note) =>
      ({ font: { size: 12, color: css("--soft") }, ...note }));
    return {
      ...merged({
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
        font: { family: "system-ui, sans-serif", size: 13, color: css("--ink") },
        margin: { t: 16, r: narrow() ? 16 : 28, b: 48, l: narrow() ? 44 : 64 },
        hoverlabel: {
          bgcolor: css("--panel"), bordercolor: css("--line"), align: "left", namelength: 0,
          font: { family: "system-ui, sans-serif", size: 12, color: css("--ink") },
        },
        xaxis: axisTheme(), yaxis: axisTheme(), dragmode: "zoom",
      }, layout),
      annotations: notes,
    };
  };
  const config = {
    displaylogo: false, responsive: true, displayModeBar: false, doubleClick: "reset",
  };

  // --- each kind of figure -------------------------------------------------------------------
  const axisNamed = (name) => data.axes.find((axis) => axis.name === name);
  const axisLayout = (axis, values) => {
    const known = values.filter((value) => value !== null);
    const low = Math.min(...known);
    return {
      title: { text: axis.title + (narrow() ? "" : "  (" + axis.better + " is better)") },
      type: axis.scalable && low > 0 && Math.max(...known) / low >= 10 ? "log" : "linear",
    };
  };
  const errorBars = (spread, shown) => ({
    type: "data", array: spread || [], visible: Boolean(spread) && shown,
    color: fade(css("--soft"), 0.55), thickness: 1, width: 2,
  });

  const builders = {
    front(figure) {
      const x = $("front-x").value;
      const y = $("front-y").value;
      const traces = figure.data.map((trace) => {
        const { role, values, spread } = trace.meta;
        const colours = pointColours(trace.meta);
        const styles = {
          dominated: { color: "rgba(0,0,0,0)", size: 7, line: { color: colours.map((c) => fade(c, 0.55)), width: 1.2 } },
          front: { color: colours, size: 11, line: { color: css("--panel"), width: 1 } },
          best: { color: "rgba(0,0,0,0)", size: 20, line: { color: css("--ink"), width: 1.6 } },
        };
        // A point that lacks one value must not stretch the other axis.
        const xs = values[x] || [];
        const ys = (values[y] || []).map((value, i) => (xs[i] === null ? null : value));
        return {
          ...trace, x: xs.map((value, i) => (ys[i] === null ? null : value)), y: ys, marker: styles[role],
          error_x: errorBars(spread[x], role === "front"),
          error_y: errorBars(spread[y], role === "front"),
          ...(role === "best" ? { mode: "markers+text", text: trace.meta.trials.map(() => "best"), textposition: "top center", textfont: { color: css("--ink"), size: 12 } } : {}),
        };
      });
      return [traces, {
        xaxis: axisLayout(axisNamed(x), traces.flatMap((trace) => trace.x)),
        yaxis: axisLayout(axisNamed(y), traces.flatMap((trace) => trace.y)),
      }];
    },
    parallel(figure) {
      const traces = figure.data.map((trace) => {
        if (trace.meta.role === "dominated") return { ...trace, line: { color: fade(css("--soft"), 0.25), width: 1 } };
        const [colour] = pointColours(trace.meta);
        return { ...trace, line: { color: colour, width: 2 }, marker: { color: colour, size: 6 } };
      });
      const xaxis = narrow() ? { tickfont: { size: 10, color: css("--soft") } } : {};
      return [traces, { xaxis }];
    },
    curves(figure) {
      const metric = $("curve-metric").value;
      const show = $("curve-show").value;
      const thawed = new Set(figure.data.filter((t) => t.meta.role === "mark" && t.meta.thawed).flatMap((t) => t.meta.trials));
      const wanted = (meta) =>
        show === "all" || (show === "best" && meta.rank !== null && meta.rank < 10)
        || (show === "front" && meta.front) || (show === "thawed" && thawed.has(meta.trials[0]));
      const shown = new Set(figure.data.filter((t) => t.meta.role === "curve" && wanted(t.meta)).map((t) => t.meta.trials[0]));
      const primary = metric === data.primary;
      const hover = (meta, ys) => meta.hover.map((line, i) =>
        ys[i] === null ? line : `${line}: <b>${Number(ys[i]).toPrecision(4)}</b>`);
      const annotations = [];
      const lastStep = Math.max(...figure.data.filter((t) => t.meta.role === "curve").flatMap((t) => t.x));
      const traces = figure.data.map((trace) => {
        const meta = trace.meta;
        const colour = colourOf(optionOf(meta.trials[0]));
        if (meta.role === "band" || meta.role === "forecast") {
          const visible = primary && shown.has(meta.trials[0]);
          return meta.role === "band"
            ? { ...trace, visible, fillcolor: fade(colour, 0.1), line: { width: 0 } }
            : { ...trace, visible, line: { color: colour, width: 1.2, dash: "dot" } };
        }
        const ys = meta.values[metric];
        if (meta.role === "curve") {
          const top = meta.label !== "";
          if (top && shown.has(meta.trials[0])) {
            const last = ys.reduce((found, value, i) => (value === null ? found : i), -1);
            if (last >= 0) annotations.push({ at: [trace.x[last], ys[last]], text: meta.label, colour });
          }
          return {
            ...trace, y: ys, hovertext: hover(meta, ys), visible: shown.has(meta.trials[0]),
            line: { color: fade(colour, top || show !== "all" ? 1 : 0.45), width: top ? 2 : 1.1 },
            marker: { color: colour, size: 4 },
          };
        }
        const keep = meta.trials.map((trial) => shown.has(trial));
        return {
          ...trace, hovertext: hover(meta, ys), y: ys.map((value, i) => (keep[i] ? value : null)),
          marker: { ...trace.marker, color: pointColours(meta), line: { width: 1.3, color: pointColours(meta) } },
        };
      });
      const log = primary && figure.layout.yaxis.type === "log";
      // The range of what was measured and is expected, not of how far off it might be.
      const scale = (y) => (log ? Math.log10(y) : y);
      const seen = traces.filter((t) => t.visible !== false && t.meta.role !== "band").flatMap((t) => t.y)
        .filter((v) => v !== null && (!log || v > 0)).map(scale);
      const low = Math.min(...seen);
      const span = Math.max(...seen) - low || 1;
      // Labels at the ends of the best curves, kept apart where they would touch.
      const placed = [];
      const notes = annotations.sort((a, b) => scale(a.at[1]) - scale(b.at[1])).map(({ at, text, colour }) => {
        const x = at[0];
        const near = placed.filter((other) => Math.abs(other.x - x) < 0.04 * lastStep);
        const y = Math.max(scale(at[1]), ...near.map((other) => other.y + 0.04 * span));
        placed.push({ x, y });
        return {
          x, y, text, showarrow: false, xanchor: "left", xshift: 6, font: { color: colour, size: 12 },
        };
      });
      return [traces, {
        annotations: notes,
        yaxis: {
          title: { text: primary ? data.primaryTitle : data.metricTitles[metric] },
          type: log ? "log" : "linear",
          ...(seen.length ? { range: [low - 0.06 * span, low + 1.1 * span] } : {}),
        },
      }];
    },
    timeline(figure) {
      const traces = figure.data.map((trace) => {
        const colours = pointColours(trace.meta);
        if (trace.meta.role === "training") return { ...trace, marker: { color: colours, line: { color: css("--panel"), width: 0.6 } } };
        if (trace.meta.role === "evaluation") return { ...trace, marker: { color: colours.map((c) => fade(c, 0.2)), line: { color: colours, width: 1 } } };
        return { ...trace, marker: { ...trace.marker, color: css("--bad") } };
      });
      return [traces, {}];
    },
    strip(figure) {
      const [trace] = figure.data;
      const taken = trace.meta.trials.map((trial) => optionOf(trial) || "all trials");
      const options = [...(data.options[choice()] || []), "all trials"].filter((o) => taken.includes(o));
      // A fixed pattern of small offsets, so that equal values stay apart.
      const rows = taken.map((option, i) =>
        options.indexOf(option) + (((i * 0.618034) % 1) - 0.5) * 0.5);
      return [[{ ...trace, y: rows, marker: { color: pointColours(trace.meta), size: 8, opacity: 0.75 } }], {
        height: 90 + 44 * options.length,
        yaxis: {
          tickvals: options.map((_, i) => i), ticktext: options.map(plain), showgrid: false,
          range: [options.length - 0.5, -0.5],
        },
      }];
    },
    cost(figure) {
      const totals = new Map();
      for (const trace of figure.data) trace.meta.trials.forEach((trial, i) => {
        const option = optionOf(trial) || "all trials";
        totals.set(option, (totals.get(option) || 0) + trace.meta.seconds[i]);
      });
      const options = [...totals.keys()].sort((a, b) => totals.get(a) - totals.get(b));
      const traces = figure.data.map((trace) => {
        const sums = options.map((option) => trace.meta.trials.reduce(
          (sum, trial, i) => sum + ((optionOf(trial) || "all trials") === option ? trace.meta.seconds[i] : 0), 0));
        const later = trace.meta.role === "later";
        return {
          ...trace, x: sums, y: options.map(plain),
          hovertext: options.map((o, i) => `${plain(o)}, ${trace.name}: <b>${sums[i].toPrecision(3)} s</b>`),
          marker: {
            color: options.map((o) => fade(colourOf(o), later ? 1 : 0.45)),
            line: { color: css("--panel"), width: 1 },
          },
        };
      });
      return [traces, {
        height: 110 + 34 * options.length,
        annotations: [{
          xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false,
          text: "pale: first segment, full: after a thaw",
        }],
        margin: { t: 34 },
        yaxis: { showgrid: false },
      }];
    },
    line: (figure) => [figure.data.map((t) => ({ ...t, line: { ...t.line, color: css("--accent"), width: 2 } })), {}],
    bars: (figure) => [figure.data.map((t) => ({
      ...t, marker: { color: css("--accent") }, textfont: { color: css("--ink") },
    })), { yaxis: { showgrid: false } }],
  };
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

  const draw = (name) => {
    const figure = data.figures[name];
    const place = $("plot-" + name);
    if (!figure || !place) return undefined;
    const [traces, layout] = builders[figure.kind](figure);
    return Plotly.react(place, traces, themed(merged(figure.layout, layout)), config);
  };
  const drawAll = () => Promise.all(Object.keys(data.figures).map(draw));

  // --- controls ------------------------------------------------------------------------------
  const legend = () => {
    if (!$("legend")) return;
    $("legend").replaceChildren(...(data.options[choice()] || []).map((option) => {
      const item = document.createElement("li");
      const swatch = document.createElement("i");
      swatch.style.background = colourOf(option);
      item.append(swatch, option);
      return item;
    }));
  };
  const listen = (id, then) => $(id) && $(id).addEventListener("change", then);
  if ($("front-x")) {
    // Up: the primary objective. Across: the next one, or what training took.
    $("front-y").value = data.primary;
    $("front-x").value = (data.axes.find((axis) => axis.name !== data.primary) || data.axes[0]).name;
    if (data.axes.length === 3) $("front-x").value = "@seconds";
  }
  listen("front-x", () => draw("front"));
  listen("front-y", () => draw("front"));
  listen("curve-metric", () => draw("curves"));
  listen("curve-show", () => draw("curves"));
  listen("colour-by", () => { legend(); drawAll(); });
  dark.addEventListener("change", () => { legend(); drawAll(); });

  // --- tables --------------------------------------------------------------------------------
  const keyOf = (row, index) => {
    const cell = row.cells[index];
    const raw = cell.dataset.key === undefined ? cell.textContent.trim() : cell.dataset.key;
    const number = Number(raw);
    return raw === "" || raw === "–" || raw === "nan" ? null : Number.isNaN(number) ? raw : number;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [keyOf(row, index), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);  // the empty go last
        return down ? compare(b, a) : compare(a, b);
      });
      body.append(...rows.map(([, row]) => row));
    }));
  }

  // --- where the reader is -------------------------------------------------------------------
  const links = new Map([...document.querySelectorAll(".rail nav a")].map((a) => [a.hash.slice(1), a]));
  const sections = [...document.querySelectorAll("main > section")];
  const mark = (id) => links.forEach((link, key) => {
    if (key === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
  const locate = () => {
    const line = window.innerHeight * 0.3;
    const atEnd = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 2;
    const reached = sections.filter((section) => section.getBoundingClientRect().top <= line);
    mark((atEnd ? sections.at(-1) : reached.at(-1) || sections[0]).id);
  };
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; locate(); });
  }, { passive: true });
  window.addEventListener("hashchange", () => locate());

  legend();
  locate();
  drawAll().then(() => { document.documentElement.dataset.drawn = "true"; });
})();
