// Creates elements. All values become text, never markup.

/** Create an element. Strings in `children` become text nodes. Null and undefined children are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Set the text only if it changed, because a screen reader reads a live region again when it is set. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Create a bar that is filled to `share` (0 to 1), or empty if `share` is null. `text` describes the value. */
export function meter(label, share, text) {
  const fill = element("span", { class: "fill" });
  const known = share !== null;
  const percent = known ? Math.min(100, Math.max(0, share * 100)) : 0;
  fill.style.width = `${percent}%`;
  return element(
    "div",
    {
      class: "meter",
      role: "meter",
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": Math.round(percent),
      "aria-valuetext": text,
    },
    fill,
  );
}

/** Create a name and its values for a description list. */
export function fact(name, ...values) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, ...values));
}
