// Sending files from the browser: choose, say where to, and watch them go.

import { principal, SENDERS } from "../api.js";
import { arrange, h, text } from "../dom.js";
import { ago, bytes, files } from "../words.js";
import { desk } from "./desk.js";
import { forget, remembered } from "./memory.js";
import { Plan } from "./plan.js";
import { Running } from "./running.js";
import { Zone } from "./zone.js";

export class SendPage {
  title = "Upload";
  section = "send";
  follows = "*";

  /** `wanted` is the batch that the files are to join, if the address names one. */
  constructor(store, wanted) {
    this.store = store;
    this.wanted = wanted;
    this.zone = new Zone({ taken: (found) => this.#ask(found), refused: (error) => this.#complain(error.message) });
    this.running = new Running();
    this.problem = h("p.problem", { role: "alert" });
    this.earlier = h("ul.earlier", { "aria-label": "Unfinished uploads" });
    this.body = h("div");
    this.summary = h("p.summary");
    this.element = h("section.send", {},
      h("div.heading", {}, h("div", {}, h("h1", {}, "Upload"), this.summary)), this.problem, this.body);
    this.listener = () => this.changed();
    desk.addEventListener("change", this.listener);
    principal().then((who) => {
      this.who = who;
      this.#show();
    });
    this.#show();
  }

  close() {
    desk.removeEventListener("change", this.listener);
    this.zone.close();
    this.running.close();
  }

  changed() {
    if (Boolean(desk.sending) !== this.shown) this.#show();
    this.#sum();
    this.running.draw();
  }

  #sum() {
    const going = desk.busy ? "The upload continues while you view other pages here. Keep this tab open." : "";
    text(this.summary, desk.sending ? going : "Uploads resume after a lost connection, a reload or a restart. Received data is not sent again.");
  }

  #show() {
    this.shown = Boolean(desk.sending);
    this.problem.hidden = true;
    if (this.who && !SENDERS.has(this.who.scope)) return this.#refuse();
    if (this.shown) {
      arrange(this.body, [this.running.element]);
      this.running.draw();
    } else {
      this.#drawEarlier();
      arrange(this.body, [this.earlier, this.zone.element]);
    }
    this.zone.element.hidden = this.shown;
    this.#sum();
  }

  #refuse() {
    this.zone.element.hidden = true;
    arrange(this.body, [h("p.empty", {}, "Your key cannot upload. Uploading requires the scope uploader or operator.")]);
  }

  #complain(message) {
    text(this.problem, message);
    this.problem.hidden = false;
  }

  #ask(found) {
    this.problem.hidden = true;
    const plan = new Plan({
      found, batches: this.store.batches, wanted: this.wanted, limited: this.who?.batch ?? null,
      go: (choice) => desk.start(choice), back: () => this.#show(),
    });
    this.zone.element.hidden = true;
    arrange(this.body, [plan.element]);
    plan.element.querySelector("button.primary").focus();
  }

  /** What a reload or a closed tab interrupted: the browser has to be given the files again. */
  #drawEarlier() {
    this.earlier.replaceChildren(...remembered().map((entry) => h("li", {},
      h("p", {}, h("a", { href: `#/batches/${entry.batch}` }, entry.label || `Batch ${entry.batch.slice(-8)}`),
        ` was not finished (${files(entry.files)}, ${bytes(entry.bytes)}, started ${ago(entry.at)}). Drop the same files again: only missing data is sent.`),
      h("button", { type: "button", onclick: () => { forget(entry.batch); this.#drawEarlier(); } }, "Remove from this list"))));
  }
}
