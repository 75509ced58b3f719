// The latents: a table by concern, and what opens with one. A latent has an address: #latent=adapter/layer/name.
"use strict";

const LABELS = {
  "not visible": ["✕", "bad"],
  partly: ["◐", "warn"],
  visible: ["✓", "good"],
  "cannot be judged": ["?", "unknown"],
  "not judged": ["–", "unknown"],
  "no latent": ["Σ", "plain"],
};
const addressOf = (row) => [row.adapter, row.layer, row.latent ?? row.name].map(encodeURIComponent).join("/");

function labelMark(label) {
  const [sign, tone] = LABELS[label] ?? ["–", "unknown"];
  return el("span", { class: `mark tone-${tone}` }, `${sign} ${label}`);
}

const token = (text) => el("span", { class: "tok" }, visible(text));
const visible = (text) => text.replaceAll("\r", "").replaceAll("\n", "↵").trim() || "␣";
const tokens = (list) => el("span", {}, ...list.flatMap((text) => [token(text), " "]));

const LATENT_COLUMNS = [
  {
    id: "name",
    head: "direction",
    value: (r) => r.latent ?? -1,
    cell: (r) => el("a", { href: `#latent=${addressOf(r)}` }, r.name),
  },
  { id: "adapter", head: "adapter", value: (r) => r.adapter },
  { id: "layer", head: "layer", value: (r) => r.layer, numeric: true },
  { id: "order", head: "order", term: "order", value: (r) => r.order, numeric: true },
  { id: "label", head: "seen?", term: "label", value: (r) => r.label, cell: (r) => labelMark(r.label) },
  {
    id: "energy",
    head: "energy",
    term: "energy",
    value: (r) => r.energy,
    cell: (r) => share(r.energy),
    numeric: true,
  },
  {
    id: "invisible",
    head: "invisible (null)",
    term: "invisible",
    value: (r) => r.invisible?.[0],
    cell: (r) => besideNull(r.invisible),
    numeric: true,
  },
  {
    id: "again",
    head: "comes back (null)",
    term: "again",
    value: (r) => r.again?.[0],
    cell: (r) => besideNull(r.again),
    numeric: true,
  },
  {
    id: "lens",
    head: "lens raises",
    term: "lens",
    value: (r) => r.lens?.promoted.join(" "),
    cell: (r) => (r.lens ? tokens(r.lens.promoted) : "–"),
    wide: true,
  },
  {
    id: "nearest",
    head: "nearest (cos)",
    term: "nearest",
    value: (r) => r.cosine,
    cell: (r) => (r.nearest === undefined ? "–" : `${r.nearest} (${num(r.cosine)})`),
    numeric: true,
  },
];

function besideNull(figure) {
  const [value, against] = figure ?? [];
  if (value === null || value === undefined) return "–";
  return against === null ? num(value) : `${num(value)} (${num(against)})`;
}

let latentList = null;
/** The rows, read when they are first asked for: they are most of the page's size. */
function allLatents() {
  latentList ??= JSON.parse(byId("latents").textContent);
  return latentList;
}

/** All that is searched of a latent: its figures, lens and contexts. */
const latentTexts = new WeakMap();
function latentText(row) {
  if (!latentTexts.has(row)) {
    const contexts = row.card
      ? [...row.card.top, ...row.card.random].map((context) => context[2].join(""))
      : [];
    const words = [
      row.name,
      row.adapter,
      `layer ${row.layer}`,
      row.label,
      ...(row.lens?.promoted ?? []),
      ...(row.steered?.own ?? []),
      ...contexts,
    ];
    latentTexts.set(row, words.join(" ").toLowerCase());
  }
  return latentTexts.get(row);
}

function latentsTab() {
  const host = byId("latent-table");
  if (!host || !allLatents().length) return null;
  const all = (values, text) => [["", text], ...unique(values).map((value) => [value, value])];
  const chosen = { adapter: "", layer: "", label: "" };
  const kept = () =>
    allLatents().filter((row) =>
      Object.entries(chosen).every(([key, value]) => !value || String(row[key]) === value),
    );
  let open = null;
  const table = dataTable(host, LATENT_COLUMNS, {
    caption: "Directions that adapters wrote; open one to see its text",
    rows: kept(),
    sort: [{ id: "order", desc: false }],
    text: latentText,
    onOpen: (row) => openPlace(`latent=${addressOf(row)}`),
    isOpen: (row) => row === open,
  });
  const pick = (key) => (value) => {
    chosen[key] = value;
    table.setRows(kept());
  };
  const search = el("input", {
    type: "search",
    placeholder: "words, tokens, numbers",
    on: { input: () => table.search(search.value) },
  });
  byId("latent-controls").replaceChildren(
    choice(
      "Adapter",
      all(
        allLatents().map((row) => row.adapter),
        "all",
      ),
      pick("adapter"),
    ).node,
    choice(
      "Layer",
      all(
        allLatents().map((row) => row.layer),
        "all",
      ),
      pick("layer"),
    ).node,
    choice(
      "Seen by the reference",
      all(
        allLatents().map((row) => row.label),
        "all",
      ),
      pick("label"),
    ).node,
    el("label", {}, "Search figures, lens and text", search),
  );
  const sum = (part) => DATA.shown.reduce((all, one) => all + one[part], 0);
  const held = `figures of ${count(sum("figures"))} of ${count(sum("alive"))} living latents, contexts of ${count(sum("opened"))}`;
  byId("latent-held").textContent = `This page holds ${held}`;
  byId("latent-limits").replaceChildren(...DATA.shown.map((one) => el("li", {}, heldText(one))));
  return {
    /** Opens the latent of an address, if there is one. */
    follow: (address) => {
      const row = allLatents().find((one) => addressOf(one) === address);
      open = row ?? null;
      table.draw();
      showLatent(row, address);
    },
  };
}

