// The upload in progress, independent of the view that is shown; at most one.

import { announce } from "../announce.js";
import { files, percent } from "../format.js";
import { BatchUpload } from "./batch-upload.js";

const ANNOUNCED_STEP = 25; // percent between two announcements
const COMPLETE = 101; // above 100 percent: the end is announced once
const COUNT_INTERVAL = 200; // milliseconds between two counts of all files

class UploadManager extends EventTarget {
  current = null;
  percent = 0;
  #announcedPercent = 0;
  #lastCountAt = -Infinity;

  /** Start an upload. Views listen for the event `change`. */
  start(plan) {
    this.#announcedPercent = 0;
    this.current = new BatchUpload(plan, () => this.#changed());
    return this.current.run();
  }

  /** Stop and close the upload; the batch keeps the received data. */
  dismiss() {
    this.current?.pause();
    this.current = null;
    this.dispatchEvent(new Event("change"));
  }

  get isActive() {
    return this.current !== null && (this.current.state === "sending" || this.current.state === "preparing");
  }

  #changed() {
    if (!this.current) return; // a late change of a dismissed upload
    this.#announceProgress();
    this.dispatchEvent(new Event("change"));
  }

  /** Announce each quarter and the end, not each file. */
  #announceProgress() {
    const now = performance.now();
    if (this.isActive && now - this.#lastCountAt < COUNT_INTERVAL) return;
    this.#lastCountAt = now;
    const { state, problem } = this.current;
    const tally = tallyOf(this.current);
    this.percent = tally.percent;
    const reached = state === "done" ? COMPLETE : Math.floor(tally.percent / ANNOUNCED_STEP) * ANNOUNCED_STEP;
    if (problem) announce(problem);
    else if (reached > this.#announcedPercent) announce(reached === COMPLETE ? completionText(tally) : `${percent(reached)} sent`);
    this.#announcedPercent = Math.max(reached, this.#announcedPercent);
  }
}

const completionText = ({ sent, there, refused }) =>
  `Sent: ${sent + there ? files(sent + there) : "nothing"}${refused ? `; rejected: ${files(refused)}` : ""}`;

export const uploadManager = new UploadManager();

/** Count the items by state and the bytes sent. */
export function tallyOf(upload) {
  const tally = { declaring: 0, waiting: 0, sending: 0, sent: 0, there: 0, refused: 0, bytes: 0, total: upload.total };
  for (const item of upload.items) {
    tally[item.state] += 1;
    if (item.state === "refused") tally.total -= item.size; // rejected files are not sent
    else tally.bytes += item.sent;
  }
  const open = tally.declaring + tally.waiting + tally.sending;
  const arrived = tally.sent + tally.there;
  if (open) tally.percent = Math.min(99, tally.total ? (100 * tally.bytes) / tally.total : 0);
  else tally.percent = tally.refused ? Math.min(99, (100 * arrived) / (arrived + tally.refused)) : 100;
  return tally;
}

addEventListener("beforeunload", (event) => {
  if (uploadManager.isActive) event.preventDefault(); // the browser asks whether to leave
});
