/** Keeps a case for the person who works on it, and gives it back when they stop. */

import { Refused, giveBackLease, leaseItem, renewLease } from "./api.js";

export class LeaseKeeper {
  /**
   * @param {number} seconds how long a lease lasts
   * @param {() => number} idle seconds since the person did anything
   * @param {(problem: string) => void} warn
   */
  constructor(seconds, idle, warn) {
    this.seconds = seconds;
    this.idle = idle;
    this.warn = warn;
    /** @type {import("./types.js").Lease|null} */
    this.held = null;
    setInterval(() => void this.renew(), (seconds / 3) * 1000);
    addEventListener("pagehide", () => void this.giveBack());
    addEventListener("pageshow", (event) => {
      if (event.persisted) location.reload();
    });
  }

  /** @param {import("./types.js").Lease} lease */
  hold(lease) {
    this.held = lease;
  }

  /** The decision ended the lease. */
  ended() {
    this.held = null;
  }

  async giveBack() {
    const held = this.held;
    this.held = null;
    if (!held) return;
    try {
      await giveBackLease(held.lease);
    } catch {
      // It runs out by itself; there is nothing that the person could do.
    }
  }

  async renew() {
    const held = this.held;
    if (!held || this.idle() > this.seconds) return;
    try {
      await renewLease(held.lease);
    } catch (error) {
      if (!(error instanceof Refused) || this.held !== held || error.status === 401) return;
      await this.#takeAgain(held);
    }
  }

  /** @param {import("./types.js").Lease} lost */
  async #takeAgain(lost) {
    try {
      const again = await leaseItem(lost.item);
      if (this.held === lost) Object.assign(lost, again);
    } catch (error) {
      if (error instanceof Refused && error.status === 409) {
        this.warn(`${error.message} What you decide is kept beside what they decide.`);
      }
    }
  }
}
