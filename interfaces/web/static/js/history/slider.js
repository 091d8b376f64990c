// Slider over the positions of a history, with buttons to step through the events.

import { attribute, glyph, h, text } from "../dom.js";

const KEYS = { ArrowLeft: "earlier", ArrowDown: "earlier", ArrowRight: "later", ArrowUp: "later" };

export class Slider {
  /** `moved(position)` is called by the slider, `stepped(name)` by the buttons: first, earlier, later, now. */
  constructor({ moved, stepped }) {
    this.range = h("input", {
      type: "range", "aria-label": "Position", step: 1,
      oninput: () => moved(Number(this.range.value)),
      onkeydown: (event) => {
        const step = KEYS[event.key];
        if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault(); // an arrow goes to the next event, however far that is
        stepped(step);
      },
    });
    this.buttons = {
      first: button("First event", "first", () => stepped("first")),
      earlier: button("Earlier", "back", () => stepped("earlier")),
      later: button("Later", "forth", () => stepped("later")),
      now: button("Now", "last", () => stepped("now")),
    };
    this.element = h("div.slider", {},
      this.buttons.first, this.buttons.earlier, this.range, this.buttons.later, this.buttons.now);
  }

  /** `description` is read by screen readers; `atFirst` and `atNow` disable the steps back and forward. */
  show({ first, last, position, description, atFirst, atNow }) {
    attribute(this.range, "min", first);
    attribute(this.range, "max", Math.max(last, first + 1));
    this.range.disabled = last <= first;
    if (Number(this.range.value) !== position) this.range.value = position;
    attribute(this.range, "aria-valuetext", description);
    for (const name of ["first", "earlier"]) attribute(this.buttons[name], "aria-disabled", String(atFirst));
    attribute(this.buttons.later, "aria-disabled", String(atNow));
    attribute(this.buttons.now, "aria-pressed", String(atNow));
  }
}

/** Return a button that stays focusable while it is disabled, for keyboard users. */
function button(name, shape, act) {
  const word = h("span.word");
  text(word, name);
  const made = h("button", {
    type: "button", title: name,
    onclick: () => { if (made.getAttribute("aria-disabled") !== "true") act(); },
  }, glyph(shape), word);
  return made;
}
