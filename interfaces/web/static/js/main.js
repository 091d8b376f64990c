// The page: one connection, one view at a time, chosen by the address.

import { ActivityClock } from "./activity.js";
import { announceBatches } from "./announce.js";
import { h, text } from "./dom.js";
import { Feed } from "./feed.js";
import { Nav } from "./nav.js";
import { viewAt } from "./routes.js";
import { Store } from "./store.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
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
  link: showLink,
  refused(error) { view?.refused?.(error); },
});

new ActivityClock(store, changed);

function route() {
  view?.close();
  view = viewAt(location.hash, store);
  feed.follow(view.follows);
  nav.at(view.section);
  document.title = `${view.title} · Uptrail`;
  if (state !== "signed-out") main.replaceChildren(view.element);
}

const LINKS = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  "signed-out": "Not signed in",
  ended: "Disconnected",
};

function showLink({ state: next, at, code }) {
  clearInterval(countdown);
  link.dataset.state = next;
  if (next === "reconnecting" && at) {
    const say = () => {
      const seconds = Math.ceil((at - Date.now()) / 1000);
      text(link, seconds > 0 ? `Reconnecting in ${seconds} s` : "Reconnecting");
    };
    say();
    countdown = setInterval(say, 1000);
  } else {
    text(link, code ? `${LINKS[next]} (${code}): reload the page` : LINKS[next]);
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
