// Rows received from the feed, and how frames change them.

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

  /** Apply a frame. Returns the change, or null if the frame does not continue at the current position. */
  apply(frame) {
    if (frame.type === "reset") {
      this.forget();
      return null;
    }
    if (frame.type === "snapshot") {
      if (frame.part === 1) this.forget();
      if (!frame.more) this.#setPosition(frame.position, frame.cursor);
    } else if (this.position !== null && frame.from <= this.position && this.position < frame.to) {
      this.#setPosition(frame.to, frame.cursor);
    } else {
      return null;
    }
    return this.#storeRows(frame);
  }

  /** Apply a batch row of a response, unless the feed has delivered a newer one meanwhile. */
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

  #setPosition(position, cursor) {
    this.position = position;
    this.cursor = cursor;
  }

  #storeRows(frame) {
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
