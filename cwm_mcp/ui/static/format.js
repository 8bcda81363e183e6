// Formats values for people. An unknown value is a dash, never a zero.

export const DASH = "–";

const units = ["B", "KiB", "MiB", "GiB", "TiB"];
const whole = new Intl.NumberFormat("en");

const known = (value) => value !== null && value !== undefined;

export const count = (value) => (known(value) ? whole.format(value) : DASH);

export const plural = (value, one, many) => `${whole.format(value)} ${value === 1 ? one : many}`;

export function bytes(value) {
  if (!known(value)) return DASH;
  let [scaled, unit] = [value, 0];
  while (scaled >= 1024 && unit < units.length - 1) [scaled, unit] = [scaled / 1024, unit + 1];
  return `${unit ? scaled.toFixed(1) : scaled} ${units[unit]}`;
}

export const percent = (share) => (known(share) ? `${(share * 100).toFixed(1)} %` : DASH);

export function seconds(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  if (size < 120) return `${value.toFixed(1)} s`;
  if (size < 7200) return `${(value / 60).toFixed(1)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

const spans = [
  [86400, "d"],
  [3600, "h"],
  [60, "min"],
];

function span(size) {
  for (const [length, name] of spans) if (size >= length) return `${Math.floor(size / length)} ${name}`;
  return "now";
}

/** Return how long ago an ISO time was. */
export function ago(iso, now) {
  return known(iso) ? span((now - Date.parse(iso)) / 1000) : DASH;
}

/** Return how long it is until an ISO time. */
export function until(iso, now) {
  if (!known(iso)) return DASH;
  const text = span((Date.parse(iso) - now) / 1000);
  return text === "now" ? text : `in ${text}`;
}

const day = { day: "numeric", month: "short", year: "numeric" };
const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" };

/** Return an ISO time in the user's time zone, which it names. */
export function moment(iso) {
  return known(iso) ? new Date(iso).toLocaleString("en-GB", { ...day, ...time }) : DASH;
}

/** Return the time of day of a number of milliseconds in the user's time zone, which it names. */
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB", time);
