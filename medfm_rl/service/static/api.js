/** The only place that speaks with the service. */

/** The path that the desk lies under, behind a proxy that serves more than the desk; empty where it has a name of its own. */
export const UNDER = new URL("..", import.meta.url).pathname.replace(/\/$/, "");

/** An answer that says no: the service was reached, and gives a reason. */
export class Refused extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   * @param {string} remedy
   */
  constructor(status, code, message, remedy) {
    super(message);
    this.status = status;
    this.code = code;
    this.remedy = remedy;
  }
}

/** No answer at all: whether the request arrived is not known. */
export class Unreachable extends Error {}

/** What `/me` gave; every request that changes something shows it. */
let csrf = "";

/**
 * @param {Response} response
 * @returns {Promise<Refused>}
 */
async function refusal(response) {
  let code = `http_${response.status}`;
  let message = `The desk answered ${response.status}.`;
  let remedy = "";
  try {
    const body = await response.json();
    code = body.error?.code ?? code;
    message = body.error?.message ?? message;
    remedy = body.error?.remedy ?? "";
  } catch {
    // A proxy in between answers in its own words; the number is all that can be said.
  }
  return new Refused(response.status, code, message, remedy);
}

/**
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function ask(path, options) {
  try {
    return await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable("The desk cannot be reached.");
  }
}

/**
 * @param {string} path under /api/v1
 * @param {Omit<RequestInit, "headers"> & {headers?: Record<string, string>}} [options]
 * @returns {Promise<Response>} of a request that succeeded
 */
async function call(path, options = {}) {
  const writes = (options.method ?? "GET") !== "GET";
  const headers = () => ({ ...options.headers, ...(writes ? { "X-CSRF-Token": csrf } : {}) });
  let response = await ask(`${UNDER}/api/v1${path}`, { ...options, headers: headers() });
  if (response.status === 403 && writes) {
    const problem = await refusal(response.clone());
    if (problem.code === "csrf") {
      await me();
      response = await ask(`${UNDER}/api/v1${path}`, { ...options, headers: headers() });
    }
  }
  if (response.ok) return response;
  const problem = await refusal(response);
  // A gateway without its service is no answer of the service.
  if ([502, 503, 504].includes(response.status) && problem.code === `http_${response.status}`) {
    throw new Unreachable("The desk cannot be reached.");
  }
  throw problem;
}

/**
 * @param {string} path
 * @param {"GET"|"POST"|"DELETE"} [method]
 * @param {unknown} [body]
 * @param {Record<string, string>} [headers]
 * @returns {Promise<any>} null where the answer has no content
 */
