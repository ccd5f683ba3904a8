"use strict";
// What is drawn: the numbers stand in #data; with "live" they are fetched again every few seconds.
const LN4 = Math.log(4);
const AXES = { step: "step", tokens: "tokens", seconds: "training time" };
const FIGURES = [
  { id: "loss", title: "Loss", unit: "nats per base, of masked bases", key: "nats_per_base", digits: 4, tall: true },
  { id: "learning_rate", title: "Learning rate", unit: "", key: "learning_rate", zero: true },
  { id: "gradient_norm", title: "Gradient norm", unit: "before clipping", key: "gradient_norm", zero: true },
  { id: "tokens_per_second", title: "Throughput", unit: "tokens per second, all processes", key: "tokens_per_second", zero: true },
  { id: "mfu", title: "MFU", unit: "share of the devices' peak", key: "mfu", zero: true, percent: true, otherwise: { key: "share_of_matmul", title: "Share of a matrix product", unit: "peak not known; of what a matrix product reached" } },
  { id: "data_wait", title: "Data wait", unit: "share of the time, slowest rank", key: "data_wait_max", zero: true, percent: true },
  { id: "memory_gb", title: "Memory", unit: "GB, fullest rank", key: "memory_gb", zero: true },
  { id: "by_base", title: "Loss by base", unit: "nats per base", keys: { A: "loss_a", C: "loss_c", G: "loss_g", T: "loss_t" }, digits: 4 },
];
let data = JSON.parse(document.getElementById("data").textContent);
let axis = "step";
let plots = [];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (run) => () => css(`--run-${run % 6}`);
const id = (name) => document.getElementById(name);
function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined && text !== null) element.textContent = text;
  return element;
}
function show(value, figure = {}) {
  if (value === null || value === undefined) return "–";
  if (figure.percent) return (100 * value).toFixed(Math.abs(value) < 0.01 ? 2 : 1) + " %";
  if (figure.digits) return value.toFixed(figure.digits);
  if (value !== 0 && (Math.abs(value) < 0.01 || Math.abs(value) >= 1e15)) return value.toExponential(2);
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.abs(value) < 100 ? 3 : 0 });
}
function short(value) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return +(value / size).toPrecision(4) + letter;
  return String(+value.toPrecision(6));
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
const onAxis = (value) => (axis === "seconds" ? time(value) : short(value));

