// Page of one webhook: filter, health and deliveries.

import { get } from "../api.js";
import { chip } from "../state-chip.js";
import { glyph, h, text } from "../dom.js";
import { Poll } from "../poll.js";
import { ago, calendar, count } from "../format.js";
import { webhookActions } from "./actions.js";
import { Deliveries } from "./deliveries.js";
import { filterSummary, webhookState } from "./format.js";

const POLL_SECONDS = 2; // seconds

export class WebhookPage {
  title = "Webhook";
  section = "webhooks";
  follows = "*";

  constructor(id) {
    this.id = id;
    this.name = h("h1");
    this.state = chip();
    this.about = h("p.summary");
    this.facts = h("dl.facts");
    this.problem = h("p.problem", { role: "alert" });
    this.deliveries = new Deliveries(id);
    this.actions = webhookActions((answer) => { this.minPosition = answer?.position ?? 0; this.poll.now(); });
    this.element = h("section.webhook", {},
      h("p.crumbs", {}, h("a", { href: "#/webhooks" }, glyph("back"), "Webhooks"),
        h("span.documents", {}, h("a", { href: `/v1/webhooks/${id}/history` }, "Change history (JSON)"))),
      h("div.heading", {}, h("div", {}, this.name, this.about), this.state.element),
      this.problem, this.facts, this.actions.element, this.deliveries.element);
    this.poll = new Poll(() => this.#refresh(), (message) => this.#showProblem(message), POLL_SECONDS);
  }

  close() {
    this.poll.close();
  }

  changed() {} // not part of the feed

  async #refresh() {
    const [webhook] = await Promise.all([get(`/v1/webhooks/${this.id}`), this.deliveries.refresh(this.minPosition ?? 0)]);
    this.minPosition = 0; // reached: later refreshes need no minimum
    this.title = webhook.url;
    text(this.name, webhook.url);
    text(this.about, filterSummary(webhook));
    this.state.update(webhookState(webhook));
    this.actions.update(webhook);
    const known = [
      ["Description", webhook.description],
      ["Disabled", webhook.enabled ? null : webhook.reason],
      ["Failing since", webhook.failing_since && `${calendar(webhook.failing_since)}, ${ago(webhook.failing_since)}`],
      ["Last error", webhook.failing_since && webhook.last_error],
      ["Waiting", count(webhook.pending)],
      ["Failed", count(webhook.failed)],
      ["Missed", webhook.missed ? `${count(webhook.missed)}, after position ${count(webhook.missed_after)}: the delivery queue was full` : null],
      ["Added", `${calendar(webhook.added_at)} by ${webhook.added_by}`],
    ];
    this.facts.replaceChildren(...known.filter(([, value]) => value)
      .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  #showProblem(message) {
    text(this.problem, message ?? "");
    this.problem.hidden = message === null;
  }
}
