// The page at /: one question to every model, their answers side by side as they grow.
// The server keeps the talk and the order of hidden names. Answers arrive as HTML that
// web/markdown.py made safe, or as text; everything else is put in as text.
"use strict";
const at = id => document.getElementById(id);
const SETTINGS = ["temperature", "tokens", "seed", "system"];
let served = { models: [], most: 3, votes: false };
let last = null; // the last turn
let running = null; // the request under way
let editing = false;

// --- what the browser keeps ---

function kept(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* a browser that keeps nothing */ }
  return null;
}
function rater() {
  const known = kept("rater");
  if (known) return known;
  const made = "rater-" + Array.from(crypto.getRandomValues(new Uint8Array(4)), b => b.toString(16).padStart(2, "0")).join("");
  kept("rater", made);
  return made;
}
function dark() {
  return getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
}
function paint(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  at("theme").textContent = dark() ? "Light" : "Dark";
  at("theme").setAttribute("aria-label", `Use ${dark() ? "light" : "dark"} colours`);
}

// --- the server ---

function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  try {
    const key = sessionStorage.getItem("key");
    if (key) headers.Authorization = `Bearer ${key}`;
  } catch { /* no key is kept */ }
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}
async function failure(response) {
  const said = await response.json().catch(() => null);
  const error = new Error(said?.error?.message || `the server answered ${response.status}`);
  error.status = response.status;
  return error;
}
async function call(path, body) {
  const response = await send(path, body);
  if (!response.ok) throw await failure(response);
  return response.json();
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}
function say(text) {
  at("said").textContent = text;
  at("said").hidden = !text;
}
function hear(text) { // once, for who listens; taken away again so that nobody meets it twice
  const line = document.createElement("p");
  line.textContent = text;
  at("heard").append(line);
  setTimeout(() => line.remove(), 8000);
}

// --- a turn ---

function copy(id) { return at(id).content.firstElementChild.cloneNode(true); }
function nameOf(turn, place) { return turn.names ? turn.names[place] : `Answer ${place + 1}`; }
function newTurn(question, parent) {
  const el = copy("turn");
  el.querySelector(".text").textContent = question;
  const turn = { el, question, parent, round: null, names: null, answers: [] };
  el.querySelector(".edit").addEventListener("click", () => edit());
  el.querySelector(".retry").addEventListener("click", () => ask(turn.question, turn.parent, turn));
  return turn;
}
function begin(turn, event) {
  turn.round = event.round;
  turn.names = event.names;
  turn.seed = event.seed;
  const notes = turn.el.querySelector(".notes");
  notes.textContent = event.notes.join(" ");
  notes.hidden = !event.notes.length;
  const grid = turn.el.querySelector(".answers");
  grid.dataset.count = event.count;
  for (let place = 0; place < event.count; place++) {
    const el = copy("answer"), title = el.querySelector("h3");
    title.id = `title-${turn.round}-${place}`;
    title.textContent = nameOf(turn, place);
    el.setAttribute("aria-labelledby", title.id);
    el.setAttribute("aria-busy", "true");
    const tail = document.createTextNode("");
    el.querySelector(".tail").append(tail);
    turn.answers.push({ el, tail, done: el.querySelector(".done"), text: "", ended: false });
    grid.append(el);
  }
}
function grow(turn, event) {
  const answer = turn.answers[event.place];
  if (event.end) return finish(turn, event);
  if (event.html !== undefined) {
    answer.done.insertAdjacentHTML("beforeend", event.html);
    answer.tail.data = event.rest;
  } else answer.tail.appendData(event.text);
}
function finish(turn, event) {
  const answer = turn.answers[event.place];
  answer.done.innerHTML = event.html;
  answer.tail.data = "";
  answer.ended = true;
  answer.end = event.end;
  answer.el.removeAttribute("aria-busy");
  note(answer, event.note);
  tell(answer, event.stats, turn);
  answer.text = answer.done.innerText.trim();
  hear(`${nameOf(turn, event.place)}: ${event.note || answer.text}`);
}
function note(answer, text) {
  const line = answer.el.querySelector(".note");
  line.textContent = text;
  line.hidden = !text;
}
const ENDS = { length: "cut at the limit of tokens", context: "the model's positions are full", stopped: "stopped", failed: "failed" };
function tell(answer, stats, turn) {
  const parts = [];
  if (stats) parts.push(`${stats.tokens} tokens in ${stats.seconds} s`);
  if (ENDS[answer.end]) parts.push(ENDS[answer.end]);
  if (stats && turn.seed !== undefined) parts.push(`seed ${turn.seed}`);
  answer.el.querySelector(".stats").textContent = parts.join(", ");
}

