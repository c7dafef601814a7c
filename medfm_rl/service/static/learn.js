/** The page that turns decisions into a new model: what is there, what would be used, and how far a job is. */

import * as api from "./api.js";
import { byId, make } from "./find.js";
import { Messages, button, sentence, wordsOf } from "./messages.js";
import { showVisitor } from "./visitor.js";

const EVERY_MS = 2000;
const RUNNING = ["waiting", "running"];
/** @type {Record<string, string>} */
const STATES = { waiting: "waiting", running: "running", done: "done", failed: "failed", stopped: "stopped" };
/** @type {Record<string, string>} */
const ENTRIES = { mask: "corrected masks", verdict: "verdicts", grade: "grades", preference: "better of two", measurement: "measurements", removal: "taken back" };

const messages = new Messages(byId("status", HTMLElement), byId("alerts", HTMLElement));
/** Jobs whose log is open, so that a refresh does not close it. @type {Set<string>} */
const unfolded = new Set();
let before = "";

/**
 * @param {HTMLElement} list
 * @param {[string, string|number][]} figures
 */
function showFigures(list, figures) {
  list.replaceChildren(
    ...figures.map(([name, value]) => {
      const box = make("div", "");
      box.append(make("dt", "", name), make("dd", "", String(value)));
      return box;
    }),
  );
}

/** @param {import("./types.js").LearnAnswer} answer */
function showLearn({ store, next, ...rest }) {
  byId("learn-simulated", HTMLElement).hidden = !rest.simulated;
  const share = store.second.agreement;
  showFigures(byId("store", HTMLElement), [
    ["patients", store.patients],
    ["cases", store.cases],
    ["reviewers", store.reviewers],
    ["patients of the audit sample", store.audit.patients],
    ["read twice", `${store.second.answered} of ${store.second.asked}`],
    ["agreement", share === null ? "–" : `${Math.round(share * 100)} %`],
    ["disagreements", store.second.disagreements],
  ]);
  const rows = Object.entries(store.entries).map(([kind, count]) => {
    const row = make("tr", "");
    const head = make("th", "", ENTRIES[kind] ?? kind);
    head.scope = "row";
    row.append(head, make("td", "number", String(count)));
    return row;
  });
  byId("entries", HTMLTableElement).tBodies[0].replaceChildren(...rows);
  byId("entries", HTMLTableElement).hidden = rows.length === 0;
  showFigures(byId("use", HTMLElement), [
    ["patients", next.patients],
    ["cases", next.cases],
    ["corrected masks", next.masks],
    ["verdicts", next.verdicts],
    ["patients kept to compare on", next.kept_patients],
    ["cases kept to compare on", next.kept_cases],
  ]);
  byId("use-texts", HTMLElement).replaceChildren(...next.texts.map((text) => make("li", "", text)));
  byId("command", HTMLElement).textContent = next.command ?? "";
  byId("command", HTMLElement).parentElement?.toggleAttribute("hidden", !next.command);
  byId("adapt", HTMLButtonElement).disabled = !rest.can_start;
  byId("why-not", HTMLElement).textContent = rest.can_start ? "" : (rest.why_not ?? "");
}

/** @param {import("./types.js").Job[]} jobs */
function showJobs(jobs) {
  const now = JSON.stringify(jobs);
  if (now === before) return;
  before = now;
  byId("no-jobs", HTMLElement).hidden = jobs.length > 0;
  const list = byId("jobs", HTMLElement);
  const focused = document.activeElement instanceof HTMLElement && list.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  list.replaceChildren(...jobs.map((job) => jobRow(job, jobs)));
  for (const one of list.querySelectorAll("[data-focus]")) if (one instanceof HTMLElement && one.dataset.focus === focused) one.focus();
}

/**
 * @param {import("./types.js").Job} job
 * @param {import("./types.js").Job[]} all
 */
function jobRow(job, all) {
  const row = make("li", "job card");
  const head = make("div", "job-head");
  head.append(make("h3", "", job.kind === "compare" ? "Comparison of old and new" : "Adaptation"), make("span", `tag job-${job.state}`, STATES[job.state] ?? job.state));
  if (job.started) head.append(make("span", "quiet", `started ${new Date(job.started).toLocaleString()}`));
  row.append(head);
  if (RUNNING.includes(job.state)) row.append(...progressOf(job));
  if (job.error) row.append(make("p", "problem", sentence(job.error.message, job.error.remedy)));
  if (job.comparison) row.append(...comparisonOf(job.comparison));
  row.append(rowOfButtons(job, all.some((other) => other.of === job.job && [...RUNNING, "done"].includes(other.state))));
  if (job.log.length) row.append(logOf(job));
  return row;
}

