// How fast bytes go: over the last seconds, so that a pause is forgotten soon.

const SPAN = 5000; // milliseconds

export class Pace {
  #marks = []; // [time, bytes], at most one for each tenth of a second of the span

  /** Bytes a second, and how many seconds are left; both 0 while there is no telling. */
  at(bytes, total, now = performance.now()) {
    const last = this.#marks.at(-1);
    if (last && bytes < last[1]) this.#marks = [];
    if (!last || now - last[0] > 100) this.#marks.push([now, bytes]);
    while (now - this.#marks[0][0] > SPAN && this.#marks.length > 2) this.#marks.shift();
    const [began, before] = this.#marks[0];
    const rate = now - began > 500 ? (1000 * (bytes - before)) / (now - began) : 0;
    return { rate: Math.round(rate), left: rate > 0 ? (total - bytes) / rate : 0 };
  }
}