// --- asking ---

async function ask(question, parent, old) {
  if (running || !question.trim() || !settle()) return;
  const turn = newTurn(question, parent), abort = new AbortController();
  const models = served.models.filter((_, n) => at(`model-${n}`).checked);
  const seed = at("seed").value;
  running = { turn, abort };
  say("");
  show();
  if (old) old.el.replaceWith(turn.el); else at("turns").append(turn.el);
  at("empty").hidden = true;
  turn.el.scrollIntoView(); // to the top, where it stays while the answers grow below
  try {
    const response = await send("/page/ask", {
      question, parent, models, blind: at("blind").checked && models.length > 1, system: at("system").value,
      temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value),
      seed: seed === "" ? null : Number(seed),
    }, abort.signal);
    if (!response.ok) throw await failure(response);
    for await (const event of events(response)) {
      if (event.round) begin(turn, event); else grow(turn, event);
    }
    if (!turn.round || turn.answers.some(a => !a.ended)) throw new Error("the answer broke off");
  } catch (error) {
    broken(turn, old, error);
  }
  running = null;
  if (turn.round) { last = turn; verdict(turn); }
  show();
}
function broken(turn, old, error) {
  if (error.name !== "AbortError") say(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  if (error.status === 401) at("enter").hidden = false;
  if (turn.round) {
    for (const answer of turn.answers.filter(a => !a.ended)) {
      answer.el.removeAttribute("aria-busy");
      answer.ended = true;
      note(answer, "This answer broke off.");
    }
    return;
  }
  if (old) turn.el.replaceWith(old.el); else turn.el.remove(); // as it was before
  at("empty").hidden = Boolean(last);
  if (!at("question").value) at("question").value = turn.question;
}
function settle() { // whether the settings can be sent
  if (at("settings").checkValidity()) return true;
  at("settings").hidden = false;
  at("settings").reportValidity();
  return false;
}
function stop() {
  if (!running) return;
  const { turn, abort } = running;
  if (!turn.round) return abort.abort();
  call("/page/stop", { round: turn.round }).catch(() => abort.abort());
  setTimeout(() => abort.abort(), 2000); // a server that does not say so notices the hang-up
}
function submit() {
  const question = at("question").value;
  if (running || !question.trim()) return;
  at("question").value = "";
  const old = editing ? last : null;
  leave();
  ask(question, old ? old.parent : last?.round ?? null, old);
}
function edit() {
  if (running || !last) return;
  editing = true;
  at("editing").hidden = false;
  at("question").value = last.question;
  at("question").focus();
}
function leave() {
  editing = false;
  at("editing").hidden = true;
}
function show() {
  const busy = Boolean(running);
  const here = document.activeElement === at("send") || document.activeElement === at("stop");
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  if (here) at(busy ? "stop" : "send").focus();
  at("export").disabled = busy || !last;
  at("new").disabled = busy;
  for (const b of document.querySelectorAll(".tools button")) b.disabled = busy;
}

// --- which is better ---

function verdict(turn) {
  const box = turn.el.querySelector(".verdict");
  const places = turn.answers.map((_, p) => p).filter(p => turn.answers[p].done.innerText.trim() && turn.answers[p].end !== undefined && turn.answers[p].end !== "failed");
  turn.open = served.votes && places.length > 1 ? places : [];
  box.replaceChildren();
  if (turn.open.length) {
    const title = document.createElement("span");
    title.textContent = places.length > 2 ? "Which is best?" : "Which is better?";
    box.append(title);
    for (const p of places) box.append(button(nameOf(turn, p), () => vote(turn, String(p)), p + 1));
    box.append(button("Equal", () => vote(turn, "equal"), 0));
  }
  if (!turn.names) box.append(button("Show names", () => names(turn)));
  box.hidden = !box.childElementCount;
}
function button(text, act, key) {
  const b = document.createElement("button");
  b.type = "button";
  if (key !== undefined) {
    const k = document.createElement("kbd");
    k.textContent = key;
    b.append(k, " ");
  }
  b.append(text);
  b.addEventListener("click", act);
  return b;
}
async function vote(turn, choice) {
  if (running || !turn.open.length) return;
  const open = turn.open;
  turn.open = [];
  try {
    revealed(turn, await call("/page/vote", { round: turn.round, choice, rater: rater() }), choice);
  } catch (error) {
    turn.open = open;
    say(`The vote is not kept: ${error.message}.`);
  }
}
async function names(turn) {
  try {
    revealed(turn, await call("/page/names", { round: turn.round }));
  } catch (error) { say(`${error.message}.`); }
}
function revealed(turn, told, choice) {
  const box = turn.el.querySelector(".verdict"), held = box.contains(document.activeElement);
  turn.names = told.names;
  turn.open = [];
  turn.answers.forEach((answer, place) => {
    answer.el.querySelector("h3").textContent = nameOf(turn, place);
    answer.el.classList.toggle("chosen", choice === String(place));
    note(answer, told.answers[place].note);
    tell(answer, told.answers[place].stats, turn);
  });
  const line = document.createElement("span");
  line.textContent = choice === undefined ? "The names were shown without a vote."
    : choice === "equal" ? "Your vote: equal." : `Your vote: ${nameOf(turn, Number(choice))}.`;
  box.replaceChildren(line);
  box.hidden = false;
  hear(`${line.textContent} ${turn.names.map((name, n) => `Answer ${n + 1} is ${name}.`).join(" ")}`);
  if (held) at("question").focus();
}

// --- the way out, and in ---

async function download() {
  try {
    const { rows } = await call("/page/export", { round: last.round });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(rows, null, 1)], { type: "application/json" }));
    link.download = `talk-${last.round.slice(0, 8)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say("");
  } catch (error) { say(`Nothing to export: ${error.message}.`); }
}
function renew() {
  if (running) return;
  last = null;
  leave();
  at("turns").replaceChildren();
  at("empty").hidden = false;
  say("");
  show();
  at("question").focus();
}
function list() {
  at("served").textContent = served.models.join(" · ");
  at("models").hidden = served.models.length < 2;
  at("hide").hidden = served.models.length < 2;
  served.models.forEach((name, n) => {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", id: `model-${n}`, checked: n < served.most });
    label.append(box, name);
    at("models").append(label);
  });
  choose();
}
function choose() { // one model at least, `most` at most
  const boxes = [...at("models").querySelectorAll("input")], on = boxes.filter(b => b.checked).length;
  for (const b of boxes) b.disabled = b.checked ? on === 1 : on >= served.most;
}
async function enter() {
  try {
    served = await call("/page/about", {});
    at("enter").hidden = true;
    say("");
    at("models").querySelectorAll("label").forEach(l => l.remove());
    list();
    at("question").focus();
  } catch (error) {
    at("enter").hidden = error.status !== 401;
    if (error.status === 401) at("key").focus(); else say(`The server does not answer (${error.message}).`);
  }
}

at("compose").addEventListener("submit", e => { e.preventDefault(); submit(); });
at("settings").addEventListener("submit", e => e.preventDefault());
at("enter").addEventListener("submit", e => {
  e.preventDefault();
  try { sessionStorage.setItem("key", at("key").value.trim()); } catch { /* asked again next time */ }
  at("key").value = "";
  enter();
});
at("question").addEventListener("keydown", e => {
  if (e.isComposing) return;
  if (e.key === "Enter" && !e.shiftKey) { e.preventDefault(); submit(); }
  if (e.key === "ArrowUp" && !at("question").value && last && !running) { e.preventDefault(); edit(); }
});
addEventListener("keydown", e => {
  if (e.isComposing || e.ctrlKey || e.altKey || e.metaKey || e.repeat) return;
  if (e.key === "Escape") return running ? stop() : editing && (at("question").value = "", leave());
  if (e.target.matches("input, textarea")) return;
  if (e.key === "/") { e.preventDefault(); at("question").focus(); }
  if (!/^[0-3]$/.test(e.key) || !last?.open?.length) return;
  const place = Number(e.key) - 1;
  if (place < 0) vote(last, "equal"); else if (last.open.includes(place)) vote(last, String(place));
});
if (!CSS.supports("field-sizing", "content")) at("question").addEventListener("input", () => {
  at("question").style.height = "auto";
  at("question").style.height = `${at("question").scrollHeight + 2}px`;
});
at("stop").addEventListener("click", stop);
at("leave").addEventListener("click", () => { at("question").value = ""; leave(); at("question").focus(); });
at("new").addEventListener("click", renew);
at("export").addEventListener("click", download);
at("adjust").addEventListener("click", () => {
  at("settings").hidden = !at("settings").hidden;
  at("adjust").setAttribute("aria-expanded", String(!at("settings").hidden));
});
at("theme").addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  kept("theme", theme);
  paint(theme);
});
at("reseed").addEventListener("click", () => {
  at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  kept("seed", at("seed").value);
});
at("models").addEventListener("change", choose);
for (const name of SETTINGS) {
  at(name).value = kept(name) ?? at(name).value;
  at(name).addEventListener("change", () => kept(name, at(name).value));
}
at("blind").checked = kept("blind") === "true";
at("blind").addEventListener("change", () => kept("blind", at("blind").checked));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint());
paint(kept("theme"));
enter();