async function json(path, method = "GET", body = undefined, headers = {}) {
  const response = await call(path, {
    method,
    headers: { Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return response.status === 204 ? null : response.json();
}

/** @returns {Promise<import("./types.js").Me>} */
export async function me() {
  const answer = await json("/me");
  csrf = answer.csrf;
  return answer;
}

/** Ends the session. */
export async function signOut() {
  const response = await ask(`${UNDER}/logout`, { method: "POST", headers: { "X-CSRF-Token": csrf } });
  if (!response.ok) throw await refusal(response);
}

/**
 * @param {{kind: string, state: string, text: string, offset: number, limit: number}} filter
 * @returns {Promise<import("./types.js").QueueAnswer>}
 */
export function queue(filter) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(filter)) if (value !== "") words.set(name, String(value));
  return json(`/queue?${words}`);
}

/**
 * @param {{kinds?: string[], after?: string}} wish
 * @returns {Promise<import("./types.js").Lease|null>} null when nothing is left
 */
export function nextItem(wish) {
  return json("/queue/next", "POST", wish);
}

/**
 * @param {string} item
 * @returns {Promise<import("./types.js").Lease>}
 */
export function leaseItem(item) {
  return json(`/items/${encodeURIComponent(item)}/lease`, "POST");
}

/** @param {string} lease */
export function renewLease(lease) {
  return json(`/leases/${encodeURIComponent(lease)}/renew`, "POST");
}

/**
 * Sent even while the page is being closed.
 *
 * @param {string} lease
 */
export async function giveBackLease(lease) {
  await call(`/leases/${encodeURIComponent(lease)}`, { method: "DELETE", keepalive: true });
}

/**
 * @param {string} id
 * @param {string} item a case may be shown blind in one item, and openly in another
 * @returns {Promise<import("./types.js").CaseAnswer>}
 */
export function openCase(id, item) {
  return json(`/cases/${encodeURIComponent(id)}?item=${encodeURIComponent(item)}`);
}

/**
 * @param {string} path of an image, a mask or rewards, under /cases
 * @param {number} from first slice or frame
 * @param {number} to one behind the last
 * @param {AbortSignal} signal
 * @returns {Promise<{bytes: ArrayBuffer, dtype: string}>}
 */
export async function rawArray(path, from, to, signal) {
  const response = await call(`${path}${path.includes("?") ? "&" : "?"}from=${from}&to=${to}`, { signal });
  try {
    return { bytes: await response.arrayBuffer(), dtype: response.headers.get("X-Dtype") ?? "uint8" };
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable("The connection broke while the image was on its way.");
  }
}

/**
 * @param {string} id case
 * @param {Uint8Array} labels of the whole grid
 * @param {number[]} shape z or frame, y, x
 * @returns {Promise<string>} the mask's hash
 */
export async function sendMask(id, labels, shape) {
  /** @type {Record<string, string>} */
  const headers = { "Content-Type": "application/octet-stream", "X-Shape": shape.join(",") };
  /** @type {BodyInit} */
  let body = new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (labels)]);
  if (labels.length > 65536) {
    body = await new Response(body.stream().pipeThrough(new CompressionStream("gzip"))).blob();
    headers["Content-Encoding"] = "gzip";
  }
  const response = await call(`/cases/${encodeURIComponent(id)}/masks`, { method: "POST", headers, body });
  return (await response.json()).mask;
}

/**
 * @param {string} id case
 * @param {File} file
 * @returns {Promise<string>} the mask's hash
 */
export async function uploadMask(id, file) {
  const form = new FormData();
  form.append("file", file);
  const response = await call(`/cases/${encodeURIComponent(id)}/masks`, { method: "POST", body: form });
  return (await response.json()).mask;
}

/**
 * @param {string} id case
 * @param {string|null} mask that is spoken of, if any
 * @returns {string} address of image and mask together
 */
export function downloadAddress(id, mask) {
  return `${UNDER}/api/v1/cases/${encodeURIComponent(id)}/download${mask ? `?mask=${encodeURIComponent(mask)}` : ""}`;
}

/**
 * @param {string} item
 * @param {import("./types.js").DecisionRequest} request
 * @param {string} key the same for every try, so that a decision stands once
 * @returns {Promise<{entries: string[]}>}
 */
export async function sendDecision(item, request, key) {
  const response = await call(`/items/${encodeURIComponent(item)}/decisions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": key },
    body: JSON.stringify(request),
  });
  if (response.status !== 201) throw new Refused(response.status, "not_saved", "The desk did not say that it saved the decision.", "");
  return response.json();
}

/**
 * @param {string} entry
 * @returns {Promise<{item?: string, case?: string}>}
 */
export function undoDecision(entry) {
  return json(`/decisions/${encodeURIComponent(entry)}/undo`, "POST");
}

/** @returns {Promise<import("./types.js").LearnAnswer>} */
export function learn() {
  return json("/learn");
}

/** @returns {Promise<import("./types.js").Job[]>} the newest first */
export function jobs() {
  return json("/jobs");
}

/**
 * @param {Record<string, unknown>} wish
 * @returns {Promise<import("./types.js").Job>}
 */
export function startJob(wish) {
  return json("/jobs", "POST", wish);
}

/** @param {string} job */
export function stopJob(job) {
  return json(`/jobs/${encodeURIComponent(job)}`, "DELETE");
}