// Places on the horizontal axis of what is known by its step alone: the line of that step, or between its neighbours.
function place(run, step) {
  const steps = run.train.step;
  if (axis === "step" || !steps.length) return step;
  const values = run.train[axis];
  const after = steps.findIndex((one) => one >= step);
  if (after === -1) return values[values.length - 1];
  const [s0, v0] = after ? [steps[after - 1], values[after - 1]] : [0, 0];
  return v0 + ((values[after] - v0) * (step - s0)) / (steps[after] - s0);
}
function seriesOf(figure) {
  const found = [];
  data.runs.forEach((run, number) => {
    const prefix = data.runs.length > 1 ? run.name : "";
    const x = run.train[axis] || [];
    if (figure.keys) {
      if (data.runs.length === 1)
        Object.entries(figure.keys).forEach(([base, key], at) => {
          if (run.train[key]) found.push({ label: base, x, y: run.train[key], colour: colour(at) });
        });
    } else if (run.train[figure.key]) found.push({ label: prefix || "train", x, y: run.train[figure.key], colour: colour(number) });
    if (figure.id === "loss" && run.valid.step.length)
      found.push({ label: `${prefix} valid`.trim(), x: run.valid.step.map((step) => place(run, step)), y: run.valid.valid_loss, colour: colour(number), points: true });
  });
  return found;
}
// ln 4, and the best baseline of each family: those of the first run.
function levels(figure) {
  if (figure.id !== "loss") return [];
  const best = { "uniform (ln )": { label: "ln 4", value: LN4 } };
  for (const one of (data.runs[0].evaluations[0] || { baselines: [] }).baselines) {
    const family = one.name.replace(/\d+/g, "");
    if (!best[family] || one.nats_per_base < best[family].value) best[family] = { label: one.name, value: one.nats_per_base };
  }
  return Object.values(best);
}
// Horizontal lines of baselines and vertical lines of events, under the curves.
function marks(figure) {
  return (u) => {
    const { ctx, bbox } = u, ratio = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = ratio;
    data.runs.forEach((run) => run.events.forEach((event) => {
      const x = u.valToPos(place(run, event.step), "x", true);
      ctx.strokeStyle = css(event.kind === "skip" ? "--warn" : event.kind === "checkpoint" ? "--line" : "--quiet");
      ctx.setLineDash(event.kind === "checkpoint" ? [2 * ratio, 3 * ratio] : []);
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }));
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.strokeStyle = ctx.fillStyle = css("--quiet");
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    ctx.textBaseline = "bottom";
    let free = Infinity;
    for (const level of levels(figure).sort((a, b) => a.value - b.value)) {
      const y = u.valToPos(level.value, "y", true);
      ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
      if (free - y < 13 * ratio) continue; // its name would stand on another
      ctx.fillText(`${level.label} ${level.value.toFixed(3)}`, bbox.left + bbox.width - 4 * ratio, y - 1 * ratio);
      free = y;
    }
    ctx.restore();
  };
}
// The first steps are far above all that follows: the axis is of what comes after them, and of the baselines.
function range(figure, found) {
  return (u, low, high) => {
    if (low === null || low === undefined) return [0, 1];
    if (figure.zero) return [0, high > 0 ? high * 1.06 : 1];
    const zoomed = u.scales.x.min !== null && (u.scales.x.min > u.data[0][0] || u.scales.x.max < u.data[0][u.data[0].length - 1]);
    if (!zoomed) {
      const late = found.flatMap((one) => one.y.slice(Math.floor(one.y.length / 50))).filter((value) => value !== null);
      const marked = levels(figure).map((one) => one.value);
      low = [...late, ...marked].reduce((a, b) => Math.min(a, b));
      high = [...late, ...marked].reduce((a, b) => Math.max(a, b));
    }
    const room = Math.max(0.05 * (high - low), 1e-6);
    return [low - room, high + room];
  };
}
function draw(base) {
  const use = base.otherwise && !data.runs.some((run) => run.train[base.key]) ? { ...base, ...base.otherwise } : base;
  const found = seriesOf(use);
  if (!found.some((one) => one.y.some((value) => value !== null))) return;
  const figure = make("figure", null, { id: `figure-${base.id}` });
  const title = make("h2", use.title);
  title.append(make("small", use.unit));
  const box = make("div", null, { className: "plot" });
  figure.append(title, box);
  id("figures").append(figure);
  const table = uPlot.join(found.map((one) => [one.x, one.y]), found.map((one) => one.y.map(() => 2)));
  const style = { stroke: () => css("--quiet"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const options = {
    width: box.clientWidth, height: base.tall ? 340 : 200,
    cursor: { sync: { key: "all" }, points: { size: 6 } },
    scales: { x: { time: false }, y: { range: range(use, found) } },
    axes: [
      { ...style, values: (u, ticks) => ticks.map(onAxis), space: 64, size: 32 },
      { ...style, size: 56, values: (u, ticks) => ticks.map((v) => (use.percent ? `${+(100 * v).toPrecision(3)} %` : short(v))) },
    ],
    series: [
      { label: AXES[axis], value: (u, v) => (v === null ? "–" : axis === "seconds" ? time(v) : show(v)) },
      ...found.map((one) => ({
        label: one.label, stroke: one.colour, width: one.points ? 0 : 1.5, spanGaps: true,
        points: one.points ? { show: true, size: 6, fill: one.colour, stroke: one.colour } : { show: one.y.length < 3, fill: one.colour },
        value: (u, v) => show(v, use),
      })),
    ],
    hooks: { drawAxes: [marks(use)] },
  };
  const plot = new uPlot(options, table, box);
  plots.push({ plot, box });
}
function drawAll() {
  plots.forEach(({ plot }) => plot.destroy());
  plots = [];
  id("figures").replaceChildren();
  FIGURES.forEach(draw);
}
function table(head, rows, own = -1) {
  const element = make("table", null, { className: "facts" });
  if (head) {
    const row = make("tr");
    head.forEach((text, at) => row.append(make("th", text, { className: at ? "number" : "" })));
    element.append(make("thead"));
    element.tHead.append(row);
  }
  const body = make("tbody");
  rows.forEach((cells, number) => {
    const row = make("tr", null, { className: number === own ? "own" : "" });
    cells.forEach((cell, at) => row.append(make(at ? "td" : "th", cell, { className: at && head ? "number" : "" })));
    body.append(row);
  });
  element.append(body);
  const scroll = make("div", null, { className: "scroll" });
  scroll.append(element);
  return scroll;
}
function block(title, content, folded = false) {
  const element = make(folded ? "details" : "div", null, { className: folded ? "" : "block" });
  element.append(make(folded ? "summary" : "h2", title), content);
  id("tables").append(element);
}
const SUMMARY = [
  ["loss", (s) => show(s.loss, { digits: 4 }), "last loss, nats per base (ln 4 = 1.386)"],
  ["valid_loss", (s) => show(s.valid_loss, { digits: 4 }), "valid loss, nats per base"],
  ["best_baseline", (s) => show(s.best_baseline, { digits: 4 }), "best baseline, nats per base"],
  ["step", (s) => show(s.step), "steps", (s) => (s.total_steps ? `of ${show(s.total_steps)} steps` : "steps")],
  ["tokens", (s) => short(s.tokens || 0), "tokens"],
  ["tokens_per_second", (s) => show(s.tokens_per_second), "tokens/s, median"],
  ["mfu", (s) => show(s.mfu, { percent: true }), "MFU, median"],
  ["memory_gb", (s) => show(s.memory_gb), "GB of memory, most"],
  ["seconds", (s) => time(s.seconds), "of training"],
];
function describe() {
  const runs = data.runs, several = runs.length > 1;
  id("title").textContent = several ? `${runs.length} runs` : runs[0].name;
  id("subtitle").textContent = `${runs.map((run) => run.folder).join(" · ")} · ${data.live ? "live, " : ""}as of ${data.written}`;
  const known = SUMMARY.filter(([key]) => runs.some((run) => run.summary[key] !== null && run.summary[key] !== undefined));
  id("summary").replaceChildren();
  id("summary").hidden = several;
  if (!several)
    known.forEach(([key, text, label, own]) => {
      const tile = make("div", null, { className: "tile" });
      tile.dataset.key = key;
      tile.append(make("b", text(runs[0].summary)), make("span", own ? own(runs[0].summary) : label));
      id("summary").append(tile);
    });
  const open = [...document.querySelectorAll("details[open] > summary")].map((one) => one.textContent);
  id("tables").replaceChildren();
  if (several) {
    const compared = table(["", ...runs.map((run) => run.name)], known.map(([, text, label]) => [label, ...runs.map((run) => text(run.summary))]));
    compared.querySelectorAll("thead th").forEach((cell, at) => {
      if (at) cell.prepend(Object.assign(make("span", null, { className: "swatch" }), { style: `background: var(--run-${(at - 1) % 6})` }));
    });
    compared.firstChild.id = "comparison";
    block("Compared", compared);
    const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
    const differing = keys.filter((key) => new Set(runs.map((run) => run.config[key])).size > 1);
    if (differing.length) block("Configuration that differs", table(["", ...runs.map((run) => run.name)], differing.map((key) => [key, ...runs.map((run) => run.config[key] || "–")])));
  }
  runs.forEach((run) => {
    const of = several ? ` · ${run.name}` : "";
    run.evaluations.forEach((one) => {
      const rows = [[`this model, step ${show(one.step)}`, one.model.nats_per_base, true], ...one.baselines.map((b) => [b.name, b.nats_per_base, false])].sort((a, b) => b[1] - a[1]);
      block(`Evaluation, ${one.split} split${of}`, table(["", "nats per base", "bits per base"], rows.map(([name, nats]) => [name, nats.toFixed(4), (nats / Math.LN2).toFixed(4)]), rows.findIndex((row) => row[2])));
      if (!one.detail) return;
      const { loss, ahead, parts } = one.detail, within = (e) => e.value.toFixed(4) + (e.low === null ? "" : ` [${e.low.toFixed(4)}, ${e.high.toFixed(4)}]`);
      const facts = [["nats per base", within(loss)], [`less than ${one.detail.ahead_of}`, within(ahead)], ["95 % intervals over", `${show(one.detail.units)} ${one.detail.unit}s`]];
      const lines = Object.entries(parts).flatMap(([title, members]) => members.map((part) => [`${title}: ${part.name}`, `${part.nats_per_base.toFixed(4)} nats, ${(100 * part.accuracy).toFixed(1)} % right, ${show(part.bases)} bases`]));
      block(`Evaluation, ${one.split} split, by part${of}`, table(null, [...facts, ...lines]), true);
    });
    if (run.events.length) block(`Events${of}`, table(null, run.events.map((event) => [`step ${show(event.step)}`, event.text])), run.events.length > 12);
    if (run.thinned > 1) block(`Lines drawn${of}`, make("p", `Every ${run.thinned}th line of metrics.jsonl and the last are drawn.`, { className: "quiet" }));
    run.data.forEach((card) => block(`Data · ${card.name}`, table(null, card.facts), true));
    block(`Configuration${of}`, table(null, Object.entries(run.config)), true);
    block(`Environment${of}`, table(null, Object.entries(run.environment)), true);
  });
  document.querySelectorAll("details").forEach((one) => { one.open = open.includes(one.firstChild.textContent); });
}
function chooseAxis() {
  id("axis").replaceChildren(...Object.entries(AXES).map(([key, name]) => {
    const button = make("button", `by ${name}`, { type: "button", onclick: () => { axis = key; chooseAxis(); drawAll(); } });
    button.setAttribute("aria-pressed", key === axis);
    return button;
  }));
}
async function refresh() {
  try {
    const answer = await fetch("data.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const fresh = await answer.text();
    if (fresh !== refresh.last) {
      refresh.last = fresh;
      data = JSON.parse(fresh);
      describe();
      drawAll();
    }
  } catch {
    id("subtitle").textContent = "the server no longer answers: these are the last numbers it gave";
  }
  setTimeout(refresh, 1000 * data.every);
}
describe();
chooseAxis();
drawAll();
addEventListener("resize", () => plots.forEach(({ plot, box }) => plot.setSize({ width: box.clientWidth, height: plot.height })));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(({ plot }) => plot.redraw()));
if (data.live) setTimeout(refresh, 1000 * data.every);
