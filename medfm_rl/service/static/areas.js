/** Area of a structure in each frame of a clip. */

/**
 * @param {Uint8Array} labels frame by frame
 * @param {import("./grid.js").Grid} grid
 * @param {number} structure
 * @returns {number[]} cm² where the spacing is in mm, else pixels
 */
export function areas(labels, grid, structure) {
  const size = grid.size[0] * grid.size[1];
  const pixel = grid.unit === "mm" ? (grid.spacing[0] * grid.spacing[1]) / 100 : 1;
  return Array.from({ length: grid.size[2] }, (_, frame) => {
    let count = 0;
    for (let place = frame * size; place < (frame + 1) * size; place++) count += Number(labels[place] === structure);
    return count * pixel;
  });
}
