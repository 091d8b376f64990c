// List row of one file of an upload.

import { chip } from "../state-chip.js";
import { attribute, h, text } from "../dom.js";
import { bytes } from "../format.js";

const STATES = {
  refused: ["Rejected", "refused", "bad"],
  sending: ["Sending", "transfer", "active"],
  declaring: ["Waiting", "waiting", "quiet"],
  waiting: ["Waiting", "waiting", "quiet"],
  sent: ["Sent", "done", "good"],
  there: ["Already uploaded", "done", "quiet"],
};
export const ORDER = Object.keys(STATES);

export const sendState = (state) => {
  const [word, shape, tone] = STATES[state];
  return { word, shape, tone };
};

export function itemRow() {
  const state = chip();
  const path = h("span.file");
  const note = h("span.note");
  const fill = h("span.bar-fill");
  const bar = h("span.bar.small", { "aria-hidden": "true" }, fill);
  const size = h("span.size");
  const element = h("div.upload.item", {}, state.element, h("span.what", {}, path, note), bar, size);
  const update = (item) => {
    state.update(sendState(item.state));
    text(path, item.path);
    attribute(path, "title", item.path);
    text(note, item.message ?? "");
    attribute(note, "title", item.message || null);
    fill.style.inlineSize = `${item.size ? (100 * item.sent) / item.size : 0}%`;
    bar.hidden = item.state !== "sending";
    text(size, item.state === "sending" ? `${bytes(item.sent)} of ${bytes(item.size)}` : bytes(item.size));
    element.dataset.state = item.state === "refused" ? "failed" : item.state;
  };
  return { element, update };
}
