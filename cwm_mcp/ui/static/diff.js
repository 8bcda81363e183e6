// Compares the shown window with another one: what both begin with, and how each goes on.

import { byId, element } from "./dom.js";
import { bytes, count, plural } from "./format.js";

export class WindowDiff {
  #form = byId("diff-form");
  #other = byId("diff-other");
  #result = byId("diff-result");
  #name = null;

  constructor() {
    // The page's policy forbids that forms are sent, so nothing but this happens.
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#compare();
    });
  }

  /** Offer the other windows, the nearest relatives first. */
  open(name, others) {
    this.#name = name;
    this.#result.replaceChildren();
    this.#other.value = others[0] ?? "";
    byId("diff-names").replaceChildren(...others.map((other) => element("option", { value: other })));
  }

  async #compare() {
    const [name, other] = [this.#name, this.#other.value.trim()];
    if (!other) return;
    let answer, text;
    try {
      answer = await fetch(`/api/windows/${encodeURIComponent(name)}/diff?with=${encodeURIComponent(other)}`, { cache: "no-store" });
      text = await answer.text();
    } catch {
      return; // the page already says that its server does not answer
    }
    if (name !== this.#name) return;
    const content = answer.ok ? differences(JSON.parse(text)) : [element("p", { class: "notice" }, text)];
    this.#result.replaceChildren(...content);
  }
}

function differences(diff) {
  const { window_a: one, window_b: other, common_tokens: common, only_a_tokens: mine, only_b_tokens: theirs } = diff;
  const shared = `${plural(diff.shared_blocks, "chunk", "chunks")} (${bytes(diff.shared_bytes)}) are stored once for both`;
  const same = mine === 0 && theirs === 0 ? "They are the same" : `The first ${count(common)} tokens are the same`;
  const why = diff.text_missing === null ? [] : [element("p", { class: "quiet" }, `Token ids, because ${diff.text_missing}.`)];
  return [
    element("p", {}, `${same}, and ${shared}.`),
    ...why,
    passage("the last that both have", diff.common_end, "both"),
    passage(`${one} goes on for ${plural(mine, "token", "tokens")}`, diff.next_a, "one"),
    passage(`${other} goes on for ${plural(theirs, "token", "tokens")}`, diff.next_b, "other"),
  ];
}

function passage(title, { text, token_ids: ids }, side) {
  const shown = text ?? ids.join(" ");
  if (shown === "") return element("p", { class: "quiet" }, `${title}.`);
  return element("figure", { class: side }, element("figcaption", { class: "quiet" }, `${title}:`), element("pre", {}, shown));
}
