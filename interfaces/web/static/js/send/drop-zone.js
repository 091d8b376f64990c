// Area where files and folders are dropped or chosen.

import { glyph, h, text } from "../dom.js";
import { filesOfList, filesOfDrop } from "./selected-files.js";

/** `selected(files)` is called with the files, `refused(error)` if there are too many. */
export class DropZone {
  constructor({ selected, refused }) {
    this.selected = selected;
    this.refused = refused;
    this.prompt = h("p.drop-zone-text", {}, "Drop files or folders here");
    const [files, folder] = [this.#input({ multiple: true }), this.#input({ multiple: true, webkitdirectory: true })];
    this.element = h("section.drop-zone", { "aria-label": "Choose what to upload" },
      glyph("transfer"), this.prompt,
      h("p.buttons", {},
        h("button.primary", { type: "button", onclick: () => files.click() }, "Choose files"),
        h("button", { type: "button", onclick: () => folder.click() }, "Choose a folder")),
      files, folder);
    this.listeners = new AbortController();
    const options = { signal: this.listeners.signal };
    // The whole page accepts drops: a file dropped beside the zone would replace the page otherwise.
    addEventListener("dragover", (event) => this.#dragOver(event), options);
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) this.#dragEnd(); }, options);
    addEventListener("drop", (event) => this.#drop(event), options);
  }

  close() {
    this.listeners.abort();
  }

  #input(attributes) {
    const input = h("input", {
      type: "file", hidden: true, ...attributes,
      onchange: () => {
        this.#readFiles(() => filesOfList(input.files));
        input.value = ""; // so that choosing the same files again is a change
      },
    });
    return input;
  }

  #dragOver(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    this.element.classList.add("is-dragging");
    text(this.prompt, "Release to add the files");
  }

  #dragEnd() {
    this.element.classList.remove("is-dragging");
    text(this.prompt, "Drop files or folders here");
  }

  #drop(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    this.#dragEnd();
    if (!this.element.hidden) this.#readFiles(() => filesOfDrop(event.dataTransfer));
  }

  async #readFiles(read) {
    try {
      const files = await read();
      if (files.length) this.selected(files);
    } catch (error) {
      this.refused(error);
    }
  }
}
