// Shows commands that can be copied. The page itself changes nothing, so it offers what to type.

import { byId, element, setText } from "./dom.js";

const SHOWN_MS = 4000;
const PLAIN = /^[\w@%+=:,./-]+$/;

/** Quote a word for a POSIX shell, if it needs it. */
const quoted = (word) => (PLAIN.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** Create a command and its button. The words that follow `cwm` are quoted for the shell. */
export function command(...words) {
  const text = ["cwm", ...words.map(quoted)].join(" ");
  return element(
    "div",
    { class: "command" },
    element("code", {}, text),
    element("button", { type: "button", class: "copy", "data-copy": text, "aria-label": `Copy: ${text}` }, "Copy"),
  );
}

/** Let every copy button of the page work, also those that are made later. */
export function letCopy() {
  let timer = null;
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const done = await copied(button);
    // The dialog hides the rest of the page from screen readers, so it has a place of its own for what is said.
    const place = button.closest("dialog")?.querySelector(".said-aloud") ?? byId("said");
    setText(place, done ? `Copied: ${button.dataset.copy}` : "The browser does not copy. The command is selected.");
    clearTimeout(timer);
    timer = setTimeout(() => setText(place, ""), SHOWN_MS);
  });
}

/** Copy the button's command, or select it where the browser refuses. Return whether it was copied. */
async function copied(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    return true;
  } catch {
    const code = button.parentElement.querySelector("code");
    if (code) getSelection().selectAllChildren(code);
    return false;
  }
}
