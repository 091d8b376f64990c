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
    name: "Redeliver failed", shape: "retry",
    offered: (webhook) => webhook.failed > 0,
    question: (webhook) => ({
      title: `Redeliver ${webhook.failed === 1 ? "1 failed delivery" : `${count(webhook.failed)} failed deliveries`}?`, yes: "Redeliver",
      text: "All failed deliveries are sent again, in order for each batch.",
    }),
    act: (webhook) => post("webhooks", webhook.id, "redeliver", { since: ALWAYS }),
  },
  {
    name: "Disable", shape: "stopped",
    offered: (webhook) => webhook.enabled,
    question: (webhook) => ({
      title: "Disable this webhook?", yes: "Disable",
      text: `No deliveries are sent to ${webhook.url} until the webhook is enabled again. Events recorded meanwhile are queued.`,
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    act: (webhook, reason) => post("webhooks", webhook.id, "disable", { reason }),
  },
];

/** `done()` is called after each: no feed tells of webhooks. */
export const webhookActions = (done) => new Actions(WEBHOOK, "Webhook actions", done);

export const redeliver = (webhook, position) => post("webhooks", webhook, `deliveries/${position}/redeliver`);
