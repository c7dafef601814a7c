/** Plays a clip as a loop, at the speed of its own times. */

const USUAL_FRAMES_A_SECOND = 25;

export class Player {
  /**
   * @param {number} frames
   * @param {number[]|null|undefined} times seconds, one a frame
   * @param {(frame: number) => void} show
   */
  constructor(frames, times, show) {
    this.frames = frames;
    this.show = show;
    this.speed = 1;
    this.frame = 0;
    /** @type {number|null} */
    this.running = null;
    const known = times?.length === frames && frames > 1 && times[frames - 1] > times[0] ? times : null;
    /** @type {number[]} when each frame begins, in seconds from the first */
    this.starts = Array.from({ length: frames }, (_, frame) =>
      known ? known[frame] - known[0] : frame / USUAL_FRAMES_A_SECOND,
    );
    /** The last frame stands as long as frames do on average. */
    this.length = frames > 1 ? (this.starts[frames - 1] * frames) / (frames - 1) : 1;
  }

  get playing() {
    return this.running !== null;
  }

  play() {
    if (this.running !== null || this.frames < 2) return;
    let last = performance.now();
    let position = this.starts[this.frame];
    const tick = (/** @type {number} */ now) => {
      position = (position + ((now - last) / 1000) * this.speed) % this.length;
      last = now;
      const frame = this.frameAt(position);
      if (frame !== this.frame) {
        this.frame = frame;
        this.show(frame);
      }
      this.running = requestAnimationFrame(tick);
    };
    this.running = requestAnimationFrame(tick);
  }

  stop() {
    if (this.running !== null) cancelAnimationFrame(this.running);
    this.running = null;
  }

  /**
   * @param {number} position in seconds
   * @returns {number} the frame that is seen then
   */
  frameAt(position) {
    let frame = 0;
    while (frame + 1 < this.frames && this.starts[frame + 1] <= position) frame++;
    return frame;
  }
}
