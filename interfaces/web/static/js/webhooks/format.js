// Labels of webhooks and deliveries.

import { ago, duration, until } from "../format.js";

const DELIVERY = {
  pending: { word: "Waiting", shape: "queued", tone: "quiet" },
  retrying: { word: "Retrying", shape: "retry", tone: "warn" },
  delivered: { word: "Delivered", shape: "done", tone: "good" },
  failed: { word: "Failed", shape: "failed", tone: "bad" },
};

export function webhookState(webhook) {
  if (!webhook.enabled) return { word: "Disabled", shape: "stopped", tone: "bad" };
  if (webhook.failing_since) return { word: `Failing, first ${ago(webhook.failing_since)}`, shape: "danger", tone: "warn" };
  return { word: "Enabled", shape: "done", tone: "good" };
}

export const deliveryState = ({ state, attempts }) =>
  (state === "pending" && attempts ? DELIVERY.retrying : DELIVERY[state]) ?? { word: state, shape: "waiting", tone: "quiet" };

/** Return the result of the last request and the time of the next one. */
export function outcomeOf({ last, next_at: next, state }) {
  const parts = [];
  if (last) parts.push(last.error || `responded ${last.status} after ${duration(last.duration)}`);
  if (state === "pending" && next) parts.push(`next attempt ${until(next)}`);
  return parts.join(", ");
}

/** Return the filter of a webhook in one line. */
export function filterSummary({ events, label, on_request: onRequest }) {
  const which = onRequest ? ", for batches that request it" : label ? `, for batches labelled ${label}` : "";
  return `${events.join(", ")}${which}`;
}
