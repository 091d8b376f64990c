// Upload of files into one batch: several at once, with pause, resume and retry.

import { create, newKey, post, RequestError } from "../api.js";
import { declare } from "./manifest.js";
import { forgetUnfinished, saveUnfinished } from "./unfinished.js";
import { retryTemporary, TransferError } from "./errors.js";
import { fetchOffset, sendChunk } from "./tus.js";

const MAX_CONCURRENT_FILES = 4; // files; a browser opens six connections to a server
const FATAL_STATUSES = new Set([401, 403]); // statuses that hold for every file

export class BatchUpload {
  #controller = null;
  #next = 0;
  #key = newKey();

  /** `plan` is {files, batch or null, label, root, seal}; `changed()` is called after every change. */
  constructor(plan, changed) {
    this.plan = plan;
    this.changed = changed;
    this.batch = plan.batch;
    this.state = "paused";
    this.problem = null; // message of the error that stopped the upload
    this.temporaryError = null; // message of the error after which a retry is pending
    this.items = plan.files.map(({ path, file, problem }, index) => ({
      id: String(index), path, file, size: file?.size ?? 0, sent: 0, offset: null, upload: null,
      state: problem ? "refused" : "declaring", message: problem ?? null,
    }));
    this.total = this.items.reduce((sum, { size }) => sum + size, 0);
  }

  /** Start, or resume after a pause. Returns when all files are sent or rejected, or after an error. */
  async run() {
    this.#controller = new AbortController();
    const { signal } = this.#controller;
    this.#setState("preparing", null);
    try {
      await this.#declareFiles(signal);
      this.#setState("sending", null);
      this.#next = 0;
      const results = await Promise.allSettled(Array.from({ length: MAX_CONCURRENT_FILES }, () => this.#uploadNext(signal)));
      const errors = results.map(({ reason }) => reason).filter(Boolean);
      if (errors.length) throw errors.find(({ name }) => name !== "AbortError") ?? errors[0];
      if (this.plan.seal && !this.refused) await this.seal(signal);
      this.#setState("done", null);
      if (!this.refused) forgetUnfinished(this.batch);
    } catch (error) {
      this.#controller.abort();
      const expected = error instanceof RequestError || error instanceof TransferError;
      this.#setState("paused", expected ? error.message : null);
      if (!expected && error.name !== "AbortError") throw error;
    } finally {
      this.temporaryError = null;
    }
  }

  pause() {
    this.#controller?.abort();
  }

  get refused() {
    return this.items.some(({ state }) => state === "refused");
  }

  /** Try all rejected files again. */
  retryRejected() {
    for (const item of this.items) {
      if (item.state === "refused" && item.file) Object.assign(item, { state: "declaring", message: null });
    }
    return this.run();
  }

  async seal(signal = new AbortController().signal) {
    await retryTemporary(() => post("batches", this.batch, "seal"), signal, (error) => this.#showTemporaryError(error));
    forgetUnfinished(this.batch);
    this.sealed = true;
    this.changed();
  }

  async #declareFiles(signal) {
    const temporaryError = (error) => this.#showTemporaryError(error);
    if (!this.batch) {
      const form = { label: this.plan.label };
      const created = await retryTemporary(() => create("/v1/batches", form, this.#key), signal, temporaryError);
      this.batch = created.id;
    }
    const { label, root } = this.plan;
    saveUnfinished({ batch: this.batch, label, root, files: this.items.length, bytes: this.total });
    const undeclared = this.items.filter(({ state }) => state === "declaring");
    if (undeclared.length) await declare(this.batch, undeclared, signal, { temporaryError, changed: this.changed });
  }

  /** Upload waiting files one after the other. */
  async #uploadNext(signal) {
    while (this.#next < this.items.length) {
      const item = this.items[this.#next++];
      if (item.state !== "waiting") continue;
      try {
        this.#setItemState(item, "sending");
        await retryTemporary(() => this.#uploadFile(item, signal), signal, (error) => this.#showTemporaryError(error, item));
        this.#setItemState(item, "sent");
      } catch (error) {
        if (!(error instanceof TransferError) || FATAL_STATUSES.has(error.status)) {
          this.#setItemState(item, "waiting");
          item.offset = null;
          if (error.name !== "AbortError") this.#controller.abort();
          throw error;
        }
        item.message = error.message;
        this.#setItemState(item, "refused");
      }
    }
  }

  async #uploadFile(item, signal) {
    let { offset } = item;
    item.offset = null; // unknown after a failure: request it
    offset ??= await fetchOffset(item.upload, signal);
    do { // at least once: an empty file needs one request
      item.sent = offset;
      try {
        offset = await sendChunk(item.upload, item.file, offset, signal, (sent) => { item.sent = sent; this.changed(); });
      } catch (error) {
        throw error.status === 0 && !(await isReadable(item.file)) ? new TransferError(FILE_CHANGED, 400) : error;
      }
    } while (offset < item.size);
    item.sent = item.size;
  }

  #showTemporaryError(error, item = null) {
    this.temporaryError = error?.message ?? null;
    if (item) item.message = this.temporaryError;
    this.changed();
  }

  #setItemState(item, state) {
    item.state = state;
    if (state !== "refused") item.message = null;
    this.changed();
  }

  #setState(state, problem) {
    this.state = state;
    this.problem = problem;
    this.changed();
  }
}

const FILE_CHANGED = "The file was changed or removed after it was chosen: choose it again.";

/** Return whether the file can be read. Browsers report an unreadable file as a lost connection. */
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
