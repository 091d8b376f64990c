// Map addresses to views.

import { BatchPage } from "./batch-page.js";
import { BatchesPage } from "./batch-list.js";
import { HistoryPage } from "./history/page.js";
import { SendPage } from "./send/page.js";
import { SystemPage } from "./system/page.js";
import { WebhooksPage } from "./webhooks/list.js";
import { WebhookPage } from "./webhooks/page.js";

const ID = "([0-9a-f-]{36})";
const VIEWS = [
  [`/batches/${ID}/uploads/${ID}/history`, (store, { ids, at }) => new HistoryPage(store, ids[0], ids[1], at)],
  [`/batches/${ID}/history`, (store, { ids, at }) => new HistoryPage(store, ids[0], null, at)],
  [`/batches/${ID}`, (store, { ids }) => new BatchPage(store, ids[0])],
  ["/send", (store, { query }) => new SendPage(store, idIn(query, "batch"))],
  [`/webhooks/${ID}`, (store, { ids }) => new WebhookPage(ids[0])],
  ["/webhooks", () => new WebhooksPage()],
  ["/system", () => new SystemPage()],
].map(([pattern, make]) => [new RegExp(`^#${pattern}$`, "i"), make]);

/** Return the view of an address, such as `#/batches/<id>/history?at=48`; anything else is the list. */
export function viewFor(hash, store) {
  const [path, search] = hash.split("?");
  const query = new URLSearchParams(search);
  for (const [pattern, make] of VIEWS) {
    const found = pattern.exec(path);
    if (found) return make(store, { ids: found.slice(1).map((id) => id.toLowerCase()), at: numberIn(query, "at"), query });
  }
  return new BatchesPage(store);
}

function numberIn(query, name) {
  return /^\d{1,15}$/.test(query.get(name)) ? Number(query.get(name)) : null;
}

function idIn(query, name) {
  return new RegExp(`^${ID}$`, "i").test(query.get(name)) ? query.get(name).toLowerCase() : null;
}
