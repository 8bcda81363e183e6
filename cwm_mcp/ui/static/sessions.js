// Shows the sessions, last active first.

import { command } from "./commands.js";
import { byId, element, setText } from "./dom.js";
import { ago, count, moment, plural, until } from "./format.js";

const PAGE = 50; // rows

export class SessionTable {
  #body = byId("session-rows");
  #more = byId("more-sessions");
  #sessions = [];
  #now = 0;
  #live = false;
  #limit = PAGE;
  #shown = "";

  constructor() {
    this.#more.addEventListener("click", () => {
      this.#limit += PAGE;
      this.#show();
    });
  }

  /** Show the sessions. `live` is false without an engine, when nobody knows what they do now. */
  update(sessions, now, live) {
    this.#sessions = sessions;
    this.#live = live;
    this.#now = now;
    this.#show();
  }

  #show() {
    const active = this.#sessions.filter(({ state }) => state === "active").length;
    const known = plural(this.#sessions.length, "session", "sessions");
    setText(byId("sessions-count"), this.#live ? `${known}, ${count(active)} active` : `${known}, as last frozen or thawed`);
    const rows = this.#sessions.slice(0, this.#limit).map((session) => [
      session,
      ago(session.last_active_at, this.#now),
      until(session.auto_freeze_at, this.#now),
    ]);
    const left = this.#sessions.length - rows.length;
    this.#more.hidden = left === 0;
    setText(this.#more, `Show ${Math.min(PAGE, left)} more of ${count(left)}`);
    // Unchanged rows are kept, so that the user's selection stays.
    const shown = JSON.stringify(rows);
    if (shown === this.#shown) return;
    this.#shown = shown;
    const empty = element("tr", { role: "row", class: "empty" }, cell("", null, "No sessions yet."));
    empty.firstElementChild.colSpan = 7;
    const unfolded = new Set([...this.#body.querySelectorAll("details[open]")].map((each) => each.dataset.heads));
    const focused = document.activeElement?.dataset?.copy;
    this.#body.replaceChildren(...(rows.length ? rows.map((row) => sessionRow(...row)) : [empty]));
    for (const each of this.#body.querySelectorAll("details")) each.open = unfolded.has(each.dataset.heads);
    if (focused) [...this.#body.querySelectorAll("[data-copy]")].find((each) => each.dataset.copy === focused)?.focus();
  }
}

function sessionRow(session, active, due) {
  return element(
    "tr",
    { role: "row", "data-id": session.session_id },
    cell("", null, ...nameOf(session)),
    cell("", null, element("span", { class: `state ${session.state}` }, session.state)),
    cell("number", "tokens", count(session.token_count)),
    cell("number", "cached", count(session.cached_tokens)),
    cell("number minor", "heads", count(session.heads)),
    cell("number", "active", when(session.last_active_at, active)),
    cell("number minor", "auto-freeze", when(session.auto_freeze_at, due)),
  );
}

/** Create a cell. On a narrow screen, where no heads are seen, `named` stands before the value. */
function cell(kind, named, ...values) {
  return element("td", { role: "cell", class: kind || null, "data-named": named }, ...values);
}

function nameOf(session) {
  const { session_id: id, title, head_names: heads } = session;
  return [
    element("div", { class: "label" }, title ?? id),
    title === null ? null : element("div", { class: "quiet id" }, id),
    heads?.length > 1 ? headsOf(session) : null,
    heads?.length > 1 || session.state === "expired" ? null : command("freeze", id),
  ];
}

/** Offer a freeze of each head. They are folded away, because a session can have dozens. */
function headsOf({ session_id: id, head, head_reason: reason, head_names: heads }) {
  const rows = heads.map((name) =>
    element("li", {}, command("freeze", `${id}/${name}`), name === head ? element("span", { class: "quiet" }, "the default") : null),
  );
  return element(
    "details",
    { "data-heads": id },
    element("summary", {}, `${heads.length} heads`, head ? element("span", { class: "quiet" }, ` A freeze takes ${head}; ${reason}.`) : null),
    element("ul", { class: "heads" }, ...rows),
  );
}

function when(iso, text) {
  return iso === null ? text : element("time", { datetime: iso, title: moment(iso) }, text);
}
