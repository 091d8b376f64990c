// What this page is sending, whichever view is shown meanwhile; one at a time.

import { announce } from "../announce.js";
import { files, percent } from "../words.js";
import { Sending } from "./sending.js";

const QUARTER = 25; // percent between two announcements
const DONE = 101; // after all quarters
const COUNTED = 200; // milliseconds between two countings of all files

class Desk extends EventTarget {
  sending = null;
  percent = 0;
  #announced = 0;
  #countedAt = -Infinity;

  /** Starts to send; views hear of it by the event `change`. */
  start(plan) {
    this.#announced = 0;
    this.sending = new Sending(plan, () => this.#changed());
    return this.sending.run();
  }

  /** Done with, or left for later: the batch keeps what has arrived. */
  dismiss() {
    this.sending?.pause();
    this.sending = null;
    this.dispatchEvent(new Event("change"));
  }

  get busy() {
    return this.sending !== null && (this.sending.state === "sending" || this.sending.state === "preparing");
  }

  #changed() {
    if (!this.sending) return; // a last word of what was dismissed
    this.#tell();
    this.dispatchEvent(new Event("change"));
  }

  /** Each quarter and the end are announced, not each file. */
  #tell() {
    const now = performance.now();
    if (this.busy && now - this.#countedAt < COUNTED) return;
    this.#countedAt = now;
    const { state, problem } = this.sending;
    const tally = tallyOf(this.sending);
    this.percent = tally.percent;
    const reached = state === "done" ? DONE : Math.floor(tally.percent / QUARTER) * QUARTER;
    if (problem) announce(problem);
    else if (reached > this.#announced) announce(reached === DONE ? ending(tally) : `${percent(reached)} sent`);
    this.#announced = Math.max(reached, this.#announced);
  }
}

const ending = ({ sent, there, refused }) =>
  `Sent: ${files(sent + there)}${refused ? `; refused: ${files(refused)}` : ""}`;

export const desk = new Desk();

/** How many items are in each state, and how many bytes have gone. */
export function tallyOf(sending) {
  const tally = { declaring: 0, waiting: 0, sending: 0, sent: 0, there: 0, refused: 0, bytes: 0 };
  for (const item of sending.items) {
    tally[item.state] += 1;
    tally.bytes += item.state === "refused" ? item.size : item.sent; // of refused ones nothing is to come
  }
  const open = tally.declaring + tally.waiting + tally.sending;
  tally.percent = !open ? 100 : Math.min(99, sending.total ? (100 * tally.bytes) / sending.total : 0);
  return tally;
}

addEventListener("beforeunload", (event) => {
  if (desk.busy) event.preventDefault(); // the browser asks whether to leave
});
