// An ordinary script, in words that every browser reads: where modules are not known, desk.js never starts.
(function () {
  var missing = [];
  if (!("noModule" in document.createElement("script"))) missing.push("modules");
  if (!window.PointerEvent) missing.push("pointer events");
  if (!window.indexedDB) missing.push("IndexedDB");
  if (!window.HTMLDialogElement) missing.push("dialogs");
  if (!window.CompressionStream) missing.push("compression streams");
  if (!window.crypto || !window.crypto.randomUUID) missing.push("random identifiers (they need https, or the machine itself)");
  if (!missing.length) return;
  document.documentElement.className += " unsupported";
  window.addEventListener("DOMContentLoaded", function () {
    var place = document.getElementById("unsupported-reason");
    if (place) place.textContent = "Missing: " + missing.join(", ") + ".";
  });
})();
