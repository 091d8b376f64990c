// Form that asks for the target of an upload: a new batch or an open one.

import { h, text } from "../dom.js";
import { batchName, bytes, files } from "../format.js";
import { findUnfinished } from "./unfinished.js";

const MAX_OPEN_BATCHES = 50; // in the list

/**
 * `submitted(plan)` and `cancelled()` are called by the buttons. `proposed` is the id of the batch to
 * select, `onlyBatch` the only one that the key may add to; either may be null.
 */
export class UploadForm {
  constructor({ found, batches, proposed, onlyBatch, submitted, cancelled }) {
    const totalBytes = found.reduce((sum, { file }) => sum + (file?.size ?? 0), 0);
    this.files = found;
    this.root = commonFolder(found);
    this.unfinished = findUnfinished({ root: this.root, files: found.length, bytes: totalBytes });
    this.target = h("select", { name: "target", onchange: () => this.#changed() });
    if (!onlyBatch) this.target.append(new Option("A new batch", ""));
    const offered = new Map(openBatches(batches).map((batch) => [batch.id, batchName(batch)]));
    if (this.unfinished && !onlyBatch) offered.set(this.unfinished.batch, `${this.unfinished.label || "the batch"} (continue)`);
    for (const [id, name] of offered) this.target.append(new Option(name, id));
    const initial = onlyBatch ?? proposed;
    if (initial && !offered.has(initial)) this.target.append(new Option(`Batch ${initial.slice(-8)}`, initial));
    this.target.value = initial ?? this.unfinished?.batch ?? "";
    this.label = h("input", { name: "label", maxlength: 200, autocomplete: "off", value: this.root });
    this.labelField = h("label", {}, "Batch name", this.label);
    this.seal = h("input", { type: "checkbox", name: "seal" });
    this.note = h("p.aside-note");
    this.element = h("form.upload-form", { onsubmit: (event) => { event.preventDefault(); submitted(this.#plan()); } },
      h("h2", {}, `${files(found.length)}, ${bytes(totalBytes)}`),
      h("label", {}, "Upload to", this.target), this.labelField,
      h("label.check", {}, this.seal, "Seal the batch after the upload: it completes once all files are processed"),
      this.note,
      h("p.buttons", {}, h("button.primary", {}, "Upload"), h("button", { type: "button", onclick: cancelled }, "Back")));
    this.#changed();
  }

  #changed() {
    const isNewBatch = !this.target.value;
    this.labelField.hidden = !isNewBatch;
    this.seal.checked = isNewBatch || this.target.value === this.unfinished?.batch;
    text(this.note, isNewBatch ? "" : "Files that the batch already has are not sent again.");
  }

  #plan() {
    const batch = this.target.value || null;
    const label = batch ? this.target.selectedOptions[0].text : this.label.value.trim();
    return { files: this.files, batch, label, root: this.root, seal: this.seal.checked };
  }
}

const openBatches = (batches) => [...batches.values()]
  .filter((batch) => batch.state === "open" && !batch.outcome)
  .sort((a, b) => (a.started_at < b.started_at ? 1 : -1))
  .slice(0, MAX_OPEN_BATCHES);

/** Return the common top folder, or the name of a single file, else an empty string. */
function commonFolder(found) {
  const [first] = found[0].path.split("/");
  if (found.length === 1) return first;
  return found.every(({ path }) => path.startsWith(`${first}/`)) ? first : "";
}
