// Elements and numbers. Text from data enters the page as text nodes only.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SPECS = JSON.parse(document.getElementById("specs").textContent);
const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a string child becomes a text node. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A number as the page writes it: three digits, a real minus sign, a dash for what is not there. */
function num(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (x !== 0 && (size < 1e-3 || size >= 1e5))
    return x.toExponential(1).replace("e+", "e").replaceAll("-", "−");
  const digits = size < 0.01 && x !== 0 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0;
  const text = x.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return text.replace("-", "−");
}

const interval = (low, high) => (low === null || high === null ? "–" : `[${num(low)}, ${num(high)}]`);
const share = (x) => (x === null || x === undefined ? "–" : `${num(100 * x)}\u00a0%`);
const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
const unique = (values) => [...new Set(values)];

/** Puts a place into the address, where the page has one of its own: in a frame without origin it has not. */
function remember(place) {
  try {
    history.pushState(null, "", `#${place}`);
  } catch {
    // The place is shown all the same.
  }
}

/** Shows a place of the page, such as latent=r16/15/430. */
let openPlace = remember;

/** A word that explains itself on hover and focus. */
function term(key, text) {
  return key in DATA.glossary
    ? el("button", { type: "button", class: "term", "data-term": key }, text)
    : text;
}

/** A labelled choice; `options` are [value, text] pairs. */
function choice(label, options, onChange) {
  const made = options.map(([value, text]) => el("option", { value }, text));
  const select = el("select", { on: { change: () => onChange(select.value) } }, ...made);
  return { node: el("label", {}, label, select), select };
}

/** Shows the explanation of the word that is pointed at, or has the focus. */
function explainTerms() {
  const tip = el("div", { id: "tip", role: "tooltip", hidden: "" });
  document.body.append(tip);
  const hide = () => {
    tip.hidden = true;
    document
      .querySelectorAll("[aria-describedby='tip']")
      .forEach((e) => e.removeAttribute("aria-describedby"));
  };
  const show = (event) => {
    const word = event.target.closest?.("[data-term]");
    const entry = word && DATA.glossary[word.dataset.term];
    if (!entry) return hide();
    tip.replaceChildren(el("strong", {}, entry.title), entry.text);
    tip.hidden = false;
    word.setAttribute("aria-describedby", "tip");
    const box = word.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 12);
    const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(12, left) + window.scrollX}px`;
    tip.style.top = `${(below ? box.bottom + 6 : box.top - 6 - tip.offsetHeight) + window.scrollY}px`;
  };
  for (const event of ["mouseover", "focusin"]) document.addEventListener(event, show);
  for (const event of ["mouseout", "focusout"]) document.addEventListener(event, hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}
