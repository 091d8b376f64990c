// Declaration of files before their bytes are sent: the batch knows its size, and known files are found.

import { create, get } from "../api.js";
import { bytes, uploadState } from "../format.js";
import { retryTemporary } from "./errors.js";

const MAX_FILES_PER_REQUEST = 1000; // limit of the server
const INCOMPLETE = new Set(["registered", "transferring"]);
const ENDED = new Set(["cancelled", "expired", "erased", "rejected"]);

/**
 * Declare the items in a batch. Sets `upload` and `state` of each: `waiting` with the offset (null:
 * unknown), `there` if it is stored, or `refused` with a message. Raises RequestError, AbortError.
 */
export async function declare(batch, items, signal, { temporaryError, changed }) {
  const known = new Map();
  let position = 0;
  for (let start = 0; start < items.length; start += MAX_FILES_PER_REQUEST) {
    const chunk = items.slice(start, start + MAX_FILES_PER_REQUEST);
    const list = chunk.map(({ path, size }) => ({ path, size }));
    const response = await retryTemporary(() => create(`/v1/batches/${batch}/uploads`, list), signal, temporaryError);
    position = Math.max(position, response.position);
    response.files.forEach((result, index) => {
      const item = chunk[index];
      item.upload = result.upload;
      if (result.status === "rejected") Object.assign(item, { state: "refused", message: result.message });
      else if (result.status === "added") Object.assign(item, { state: "waiting", offset: 0 });
      else known.set(result.upload, item);
    });
    changed();
  }
  if (known.size) await loadKnown(batch, known, position, signal, temporaryError);
}

/** Load the state of files that the batch already has. */
async function loadKnown(batch, known, position, signal, temporaryError) {
  for (let cursor = ""; cursor !== null;) {
    const page = `/v1/batches/${batch}/uploads?limit=1000&min_position=${position}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`;
    const response = await retryTemporary(() => get(page, signal), signal, temporaryError);
    for (const upload of response.items) {
      const item = known.get(upload.id);
      if (item) applyUpload(item, upload);
    }
    cursor = response.next;
  }
}

function applyUpload(item, upload) {
  if (ENDED.has(upload.state)) {
    const word = uploadState(upload.state).word.toLowerCase();
    Object.assign(item, { state: "refused", message: `This file is ${word} in the batch: upload it in a new batch.` });
  } else if (upload.size !== null && upload.size !== item.size) {
    const message = `The batch has a different file with this path (${bytes(upload.size)}): rename this file, or upload it in a new batch.`;
    Object.assign(item, { state: "refused", message });
  } else if (INCOMPLETE.has(upload.state)) {
    Object.assign(item, { state: "waiting", offset: null, sent: upload.received });
  } else {
    Object.assign(item, { state: "there", sent: item.size });
  }
}
