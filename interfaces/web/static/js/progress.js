// Progress bars of batches and uploads, with the share of failures.

import { attribute, h } from "./dom.js";
import { batchState, bytes, ended, failures, percent } from "./format.js";

/** The bar of a batch; `update(batch)` moves it. */
export function batchBar() {
  const bad = h("span.bar-bad");
  const fill = h("span.bar-fill", {}, bad);
  const bar = h("div.bar", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const update = (batch) => {
    const done = ended(batch);
    fill.style.inlineSize = `${batch.percent}%`;
    bad.style.inlineSize = done ? `${(100 * failures(batch)) / done}%` : "0";
    attribute(bar, "aria-valuenow", Math.floor(batch.percent));
    attribute(bar, "aria-valuetext", `${percent(batch.percent)}, ${transferred(batch)}`);
    const { tone } = batchState(batch);
    attribute(bar, "data-tone", tone);
    bar.classList.toggle("moving", tone === "active");
  };
  return { element: bar, update };
}

/** The small bar of one upload. */
export function uploadBar() {
  const fill = h("span.bar-fill");
  const bar = h("span.bar.small", { "aria-hidden": "true" }, fill);
  const update = (upload) => {
    const value = upload.state === "completed" ? 100 : upload.percent;
    bar.hidden = value === null || value === undefined;
    fill.style.inlineSize = `${value ?? 0}%`;
    bar.dataset.phase = upload.state;
  };
  return { element: bar, update };
}

export function transferred(batch) {
  if (!batch.bytes_total) return bytes(batch.bytes_received);
  if (batch.bytes_received >= batch.bytes_total) return bytes(batch.bytes_total);
  return `${bytes(batch.bytes_received)} of ${bytes(batch.bytes_total)}`;
}
