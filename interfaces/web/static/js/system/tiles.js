// Tiles with one figure each: lag, queues, free disk space.

import { chip } from "../state-chip.js";
import { h, text } from "../dom.js";
import { bytes, count, duration } from "../format.js";
import { valueOf } from "./metrics.js";

const MAX_LAG = 1000; // events of lag above which a tile warns
const MAX_DELIVERY_WAIT = 600; // seconds of waiting above which a tile warns
const MIN_FREE_BYTES = 5e9; // bytes below which a tile warns

const GOOD = (word) => ({ word, shape: "done", tone: "good" });
const WARNING = (word) => ({ word, shape: "danger", tone: "warn" });
const NEUTRAL = (word) => ({ word, shape: "waiting", tone: "quiet" });
const UNKNOWN = NEUTRAL("Unknown");

/** Name, figure, assessment, and the metric that must be known. */
const TILES = [
  ["Last event", (of) => count(of("uptrail_log_head")), () => NEUTRAL("position in the log")],
  ["Read model", ...lagTile("read_model")],
  ["Orchestrator", ...lagTile("orchestrator")],
  ["Webhooks", ...lagTile("webhooks")],
  ["Jobs waiting", (of) => count(of("uptrail_jobs_queued")), (of) => of("uptrail_jobs_queued") ? NEUTRAL("for a worker") : GOOD("Queue empty")],
  ["Deliveries waiting", (of) => count(of("uptrail_webhook_deliveries_pending")), deliveryState],
  ["Free disk space", (of) => bytes(of("uptrail_storage_free_bytes")), (of) => of("uptrail_storage_free_bytes") < MIN_FREE_BYTES ? WARNING("Low") : GOOD("Sufficient"), "uptrail_storage_free_bytes"],
];

/** Return `{element, update(metrics)}`. */
export function createTiles() {
  const made = TILES.map(([name, figure, assess, metric]) => {
    const [value, state] = [h("dd.value"), chip()];
    const element = h("div.tile", {}, h("dt", {}, name), value, h("dd", {}, state.element));
    const update = (of) => {
      const known = metric === undefined ? of("uptrail_log_head") !== null : of(metric) !== null;
      text(value, known ? figure(of) : "…");
      state.update(known ? assess(of) : metric ? NEUTRAL("Not reported by the blob store") : UNKNOWN);
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

function lagTile(name) {
  const lag = (of) => of("uptrail_lag", { follower: name });
  return [
    (of) => (lag(of) ? `${count(lag(of))} behind` : "Up to date"),
    (of) => (lag(of) > MAX_LAG ? WARNING("Lag too high") : GOOD("Lag within limits")),
  ];
}

function deliveryState(of) {
  const [oldest, failing] = [of("uptrail_webhook_oldest_delivery_seconds"), of("uptrail_webhooks_failing")];
  if (failing) return WARNING(failing === 1 ? "1 webhook failing" : `${count(failing)} webhooks failing`);
  if (oldest > MAX_DELIVERY_WAIT) return WARNING(`oldest waiting for ${duration(oldest)}`);
  return GOOD("All webhooks healthy");
}
