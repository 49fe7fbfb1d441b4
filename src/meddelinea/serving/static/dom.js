// Elements of the page, made of properties and text, never of markup from a reply.

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/**
 * @param {string} name
 * @param {Record<string, any>} properties of the element; those with a dash are attributes
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties))
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  made.append(...children);
  return made;
}

/** @param {string} text @param {() => void} onClick @param {Record<string, any>} properties */
export function button(text, onClick, properties = {}) {
  const made = element("button", { type: "button", ...properties }, text);
  made.addEventListener("click", onClick);
  return made;
}

/**
 * Ask before something that cannot be undone.
 * @param {string} question @param {string} action name of the button that does it
 * @returns {Promise<boolean>} whether to do it
 */
export function confirmed(question, action) {
  const dialog = $("ask");
  $("question").textContent = question;
  $("ask-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
