// Asks for the overview every few seconds and hands it to the parts of the page.

import { byId, element, setText } from "./dom.js";
import { Details } from "./details.js";
import { showFigures } from "./figures.js";
import { SessionTable } from "./sessions.js";
import { WindowTree } from "./windows.js";

const EVERY_MS = 3000;
const AWAY = "The engine is away: this is what the catalog knows. Start it with: cwm serve MODEL";
const ENGINE = { true: ["engine running", "healthy"], false: ["engine away", "unhealthy"], null: ["engine unknown", "degraded"] };

const details = new Details((name) => tree.find(name));
const tree = new WindowTree((name) => details.open(name));
const sessions = new SessionTable();
let timer = null;

function show(overview) {
  const now = Date.parse(overview.read_at);
  const [text, status] = ENGINE[overview.engine_up];
  setText(byId("engine"), text);
  byId("engine").className = `pill ${status}`;
  setText(byId("freshness"), `read ${new Date(now).toLocaleTimeString("en-GB")}, version ${overview.version}`);
  say([...(overview.engine_up === false ? [AWAY] : []), ...overview.faults]);
  // A part that could not be read stays as it was last seen; the notice says so.
  if (overview.windows !== null) tree.update(overview.windows, now);
  if (overview.sessions !== null) sessions.update(overview.sessions, now, overview.engine_up === true);
  showFigures(overview);
}

function say(notices) {
  const place = byId("notices");
  if (JSON.stringify([...place.children].map((each) => each.textContent)) === JSON.stringify(notices)) return;
  place.replaceChildren(...notices.map((text) => element("p", { class: "notice" }, text)));
}

/** What the server says, or null if nobody answers. */
async function ask() {
  try {
    const answer = await fetch("/api/overview", { cache: "no-store" });
    return { status: answer.status, text: await answer.text() };
  } catch {
    return null;
  }
}

async function look() {
  clearTimeout(timer);
  const answer = await ask();
  if (!document.hidden) timer = setTimeout(look, EVERY_MS);
  if (answer === null) say(["cwm ui does not answer any more: start it again. What you see is what was last read."]);
  else if (answer.status === 401) say(["This page is no longer let in: open the address that cwm ui has printed."]);
  else if (answer.status !== 200) say([answer.text]);
  else {
    show(JSON.parse(answer.text));
    await details.refresh();
  }
}

document.addEventListener("visibilitychange", () => document.hidden || look());
look();
