// Confirmation dialog for actions that cannot be undone or that need a value.

import { h } from "./dom.js";

const CONFIRM_DELAY = 500; // milliseconds until the confirming button is enabled

/**
 * Show the dialog and wait. Returns the text of the field (empty without a field), or null if the
 * user closes the dialog. `field` is {label, value, type, ...attributes of the input}.
 */
export function openDialog({ title, text, field, confirm }) {
  const { label, ...attributes } = field ?? {};
  const input = field && h("input", { name: "answer", autocomplete: "off", ...attributes });
  const confirmButton = h("button.primary", { value: "yes", disabled: true }, confirm);
  setTimeout(() => { confirmButton.disabled = false; }, CONFIRM_DELAY); // so that the second click of a double click does not confirm
  const dialog = h("dialog.dialog", { "aria-label": title },
    h("form", { method: "dialog" },
      h("h2", {}, title), text ? h("p", {}, text) : null,
      input ? h("label", {}, label, input) : null,
      h("p.buttons", {},
        h("button", { type: "button", onclick: () => dialog.close() }, "Back"),
        confirmButton)));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (input?.value.trim() ?? "") : null);
    });
  });
}
