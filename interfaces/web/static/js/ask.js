// A question before something is done that cannot be undone, or that wants a reason.

import { h } from "./dom.js";

const READ = 500; // milliseconds before the answer can be yes

/**
 * Shows the question and waits. The answer is the text of the field (empty without one), or null
 * where people think better of it. `field` is {label, value, type, ...attributes of the input}.
 */
export function ask({ title, text, field, yes }) {
  const { label, ...attributes } = field ?? {};
  const input = field && h("input", { name: "answer", autocomplete: "off", ...attributes });
  const agree = h("button.primary", { value: "yes", disabled: true }, yes);
  setTimeout(() => { agree.disabled = false; }, READ); // the second click of two is no answer
  const dialog = h("dialog.ask", { "aria-label": title },
    h("form", { method: "dialog" },
      h("h2", {}, title), text ? h("p", {}, text) : null,
      input ? h("label", {}, label, input) : null,
      h("p.buttons", {},
        h("button", { type: "button", onclick: () => dialog.close() }, "Back"),
        agree)));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (input?.value.trim() ?? "") : null);
    });
  });
}
