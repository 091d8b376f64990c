// Upload rate over the last seconds.

const WINDOW = 5000; // milliseconds

export class Throughput {
  #samples = []; // [time, bytes], at most one for each tenth of a second of the span

  /** Return bytes per second and the seconds left; 0 while unknown. */
  measure(bytes, total, now = performance.now()) {
    const last = this.#samples.at(-1);
    if (last && bytes < last[1]) this.#samples = [];
    if (!last || now - last[0] > 100) this.#samples.push([now, bytes]);
    while (now - this.#samples[0][0] > WINDOW && this.#samples.length > 2) this.#samples.shift();
    const [began, before] = this.#samples[0];
    const rate = now - began > 500 ? (1000 * (bytes - before)) / (now - began) : 0;
    return { rate: Math.round(rate), left: rate > 0 ? (total - bytes) / rate : 0 };
  }
}
