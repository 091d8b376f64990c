// List row of one upload.

import { chip } from "./state-chip.js";
import { attribute, h, text } from "./dom.js";
import { uploadBar } from "./progress.js";
import { bytes, percent, until, uploadState } from "./format.js";

export function uploadRow() {
  const state = chip();
  const folder = h("span.folder");
  const name = h("span.file");
  const note = h("span.note");
  const bar = uploadBar();
  const size = h("span.size");
  const attempts = h("span.attempt-count");
  const path = h("span.path", {}, folder, name);
  const element = h("div.upload", {},
    state.element, h("span.what", {}, path, note), bar.element, size, attempts);
  const update = (upload) => {
    state.update(uploadState(upload.state));
    const cut = upload.path.lastIndexOf("/") + 1;
    text(folder, upload.path.slice(0, cut));
    text(name, upload.path.slice(cut));
    attribute(path, "title", upload.path);
    text(note, noteOn(upload));
    bar.update(upload);
    text(size, sizeOf(upload));
    text(attempts, upload.attempt > 1 ? `attempt ${upload.attempt}` : "");
    element.dataset.state = upload.state;
  };
  return { element, update };
}

function noteOn(upload) {
  if (upload.state === "retry_scheduled" && upload.retry_at)
    return `next attempt ${until(upload.retry_at)}: ${upload.error ?? ""}`;
  if (upload.state === "processing" && upload.phase && upload.phase !== "transfer")
    return upload.percent === null ? upload.phase : `${upload.phase} ${percent(upload.percent)}`;
  return upload.state === "completed" ? "" : (upload.error ?? "");
}

function sizeOf(upload) {
  if (upload.state === "transferring")
    return upload.size === null ? bytes(upload.received) : `${bytes(upload.received)} of ${bytes(upload.size)}`;
  return bytes(upload.size);
}
