// Requests to the server: each is sent once, and what it refuses is said in its own words.

/** What the server says no to, or the line that broke (status 0); `message` is for people. */
export class Refused extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Sends a command, such as post("batches", id, "cancel", {reason}). Raises Refused. */
export async function post(kind, id, act, body = null) {
  return create(`/v1/${kind}/${id}/${act}`, body, newKey());
}

/** Posts a body, as JSON; with the same key it can be sent again and is done once. */
export async function create(path, body, key = null) {
  const headers = {};
  if (key) headers["Idempotency-Key"] = key;
  if (body) headers["Content-Type"] = "application/json";
  return (await answerOf(path, { method: "POST", headers, body: body && JSON.stringify(body) })).json();
}

export const newKey = () => crypto.getRandomValues(new BigUint64Array(2)).join("-");

/** What the server tells of a path; `signal` calls the question off (AbortError). */
export async function get(path, signal = null) {
  return (await answerOf(path, { signal })).json();
}

/** The same for what is not JSON. */
export async function getText(path) {
  return (await answerOf(path, {})).text();
}

let asked = null; // one question to the server for the whole page

/** Who is signed in here; null for nobody. */
export function principal() {
  asked ??= get("/v1/principal").catch((error) => {
    if (error instanceof Refused) return null;
    throw error;
  });
  return asked;
}

export const OPERATORS = new Set(["operator", "admin"]);
export const SENDERS = new Set(["operator", "uploader", "admin"]);

async function answerOf(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Check the connection and try again.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const words = said.detail ?? said.title ?? `The server responded with status ${answer.status}.`;
  throw new Refused(words, answer.status, said.code);
}
