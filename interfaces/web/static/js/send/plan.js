// What is to be sent, and where to: a new batch, or an open one that it joins.

import { h, text } from "../dom.js";
import { batchName, bytes, files } from "../words.js";
import { recalled } from "./memory.js";

const MOST_OFFERED = 50; // open batches

/** `go(plan)` hears of the choice, `back()` that nothing is sent; `wanted` is the batch to propose, `limited` the only one that the key may add to. */
export class Plan {
  constructor({ found, batches, wanted, limited, go, back }) {
    const bytesInAll = found.reduce((sum, { file }) => sum + (file?.size ?? 0), 0);
    this.found = found;
    this.root = rootOf(found);
    this.earlier = recalled({ root: this.root, files: found.length, bytes: bytesInAll });
    this.where = h("select", { name: "where", onchange: () => this.#changed() });
    if (!limited) this.where.append(new Option("A new batch", ""));
    const offered = new Map(open(batches).map((batch) => [batch.id, batchName(batch)]));
    if (this.earlier && !limited) offered.set(this.earlier.batch, `${this.earlier.label || "the batch"} (continue)`);
    for (const [id, name] of offered) this.where.append(new Option(name, id));
    const proposed = limited ?? wanted;
    if (proposed && !offered.has(proposed)) this.where.append(new Option(`Batch ${proposed.slice(-8)}`, proposed));
    this.where.value = proposed ?? this.earlier?.batch ?? "";
    this.label = h("input", { name: "label", maxlength: 200, autocomplete: "off", value: this.root });
    this.named = h("label", {}, "Batch name", this.label);
    this.seal = h("input", { type: "checkbox", name: "seal" });
    this.note = h("p.beside");
    this.element = h("form.plan", { onsubmit: (event) => { event.preventDefault(); go(this.#plan()); } },
      h("h2", {}, `${files(found.length)}, ${bytes(bytesInAll)}`),
      h("label", {}, "Upload to", this.where), this.named,
      h("label.check", {}, this.seal, "Seal the batch after the upload: it completes once all files are processed"),
      this.note,
      h("p.buttons", {}, h("button.primary", {}, "Upload"), h("button", { type: "button", onclick: back }, "Back")));
    this.#changed();
  }

  #changed() {
    const fresh = !this.where.value;
    this.named.hidden = !fresh;
    this.seal.checked = fresh || this.where.value === this.earlier?.batch;
    text(this.note, fresh ? "" : "Files that the batch already has are not sent again.");
  }

  #plan() {
    const batch = this.where.value || null;
    const label = batch ? this.where.selectedOptions[0].text : this.label.value.trim();
    return { files: this.found, batch, label, root: this.root, seal: this.seal.checked };
  }
}

const open = (batches) => [...batches.values()]
  .filter((batch) => batch.state === "open" && !batch.outcome)
  .sort((a, b) => (a.started_at < b.started_at ? 1 : -1))
  .slice(0, MOST_OFFERED);

/** The folder that all of it lies in, or the one file's name; empty where there is neither. */
function rootOf(found) {
  const [first] = found[0].path.split("/");
  if (found.length === 1) return first;
  return found.every(({ path }) => path.startsWith(`${first}/`)) ? first : "";
}
