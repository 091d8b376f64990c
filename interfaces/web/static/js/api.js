// Requests to the server. Each is sent once; errors carry the message of the server.

/** A failed request: an error response, or a lost connection (status 0). `message` is shown to the user. */
export class RequestError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Send a command, such as post("batches", id, "cancel", {reason}). Raises RequestError. */
export async function post(kind, id, act, body = null) {
  return create(`/v1/${kind}/${id}/${act}`, body, newKey());
}

/** Post a JSON body. With an idempotency key the request can be repeated. */
export async function create(path, body, key = null) {
  const headers = {};
  if (key) headers["Idempotency-Key"] = key;
  if (body) headers["Content-Type"] = "application/json";
  return (await request(path, { method: "POST", headers, body: body && JSON.stringify(body) })).json();
}

export const newKey = () => crypto.getRandomValues(new BigUint64Array(2)).join("-");

/** Get a JSON resource. `signal` cancels the request (AbortError). */
export async function get(path, signal = null) {
  return (await request(path, { signal })).json();
}

/** Get a text resource. */
export async function getText(path) {
  return (await request(path, {})).text();
}

let principalRequest = null; // one request for the whole page

/** Return the signed-in principal, or null. */
export function principal() {
  principalRequest ??= get("/v1/principal").catch((error) => {
    if (error instanceof RequestError) return null;
    throw error;
  });
  return principalRequest;
}

export const OPERATOR_SCOPES = new Set(["operator", "admin"]);
export const UPLOADER_SCOPES = new Set(["operator", "uploader", "admin"]);

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached. Check the connection and try again.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const message = problem.detail ?? problem.title ?? `The server responded with status ${response.status}.`;
  throw new RequestError(message, response.status, problem.code);
}
