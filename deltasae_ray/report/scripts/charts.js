// The study's figures: Vega draws one panel for each layer, by its interpreter, which needs no eval.
"use strict";

const KINDS = { adapter: "●", "random adapter": "◆", "base control": "■" };
const PARTS = ["value", "low", "high", "null", "ceiling"];
let drawn = [];

/** The spec with the colours that the style sheet has for this scheme. */
function coloured(spec) {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(JSON.stringify(spec), (_key, value) =>
    typeof value === "string" && value.startsWith("@")
      ? style.getPropertyValue(`--${value.slice(1)}`).trim()
      : value,
  );
}

/** A panel for each layer; `signals` are set before it is drawn. */
async function drawPanels(host, spec, rows, told, signals = {}) {
  drawn.filter((view) => view.host === host).forEach((view) => view.finalize());
  drawn = drawn.filter((view) => view.host !== host);
  const layers = unique(rows.map((row) => row.layer)).sort((a, b) => a - b);
  const figures = layers.map((layer) => {
    const place = el("div");
    const figure = el("figure", {}, el("figcaption", {}, `layer ${layer}`), place);
    const here = rows.filter((row) => row.layer === layer);
    const view = new vega.View(vega.parse(coloured(spec), null, { ast: true }), {
      expr: vega.expressionInterpreter,
      renderer: "svg",
      container: place,
      hover: false,
    });
    view.host = host;
    view.description(`${told}, layer ${layer}`);
    for (const [name, value] of Object.entries(signals)) view.signal(name, value);
    view.data("rows", here);
    drawn.push(view);
    return { figure, place, view };
  });
  host.replaceChildren(...figures.map((one) => one.figure));
  await Promise.all(
    figures.map(({ place, view }) =>
      view.width(Math.max(180, Math.min(380, place.clientWidth - 50))).runAsync(),
    ),
  );
}

/** Rows of one figure as the chart has them, its controls beside it. */
function chartRows(metric, size, seed) {
  const kinds = {
    [metric]: "adapter",
    [`${metric}_random_adapter`]: "random adapter",
    [`${metric}_base_control`]: "base control",
  };
  const leading = size === "" && seed === "";
  return DATA.measures
    .filter((row) => row.metric in kinds && !row.against)
    .filter((row) => (leading ? row.leading : (!size || row.size === size) && (!seed || row.seed === seed)))
    .map((row) => {
      const at = DATA.adapters.indexOf(row.adapter);
      const kind = kinds[row.metric];
      const own = kind === "adapter";
      const { value, low, high } = row.point;
      const told = `${row.adapter}, ${kind}: ${value === null ? `undefined: ${row.point.reason}` : `${num(value)} ${interval(low, high)}`}`;
      const beside = { null: own ? row.point.null : null, ceiling: own ? row.point.ceiling : null };
      return {
        lane: row.adapter,
        at,
        layer: row.layer,
        kind,
        series: at % 6,
        value,
        low,
        high,
        ...beside,
        told,
      };
    });
}

