// Page that uploads files: choose files, choose a batch, watch the progress.

import { principal, UPLOADER_SCOPES } from "../api.js";
import { arrange, h, text } from "../dom.js";
import { ago, bytes, files } from "../format.js";
import { uploadManager } from "./upload-manager.js";
import { forgetUnfinished, unfinishedBatches } from "./unfinished.js";
import { UploadForm } from "./upload-form.js";
import { UploadProgressView } from "./progress-view.js";
import { DropZone } from "./drop-zone.js";

export class SendPage {
  title = "Upload";
  section = "send";
  follows = "*";

  /** `wanted` is the batch id of the address, or null. */
  constructor(store, wanted) {
    this.store = store;
    this.wanted = wanted;
    this.dropZone = new DropZone({ selected: (found) => this.#showForm(found), refused: (error) => this.#showProblem(error.message) });
    this.progress = new UploadProgressView();
    this.problem = h("p.problem", { role: "alert" });
    this.unfinished = h("ul.unfinished", { "aria-label": "Unfinished uploads" });
    this.body = h("div");
    this.summary = h("p.summary");
    this.element = h("section.send", {},
      h("div.heading", {}, h("div", {}, h("h1", {}, "Upload"), this.summary)), this.problem, this.body);
    this.listener = () => this.changed();
    uploadManager.addEventListener("change", this.listener);
    principal().then((who) => {
      this.who = who;
      this.#show();
    });
    this.#show();
  }

  close() {
    uploadManager.removeEventListener("change", this.listener);
    this.dropZone.close();
    this.progress.close();
  }

  changed() {
    if (Boolean(uploadManager.current) !== this.isUploading) this.#show();
    this.#drawSummary();
    this.progress.draw();
  }

  #drawSummary() {
    const active = uploadManager.isActive ? "The upload continues while you view other pages here. Keep this tab open." : "";
    text(this.summary, uploadManager.current ? active : "Uploads resume after a lost connection, a reload or a restart. Received data is not sent again.");
  }

  #show() {
    this.isUploading = Boolean(uploadManager.current);
    this.problem.hidden = true;
    if (this.who && !UPLOADER_SCOPES.has(this.who.scope)) return this.#showMissingScope();
    if (this.isUploading) {
      arrange(this.body, [this.progress.element]);
      this.progress.draw();
    } else {
      this.#drawUnfinished();
      arrange(this.body, [this.unfinished, this.dropZone.element]);
    }
    this.dropZone.element.hidden = this.isUploading;
    this.#drawSummary();
  }

  #showMissingScope() {
    this.dropZone.element.hidden = true;
    arrange(this.body, [h("p.empty", {}, "Your key cannot upload. Uploading requires the scope uploader or operator.")]);
  }

  #showProblem(message) {
    text(this.problem, message);
    this.problem.hidden = false;
  }

  #showForm(found) {
    this.problem.hidden = true;
    const form = new UploadForm({
      found, batches: this.store.batches, proposed: this.wanted, onlyBatch: this.who?.batch ?? null,
      submitted: (plan) => uploadManager.start(plan), cancelled: () => this.#show(),
    });
    this.dropZone.element.hidden = true;
    arrange(this.body, [form.element]);
    form.element.querySelector("button.primary").focus();
  }

  /** List the uploads that a reload or a closed tab interrupted. The user has to choose the files again. */
  #drawUnfinished() {
    this.unfinished.replaceChildren(...unfinishedBatches().map((entry) => h("li", {},
      h("p", {}, h("a", { href: `#/batches/${entry.batch}` }, entry.label || `Batch ${entry.batch.slice(-8)}`),
        ` was not finished (${files(entry.files)}, ${bytes(entry.bytes)}, started ${ago(entry.at)}). Drop the same files again: only missing data is sent.`),
      h("button", { type: "button", onclick: () => { forgetUnfinished(entry.batch); this.#drawUnfinished(); } }, "Remove from this list"))));
  }
}
