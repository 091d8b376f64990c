// Says what happened to those who do not see it: the page's live region.

import { text } from "./dom.js";
import { batchName, batchState } from "./words.js";

const announcer = document.getElementById("announcer");

const TOGETHER = 3000; // milliseconds within which several things are said as one
const MOST = 3;
let said = [];
let over = null;

/** What comes in one moment is said together: the later would silence the earlier. */
export function announce(words) {
  said = [...said, words].slice(-MOST);
  text(announcer, said.join(". "));
  clearTimeout(over);
  over = setTimeout(() => { said = []; }, TOGETHER);
}

/** Receiving and processing take turns, which is no news. */
const goesOn = ({ tone }) => tone === "active";

/** A batch that began, changed its state or ended. */
export function announceBatches(store, { before, live }) {
  if (!live) return;
  const news = [];
  for (const [id, old] of before) {
    const batch = store.batches.get(id);
    const now = batchState(batch);
    const before = old && batchState(old);
    if (!old) news.push(`${batchName(batch)} started`);
    else if (before.word !== now.word && !(goesOn(before) && goesOn(now))) news.push(`${batchName(batch)}: ${now.word}`);
  }
  if (news.length) announce(news.slice(0, 3).join(". "));
}
