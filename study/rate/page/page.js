// The rating page: asks for an item, shows it, sends the choice. All texts arrive from this server;
// the answers are HTML that items.py made safe, everything else is put in as text.
"use strict";
const at = id => document.getElementById(id), buttons = [...document.querySelectorAll("nav button")];
const KEYS = { 1: "first", ArrowLeft: "first", 2: "second", ArrowRight: "second", 0: "equal" };
let item = null, busy = false, touched = false, holder = 0, waiter = 0;

async function send(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return [answer.status, await answer.json()];
}
function say(text) { at("said").textContent = text; at("said").hidden = !text; }
function lock(on) { busy = on; for (const b of buttons) b.disabled = on; }
function ask(tokens) {
  at("ask").textContent = tokens ? "Your token" : "Your name (the same each time)";
  at("rate").hidden = true; at("enter").hidden = false; at("name").focus();
}
async function next() {
  lock(true); clearTimeout(waiter); clearInterval(holder);
  item = null;
  try {
    const [status, got] = await send("/next", {});
    if (status === 401) return ask(got.tokens);
    if (status !== 200) throw Error(got.error);
    at("enter").hidden = true;
    at("count").textContent = `${got.done} rated, ${got.left} open`;
    at("rate").hidden = !got.item;
    if (!got.item) {
      say(got.left ? "Every open item is with another rater just now. This page asks again by itself." : "All done. Thank you!");
      if (got.left) waiter = setTimeout(next, 15000);
      return;
    }
    item = got.item; say("");
    at("instruction").textContent = item.instruction; at("first").innerHTML = item.first; at("second").innerHTML = item.second;
    scrollTo(0, 0); at("instruction").scrollTop = 0;
    holder = setInterval(() => { if (touched && item) { touched = false; send("/hold", { lease: item.lease }).catch(() => {}); } }, got.hold_s * 1000);
    lock(false);
  } catch (error) { say(`The server does not answer (${error.message}). This page tries again by itself.`); waiter = setTimeout(next, 5000); }
}
async function vote(choice) {
  if (busy || !item) return;
  lock(true);
  for (;;) {
    try {
      const [status, got] = await send("/vote", { lease: item.lease, choice });
      if (status === 409) { await next(); return say("The item before went to somebody else in the meantime: that vote does not count."); }
      if (status === 401) return ask(got.tokens);
      if (status !== 200) throw Error(got.error);
      return next();
    } catch (error) { say(`The vote is not saved yet (${error.message}). This page tries again by itself.`); await new Promise(r => setTimeout(r, 3000)); }
  }
}
for (const b of buttons) b.addEventListener("click", () => vote(b.dataset.choice));
addEventListener("keydown", e => {
  if (e.repeat || e.ctrlKey || e.altKey || e.metaKey || e.target.matches("input") || !(e.key in KEYS)) return;
  e.preventDefault(); vote(KEYS[e.key]);
});
for (const kind of ["pointerdown", "pointermove", "keydown", "scroll"]) addEventListener(kind, () => { touched = true; }, { passive: true });
// Leaving gives the item back at once; a page that died without it loses its lease by time.
addEventListener("pagehide", () => { if (item && !busy) navigator.sendBeacon("/leave", new Blob([JSON.stringify({ lease: item.lease })], { type: "application/json" })); });
addEventListener("pageshow", e => { if (e.persisted) next(); });
at("enter").addEventListener("submit", async e => {
  e.preventDefault();
  const [status, got] = await send("/enter", { name: at("name").value }).catch(error => [0, { error: error.message }]);
  if (status !== 200) return say(got.error);
  at("name").value = ""; at("name").blur(); say(""); next();
});
next();
