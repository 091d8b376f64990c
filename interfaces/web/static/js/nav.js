// Main navigation; each link is shown to the scopes that may use it.

import { OPERATOR_SCOPES, principal, UPLOADER_SCOPES } from "./api.js";
import { attribute, h, text } from "./dom.js";
import { uploadManager } from "./send/upload-manager.js";
import { percent } from "./format.js";

const ANY_SCOPE = { has: () => true };
const LINKS = [
  { name: "Batches", section: "batches", href: "#/", scopes: ANY_SCOPE },
  { name: "Upload", section: "send", href: "#/send", scopes: UPLOADER_SCOPES },
  { name: "Webhooks", section: "webhooks", href: "#/webhooks", scopes: OPERATOR_SCOPES },
  { name: "System", section: "system", href: "#/system", scopes: OPERATOR_SCOPES },
];

export class Nav {
  constructor(element) {
    this.links = LINKS.map(({ name, href }) => h("a", { href }, name));
    for (const link of this.links) link.hidden = true;
    element.replaceChildren(...this.links);
    uploadManager.addEventListener("change", () => this.#drawUploadProgress());
    principal().then((who) => this.links.forEach((link, index) => { link.hidden = !who || !LINKS[index].scopes.has(who.scope); }));
  }

  /** Mark the link of the current section. */
  select(section) {
    this.links.forEach((link, index) => attribute(link, "aria-current", LINKS[index].section === section ? "page" : null));
  }

  /** Show the upload progress in the link, on every page. */
  #drawUploadProgress() {
    text(this.links[1], uploadManager.isActive ? `Upload ${percent(uploadManager.percent)}` : "Upload");
  }
}
