// Shows the sessions, last active first.

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
    const empty = element("tr", { class: "empty" }, element("td", { colspan: 7 }, "No sessions yet."));
    this.#body.replaceChildren(...(rows.length ? rows.map((row) => sessionRow(...row)) : [empty]));
  }
}

function sessionRow(session, active, due) {
  return element(
    "tr",
    { "data-id": session.session_id },
    element(
      "td",
      {},
      element("div", { class: "label" }, session.title ?? session.session_id),
      session.title === null ? null : element("div", { class: "quiet id" }, session.session_id),
      session.heads > 1 && session.head
        ? element("div", { class: "quiet" }, `A freeze takes head ${session.head}; ${session.head_reason}.`)
        : null,
    ),
    element("td", {}, element("span", { class: `state ${session.state}` }, session.state)),
    element("td", { class: "number" }, count(session.token_count)),
    element("td", { class: "number" }, count(session.cached_tokens)),
    element("td", { class: "number minor" }, count(session.heads)),
    element("td", { class: "number" }, when(session.last_active_at, active)),
    element("td", { class: "number minor" }, when(session.auto_freeze_at, due)),
  );
}

function when(iso, text) {
  return iso === null ? text : element("time", { datetime: iso, title: moment(iso) }, text);
}
