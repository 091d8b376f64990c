// What is true of the whole server, one figure each: is it level, does it keep up, is there room.

import { chip } from "../chip.js";
import { h, text } from "../dom.js";
import { bytes, count, duration } from "../words.js";
import { valueOf } from "./metrics.js";

const BEHIND = 1000; // events behind the log from which somebody should look
const WAITS = 600; // seconds that a delivery may wait before somebody should look
const SHORT = 5e9; // bytes of room below which somebody should look

const GOOD = (word) => ({ word, shape: "done", tone: "good" });
const LOOK = (word) => ({ word, shape: "danger", tone: "warn" });
const PLAIN = (word) => ({ word, shape: "waiting", tone: "quiet" });
const UNKNOWN = PLAIN("Unknown");

/** name, the figure, and its judgement; from the metrics. */
const TILES = [
  ["Last event", (of) => count(of("uptrail_log_head")), () => PLAIN("position in the log")],
  ["Read model", ...follower("read_model")],
  ["Orchestrator", ...follower("orchestrator")],
  ["Webhooks", ...follower("webhooks")],
  ["Jobs waiting", (of) => count(of("uptrail_jobs_queued")), (of) => of("uptrail_jobs_queued") ? PLAIN("for a worker") : GOOD("Queue empty")],
  ["Deliveries waiting", (of) => count(of("uptrail_webhook_deliveries_pending")), waiting],
  ["Free disk space", (of) => bytes(of("uptrail_storage_free_bytes")), (of) => of("uptrail_storage_free_bytes") < SHORT ? LOOK("Low") : GOOD("Sufficient"), "uptrail_storage_free_bytes"],
];

/** `update(metrics)` draws the figures of now. */
export function tiles() {
  const made = TILES.map(([name, figure, judged, needs]) => {
    const [value, state] = [h("dd.value"), chip()];
    const element = h("div.tile", {}, h("dt", {}, name), value, h("dd", {}, state.element));
    const update = (of) => {
      const known = needs === undefined ? of("uptrail_log_head") !== null : of(needs) !== null;
      text(value, known ? figure(of) : "…");
      state.update(known ? judged(of) : needs ? PLAIN("Not reported by the blob store") : UNKNOWN);
    };
    return { element, update };
  });
  const element = h("dl.tiles", {}, ...made.map((tile) => tile.element));
  const update = (metrics) => {
    const of = (name, labels) => valueOf(metrics, name, labels);
    for (const tile of made) tile.update(of);
  };
  return { element, update };
}

function follower(name) {
  const lag = (of) => of("uptrail_lag", { follower: name });
  return [
    (of) => (lag(of) ? `${count(lag(of))} behind` : "Up to date"),
    (of) => (lag(of) > BEHIND ? LOOK("Lag too high") : GOOD("Lag within limits")),
  ];
}

function waiting(of) {
  const [oldest, failing] = [of("uptrail_webhook_oldest_delivery_seconds"), of("uptrail_webhooks_failing")];
  if (failing) return LOOK(failing === 1 ? "1 webhook failing" : `${count(failing)} webhooks failing`);
  if (oldest > WAITS) return LOOK(`oldest waiting for ${duration(oldest)}`);
  return GOOD("All webhooks healthy");
}
