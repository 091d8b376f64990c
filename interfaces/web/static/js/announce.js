// Announcements to screen readers, by the live region of the page.

import { text } from "./dom.js";
import { batchName, batchState } from "./format.js";

const announcer = document.getElementById("announcer");

const MERGE_WINDOW = 3000; // milliseconds within which messages are joined
const MAX_MESSAGES = 3;
let messages = [];
let timer = null;

/** Announce a message. Messages in quick succession are joined: a later one would interrupt the earlier one. */
export function announce(message) {
  messages = [...messages, message].slice(-MAX_MESSAGES);
  text(announcer, messages.join(". "));
  clearTimeout(timer);
  timer = setTimeout(() => { messages = []; }, MERGE_WINDOW);
}

/** Receiving and processing alternate; changes between them are not announced. */
const isActive = ({ tone }) => tone === "active";

/** Announce batches that started, changed state or ended. */
export function announceBatches(store, { before, live }) {
  if (!live) return;
  const news = [];
  for (const [id, old] of before) {
    const batch = store.batches.get(id);
    const now = batchState(batch);
    const before = old && batchState(old);
    if (!old) news.push(`${batchName(batch)} started`);
    else if (before.word !== now.word && !(isActive(before) && isActive(now))) news.push(`${batchName(batch)}: ${now.word}`);
  }
  if (news.length) announce(news.slice(0, 3).join(". "));
}
