// Files are declared before their bytes go: so the batch knows its size, and we what is there.

import { create, get } from "../api.js";
import { bytes, uploadState } from "../words.js";
import { persist } from "./trouble.js";

const LIST = 1000; // files of one request
const COMING = new Set(["registered", "transferring"]);
const GONE = new Set(["cancelled", "expired", "erased", "rejected"]);

/**
 * Declares the items with a batch. Each learns its `upload` and what to do: state `waiting` with the
 * offset (null: to be asked for), `there`, or `refused` with a message. Raises Refused, AbortError.
 */
export async function declare(batch, items, signal, { waiting, changed }) {
  const known = new Map();
  let position = 0;
  for (let start = 0; start < items.length; start += LIST) {
    const some = items.slice(start, start + LIST);
    const list = some.map(({ path, size }) => ({ path, size }));
    const answer = await persist(() => create(`/v1/batches/${batch}/uploads`, list), signal, waiting);
    position = Math.max(position, answer.position);
    answer.files.forEach((said, index) => {
      const item = some[index];
      item.upload = said.upload;
      if (said.status === "rejected") Object.assign(item, { state: "refused", message: said.message });
      else if (said.status === "added") Object.assign(item, { state: "waiting", offset: 0 });
      else known.set(said.upload, item);
    });
    changed();
  }
  if (known.size) await lookUp(batch, known, position, signal, waiting);
}

/** What the batch has of the files it knows. */
async function lookUp(batch, known, position, signal, waiting) {
  for (let cursor = ""; cursor !== null;) {
    const page = `/v1/batches/${batch}/uploads?limit=1000&min_position=${position}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`;
    const answer = await persist(() => get(page, signal), signal, waiting);
    for (const upload of answer.items) {
      const item = known.get(upload.id);
      if (item) judge(item, upload);
    }
    cursor = answer.next;
  }
}

function judge(item, upload) {
  if (GONE.has(upload.state)) {
    const word = uploadState(upload.state).word.toLowerCase();
    Object.assign(item, { state: "refused", message: `This file is ${word} in the batch: upload it in a new batch.` });
  } else if (upload.size !== null && upload.size !== item.size) {
    const message = `The batch has a different file with this path (${bytes(upload.size)}): rename this file, or upload it in a new batch.`;
    Object.assign(item, { state: "refused", message });
  } else if (COMING.has(upload.state)) {
    Object.assign(item, { state: "waiting", offset: null, sent: upload.received });
  } else {
    Object.assign(item, { state: "there", sent: item.size });
  }
}
