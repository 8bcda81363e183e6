// Shows one window's details in a dialog of the browser, with its Escape key, focus and backdrop.

import { command } from "./commands.js";
import { WindowDiff } from "./diff.js";
import { byId, element, fact, setText } from "./dom.js";
import { DASH, ago, bytes, count, moment, plural } from "./format.js";
import { WindowText } from "./text.js";

export class Details {
  #dialog = byId("details");
  #body = byId("details-body");
  #name = null;
  #shown = "";
  #find;
  #relatives;
  #text = new WindowText();
  #diff = new WindowDiff();

  /** `find` returns a window's entry in the list by name, and `relatives` the other windows, the nearest first. */
  constructor(find, relatives) {
    this.#find = find;
    this.#relatives = relatives;
    byId("close-details").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#body.addEventListener("click", (event) => {
      const link = event.target.closest("button[data-window]");
      if (link) this.open(link.dataset.window);
    });
  }

  open(name) {
    this.#name = name;
    this.#shown = "";
    setText(byId("details-title"), name);
    this.#body.replaceChildren(element("p", { class: "quiet" }, "Reading …"));
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#dialog.scrollTop = 0;
    byId("close-details").focus();
    this.#diff.open(name, this.#relatives(name));
    return Promise.all([this.refresh(), this.#text.open(name)]);
  }

  /** Read the shown window again, if there is one. */
  async refresh() {
    if (!this.#dialog.open) return;
    const name = this.#name;
    let answer, text;
    try {
      answer = await fetch(`/api/windows/${encodeURIComponent(name)}`, { cache: "no-store" });
      text = await answer.text();
    } catch {
      return; // the page already says that its server does not answer
    }
    if (name !== this.#name) return;
    const listed = this.#find(name) ?? null;
    const shown = `${JSON.stringify(listed)} ${text}`;
    if (shown === this.#shown) return;
    this.#shown = shown;
    const content = answer.ok ? facts(JSON.parse(text), listed) : [element("p", { class: "notice" }, text)];
    this.#body.replaceChildren(...content);
  }
}

function facts(status, listed) {
  const { kv_cache: cache, timestamps, lineage } = status;
  const tiers = Object.entries(cache.tiers ?? {}).map(([tier, chunks]) => `${count(chunks)} in ${tier}`);
  const own = listed?.unique_bytes ?? null;
  const shared = own === null || listed.size_bytes === null ? null : listed.size_bytes - own;
  const rows = [
    fact("state", element("span", { class: `state ${status.state}` }, status.state)),
    fact("model", status.model ?? DASH),
    fact("session", listed?.session_id ?? DASH),
    fact("made by", status.made_by ?? DASH),
    ...(status.origin ? [fact("imported from", origin(status.origin))] : []),
    fact("tokens", count(status.token_count)),
    fact("size", bytes(cache.total_size_bytes)),
    fact("its own", bytes(own)),
    fact("shared", bytes(shared)),
    fact("chunks", count(cache.block_count)),
    fact("copies", tiers.join(", ") || DASH),
    fact("read from", cache.storage_tier ?? DASH),
    fact("tags", ...(listed?.tags.length ? listed.tags.map((tag) => element("span", { class: "tag" }, tag)) : [DASH])),
    fact("frozen", time(timestamps.frozen_at)),
    fact("created", time(timestamps.created_at)),
    fact("changed", time(timestamps.updated_at)),
    fact("thawed", time(timestamps.thawed_at)),
    fact("parent", ...parent(lineage.parent, listed)),
    fact("children", ...(lineage.children.length ? lineage.children.map(link) : [DASH])),
  ];
  const description = listed?.description ? [element("p", { class: "description" }, listed.description)] : [];
  const name = status.id;
  return [
    ...description,
    element("dl", { class: "facts" }, ...rows),
    element("h3", {}, "Next"),
    command("thaw", name),
    command("clone", name, `${name}-2`),
    command("cat", name),
    command("export", name),
  ];
}

function origin({ exported_as: name, frozen_from: session, resharded_from: ranks }) {
  const divided = ranks === undefined ? "" : `, computed on ${plural(ranks, "rank", "ranks")}`;
  return `${name}, frozen from session ${session}${divided}`;
}

function parent(name, listed) {
  if (name === null) return [DASH];
  return listed === null || listed.under === name ? [link(name)] : [`${name} (deleted)`];
}

function link(name) {
  return element("button", { type: "button", class: "link", "data-window": name }, name);
}

function time(iso) {
  if (iso === null) return DASH;
  const age = ago(iso, Date.now());
  return element("time", { datetime: iso }, `${moment(iso)} (${age === "now" ? age : `${age} ago`})`);
}