function studyFigure() {
  const host = byId("study-panels");
  if (!host || !DATA.charts.length) return;
  const sizes = unique(DATA.measures.map((row) => row.size));
  const seeds = unique(DATA.measures.map((row) => row.seed));
  const options = (values, first) => [["", first], ...values.map((value) => [value, value])];
  const known = (name) =>
    DATA.measures.some((row) => row.metric === name && row.leading && row.point.value !== null);
  const first = DATA.charts.find((chart) => known(chart.metric)) ?? DATA.charts[0];
  const metric = choice(
    "Figure",
    DATA.charts.map((chart) => [chart.metric, chart.title]),
    draw,
  );
  const size = choice("d_sae", options(sizes, "largest"), draw);
  const seed = choice("Seed", options(seeds, seeds.includes("all") ? "over all" : "first"), draw);
  metric.select.value = first.metric;
  const explained = el("span");
  byId("study-controls").replaceChildren(metric.node, size.node, seed.node, explained);

  function draw() {
    const chart = DATA.charts.find((one) => one.metric === metric.select.value);
    const rows = chartRows(chart.metric, size.select.value, seed.select.value);
    const ends = rows.flatMap((row) => PARTS.map((part) => row[part])).filter((x) => x !== null);
    const signals = { low: Math.min(0, ...ends), high: Math.max(1, ...ends) };
    if (ends.length && Math.max(...ends) < 0.1) signals.high = Math.max(...ends) * 1.1;
    explained.replaceChildren(term(chart.metric, "What is this?"));
    const notes = rows.length ? chart.notes : ["Not measured for this size and seed."];
    const why = chart.undefined.map((note) => el("p", {}, note));
    const folded = why.length ? el("details", {}, el("summary", {}, "Why some are undefined"), ...why) : null;
    byId("study-notes").replaceChildren(
      ...notes.map((note) => el("p", {}, note)),
      ...(folded ? [folded] : []),
    );
    byId("study-legend").replaceChildren(...legend(rows));
    drawPanels(host, SPECS.layers, rows, chart.title, signals);
  }
  draw();
  return draw;
}

function legend(rows) {
  const adapters = unique(rows.map((row) => row.lane)).map((name) => {
    const at = DATA.adapters.indexOf(name);
    return el("span", { "data-mark": "●", class: `c${at % 6}` }, name);
  });
  const kinds = unique(rows.map((row) => row.kind)).filter((kind) => kind !== "adapter");
  const marks = kinds.map((kind) => el("span", { "data-mark": KINDS[kind] }, kind));
  const parts = [
    ["null", "▬", "null: nothing to find"],
    ["ceiling", "—", "ceiling: the best to expect"],
    ["low", "│", "95 % interval"],
  ];
  const seen = parts
    .filter(([part]) => rows.some((row) => row[part] !== null))
    .map(([, mark, text]) => el("span", { "data-mark": mark }, text));
  const lacking = rows.some((row) => row.value === null)
    ? [el("span", { "data-mark": "∅" }, "undefined")]
    : [];
  return [...adapters, ...marks, ...seen, ...lacking];
}

const CURVES = {
  calibration: ["Latents not visible, over the share of features that a reference would hold", "lines"],
  angle_pca: ["Mean principal angle over k directions (degrees; dashed: null)", "log_lines"],
  learning: ["Unexplained variance of training batches, over steps", "lines"],
  dead_latents: ["Dead latents, over steps", "lines"],
};

function curves() {
  const host = byId("curve-panels");
  const known = Object.keys(CURVES).filter((name) => DATA.lines.some((line) => line.chart === name));
  if (!known.length) return;
  const chart = choice(
    "Curve",
    known.map((name) => [name, CURVES[name][0]]),
    draw,
  );
  byId("curve-controls").replaceChildren(chart.node);

  function draw() {
    const name = chart.select.value;
    const found = DATA.lines.filter((line) => line.chart === name);
    const labels = unique(found.map((line) => line.label.split(",")[0]));
    const rows = found.flatMap((line) => {
      const series = Math.max(0, DATA.adapters.indexOf(line.adapter)) % 6;
      const dash = labels.indexOf(line.label.split(",")[0]) % 3;
      return line.points.map(([x, y]) => ({
        x,
        y,
        layer: line.layer,
        label: `${line.adapter}, ${line.label}`,
        series,
        dash,
      }));
    });
    const marks = ["—", "- -", "···"];
    byId("curve-legend").replaceChildren(
      ...unique(found.map((line) => line.adapter)).map((a) =>
        el("span", { "data-mark": "—", class: `c${Math.max(0, DATA.adapters.indexOf(a)) % 6}` }, a),
      ),
      ...labels.map((label, i) => el("span", { "data-mark": marks[i % 3] }, label)),
    );
    drawPanels(host, SPECS[CURVES[name][1]], rows, CURVES[name][0]);
  }
  draw();
  return draw;
}
