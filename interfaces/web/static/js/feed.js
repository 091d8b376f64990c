// Connection to the feed. It reconnects by itself and resumes at the last position.

const FIRST_DELAY = 500; // milliseconds; doubled at each failure, with full jitter
const MAX_DELAY = 15000;
const isFinalCode = (code) => code >= 4500 && code < 4600;
const SIGNED_OUT_CODES = new Set([4500, 4501]);

export class Feed {
  #socket = null;
  #timer = null;
  #deadline = null;
  #failures = 0;
  #heartbeat = 15;

  /** `store` applies the frames; `changed` is called with each change, `connectionChanged` with each state of the connection, `refused` with each error frame. */
  constructor(store, { changed, connectionChanged, refused }) {
    this.store = store;
    this.changed = changed;
    this.connectionChanged = connectionChanged;
    this.refused = refused;
    this.batches = "*";
    this.refusal = null;
    addEventListener("online", () => this.#connectNow());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#connectNow();
    });
  }

  /** Follow these batches, starting with a snapshot, unless they are followed already. */
  follow(batches) {
    if (this.#socket && !this.refusal && String(batches) === String(this.batches)) return;
    this.refusal = null;
    this.batches = batches;
    this.store.forget();
    if (this.#socket?.readyState === WebSocket.OPEN) this.#subscribe();
    else if (!this.#socket) this.#connect();
  }

  #connectNow() {
    if (this.#timer === null) return;
    this.#failures = 0;
    this.#connect();
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (!this.#failures) this.connectionChanged({ state: "connecting" });
    const url = new URL("/v1/feed", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, "uptrail.v1.json");
    this.#socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.#subscribe();
      this.#restartSilenceTimer();
    };
    socket.onmessage = (message) => this.#receive(socket, JSON.parse(message.data));
    socket.onclose = ({ code }) => {
      if (socket === this.#socket) this.#reconnect(code, opened);
    };
  }

  #subscribe() {
    const after = this.store.cursor;
    const least = after ? null : "latest"; // include a batch that was just started
    this.#socket.send(JSON.stringify({ type: "subscribe", batches: this.batches, after, min_position: least }));
  }

  #receive(socket, frame) {
    if (socket !== this.#socket) return;
    this.#restartSilenceTimer();
    switch (frame.type) {
      case "welcome":
        this.#heartbeat = frame.heartbeat ?? this.#heartbeat;
        break;
      case "authenticate": // there is no credential to send: the session is missing
        this.#end("signed-out");
        break;
      case "ping":
        socket.send('{"type":"pong"}');
        break;
      case "error":
        if (frame.code === "position_not_reached") { // nothing is followed yet: subscribe again
          setTimeout(() => { if (socket === this.#socket) this.#subscribe(); }, FIRST_DELAY);
          break;
        }
        this.refusal = frame;
        this.refused(frame);
        break;
      case "snapshot":
      case "changes":
      case "reset": {
        this.#failures = 0;
        if (frame.type !== "reset") this.connectionChanged({ state: "live" });
        const change = this.store.apply(frame);
        if (change) this.changed(change);
      }
    }
  }

  /** Close the connection after 2.5 heartbeat intervals without a frame. */
  #restartSilenceTimer() {
    clearTimeout(this.#deadline);
    const socket = this.#socket;
    this.#deadline = setTimeout(() => {
      socket.close();
      if (socket === this.#socket) this.#reconnect(1006, true);
    }, this.#heartbeat * 2500);
  }

  async #reconnect(code, opened) {
    clearTimeout(this.#deadline);
    this.#socket = null;
    if (SIGNED_OUT_CODES.has(code)) return this.connectionChanged({ state: "signed-out" });
    if (isFinalCode(code)) return this.connectionChanged({ state: "ended", code });
    if (!opened && (await this.#isSignedOut())) return this.connectionChanged({ state: "signed-out" });
    const delay = Math.random() * Math.min(MAX_DELAY, FIRST_DELAY * 2 ** this.#failures++);
    this.connectionChanged({ state: "reconnecting", at: Date.now() + delay });
    this.#timer = setTimeout(() => this.#connect(), delay);
  }

  /** Return whether the session is invalid. Browsers hide the status of a refused WebSocket, so a plain request is made. */
  async #isSignedOut() {
    try {
      return (await fetch("/v1/batches?limit=1")).status === 401;
    } catch {
      return false;
    }
  }

  #end(state) {
    const socket = this.#socket;
    this.#socket = null;
    clearTimeout(this.#deadline);
    socket.close();
    this.connectionChanged({ state });
  }
}
