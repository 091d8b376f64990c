// One webhook: what it is told, how it fares, and its deliveries.

import { get } from "../api.js";
import { chip } from "../chip.js";
import { glyph, h, text } from "../dom.js";
import { Poll } from "../poll.js";
import { ago, calendar, count } from "../words.js";
import { webhookActions } from "./actions.js";
import { Deliveries } from "./deliveries.js";
import { toldOf, webhookState } from "./words.js";

const PAUSE = 2; // seconds between two looks

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
    this.actions = webhookActions((answer) => { this.least = answer?.position ?? 0; this.poll.now(); });
    this.element = h("section.webhook", {},
      h("p.crumbs", {}, h("a", { href: "#/webhooks" }, glyph("back"), "Webhooks"),
        h("span.documents", {}, h("a", { href: `/v1/webhooks/${id}/history` }, "Change history (JSON)"))),
      h("div.heading", {}, h("div", {}, this.name, this.about), this.state.element),
      this.problem, this.facts, this.actions.element, this.deliveries.element);
    this.poll = new Poll(() => this.#ask(), (message) => this.#complain(message), PAUSE);
  }

  close() {
    this.poll.close();
  }

  changed() {} // the feed tells nothing of this

  async #ask() {
    const [webhook] = await Promise.all([get(`/v1/webhooks/${this.id}`), this.deliveries.look(this.least ?? 0)]);
    this.least = 0; // seen: from now on what there is will do
    this.title = webhook.url;
    text(this.name, webhook.url);
    text(this.about, toldOf(webhook));
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

  #complain(message) {
    text(this.problem, message ?? "");
    this.problem.hidden = message === null;
  }
}
