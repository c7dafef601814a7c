/** What the browser keeps: unsaved edits and decisions that are not yet sent (IndexedDB). */

const NAME = "medfm-rl-desk";
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

/**
 * @param {Shelf} shelf
 * @param {{id: string}} thing
 */
export async function keep(shelf, thing) {
  await transact(shelf, "readwrite", (store) => store.put(thing));
}

/**
 * @param {Shelf} shelf
 * @param {string} id
 * @returns {Promise<any>} undefined where there is none
 */
export function find(shelf, id) {
  return transact(shelf, "readonly", (store) => store.get(id));
}

/**
 * @param {Shelf} shelf
 * @returns {Promise<any[]>}
 */
export function all(shelf) {
  return transact(shelf, "readonly", (store) => store.getAll());
}

/**
 * @param {Shelf} shelf
 * @param {string} id
 */
export async function drop(shelf, id) {
  await transact(shelf, "readwrite", (store) => store.delete(id));
}
