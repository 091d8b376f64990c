// What a webhook was told, newest first, with what became of each.

import { get, Refused } from "../api.js";
import { chip } from "../chip.js";
import { arrange, glyph, h, text } from "../dom.js";
import { calendar, count } from "../words.js";
import { redeliver } from "./actions.js";
import { deliveryState, outcomeOf } from "./words.js";

const PAGE = 50;
const MOST = 500; // shown at most

export class Deliveries {
  constructor(webhook) {
    this.webhook = webhook;
    this.limit = PAGE;
    this.rows = new Map();
    this.list = h("ol.deliveries", { "aria-label": "Deliveries" });
    this.none = h("p.empty.small", {}, "It has not been told anything yet. Send it a test.");
    this.more = h("button.more", { type: "button", onclick: () => { this.limit = Math.min(MOST, this.limit + PAGE); this.look(); } }, "Show more");
    this.problem = h("p.problem", { role: "alert" });
    this.problem.hidden = true;
    this.element = h("section", {}, h("h2", {}, "Deliveries"), this.problem, h("div.list", {}, this.list, this.none), this.more);
  }

  /** As of the position `least` at least. Raises Refused. */
  async look(least = 0) {
    const { items, next } = await get(`/v1/webhooks/${this.webhook}/deliveries?limit=${this.limit}&min_position=${least}`);
    const known = this.rows;
    this.rows = new Map();
    for (const delivery of items) {
      const stamp = JSON.stringify(delivery);
      const row = known.get(delivery.position);
      const same = row?.stamp === stamp ? row : this.#row(delivery, stamp);
      text(same.outcome, outcomeOf(delivery)); // a retry comes nearer by itself
      this.rows.set(delivery.position, same);
    }
    const focused = document.activeElement?.closest(".delivery")?.dataset.position;
    arrange(this.list, [...this.rows.values()].map(({ element }) => element));
    if (focused) this.list.querySelector(`[data-position="${focused}"] button`)?.focus();
    this.none.hidden = items.length > 0;
    this.more.hidden = next === null || this.limit >= MOST;
  }

  #row(delivery, stamp) {
    const state = chip();
    state.update(deliveryState(delivery));
    const outcome = h("p.meta");
    const excerpt = delivery.last?.excerpt;
    const element = h("li.delivery", { "data-position": delivery.position },
      state.element,
      h("div", {},
        h("p", {}, h("b", {}, delivery.type), h("span.number", { title: calendar(delivery.queued_at) }, ` ${place(delivery)}`)),
        outcome,
        excerpt ? h("details", {}, h("summary", {}, "What it answered"), h("pre", {}, excerpt)) : null),
      h("span.tries", {}, delivery.attempts > 1 ? `${count(delivery.attempts)} attempts` : ""),
      delivery.batch ? h("a", { href: `#/batches/${delivery.batch}/history?at=${delivery.position}` }, "The event") : h("span"),
      delivery.state === "pending" ? h("span") : this.#again(delivery));
    return { element, outcome, stamp };
  }

  #again(delivery) {
    const button = h("button", {
      type: "button", "aria-label": `Redeliver ${delivery.type} of position ${delivery.position}`,
      onclick: async () => {
        button.disabled = true;
        try {
          await redeliver(this.webhook, delivery.position);
          await this.look();
        } catch (error) {
          if (!(error instanceof Refused)) throw error;
          text(this.problem, error.message);
          this.problem.hidden = false;
        } finally {
          button.disabled = false;
        }
      },
    }, glyph("retry"), "Redeliver");
    return button;
  }
}

const place = ({ position, queued_at: queued }) => `position ${count(position)}, ${calendar(queued)}`;
