/** A small chart: the area of a structure over time, with the frame that is shown. */

const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [128, 40, 22, 10, 8];

/**
 * @typedef {{name: string, values: number[], colour: string, dashed: boolean}} Line
 */

/**
 * @param {string} tag
 * @param {Record<string, string|number>} attributes
 * @param {string} [text]
 */
function element(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Chart {
  /**
   * @param {SVGSVGElement} svg
   * @param {(frame: number) => void} choose called when a place of the chart is pointed at
   */
  constructor(svg, choose) {
    this.svg = svg;
    /** @type {number[]} */
    this.times = [];
    /** @type {SVGElement|null} */
    this.cursor = null;
    this.frame = 0;
    this.width = 640;
    /** @type {(() => void)|null} draws the same again, in another size */
    this.again = null;
    this.frame = 0;
    new ResizeObserver(() => this.again?.()).observe(svg);
    const point = (/** @type {PointerEvent} */ event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * this.width;
      const nearest = this.times.map((_, frame) => Math.abs(this.x(frame) - x));
      if (nearest.length) choose(nearest.indexOf(Math.min(...nearest)));
    };
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointermove", (event) => {
      if (event.buttons === 1) point(event);
    });
  }

  /** @param {number} frame */
  x(frame) {
    const [first, last] = [this.times[0], this.times[this.times.length - 1]];
    return LEFT + ((this.times[frame] - first) / Math.max(last - first, 1e-9)) * (this.width - LEFT - RIGHT);
  }

  /**
   * @param {number[]} times seconds
   * @param {Line[]} lines
   * @param {string} unit of the values
   */
  draw(times, lines, unit) {
    this.times = times;
    this.again = () => this.draw(times, lines, unit);
    this.width = Math.max(200, this.svg.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    const most = Math.max(1e-9, ...lines.flatMap((line) => line.values)) * 1.08;
    const y = (/** @type {number} */ value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
    this.svg.replaceChildren();
    const digits = most < 10 ? 1 : 0;
    for (const share of [0, 0.5, 1]) {
      const height = y((share * most) / 1.08);
      this.svg.append(
        element("line", { class: "chart-rule", x1: LEFT, x2: this.width - RIGHT, y1: height, y2: height }),
        element("text", { class: "chart-text", x: LEFT - 6, y: height + 4, "text-anchor": "end" }, ((share * most) / 1.08).toFixed(digits)),
      );
    }
    const seconds = times[times.length - 1] - times[0];
    this.svg.append(
      element("text", { class: "chart-text", x: LEFT, y: HEIGHT - 4 }, `0 s`),
      element("text", { class: "chart-text", x: this.width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, `${seconds.toFixed(2)} s`),
    );
    const legend = element("text", { class: "chart-text", x: (this.width + LEFT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, `area, ${unit}: `);
    for (const line of lines) legend.append(element("tspan", { fill: line.colour, "font-weight": 600 }, `  ${line.dashed ? "╌" : "─"} ${line.name}`));
    this.svg.append(legend);
    for (const line of lines) {
      const points = line.values.map((value, frame) => `${this.x(frame).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      this.svg.append(
        element("polyline", {
          class: line.dashed ? "chart-line chart-dashed" : "chart-line",
          points,
          stroke: line.colour,
        }),
      );
    }
    this.cursor = element("line", { class: "chart-cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.point(this.frame);
    this.svg.append(this.cursor);
    const spoken = lines.map((line) => `${line.name} ${Math.min(...line.values).toFixed(digits)} to ${Math.max(...line.values).toFixed(digits)} ${unit}`);
    this.svg.setAttribute("aria-label", `Area over time: ${spoken.join("; ")}`);
  }

  /** @param {number} frame */
  point(frame) {
    this.frame = frame;
    if (!this.cursor || frame >= this.times.length) return;
    this.cursor.setAttribute("x1", String(this.x(frame)));
    this.cursor.setAttribute("x2", String(this.x(frame)));
  }
}
