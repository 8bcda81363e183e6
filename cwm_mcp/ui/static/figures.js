// Shows the figures: tiles, tiers, hit rates, time saved, health and auto-freeze.

import { byId, element, fact, meter } from "./dom.js";
import { DASH, ago, bytes, count, moment, percent, plural, seconds, until } from "./format.js";

const NEARLY_FULL = 0.9;
const NOTHING_LOADED = "nothing requested yet";

export function showFigures(overview) {
  const { cache, saved, health, auto_freeze: auto, engine_up: up } = overview;
  const store = cache?.kv_store ?? null;
  const vllm = cache?.vllm ?? null;
  byId("transfers").replaceChildren(...underWay(cache?.transfers ?? null, Date.parse(overview.read_at)));
  byId("tiles").replaceChildren(...tiles(overview, store, vllm));
  const names = Object.keys(store?.tiers ?? { cpu: null, disk: null, redis: null });
  byId("tiers").replaceChildren(...names.map((name) => tier(name, store?.tiers[name] ?? null, up)));
  byId("rates").replaceChildren(...rates(store, vllm));
  byId("saved").replaceChildren(...savings(saved));
  byId("health").replaceChildren(...(health?.components ?? []).map(component));
  byId("auto").replaceChildren(...policy(auto, Date.parse(overview.read_at)));
}

function tile(name, value, below) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value), element("dd", { class: "quiet" }, below));
}

function tiles({ windows, sessions, saved, engine_up: up }, store, vllm) {
  const tokens = windows?.reduce((sum, each) => sum + (each.token_count ?? 0), 0);
  const active = up ? sessions?.filter(({ state }) => state === "active").length : null;
  const ratio = store?.dedup_ratio;
  return [
    tile("Windows", count(windows?.length), `${count(tokens)} tokens`),
    tile("Sessions", count(sessions?.length), `${count(active)} active`),
    tile("Stored", bytes(store?.total_bytes), ratio ? `each byte used ${ratio.toFixed(1)} times` : `${count(store?.total_blocks)} chunks`),
    tile("Prefix-cache hits", percent(vllm?.prefix_cache_hit_rate), `${count(vllm?.cached_tokens)} tokens`),
    tile("Restored", count(saved.tokens), "tokens, from windows"),
    tile("Time saved", saved.seconds === null ? DASH : `≈ ${seconds(saved.seconds)}`, "net of loading time"),
  ];
}

function underWay(transfers, now) {
  if (transfers === null) return [element("li", { class: "quiet" }, DASH)];
  if (transfers.length === 0) return [element("li", { class: "quiet" }, "Nothing is being frozen, thawed, exported, imported or checked.")];
  return transfers.map(({ kind, name, done, total, started_at: begun }) => {
    const what = name === null ? kind : `${kind} ${name}`;
    const text = total === null ? "waiting" : `${count(done)} of ${plural(total, "chunk", "chunks")}`;
    const age = ago(begun, now);
    return element(
      "li",
      {},
      element("div", { class: "pair" }, element("span", { class: "label" }, what), element("span", {}, text)),
      meter(what, total === null ? null : done / total, text),
      element("time", { class: "quiet", datetime: begun, title: moment(begun) }, age === "now" ? "began just now" : `began ${age} ago`),
    );
  });
}

function tier(name, stored, up) {
  const line = element("div", { class: "pair" }, element("span", {}, name));
  if (stored === null) {
    // Only the engine knows what is in memory. A tier of which nothing is reported does not exist.
    const reason = name !== "cpu" && name !== "disk" && up !== null ? "not configured" : DASH;
    line.append(element("span", { class: "quiet" }, reason));
    return element("li", { "data-tier": name }, line, meter(`${name} tier`, null, reason));
  }
  const { blocks, bytes: used, limit_bytes: limit } = stored;
  const share = limit && used !== null ? used / limit : null;
  const text = limit === null ? bytes(used) : `${bytes(used)} of ${bytes(limit)}`;
  line.append(element("span", {}, text));
  const below = [`${count(blocks)} chunks`, limit === null ? "limit unknown" : percent(share)];
  return element(
    "li",
    { "data-tier": name, class: share > NEARLY_FULL ? "nearly-full" : null },
    line,
    meter(`${name} tier`, share, text),
    element("div", { class: "pair quiet" }, ...below.map((part) => element("span", {}, part))),
  );
}

function rates(store, vllm) {
  const requested = store !== null && store.hits !== null ? store.hits + store.misses : null;
  const loaded = requested ? store.hits / requested : null;
  const counted = requested ? `${count(store.hits)} of ${plural(requested, "chunk", "chunks")}` : requested === 0 ? NOTHING_LOADED : "";
  return [
    rate("vLLM's prefix cache", vllm?.prefix_cache_hit_rate ?? null, "of the prompts' tokens"),
    rate("from windows", vllm?.external_hit_rate ?? null, "of the tokens not in it"),
    rate("successful loads", loaded, counted),
  ];
}

function rate(name, share, below) {
  return element(
    "li",
    {},
    element("div", { class: "pair" }, element("span", {}, name), element("span", {}, percent(share))),
    meter(name, share, percent(share)),
    element("div", { class: "quiet" }, below),
  );
}

function savings(saved) {
  const tiers = Object.entries(saved.by_tier ?? {}).map(([name, tokens]) => `${count(tokens)} from ${name}`);
  const speed = saved.prefill_tokens_per_second;
  return [
    fact("tokens restored", count(saved.tokens)),
    tiers.length ? fact("of these", tiers.join(", ")) : null,
    fact("computed instead", count(saved.missed_tokens)),
    fact("loading took", seconds(saved.load_seconds)),
    fact("vLLM computes", speed === null ? DASH : `${count(Math.round(speed))} tokens/s`),
    fact("time saved", saved.seconds === null ? DASH : `≈ ${seconds(saved.seconds)}`),
  ].filter(Boolean);
}

function component({ name, status, message, latency_ms: latency }) {
  return element(
    "li",
    { class: status, "data-component": name },
    element(
      "div",
      { class: "pair" },
      element("strong", {}, name),
      element("span", { class: "verdict" }, latency === null ? status : `${status}, ${latency.toFixed(1)} ms`),
    ),
    element("div", { class: "quiet" }, message),
  );
}

function policy(auto, now) {
  if (auto === null) return [fact("policy", DASH)];
  const next = auto.next_action;
  return [
    fact("policy", auto.enabled ? "on" : "off"),
    fact("when idle for", `${auto.idle_timeout_minutes} min`),
    fact("every", `${count(auto.token_threshold)} tokens`),
    fact("keeps the last", count(auto.keep_last)),
    next === null
      ? fact("next", DASH)
      : fact("next", element("time", { datetime: next.due_at, title: moment(next.due_at) }, until(next.due_at, now)), ` ${next.session_id} (${next.reason})`),
  ];
}
