// The ways through the page, each for those whose key may go there.

import { OPERATORS, principal, SENDERS } from "./api.js";
import { attribute, h, text } from "./dom.js";
import { desk } from "./send/desk.js";
import { percent } from "./words.js";

const EVERYBODY = { has: () => true };
const WAYS = [
  { name: "Batches", section: "batches", href: "#/", scopes: EVERYBODY },
  { name: "Upload", section: "send", href: "#/send", scopes: SENDERS },
  { name: "Webhooks", section: "webhooks", href: "#/webhooks", scopes: OPERATORS },
  { name: "System", section: "system", href: "#/system", scopes: OPERATORS },
];

export class Nav {
  constructor(element) {
    this.links = WAYS.map(({ name, href }) => h("a", { href }, name));
    for (const link of this.links) link.hidden = true;
    element.replaceChildren(...this.links);
    desk.addEventListener("change", () => this.#drawSending());
    principal().then((who) => this.links.forEach((link, index) => { link.hidden = !who || !WAYS[index].scopes.has(who.scope); }));
  }

  /** Marks the way that leads here. */
  at(section) {
    this.links.forEach((link, index) => attribute(link, "aria-current", WAYS[index].section === section ? "page" : null));
  }

  /** How far the sending is, seen from every page. */
  #drawSending() {
    text(this.links[1], desk.busy ? `Upload ${percent(desk.percent)}` : "Upload");
  }
}
