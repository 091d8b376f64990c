// Where files and folders are dropped, or chosen by hand.

import { glyph, h, text } from "../dom.js";
import { chosen, dropped } from "./files.js";

/** `taken(files)` hears of what was dropped or chosen, `refused(error)` of too many. */
export class Zone {
  constructor({ taken, refused }) {
    this.taken = taken;
    this.refused = refused;
    this.word = h("p.zone-word", {}, "Drop files or folders here");
    const [files, folder] = [this.#input({ multiple: true }), this.#input({ multiple: true, webkitdirectory: true })];
    this.element = h("section.zone", { "aria-label": "Choose what to upload" },
      glyph("transfer"), this.word,
      h("p.buttons", {},
        h("button.primary", { type: "button", onclick: () => files.click() }, "Choose files"),
        h("button", { type: "button", onclick: () => folder.click() }, "Choose a folder")),
      files, folder);
    this.off = new AbortController();
    const options = { signal: this.off.signal };
    // The whole page takes it: a file dropped beside the zone would replace the page otherwise.
    addEventListener("dragover", (event) => this.#over(event), options);
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) this.#out(); }, options);
    addEventListener("drop", (event) => this.#drop(event), options);
  }

  close() {
    this.off.abort();
  }

  #input(attributes) {
    const input = h("input", {
      type: "file", hidden: true, ...attributes,
      onchange: () => {
        this.#take(() => chosen(input.files));
        input.value = ""; // the same again is a change, too
      },
    });
    return input;
  }

  #over(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    this.element.classList.add("over");
    text(this.word, "Release to add the files");
  }

  #out() {
    this.element.classList.remove("over");
    text(this.word, "Drop files or folders here");
  }

  #drop(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    this.#out();
    if (!this.element.hidden) this.#take(() => dropped(event.dataTransfer));
  }

  async #take(read) {
    try {
      const files = await read();
      if (files.length) this.taken(files);
    } catch (error) {
      this.refused(error);
    }
  }
}
