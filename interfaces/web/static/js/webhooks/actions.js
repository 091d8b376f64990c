// Operator actions on a webhook; each delivery has its own button.

import { post } from "../api.js";
import { Actions } from "../actions.js";
import { count } from "../format.js";

const ALWAYS = "1970-01-01T00:00:00Z";

const WEBHOOK = [
  {
    name: "Send a test", icon: "transfer",
    isAvailable: (webhook) => webhook.enabled,
    perform: (webhook) => post("webhooks", webhook.id, "test"),
  },
  {
    name: "Enable", icon: "processing",
    isAvailable: (webhook) => !webhook.enabled,
    perform: (webhook) => post("webhooks", webhook.id, "enable"),
  },
  {
    name: "Redeliver failed", icon: "retry",
    isAvailable: (webhook) => webhook.failed > 0,
    question: (webhook) => ({
      title: `Redeliver ${webhook.failed === 1 ? "1 failed delivery" : `${count(webhook.failed)} failed deliveries`}?`, confirm: "Redeliver",
      text: "All failed deliveries are sent again, in order for each batch.",
    }),
    perform: (webhook) => post("webhooks", webhook.id, "redeliver", { since: ALWAYS }),
  },
  {
    name: "Disable", icon: "stopped",
    isAvailable: (webhook) => webhook.enabled,
    question: (webhook) => ({
      title: "Disable this webhook?", confirm: "Disable",
      text: `No deliveries are sent to ${webhook.url} until the webhook is enabled again. Events recorded meanwhile are queued.`,
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    perform: (webhook, reason) => post("webhooks", webhook.id, "disable", { reason }),
  },
];

/** `done()` is called after each action, because webhooks are not part of the feed. */
export const webhookActions = (done) => new Actions(WEBHOOK, "Webhook actions", done);

export const redeliver = (webhook, position) => post("webhooks", webhook, `deliveries/${position}/redeliver`);
