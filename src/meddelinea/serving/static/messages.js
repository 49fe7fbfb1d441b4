// What the page says: what goes on, and what went wrong.

import { $ } from "./dom.js";

/** @param {string} text */
export function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text; // which is read out
}

// Trouble stays until it is closed or something else is begun.
/** @param {string} text */
export function complain(text) {
  $("trouble").textContent = text;
}

/** @template T @param {() => Promise<T> | T} action @returns {Promise<T | undefined>} */
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    const { status, message } = /** @type {any} */ (error);
    if (status === 401) askForToken();
    complain(message);
    return undefined;
  }
}

export function askForToken() {
  $("login").hidden = false;
  $("token").focus();
}
