/** Colours of structures: Okabe and Ito (2008), which people with any colour vision tell apart. */

export const PALETTE = ["#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2"];

/** What is drawn where a reward network doubts, and where a rule failed. */
export const DOUBT = "#D55E00";
export const FAULT = "#F0E442";

/**
 * @param {import("./types.js").Structure} structure
 * @param {number} place of the structure in its case
 * @returns {string}
 */
export function colourOf(structure, place) {
  const given = structure.colour;
  return typeof given === "string" && /^#[0-9a-f]{6}$/i.test(given) ? given : PALETTE[place % PALETTE.length];
}

/**
 * @param {string} colour #rrggbb
 * @returns {[number, number, number]}
 */
export function channelsOf(colour) {
  const number = Number.parseInt(colour.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}
