// Turns the tree of windows into rows: order, folding and filter. Does not touch the page.

const FOLDED_OVER = 12; // more children than this are folded at first

export class Forest {
  #children = new Map(); // name, "" for the roots -> windows, the most recently used branch first
  #windows = [];
  #chosen = new Map(); // name -> folded, if the user folded or unfolded it

  /** Replace the windows, which must be oldest first, so that parents come before children. */
  update(windows) {
    this.#windows = windows;
    this.#children = new Map();
    const newest = new Map(windows.map((window, place) => [window.name, place]));
    for (const { name, under } of [...windows].reverse()) {
      if (under !== null) newest.set(under, Math.max(newest.get(under), newest.get(name)));
    }
    for (const window of windows) {
      const place = window.under ?? "";
      if (!this.#children.has(place)) this.#children.set(place, []);
      this.#children.get(place).push(window);
    }
    for (const group of this.#children.values()) group.sort((a, b) => newest.get(b.name) - newest.get(a.name));
  }

  get size() {
    return this.#windows.length;
  }

  find(name) {
    return this.#windows.find((window) => window.name === name);
  }

  /** Return the names of the other windows: the parent, the siblings and the children first, then the newest. */
  relatives(name) {
    const under = this.find(name)?.under ?? null;
    const near = [under, ...this.#childrenOf(under ?? "").filter(() => under !== null).map((each) => each.name)];
    near.push(...this.#childrenOf(name).map((each) => each.name));
    const all = [...near, ...this.#windows.map((each) => each.name).reverse()];
    return [...new Set(all)].filter((each) => each !== null && each !== name);
  }

  isFolded(name) {
    return this.#chosen.get(name) ?? this.#childrenOf(name).length > FOLDED_OVER;
  }

  fold(name, folded) {
    this.#chosen.set(name, folded);
  }

  /** Return rows of {window, level, branches, folded, found}: with a filter, the matches and their ancestors. */
  rows(filter) {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const found = new Set(this.#windows.filter((window) => matches(window, words)).map(({ name }) => name));
    const shown = words.length ? this.#withAncestors(found) : found;
    const rows = [];
    // A stack instead of recursion, because a conversation frozen a thousand times is a thousand levels deep.
    const pending = this.#childrenOf("").map((window) => [window, 1]).reverse();
    while (pending.length) {
      const [window, level] = pending.pop();
      if (!shown.has(window.name)) continue;
      const children = this.#childrenOf(window.name);
      const folded = !words.length && children.length > 0 && this.isFolded(window.name);
      rows.push({ window, level, branches: children.length, folded, found: found.has(window.name) });
      if (!folded) for (const child of [...children].reverse()) pending.push([child, level + 1]);
    }
    return { rows, found: found.size };
  }

  #childrenOf(name) {
    return this.#children.get(name) ?? [];
  }

  #withAncestors(found) {
    const shown = new Set(found);
    // Children come after their parents, so one pass from the end reaches every ancestor.
    for (const { name, under } of [...this.#windows].reverse()) if (under !== null && shown.has(name)) shown.add(under);
    return shown;
  }
}

function matches(window, words) {
  const text = [window.name, window.description, window.session_id, ...window.tags].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
