// Presentation of recorded events: label, icon, tone and details.
// They are declared with the events on the server, which serves them as event-declarations.js.

import { EVENTS } from "./event-declarations.js";
import { bytes, count, duration, files, percent, uploadState } from "../format.js";

/** Formats that details may name, as in `{size:bytes}`: functions of the value and all fields. */
const FORMATS = {
  bytes,
  duration,
  files,
  percent,
  label: (label) => label || "no label",
  progress: (done, data) => (data.phase === "transfer" ? bytes(done) : data.phase),
  states: counted,
  words: (name) => name.replaceAll("_", " "),
};

const UNKNOWN = { icon: "waiting", tone: "quiet", details: "" };

/** Return the presentation of an event. An unknown event type is its own label. */
export function styleOf(item) {
  const { label = item.type, icon, tone, details } = EVENTS[item.type] ?? UNKNOWN;
  return { word: label, shape: icon, tone, details: filled(details, item.data) };
}

/** Return the text with its fields; a part in brackets only if none of its fields is empty. */
export function filled(details, data) {
  const isEmpty = ([, name]) => data[name] === undefined || data[name] === null || data[name] === "";
  return details
    .replaceAll(/\[([^\]]*)\]/g, (_, part) => ([...part.matchAll(/\{(\w+)/g)].some(isEmpty) ? "" : part))
    .replaceAll(/\{(\w+)(?::(\w+))?\}/g, (_, name, format) => (format ? FORMATS[format](data[name], data) : data[name] ?? ""));
}

function counted(counts) {
  return Object.entries(counts)
    .filter(([, number]) => number)
    .map(([state, number]) => `${count(number)} ${uploadState(state).word.toLowerCase()}`)
    .join(", ");
}
