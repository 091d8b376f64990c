// State label: word, icon and colour.

import { glyph, h, reshape, text } from "./dom.js";

export function chip() {
  const shape = glyph("waiting");
  const word = h("span.word");
  const element = h("span.chip", {}, shape, word);
  const update = (state) => {
    reshape(shape, state.shape);
    text(word, state.word);
    element.dataset.tone = state.tone;
  };
  return { element, update };
}

/** Return list items with the count of each state; states with count 0 are omitted. */
export function tally(counts, uploadState, order, format) {
  return order
    .filter((state) => counts[state])
    .map((state) => {
      const { word, shape, tone } = uploadState(state);
      const item = h("li", {}, glyph(shape), h("b", {}, format(counts[state])), ` ${word.toLowerCase()}`);
      item.dataset.tone = tone;
      return item;
    });
}
