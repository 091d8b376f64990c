// Page of all webhooks with their filters and health.

import { get } from "../api.js";
import { chip } from "../state-chip.js";
import { attribute, h, text } from "../dom.js";
import { Poll } from "../poll.js";
import { calendar, count } from "../format.js";
import { filterSummary, webhookState } from "./format.js";

const POLL_SECONDS = 5; // seconds
const MAX_WEBHOOKS = 200; // shown at most; an owner has 50

export class WebhooksPage {
  title = "Webhooks";
  section = "webhooks";
  follows = "*";

  constructor() {
    this.summary = h("p.summary");
    this.problem = h("p.problem", { role: "alert" });
    this.list = h("ul.cards", { "aria-label": "Webhooks" });
    this.none = h("div.empty", {},
      h("h2", {}, "No webhooks"),
      h("p", {}, "Webhooks send events to your own systems: at least once, in order, signed. Add a webhook in a terminal:"),
      h("pre", {}, h("code", {}, "uptrail webhook add https:", "//example.com/hook --event batch.completed")));
    this.none.hidden = true;
    this.element = h("section", {},
      h("div.heading", {}, h("div", {}, h("h1", {}, "Webhooks"), this.summary)), this.problem, this.list, this.none);
    this.poll = new Poll(() => this.#refresh(), (message) => this.#showProblem(message), POLL_SECONDS);
  }

  close() {
    this.poll.close();
  }

  changed() {} // not part of the feed

  async #refresh() {
    const { items, next } = await get(`/v1/webhooks?limit=${MAX_WEBHOOKS}`);
    const unhealthy = items.filter((webhook) => !webhook.enabled || webhook.failing_since).length;
    text(this.summary, items.length ? `${count(items.length)}${next ? " and more" : ""}, ${unhealthy ? `${count(unhealthy)} unhealthy` : "all healthy"}` : "");
    this.none.hidden = items.length > 0;
    const focused = document.activeElement?.closest("[data-webhook]")?.dataset.webhook;
    this.list.replaceChildren(...items.map(card));
    if (focused) this.list.querySelector(`[data-webhook="${focused}"] a`)?.focus();
  }

  #showProblem(message) {
    text(this.problem, message ?? "");
    this.problem.hidden = message === null;
  }
}

function card(webhook) {
  const state = chip();
  state.update(webhookState(webhook));
  if (webhook.failing_since) attribute(state.element, "title", `First failure ${calendar(webhook.failing_since)}`);
  return h("li.card", { "data-webhook": webhook.id },
    h("div.row", {},
      h("div.title", {}, h("h2", {}, h("a.name", { href: `#/webhooks/${webhook.id}` }, webhook.url)), h("p.meta", {}, webhook.description)),
      state.element),
    h("div.row.foot", {}, h("span.event-filter", {}, filterSummary(webhook)),
      h("span", {}, `${count(webhook.pending)} waiting, ${count(webhook.failed)} failed`)),
    webhook.enabled ? (webhook.last_error && webhook.failing_since ? h("p.problem", {}, webhook.last_error) : null)
      : h("p.problem", {}, `Disabled: ${webhook.reason}`));
}
