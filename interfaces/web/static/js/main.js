// Entry point: one feed connection, one view at a time, selected by the address.

import { ActivityPoll } from "./activity-poll.js";
import { announceBatches } from "./announce.js";
import { h, text } from "./dom.js";
import { Feed } from "./feed.js";
import { Nav } from "./nav.js";
import { viewFor } from "./router.js";
import { Store } from "./store.js";

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const nav = new Nav(document.getElementById("nav"));
const store = new Store();
let view = null;
let state = "";
let countdown = null;

function changed(change) {
  announceBatches(store, change);
  view?.changed(change);
  requestAnimationFrame(() => { document.title = `${view.title} · Uptrail`; });
}

const feed = new Feed(store, {
  changed,
  connectionChanged: showConnection,
  refused(error) { view?.refused?.(error); },
});

new ActivityPoll(store, changed);

function route() {
  view?.close();
  view = viewFor(location.hash, store);
  feed.follow(view.follows);
  nav.select(view.section);
  document.title = `${view.title} · Uptrail`;
  if (state !== "signed-out") main.replaceChildren(view.element);
}

const CONNECTION_LABELS = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  "signed-out": "Not signed in",
  ended: "Disconnected",
};

function showConnection({ state: next, at, code }) {
  clearInterval(countdown);
  connection.dataset.state = next;
  if (next === "reconnecting" && at) {
    const update = () => {
      const seconds = Math.ceil((at - Date.now()) / 1000);
      text(connection, seconds > 0 ? `Reconnecting in ${seconds} s` : "Reconnecting");
    };
    update();
    countdown = setInterval(update, 1000);
  } else {
    text(connection, code ? `${CONNECTION_LABELS[next]} (${code}): reload the page` : CONNECTION_LABELS[next]);
  }
  if (next === "signed-out") main.replaceChildren(signIn());
  else if (state === "signed-out") main.replaceChildren(view.element);
  state = next;
}

function signIn() {
  return h("section.empty.sign-in", {},
    h("h1", {}, "Sign in"),
    h("p", {}, "This page shows the batches of the signed-in user. The server prints a sign-in link when it starts. Open that link in this browser. To start a server:"),
    h("pre", {}, h("code", {}, "uptrail serve")),
    h("p", {}, "A link works once and expires after a few minutes. Restart the server to print a new one."),
    h("p", {}, h("button", { type: "button", onclick: () => location.reload() }, "I have signed in")));
}

addEventListener("hashchange", () => {
  route();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
route();
