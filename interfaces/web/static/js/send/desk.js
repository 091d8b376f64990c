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
  `Sent: ${sent + there ? files(sent + there) : "nothing"}${refused ? `; rejected: ${files(refused)}` : ""}`;

export const desk = new Desk();

/** How many items are in each state, and how many bytes have gone. */
export function tallyOf(sending) {
  const tally = { declaring: 0, waiting: 0, sending: 0, sent: 0, there: 0, refused: 0, bytes: 0, total: sending.total };
  for (const item of sending.items) {
    tally[item.state] += 1;
    if (item.state === "refused") tally.total -= item.size; // of these nothing is to come
    else tally.bytes += item.sent;
  }
  const open = tally.declaring + tally.waiting + tally.sending;
  const arrived = tally.sent + tally.there;
  if (open) tally.percent = Math.min(99, tally.total ? (100 * tally.bytes) / tally.total : 0);
  else tally.percent = tally.refused ? Math.min(99, (100 * arrived) / (arrived + tally.refused)) : 100;
  return tally;
}

addEventListener("beforeunload", (event) => {
  if (desk.busy) event.preventDefault(); // the browser asks whether to leave
});
