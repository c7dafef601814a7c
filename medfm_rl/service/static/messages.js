/** Tells what happened, on the screen and to a screen reader. */

const SHOWN_MS = 10000;

export class Messages {
  /**
   * @param {HTMLElement} calm a live region that waits for a pause (role status)
   * @param {HTMLElement} urgent one that interrupts (role alert)
   */
  constructor(calm, urgent) {
    this.calm = calm;
    this.urgent = urgent;
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.alarm = undefined;
  }

  /**
   * @param {string} text
   * @param {{label: string, run: () => void}} [action]
   */
  say(text, action) {
    this.calm.replaceChildren(this.#toast(text, action, this.calm));
    clearTimeout(this.alarm);
    this.alarm = setTimeout(() => {
      // What is being used does not go away under the hand.
      if (!this.calm.contains(document.activeElement)) this.calm.replaceChildren();
    }, SHOWN_MS);
  }

  /** @param {string} text stays until it is closed, or a newer problem comes */
  warn(text) {
    this.urgent.replaceChildren(this.#toast(text, undefined, this.urgent));
  }

  /** The problem is over. */
  calmDown() {
    this.urgent.replaceChildren();
  }

  /**
   * @param {string} text
   * @param {{label: string, run: () => void}|undefined} action
   * @param {HTMLElement} region
   */
  #toast(text, action, region) {
    const toast = document.createElement("div");
    toast.className = "toast";
    const words = document.createElement("p");
    words.textContent = text;
    toast.append(words);
    if (action) toast.append(button(action.label, action.run));
    toast.append(button("Close", () => region.replaceChildren()));
    return toast;
  }
}

/**
 * @param {string} label
 * @param {() => void} run
 * @returns {HTMLButtonElement}
 */
export function button(label, run) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.addEventListener("click", run);
  return made;
}

/**
 * @param {unknown} error
 * @returns {string} what to tell the person, with the remedy where there is one
 */
export function wordsOf(error) {
  if (error instanceof Error) {
    return sentence(error.message, "remedy" in error && typeof error.remedy === "string" ? error.remedy : "");
  }
  return String(error);
}

/**
 * @param {string} fault
 * @param {string} remedy
 * @returns {string} both, as a person would say it
 */
export function sentence(fault, remedy) {
  // A word may begin with a capital; the name of a file is what it is.
  const first = /^[a-z]+(?: |$)/.test(fault) ? fault.charAt(0).toUpperCase() + fault.slice(1) : fault;
  return remedy ? `${first}${/[.!?]$/.test(first) ? "" : ";"} ${remedy}` : first;
}
