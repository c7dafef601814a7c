/** What the browser keeps: unsaved edits and decisions that are not yet sent (IndexedDB). */

import { UNDER } from "./api.js";

// Desks of one name, under paths of their own, share what a browser keeps, and do not know each other's cases.
const NAME = `medfm-rl-desk${UNDER}`;

const VERSION = 1;
/** @typedef {"drafts"|"outbox"} Shelf */

/** @type {Promise<IDBDatabase>|null} */
let opened = null;

/** @returns {Promise<IDBDatabase>} */
function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const shelf of ["drafts", "outbox"]) {
        if (!request.result.objectStoreNames.contains(shelf)) request.result.createObjectStore(shelf, { keyPath: "id" });
      }
    };
    request.onsuccess = () => {
      // Another tab with a newer page may want to change the shelves.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => {
      opened = null;
      reject(request.error);
    };
  });
  return opened;
}

/**
 * @template T
 * @param {Shelf} shelf
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} use
 * @returns {Promise<T>} once it is written
 */
async function transact(shelf, mode, use) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(shelf, mode, { durability: "strict" });
    const request = use(transaction.objectStore(shelf));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}

/** Where this browser stores nothing: what would be kept, for as long as the page is open. */
const memory = { drafts: new Map(), outbox: new Map() };
let stores = true;

/**
 * Has to be called first.
 *
 * @returns {Promise<string>} why this browser stores nothing; empty where it does
 */
export async function whyNothingIsKept() {
  try {
    await open();
    return "";
  } catch (error) {
    stores = false;
    return error instanceof Error ? error.message : String(error);
  }
}

/**
 * @param {Shelf} shelf
 * @param {{id: string}} thing
 */
export async function keep(shelf, thing) {
  if (!stores) return void memory[shelf].set(thing.id, thing);
  await transact(shelf, "readwrite", (store) => store.put(thing));
}

/**
 * @param {Shelf} shelf
 * @param {string} id
 * @returns {Promise<any>} undefined where there is none
 */
export async function find(shelf, id) {
  return stores ? transact(shelf, "readonly", (store) => store.get(id)) : memory[shelf].get(id);
}

/**
 * @param {Shelf} shelf
 * @returns {Promise<any[]>}
 */
export async function all(shelf) {
  return stores ? transact(shelf, "readonly", (store) => store.getAll()) : [...memory[shelf].values()];
}

/**
 * @param {Shelf} shelf
 * @param {string} id
 */
export async function drop(shelf, id) {
  if (!stores) return void memory[shelf].delete(id);
  await transact(shelf, "readwrite", (store) => store.delete(id));
}
