// What an operator can do with a webhook; a delivery has one button of its own.

import { post } from "../api.js";
import { Actions } from "../actions.js";
import { count } from "../words.js";

const ALWAYS = "1970-01-01T00:00:00Z";

const WEBHOOK = [
  {
    name: "Send a test", shape: "transfer",
    offered: (webhook) => webhook.enabled,
    act: (webhook) => post("webhooks", webhook.id, "test"),
  },
  {
    name: "Enable", shape: "processing",
    offered: (webhook) => !webhook.enabled,
    act: (webhook) => post("webhooks", webhook.id, "enable"),
  },
  {
    name: "Redeliver what was given up", shape: "retry",
    offered: (webhook) => webhook.failed > 0,
    question: (webhook) => ({
      title: `Tell it again of ${count(webhook.failed)}?`, yes: "Redeliver",
      text: "Everything that was given up is sent again, each batch in its order.",
    }),
    act: (webhook) => post("webhooks", webhook.id, "redeliver", { since: ALWAYS }),
  },
  {
    name: "Disable", shape: "stopped",
    offered: (webhook) => webhook.enabled,
    question: (webhook) => ({
      title: "Disable this webhook?", yes: "Disable",
      text: `${webhook.url} is told nothing until somebody enables it. What happens meanwhile waits.`,
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    act: (webhook, reason) => post("webhooks", webhook.id, "disable", { reason }),
  },
];

/** `done()` is called after each: no feed tells of webhooks. */
export const webhookActions = (done) => new Actions(WEBHOOK, "What to do with the webhook", done);

export const redeliver = (webhook, position) => post("webhooks", webhook, `deliveries/${position}/redeliver`);
