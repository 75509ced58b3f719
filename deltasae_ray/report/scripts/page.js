// Tabs, the tables of measures and monitors, and addresses within the page.
"use strict";

const METRIC_COLUMNS = [
  {
    id: "metric",
    head: "figure",
    value: (r) => titleOf(r.metric),
    cell: (r) => term(r.metric, titleOf(r.metric)),
    wide: true,
  },
  {
    id: "adapter",
    head: "adapter",
    value: (r) => (r.against ? `${r.adapter} beside ${r.against}` : r.adapter),
  },
  { id: "layer", head: "layer", value: (r) => r.layer, numeric: true },
  { id: "size", head: "d_sae", term: "d_sae", value: (r) => r.size, numeric: true },
  { id: "seed", head: "seed", term: "over seeds", value: (r) => r.seed, numeric: true },
  ...pointColumns(),
];
const MONITOR_COLUMNS = [
  { id: "monitor", head: "monitor", value: (r) => r.monitor },
  { id: "adapter", head: "adapter", value: (r) => r.adapter },
  {
    id: "figure",
    head: "figure",
    value: (r) => titleOf(`monitor.${r.monitor}.${r.figure}`),
    cell: (r) => term(`monitor.${r.monitor}.${r.figure}`, titleOf(`monitor.${r.monitor}.${r.figure}`)),
    wide: true,
  },
  ...pointColumns(),
];

function titleOf(name) {
  return DATA.glossary[name]?.title ?? name;
}

function pointColumns() {
  const of = (part) => ({ value: (r) => r.point[part], cell: (r) => num(r.point[part]), numeric: true });
  return [
    {
      id: "value",
      head: "value",
      value: (r) => r.point.value,
      cell: (r) => (r.point.value === null ? "undefined" : num(r.point.value)),
      numeric: true,
    },
    {
      id: "interval",
      head: "95 % interval",
      term: "interval",
      value: (r) => r.point.low,
      cell: (r) => interval(r.point.low, r.point.high),
    },
    { id: "null", head: "null", term: "null", ...of("null") },
    { id: "ceiling", head: "ceiling", term: "ceiling", ...of("ceiling") },
    { id: "kappa", head: "κ", term: "κ", ...of("kappa") },
    { id: "p", head: "p", term: "p", ...of("p") },
    {
      id: "words",
      head: "in words",
      value: (r) => [r.standing, r.point.reason].filter(Boolean).join("; "),
      wide: true,
    },
  ];
}

function measuresTab() {
  const host = byId("measure-table");
  if (!host || !DATA.measures.length) return;
  const all = (values, text) => [["", text], ...unique(values).map((value) => [value, value])];
  const chosen = { adapter: "", layer: "", size: "", seed: "", variant: "" };
  const wanted = (row, key) =>
    key === "variant" ? row.variant === chosen.variant : !chosen[key] || String(row[key]) === chosen[key];
  const kept = () =>
    DATA.measures
      .filter((row) => chosen.size || chosen.seed || row.leading)
      .filter((row) => Object.keys(chosen).every((key) => wanted(row, key)));
  const table = dataTable(host, METRIC_COLUMNS, { caption: "Every figure of the study", rows: kept() });
  const pick = (key) => (value) => {
    chosen[key] = value;
    table.setRows(kept());
  };
  const search = el("input", {
    type: "search",
    placeholder: "words of a figure",
    on: { input: () => table.search(search.value) },
  });
  byId("measure-controls").replaceChildren(
    choice(
      "Adapter",
      all(
        DATA.measures.map((row) => row.adapter),
        "all",
      ),
      pick("adapter"),
    ).node,
    choice(
      "Layer",
      all(
        DATA.measures.map((row) => row.layer),
        "all",
      ),
      pick("layer"),
    ).node,
    choice(
      "d_sae",
      all(
        DATA.measures.map((row) => row.size),
        "largest",
      ),
      pick("size"),
    ).node,
    choice(
      "Seed",
      all(
        DATA.measures.map((row) => row.seed),
        "over all, or the first",
      ),
      pick("seed"),
    ).node,
    choice(
      "Variant",
      unique(DATA.measures.map((row) => row.variant)).map((value) => [
        value,
        value.replaceAll("_", " ") || "plain",
      ]),
      pick("variant"),
    ).node,
    el("label", {}, "Search", search),
  );
}

function monitorsTab() {
  const host = byId("monitor-table");
  if (host && DATA.monitors.length)
    dataTable(host, MONITOR_COLUMNS, { caption: "What becomes of your monitors", rows: DATA.monitors });
}

/** Tabs by the keyboard's arrows; panels are shown one at a time, and all of them in print. `onShow`: by name. */
function tabs(onShow) {
  const list = [...document.querySelectorAll("[role='tab']")];
  const select = (tab, focus) => {
    for (const one of list) {
      const on = one === tab;
      one.setAttribute("aria-selected", String(on));
      one.tabIndex = on ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !on;
    }
    onShow[tab.id.slice(4)]?.();
    if (focus) tab.focus();
  };
  list.forEach((tab, i) => {
    tab.addEventListener("click", () => {
      select(tab);
      remember(`tab=${tab.id.slice(4)}`);
    });
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -i, End: list.length - 1 - i }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      select(list[(i + step + list.length) % list.length], true);
    });
  });
  select(list[0]);
  return (name) => {
    const tab = byId(`tab-${name}`);
    if (tab) select(tab);
  };
}

function start() {
  byId("tabs").hidden = false;
  explainTerms();
  const redraw = [studyFigure()];
  // What a hidden panel holds is drawn when it is first shown: then its width is known.
  const showCurves = () => redraw[1] ?? redraw.push(curves());
  const showTab = tabs({ latents: () => showLatents(), measures: showCurves });
  window.addEventListener("beforeprint", () => [showLatents(), showCurves()]);
  measuresTab();
  monitorsTab();
  let latents;
  const showLatents = () => (latents ??= latentsTab());
  const follow = (place) => {
    const [kind, address] = place.split("=");
    if (kind === "tab") showTab(address);
    if (kind === "latent" && address) {
      showTab("latents");
      latents?.follow(address);
    }
  };
  window.addEventListener("hashchange", () => follow(location.hash.slice(1)));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (!link) return;
    event.preventDefault();
    openPlace(link.getAttribute("href").slice(1));
  });
  openPlace = (place) => {
    remember(place);
    follow(place);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    redraw.forEach((draw) => draw?.()),
  );
  follow(location.hash.slice(1));
}

start();
