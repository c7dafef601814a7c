/** The page of a reviewer: from the queue to a case, to a decision, to the next case. */

import * as api from "./api.js";
import { showCase, showComing, showNone } from "./casebar.js";
import { commands } from "./commands.js";
import { whyNothingIsKept } from "./database.js";
import { Deciding } from "./deciding.js";
import { Drafts } from "./drafts.js";
import { editable } from "./editable.js";
import { EditSession } from "./editing.js";
import { byId } from "./find.js";
import { Help } from "./help.js";
import { listenToKeys } from "./keys.js";
import { LeaseKeeper } from "./leases.js";
import { load } from "./loading.js";
import { Messages, wordsOf } from "./messages.js";
import { offerDraft, offerDrafts } from "./offers.js";
import { Panel } from "./panel.js";
import { Queue } from "./queue.js";
import { Scene } from "./scene.js";
import { masksToShow } from "./showing.js";
import { Stopwatch } from "./stopwatch.js";
import { showVisitor } from "./visitor.js";
import { Workbench } from "./workbench.js";

/** @typedef {{item: string, case: string, name: string, kind: string, lease: string}} Work */

const AGAIN_MS = 3000;
/** Others decide too: so often the list is brought up to date. */
const REFRESH_MS = 30000;

export class Desk {
  /** @param {import("./types.js").Me} me */
  constructor(me) {
    this.messages = new Messages(byId("status", HTMLElement), byId("alerts", HTMLElement));
    this.stopwatch = new Stopwatch();
    this.help = new Help();
    /** @type {Work|null} */
    this.work = null;
    /** @type {Work[]} cases that were open before */
    this.before = [];
    this.busy = false;
    this.waiting = false;
    /** Whether the person was told so. */
    this.unreachable = false;
    /** @type {AbortController} */
    this.coming = new AbortController();
    this.deciding = new Deciding(this, me.reviewer);
    this.drafts = new Drafts(me.reviewer, (problem) => this.messages.warn(problem));
    this.leases = new LeaseKeeper(me.lease_seconds, () => this.stopwatch.idle, (problem) => this.messages.warn(problem));
    this.queue = new Queue((item) => void this.openItem(item.item), (error) => this.failed(error), () => this.#reached());
    this.workbench = new Workbench({
      session: (view) => this.#session(view),
      edited: () => this.#edited(),
      say: (text) => this.messages.say(text),
    });
    this.panel = new Panel({
      chosen: (value) => this.selectStructure(value),
      shown: () => {
        this.workbench.scene?.changed();
        this.workbench.drawChart();
      },
      look: (fault) => this.#look(fault),
      doubt: (point) => void this.#doubt(point),
    });
    this.run = commands(this);
    showVisitor(me, (problem) => this.messages.warn(problem), () => this.#mayLeave());
    this.#listen();
  }

  async start() {
    this.workbench.reflect();
    const problem = await whyNothingIsKept();
    await this.deciding.outbox.load();
    await this.queue.load();
    setInterval(() => {
      if (document.visibilityState === "visible") void this.queue.refresh();
    }, REFRESH_MS);
    offerDrafts(await this.drafts.mine(), (item) => void this.openItem(item));
    await this.next();
    if (problem) {
      this.messages.warn(`This browser stores nothing (${problem}): what is not saved is lost when the page is closed. Allow this address to store data.`);
    }
  }

  /** Opens the case that is next in the order of the queue. */
  async next() {
    const after = this.work?.item;
    await this.#open(() => api.nextItem({ kinds: this.queue.wanted, ...(after ? { after } : {}) }));
  }

  async back() {
    const work = this.before.pop();
    if (!work) return this.messages.say("There is no case before this one.");
    await this.openItem(work.item, false);
  }

  /**
   * @param {string} item
   * @param {boolean} [remember] the case that is left, for the way back
   */
  async openItem(item, remember = true) {
    if (item === this.work?.item) return;
    await this.#open(() => api.leaseItem(item), remember);
  }

  /** @param {number} value */
  selectStructure(value) {
    const scene = this.workbench.scene;
    if (!scene?.structureOf(value)) return;
    scene.selected = value;
    scene.changed();
    this.panel.structures.select(value);
    this.workbench.drawChart();
  }

  /** @param {number[]} point where the reward network doubts most */
  async #doubt(point) {
    const { scene } = this.workbench;
    if (scene && !scene.rewardsShown) this.run("rewards", "");
    this.workbench.look(point, null);
  }

  /** @param {number} fault number of a failed rule */
  #look(fault) {
    const rule = this.workbench.scene?.faults[fault];
    if (rule) this.workbench.look(rule.points[0], fault);
  }

