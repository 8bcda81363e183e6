// Shows a window's conversation, page by page.

import { byId, element, setText } from "./dom.js";
import { count } from "./format.js";

export class WindowText {
  #place = byId("text");
  #range = byId("text-range");
  #name = null;
  #page = null;
  #moves = {
    "text-start": () => 0,
    "text-before": () => this.#page.first - this.#size,
    "text-after": () => this.#page.end,
    "text-end": () => this.#page.token_count,
  };
  #size = 1;

  constructor() {
    for (const [id, first] of Object.entries(this.#moves)) {
      byId(id).addEventListener("click", () => this.#page && this.#read(Math.max(0, first())));
    }
  }

  /** Show the beginning of a window. */
  open(name) {
    this.#name = name;
    this.#page = null;
    setText(this.#range, "Reading …");
    this.#place.replaceChildren();
    return this.#read(0);
  }

  async #read(first) {
    const name = this.#name;
    let answer, text;
    try {
      answer = await fetch(`/api/windows/${encodeURIComponent(name)}/text?from=${first}`, { cache: "no-store" });
      text = await answer.text();
    } catch {
      return; // the page already says that its server does not answer
    }
    if (name !== this.#name) return;
    if (answer.ok) this.#show(JSON.parse(text));
    else setText(this.#range, text);
  }

  #show(page) {
    this.#page = page;
    const { token_count: all, first, end } = page;
    this.#size = Math.max(this.#size, end - first);
    setText(this.#range, all ? `tokens ${count(first)} to ${count(end)} of ${count(all)}` : "no tokens");
    const shown = page.text ?? page.token_ids.join(" ");
    const why = page.text_missing === null ? [] : [element("p", { class: "quiet" }, `Token ids, because ${page.text_missing}.`)];
    this.#place.replaceChildren(...why, element("pre", {}, shown));
    this.#place.scrollTop = 0;
    byId("text-start").disabled = byId("text-before").disabled = first === 0;
    byId("text-end").disabled = byId("text-after").disabled = end === all;
  }
}
