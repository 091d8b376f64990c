// List row of one recorded event: time, label, file, details and actor.

import { chip } from "../state-chip.js";
import { attribute, h, text } from "../dom.js";
import { styleOf } from "./event-styles.js";

const CLOCK = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hour12: false,
});

export const moment = (at) => CLOCK.format(new Date(at));

/** Rows of `{...item, id, path}`; `path` is that of the upload, empty for the batch. */
export function eventRow() {
  const time = h("time");
  const what = chip();
  const path = h("span.file");
  const note = h("span.note");
  const who = h("span.who");
  const element = h("div.event", {}, time, what.element, h("span.what", {}, path, note), who);
  const update = (item) => {
    const style = styleOf(item);
    attribute(time, "datetime", item.at);
    text(time, moment(item.at));
    what.update(style);
    text(path, item.path.slice(item.path.lastIndexOf("/") + 1));
    attribute(path, "title", item.path || null);
    text(note, style.details);
    attribute(note, "title", style.details || null);
    text(who, item.by);
  };
  return { element, update };
}
