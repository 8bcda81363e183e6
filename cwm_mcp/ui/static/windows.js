// Shows the tree of windows as a tree grid: one stop for the Tab key, and arrow keys inside.

import { byId, element, setText } from "./dom.js";
import { Forest } from "./forest.js";
import { DASH, ago, bytes, count, moment, plural } from "./format.js";

const PAGE = 100; // rows
const DEEPEST = 8; // levels that are indented

export class WindowTree {
  #forest = new Forest();
  #body = byId("window-rows");
  #search = byId("search");
  #more = byId("more-windows");
  #open;
  #now = 0;
  #limit = PAGE;
  #active = null; // the name of the row that the Tab key reaches
  #made = new Map(); // name -> {signature, row}

  /** `open` is called with the name of the window whose details to show. */
  constructor(open) {
    this.#open = open;
    this.#search.addEventListener("input", () => {
      this.#limit = PAGE;
      this.#show();
    });
    this.#more.addEventListener("click", () => {
      this.#limit += PAGE;
      this.#show();
    });
    this.#body.addEventListener("click", (event) => this.#clicked(event));
    this.#body.addEventListener("keydown", (event) => this.#pressed(event));
    this.#body.addEventListener("focusin", (event) => this.#activate(event.target.closest("tr")));
  }

  update(windows, now) {
    this.#now = now;
    this.#forest.update(windows);
    this.#show();
  }

  find(name) {
    return this.#forest.find(name);
  }

  relatives(name) {
    return this.#forest.relatives(name);
  }

  #show() {
    const { rows, found } = this.#forest.rows(this.#search.value);
    const shown = rows.slice(0, this.#limit);
    const all = plural(this.#forest.size, "window", "windows");
    setText(byId("windows-count"), found === this.#forest.size ? all : `${count(found)} of ${all}`);
    if (!shown.some(({ window }) => window.name === this.#active)) this.#active = shown[0]?.window.name ?? null;

    const focused = this.#body.contains(document.activeElement) ? this.#active : null;
    const kept = new Map();
    for (const each of shown) kept.set(each.window.name, this.#rowOf(each));
    this.#made = kept;
    const elements = [...kept.values()].map(({ row }) => row);
    if (elements.length === 0) elements.push(emptyRow(this.#forest.size));
    // Rows that stay in place keep focus and selection.
    if (elements.some((row, place) => this.#body.children[place] !== row) || elements.length !== this.#body.children.length) {
      this.#body.replaceChildren(...elements);
    }
    if (focused !== null) kept.get(focused)?.row.focus();
    const left = rows.length - shown.length;
    this.#more.hidden = left === 0;
    setText(this.#more, `Show ${Math.min(PAGE, left)} more of ${count(left)}`);
  }

  #rowOf(each) {
    const age = ago(each.window.created_at, this.#now);
    const active = each.window.name === this.#active;
    const signature = JSON.stringify([each, age, active]);
    const before = this.#made.get(each.window.name);
    return before?.signature === signature ? before : { signature, row: windowRow(each, age, active) };
  }

  #activate(row) {
    if (!row || row.dataset.name === undefined || row.dataset.name === this.#active) return;
    this.#rowNamed(this.#active)?.setAttribute("tabindex", "-1");
    this.#active = row.dataset.name;
    row.setAttribute("tabindex", "0");
  }

  #clicked(event) {
    const row = event.target.closest("tr[data-name]");
    if (!row) return;
    if (event.target.closest(".toggle")) this.#fold(row.dataset.name, row.getAttribute("aria-expanded") === "true");
    else this.#open(row.dataset.name);
  }

  #pressed(event) {
    const row = event.target.closest("tr[data-name]");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const name = row.dataset.name;
    const expanded = row.getAttribute("aria-expanded");
    const steps = {
      ArrowDown: () => row.nextElementSibling?.focus(),
      ArrowUp: () => row.previousElementSibling?.focus(),
      Home: () => this.#body.firstElementChild.focus(),
      End: () => this.#body.lastElementChild.focus(),
      ArrowRight: () => (expanded === "false" ? this.#fold(name, false) : expanded && row.nextElementSibling?.focus()),
      ArrowLeft: () => (expanded === "true" ? this.#fold(name, true) : this.#rowNamed(this.find(name)?.under)?.focus()),
      Enter: () => this.#open(name),
      " ": () => this.#open(name),
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    steps[event.key]();
  }

  #fold(name, folded) {
    this.#forest.fold(name, folded);
    this.#show();
  }

  #rowNamed(name) {
    return this.#made.get(name)?.row;
  }
}

function windowRow({ window, level, branches, folded, found }, age, active) {
  const attributes = {
    role: "row",
    "data-name": window.name,
    tabindex: active ? 0 : -1,
    "aria-level": level,
    "aria-expanded": branches ? String(!folded) : null,
    class: found ? null : "leads-on",
  };
  return element(
    "tr",
    attributes,
    cell("", null, nameOf(window, level, branches, folded)),
    cell("number", "tokens", count(window.token_count)),
    cell("number", "size", bytes(window.size_bytes)),
    cell("share", null, shareOf(window)),
    cell("minor", null, window.storage_tier ?? DASH),
    cell("number", "age", element("time", { datetime: window.created_at, title: moment(window.created_at) }, age)),
  );
}

/** Create a cell. On a narrow screen, where no heads are seen, `named` stands before the value. */
function cell(kind, named, ...values) {
  return element("td", { role: "gridcell", class: kind || null, "data-named": named }, ...values);
}

function nameOf(window, level, branches, folded) {
  const sign = branches ? (folded ? "▸" : "▾") : "";
  const label = element("div", { class: "said" }, element("span", { class: "label" }, window.name));
  if (folded) label.append(element("span", { class: "quiet" }, plural(branches, "branch", "branches")));
  if (window.state !== "frozen") label.append(element("span", { class: `state ${window.state}` }, window.state));
  label.append(...window.tags.map((tag) => element("span", { class: "tag" }, tag)));
  if (window.parent_window !== null && window.under === null) {
    label.append(element("span", { class: "quiet" }, `from ${window.parent_window} (deleted)`));
  }
  const toggle = element("span", { class: branches ? "toggle" : "leaf", "aria-hidden": "true" }, sign);
  const line = element("div", { class: "name" }, toggle, label);
  line.style.paddingInlineStart = `${(Math.min(level, DEEPEST) - 1) * 1.1}rem`;
  return line;
}

/** Show the window's own bytes beside those that it shares with others. */
function shareOf({ size_bytes: size, unique_bytes: own }) {
  if (size === null || own === null) return DASH;
  const bar = element("span", { class: "split", "aria-hidden": "true" }, element("span", { class: "own" }));
  bar.firstElementChild.style.width = `${size ? (own / size) * 100 : 0}%`;
  return element("div", { class: "parts" }, bar, element("span", {}, `${bytes(own)} / ${bytes(size - own)}`));
}

function emptyRow(size) {
  const text = size ? "No window has all of these words." : "No windows yet. To create one, run: cwm freeze SESSION NAME";
  return element("tr", { role: "row", class: "empty" }, element("td", { role: "gridcell", colspan: 6 }, text));
}
