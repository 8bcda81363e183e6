// Reads the overview every few seconds and passes it to the parts of the page.

import { letCopy } from "./commands.js";
import { byId, element, setText } from "./dom.js";
import { Details } from "./details.js";
import { showFigures } from "./figures.js";
import { clock } from "./format.js";
import { SessionTable } from "./sessions.js";
import { WindowTree } from "./windows.js";

const EVERY_MS = 3000;
const AWAY = "No engine is running, so this shows only what the catalog knows. To start one, run: cwm serve MODEL";
const ENGINE = { true: ["engine running", "healthy"], false: ["no engine", "unhealthy"], null: ["engine unknown", "degraded"] };

const details = new Details((name) => tree.find(name), (name) => tree.relatives(name));
const tree = new WindowTree((name) => details.open(name));
const sessions = new SessionTable();
let timer = null;

function show(overview) {
  const now = Date.parse(overview.read_at);
  const [text, status] = ENGINE[overview.engine_up];
  setText(byId("engine"), text);
  byId("engine").className = `pill ${status}`;
  setText(byId("freshness"), `read ${clock(now)}, version ${overview.version}`);
  say([...(overview.engine_up === false ? [AWAY] : []), ...overview.faults]);
  // A part that could not be read keeps its last state, and a notice says why.
  if (overview.windows !== null) tree.update(overview.windows, now);
  if (overview.sessions !== null) sessions.update(overview.sessions, now, overview.engine_up === true);
  showFigures(overview);
}

function say(notices) {
  const place = byId("notices");
  if (JSON.stringify([...place.children].map((each) => each.textContent)) === JSON.stringify(notices)) return;
  place.replaceChildren(...notices.map((text) => element("p", { class: "notice" }, text)));
}

/** Return the server's answer, or null if it does not answer. */
async function fetchOverview() {
  try {
    const answer = await fetch("/api/overview", { cache: "no-store" });
    return { status: answer.status, text: await answer.text() };
  } catch {
    return null;
  }
}

async function refresh() {
  clearTimeout(timer);
  const answer = await fetchOverview();
  if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
  if (answer === null) say(["cwm ui has stopped, and this page shows its last values. To start it again, run: cwm ui"]);
  else if (answer.status === 401) say(["This page has no access any more. Open the address that cwm ui printed."]);
  else if (answer.status !== 200) say([answer.text]);
  else {
    show(JSON.parse(answer.text));
    await details.refresh();
  }
}

letCopy();
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