  /** @param {unknown} error */
  failed(error) {
    if (error instanceof DOMException && error.name === "AbortError") return;
    if (error instanceof api.Refused && error.status === 401) {
      return this.messages.warn("You are signed out. Sign in again in another tab, then go on here: what you did is still on this page.");
    }
    this.unreachable ||= error instanceof api.Unreachable;
    this.messages.warn(wordsOf(error));
    if (!(error instanceof api.Refused) && !(error instanceof api.Unreachable)) throw error;
  }

  #reached() {
    if (this.unreachable && !this.waiting) this.messages.calmDown();
    this.unreachable = false;
  }

  /**
   * @param {() => Promise<import("./types.js").Lease|null>} ask
   * @param {boolean} [remember]
   */
  async #open(ask, remember = true) {
    if (this.busy) return;
    this.busy = true;
    this.waiting = false;
    try {
      await this.drafts.flush();
      const lease = await ask();
      const left = this.work;
      if (left && lease?.item !== left.item) {
        if (remember) this.before.push(left);
        if (this.workbench.session?.changed) this.messages.say(`Your edit of ${left.name} is not saved; this browser keeps it, and offers it when you open the case again.`);
        void this.leases.giveBack();
      }
      if (lease) await this.#show(lease);
      else this.#nothing(left ? "There is no other case of this kind." : "Nothing is left of this kind. Well done.");
    } catch (error) {
      if (error instanceof api.Unreachable) this.#lost();
      else this.failed(error);
    } finally {
      this.busy = false;
    }
  }

  /** @param {import("./types.js").Lease & Partial<import("./types.js").QueueItem>} lease */
  async #show(lease) {
    this.coming.abort();
    this.coming = new AbortController();
    const { signal } = this.coming;
    const listed = this.queue.items.find((one) => one.item === lease.item);
    const kind = lease.kind ?? listed?.kind ?? "";
    this.leases.hold(lease);
    showComing(lease.name ?? listed?.name ?? "the case");
    /** @type {(open: import("./loading.js").OpenCase) => void} */
    let opened = () => {};
    const shown = new Promise((/** @type {(value: void) => void} */ resolve) => {
      opened = (open) => {
        this.work = { item: lease.item, case: lease.case, name: open.answer.name, kind, lease: lease.lease };
        this.#case(open, kind, lease.reason ?? listed?.reason ?? "");
        resolve();
      };
    });
    const arriving = byId("arriving", HTMLProgressElement);
    const progress = (/** @type {import("./loading.js").OpenCase} */ open) => {
      arriving.value = open.arrived;
      arriving.hidden = open.arrived === 1;
      const scene = this.workbench.scene;
      if (scene?.open === open) {
        scene.version++;
        scene.changed();
      }
    };
    const all = load(lease.case, lease.item, { opened, progress }, signal).catch((error) => {
      if (!(error instanceof api.Refused) || this.work?.item === lease.item) throw error;
      this.#broken({ item: lease.item, case: lease.case, name: lease.name ?? listed?.name ?? lease.case, kind, lease: lease.lease }, error);
    });
    const whole = all.then(() => {
      if (!signal.aborted) this.workbench.ready();
    });
    // Work begins when the masks are here; the rest of the image may still be on its way.
    await Promise.race([shown, whole]);
    whole.catch((error) => this.failed(error));
  }

  /**
   * @param {import("./loading.js").OpenCase} open
   * @param {string} kind
   * @param {string} reason
   */
  #case(open, kind, reason) {
    const work = /** @type {Work} */ (this.work);
    const { shown, subject } = masksToShow(open);
    const scene = new Scene(open);
    this.workbench.open(scene, shown);
    this.panel.show(scene, open.answer.masks, subject);
    showCase(open.answer, kind, reason);
    this.queue.mark(work.item);
    this.stopwatch.restart();
    this.messages.calmDown();
    void this.#offerDraft(work, scene);
  }

  /**
   * A case whose image or mask cannot be read: the person can set it aside, and the queue goes on.
   *
   * @param {Work} work
   * @param {api.Refused} problem
   */
  #broken(work, problem) {
    this.work = work;
    this.workbench.close();
    showNone(`${work.name} cannot be shown. ${wordsOf(problem)}`, false);
    this.panel.showBroken();
    this.queue.mark(work.item);
    this.stopwatch.restart();
  }

  /** @param {string} text */
  #nothing(text) {
    this.coming.abort();
    this.work = null;
    this.workbench.close();
    this.panel.hide();
    this.queue.mark("");
    showNone(text, this.queue.left > 0);
    void this.queue.load();
  }

  /** The desk does not answer: say so, and try again until it does. */
  #lost() {
    const text = `The desk cannot be reached. ${this.work ? "Try again in a moment" : "Trying again until it answers"}; what you decided is kept in this browser.`;
    if (!this.work) this.#nothing(text);
    this.messages.warn(text);
    // Who works on a case is not taken away from it when the connection comes back.
    this.waiting = !this.work;
    setTimeout(() => {
      if (this.waiting) void this.next();
    }, AGAIN_MS);
  }

  /**
   * @param {import("./view.js").View} view
   * @returns {EditSession|null} null where the mask may not be changed; the person is told why
   */
  #session(view) {
    const session = editable(view, this.panel);
    if (typeof session === "string") {
      this.messages.say(session);
      return null;
    }
    if (!view.scene.maskShown) this.run("mask", "");
    return session;
  }

  #edited() {
    const { work } = this;
    const session = this.workbench.session;
    if (!work || !session) return;
    byId("draft", HTMLElement).hidden = true;
    this.panel.edited = session.changed;
    this.panel.refresh();
    this.drafts.later(work, session);
  }

  /**
   * @param {Work} work
   * @param {Scene} scene
   */
  async #offerDraft(work, scene) {
    byId("draft", HTMLElement).hidden = true;
    const draft = await this.drafts.of(work.item);
    const base = draft && this.work === work ? scene.open.masks.get(draft.mask) : undefined;
    if (!draft || !base) return;
    const use = () => {
      const role = scene.open.answer.masks.find((mask) => mask.mask === draft.mask)?.role;
      if (role === "a" || role === "b") this.panel.choose(role);
      const session = new EditSession(draft.mask, base, scene.open.grid);
      session.restore(draft.slices, "draft");
      scene.sessions.set(draft.mask, session);
      scene.changed();
      this.workbench.reflect();
      this.#edited();
    };
    offerDraft(draft, use, () => void this.drafts.forget(work.item));
  }

  #listen() {
    for (const kind of ["pointerdown", "keydown", "wheel", "pointermove"]) addEventListener(kind, () => this.stopwatch.touch(), { passive: true, capture: true });
    document.addEventListener("click", (event) => {
      const action = event.target instanceof Element ? event.target.closest("[data-action]") : null;
      if (action instanceof HTMLElement && action.dataset.action) this.run(action.dataset.action, "");
    });
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") void this.drafts.flush();
    });
    const upload = byId("upload", HTMLInputElement);
    upload.addEventListener("change", () => {
      const file = upload.files?.[0];
      upload.value = "";
      if (file) void this.deciding.upload(file);
    });
    this.panel.comment.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.panel.comment.blur();
    });
    listenToKeys({
      first: (name) => this.workbench.cursor.take(name) || this.#polygonKey(name),
      comparing: () => this.panel.comparing,
      single: () => this.help.singleKeys,
      run: (id, key) => this.run(id, key),
    });
  }

  /** Before the person signs out. */
  async #mayLeave() {
    await this.drafts.flush();
    await this.leases.giveBack();
    const count = this.deciding.outbox.letters.length;
    return count === 0 || confirm(`${count} decisions are not saved yet. They stay in this browser until you sign in again. Sign out?`);
  }

  /** @param {string} name of a key */
  #polygonKey(name) {
    const { tools } = this.workbench;
    if (!tools.outline || (name !== "Enter" && name !== "Escape")) return false;
    if (name === "Enter") tools.close();
    else tools.cancel();
    return true;
  }
}

if (!document.documentElement.classList.contains("unsupported")) {
  try {
    await new Desk(await api.me()).start();
  } catch (error) {
    byId("nothing-text", HTMLElement).textContent = `The desk does not start: ${wordsOf(error)} Load the page again.`;
    throw error;
  }
}
