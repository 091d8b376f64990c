// Which view an address leads to.

import { BatchPage } from "./batch.js";
import { Batches } from "./batches.js";
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
  ["/send", (store, { asked }) => new SendPage(store, idIn(asked, "batch"))],
  [`/webhooks/${ID}`, (store, { ids }) => new WebhookPage(ids[0])],
  ["/webhooks", () => new WebhooksPage()],
  ["/system", () => new SystemPage()],
].map(([pattern, make]) => [new RegExp(`^#${pattern}$`, "i"), make]);

/** The view of an address, such as `#/batches/<id>/history?at=48`; anything else is the list. */
export function viewAt(hash, store) {
  const [path, query] = hash.split("?");
  const asked = new URLSearchParams(query);
  for (const [pattern, make] of VIEWS) {
    const found = pattern.exec(path);
    if (found) return make(store, { ids: found.slice(1).map((id) => id.toLowerCase()), at: numberIn(asked, "at"), asked });
  }
  return new Batches(store);
}

function numberIn(asked, name) {
  return /^\d{1,15}$/.test(asked.get(name)) ? Number(asked.get(name)) : null;
}

function idIn(asked, name) {
  return new RegExp(`^${ID}$`, "i").test(asked.get(name)) ? asked.get(name).toLowerCase() : null;
}