/** @param {import("./types.js").Job} job */
function progressOf(job) {
  const bar = make("progress", "");
  bar.setAttribute("aria-label", `Progress of the ${job.kind} job`);
  bar.max = 1;
  if (job.progress !== null) bar.value = job.progress;
  const share = job.progress === null ? "" : `${Math.round(100 * job.progress)} %`;
  return [bar, make("p", "quiet", [share, job.step].filter(Boolean).join(" · "))];
}

/**
 * @param {import("./types.js").Job} job
 * @param {boolean} compared whether it is, or will be
 */
function rowOfButtons(job, compared) {
  const row = make("p", "row");
  if (job.report) {
    const link = make("a", "button", "Open the report");
    link.href = `${api.UNDER}${job.report}`;
    row.append(link);
  }
  if (job.kind === "adapt" && job.state === "done" && !compared) {
    row.append(named(button("Compare old and new", () => void start({ kind: "compare", job: job.job })), `compare-${job.job}`));
  }
  if (RUNNING.includes(job.state)) row.append(named(button("Stop", () => void stop(job.job)), `stop-${job.job}`));
  return row;
}

/**
 * @param {HTMLElement} element
 * @param {string} name by which it gets the focus back
 */
function named(element, name) {
  element.dataset.focus = name;
  return element;
}

/** @param {import("./types.js").Job} job */
function logOf(job) {
  const log = make("details", "");
  log.open = unfolded.has(job.job);
  log.addEventListener("toggle", () => (log.open ? unfolded.add(job.job) : unfolded.delete(job.job)));
  const text = make("pre", "", job.log.join("\n"));
  text.tabIndex = 0;
  log.append(named(make("summary", "", "What the job wrote"), `log-${job.job}`), text);
  return log;
}

/** @param {import("./types.js").Comparison} comparison */
function comparisonOf(comparison) {
  const table = make("table", "table");
  table.append(make("caption", "", `Dice on ${comparison.cases} cases of ${comparison.patients} patients kept for this`));
  const head = table.createTHead().insertRow();
  for (const name of ["structure", "old", "new", "difference", "interval"]) {
    const cell = make("th", name === "structure" ? "" : "number", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of comparison.rows) {
    const line = body.insertRow();
    const name = make("th", "", row.structure);
    name.scope = "row";
    const signed = (/** @type {number} */ value) => `${value > 0 ? "+" : ""}${value.toFixed(3)}`;
    const between = row.low === null || row.high === null ? "–" : `${signed(row.low)} to ${signed(row.high)}`;
    line.append(name, ...[row.before.toFixed(3), row.after.toFixed(3), signed(row.difference), between].map((text) => make("td", "number", text)));
  }
  return [table, ...comparison.texts.map((text) => make("p", "", text))];
}

/** @param {Record<string, unknown>} wish */
async function start(wish) {
  byId("adapt", HTMLButtonElement).disabled = true;
  try {
    await api.startJob(wish);
    messages.say("The job is started. It goes on when this page is closed.");
  } catch (error) {
    messages.warn(wordsOf(error));
  }
  await refresh();
}

/** @param {string} job */
async function stop(job) {
  if (!confirm("Stop this job? What it made so far stays in its folder.")) return;
  try {
    await api.stopJob(job);
    messages.say("The job is being stopped.");
  } catch (error) {
    messages.warn(wordsOf(error));
  }
  await refresh();
}

async function refresh() {
  try {
    const [answer, jobs] = await Promise.all([api.learn(), api.jobs()]);
    showLearn(answer);
    showJobs(jobs);
    messages.calmDown();
  } catch (error) {
    messages.warn(wordsOf(error));
  }
}

if (!document.documentElement.classList.contains("unsupported")) {
  const me = await api.me();
  showVisitor(me, (problem) => messages.warn(problem));
  byId("adapt", HTMLButtonElement).addEventListener("click", () => void start({ kind: "adapt" }));
  await refresh();
  setInterval(() => {
    if (document.visibilityState === "visible") void refresh();
  }, EVERY_MS);
}