function heldText(one) {
  const left = one.alive - one.figures;
  const more = left > 0 ? `; ${count(left)} more are in audit.parquet, or were not audited` : "";
  const notes = one.notes.length ? ` ${one.notes.join(" ")}` : "";
  return `${one.dictionary}: figures of ${count(one.figures)} of ${count(one.alive)} living latents, contexts of ${count(one.opened)}${more}.${notes}`;
}

function showLatent(row, address) {
  const host = byId("latent");
  host.hidden = false;
  if (!row) {
    const where = "The page holds the first ones only; audit.parquet beside it holds more.";
    host.replaceChildren(
      el("h3", { tabindex: "-1" }, "No such latent on this page"),
      el("p", {}, `${decodeURIComponent(address)}. ${where}`),
    );
  } else {
    const close = el("button", { type: "button", class: "plain", on: { click: closeLatent } }, "Close");
    const title = el(
      "h3",
      { tabindex: "-1" },
      `${row.name} of ${row.adapter}, layer ${row.layer} `,
      labelMark(row.label),
    );
    host.replaceChildren(
      el("div", { class: "bar" }, title, close),
      facts(row),
      ...steeredTexts(row),
      ...contexts(row),
    );
  }
  host.querySelector("h3").focus({ preventScroll: true });
  host.scrollIntoView({ block: "start" });
}

function closeLatent() {
  byId("latent").hidden = true;
  remember("tab=latents");
}

function facts(row) {
  const fact = (key, name, ...value) => el("div", {}, el("dt", {}, term(key, name)), el("dd", {}, ...value));
  const effect = ([value, low, high, chance, p]) =>
    `${num(1000 * value)} ${low === null ? "" : interval(1000 * low, 1000 * high)}; random directions ${num(chance === null ? null : 1000 * chance)}${p === null ? "" : `, p ${num(p)}`}`;
  const found = [
    fact("energy", "Energy", share(row.energy)),
    fact("invisible", "Invisible to the reference", besideNull(row.invisible)),
    fact("again", "Comes back in another seed", besideNull(row.again)),
    fact(
      "nearest",
      "Nearest reference latent",
      row.nearest === undefined ? "–" : `${row.nearest}, cosine ${num(row.cosine)}`,
    ),
  ];
  if (row.scaling) found.push(fact("scaling", "On the base activations", row.scaling));
  if (row.card)
    found.push(
      fact(
        "density",
        "Fires on",
        `${share(row.card.density)} of evaluation tokens; peak ${num(row.card.peak)}`,
      ),
    );
  if (row.lens) {
    found.push(
      fact("lens", "The lens raises", tokens(row.lens.promoted)),
      fact("lens", "It lowers", tokens(row.lens.suppressed)),
    );
    found.push(
      fact("lens", "Lens peak", `${num(row.lens.peak.value)}; random directions ${num(row.lens.peak.null)}`),
    );
  }
  (row.causal ?? []).forEach((one, i) =>
    found.push(fact("causal", i ? "Put into the base (10⁻³ nats)" : "Taken out (10⁻³ nats)", effect(one))),
  );
  return el("dl", { class: "facts" }, ...found);
}

/** What the base model writes with the direction added, beside random directions of the same length. */
function steeredTexts(row) {
  if (!row.steered) return [];
  const line = (name, text) =>
    el("p", { class: "context" }, el("cite", {}, name), text.replaceAll("\n", "↵ "));
  const strength = (i) => `${num(DATA.strengths[i])} × the usual length`;
  const side = (title, lists) =>
    el("div", {}, el("h4", {}, title), ...lists.flatMap((list) => list.map((text, i) => line(strength(i), text))));
  return [
    el("h4", {}, term("steered", "Written by the base model with this direction added")),
    el(
      "div",
      { class: "pair" },
      side("This direction", [row.steered.own]),
      side("Random directions of the same length", row.steered.random),
    ),
  ];
}

function contexts(row) {
  if (!row.card)
    return [
      el(
        "p",
        { class: "muted" },
        row.latent === undefined || row.latent === null
          ? "A direction that is no latent has no contexts."
          : "Its contexts are not on this page: only those of the first latents by concern are.",
      ),
    ];
  if (!row.card.firing) return [el("p", { class: "muted" }, "It does not fire on the evaluation tokens.")];
  const side = (title, list) =>
    el("div", {}, el("h4", {}, title), ...list.map((one) => contextNode(one, row.card.peak)));
  const told =
    "It is understood only when both columns tell the same story. Shading is the activation; the token a text is shown for is bold; planted text is dotted.";
  return [
    el("p", { class: "muted" }, el("small", {}, told)),
    el(
      "div",
      { class: "pair" },
      side("Where it fires strongest", row.card.top),
      side(`At random, of the ${count(row.card.firing)} tokens on which it fires`, row.card.random),
    ),
  ];
}

/** A window of text, each token shaded by its activation. */
function contextNode([place, center, list, activations, marker], peak) {
  const parts = list.map((text, i) => {
    const word = el(i === center || activations[i] ? "b" : "span", {
      class: i === center ? "c" : null,
      title: activations[i] ? num(activations[i]) : null,
    });
    word.textContent = text.replaceAll("\r", "").replaceAll("\n", "↵ ") || "␣";
    const level = peak > 0 ? Math.min(1, activations[i] / peak) : 0;
    if (level > 0.05)
      word.style.backgroundColor = `color-mix(in srgb, var(--hot) ${Math.round(12 + 70 * level)}%, transparent)`;
    return marker.includes(i) ? el("u", {}, word) : word;
  });
  return el("p", { class: "context" }, el("cite", {}, place), ...parts);
}
