// The rows this page has been told, and the rule by which frames change them.

export class Store {
  constructor() {
    this.forget();
  }

  forget() {
    this.batches = new Map();
    this.uploads = new Map();
    this.attempts = new Map();
    this.position = null;
    this.cursor = null;
  }

  /** Applies a frame; what it changed, or null if it is not for where this page stands. */
  apply(frame) {
    if (frame.type === "reset") {
      this.forget();
      return null;
    }
    if (frame.type === "snapshot") {
      if (frame.part === 1) this.forget();
      if (!frame.more) this.#arrive(frame.position, frame.cursor);
    } else if (this.position !== null && frame.from <= this.position && this.position < frame.to) {
      this.#arrive(frame.to, frame.cursor);
    } else {
      return null;
    }
    return this.#take(frame);
  }

  /** Apply a requested batch row, unless the feed has delivered a newer one meanwhile. */
  refresh(row) {
    const known = this.batches.get(row.id);
    if (known?.position !== row.position) return null;
    this.batches.set(row.id, row);
    return { before: new Map([[row.id, known]]), live: true };
  }

  attemptsOf(upload) {
    const known = this.attempts.get(upload);
    return known ? [...known.values()].sort((a, b) => a.number - b.number) : [];
  }

  #arrive(position, cursor) {
    this.position = position;
    this.cursor = cursor;
  }

  #take(frame) {
    const before = new Map(frame.batches.map((row) => [row.id, this.batches.get(row.id)]));
    for (const row of frame.batches) this.batches.set(row.id, row);
    for (const row of frame.uploads) this.uploads.set(row.id, row);
    for (const row of frame.attempts) {
      if (!this.attempts.has(row.upload)) this.attempts.set(row.upload, new Map());
      this.attempts.get(row.upload).set(row.number, row);
    }
    return { before, live: frame.type === "changes" };
  }
}
