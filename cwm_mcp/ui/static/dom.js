// Elements made by hand. Whatever comes from outside becomes text and never markup.

/** An element; strings among `children` become text nodes, and null or undefined ones are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Writes only what has changed: a live region that is written anew is read out anew. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** A bar that is filled to `share` (0 to 1); with null it stays empty and says that the share is unknown. */
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

/** A pair of a description list. */
export function fact(name, ...values) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, ...values));
}
