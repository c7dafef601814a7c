/** Seconds that a person spent on a decision: pauses are not work. */

/** A longer rest than this is a pause. */
const REST_S = 30;

export class Stopwatch {
  /** @param {() => number} now milliseconds */
  constructor(now = () => performance.now()) {
    this.now = now;
    this.worked = 0;
    this.last = now();
  }

  restart() {
    this.worked = 0;
    this.last = this.now();
  }

  /** The person did something. */
  touch() {
    const now = this.now();
    this.worked += Math.min((now - this.last) / 1000, REST_S);
    this.last = now;
  }

  /** Seconds since the person did anything. */
  get idle() {
    return (this.now() - this.last) / 1000;
  }

  get seconds() {
    return Math.round((this.worked + Math.min(this.idle, REST_S)) * 10) / 10;
  }
}
