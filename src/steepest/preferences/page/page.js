// The page: shows what is to be compared, sends what was judged, and shows what comes next.

import { Refused, deliver, persist, post, unsent, uuid } from "./api.js";
import { Player, video } from "./clips.js";
import { ACTIONS, Keys, named } from "./keys.js";
import { counts, nothingNow, pollEvery } from "./words.js";
import { textBlock, textTools } from "./text.js";

const by = (id) => document.getElementById(id);
const keys = new Keys();
const player = new Player({ group: by("player"), play: by("play"), word: by("play-word"), scrub: by("scrub"), clock: by("clock") });

let session = { labeller: null };
let labeller = null; // of this window: two windows of one browser may be two people's
let view = null; // what is shown now, as the server gave it
let placed = []; // a ranking so far: places of the members, best first
let shownAt = 0;
let busy = false;
let polling = 0;
let live = null; // how far the run is that asks while it trains, or null

// Saying things

function say(text, tone = "") {
  by("status").textContent = text;
  by("status").dataset.tone = tone;
}

function notice(title, text, undo = false) {
  by("comparison").hidden = true;
  player.clear();
  view = null;
  by("notice").hidden = false;
  by("notice-title").textContent = title;
  by("notice-text").textContent = text;
  by("notice-undo").hidden = !undo;
  by("notice-title").focus({ preventScroll: true });
}

const waiting = () => say("Not saved yet: the server does not answer. Trying again …", "warn");

function failed(error) {
  if (error instanceof Refused && error.status === 401) {
    notice("This link is no longer valid", "Open the link that the terminal shows. What you judged is safe.");
  } else if (error instanceof Refused) {
    say(error.message, "warn");
  } else {
    throw error;
  }
}

// Beginning

async function begin() {
  showKeys();
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  try {
    session = await post("/api/session", token === null ? {} : { token });
  } catch (error) {
    if (!(error instanceof Refused)) return notice("The server does not answer", "Is the program that printed the link still running? Reload the page once it is.");
    return failed(error);
  } finally {
    if (token !== null) history.replaceState(null, "", location.pathname); // it belongs in no history and no screenshot
  }
  document.title = `${session.project} – steepest label`;
  labeller = session.labeller ?? sessionStorage.getItem("steepest-name");
  if (labeller === null) return askName();
  return enter();
}

function askName() {
  const dialog = by("name-dialog");
  by("name").value = labeller ?? localStorage.getItem("steepest-name") ?? "";
  dialog.showModal();
  by("name").focus();
}

by("name-form").addEventListener("submit", () => {
  const name = by("name").value.trim();
  if (!name) return;
  labeller = name;
  sessionStorage.setItem("steepest-name", name);
  try { localStorage.setItem("steepest-name", name); } catch { /* private window */ }
  enter();
});

by("name-dialog").addEventListener("cancel", (event) => { if (labeller === null) event.preventDefault(); });

async function enter() {
  by("who").textContent = labeller;
  by("open-name").disabled = session.labeller !== null;
  await working(async () => {
    const left = unsent();
    if (left !== null && left.body.labeller === labeller) {
      try { await deliver(left.path, left.body, waiting); } catch (error) { if (error.status === 401) throw error; }
    }
    show(await persist("/api/next", { labeller }, waiting));
  });
}

// Do one thing with the server at a time: a key pressed meanwhile would judge what nobody has seen.
async function working(task) {
  if (busy) return;
  busy = true;
  document.documentElement.classList.add("busy");
  try { await task(); } catch (error) { failed(error); } finally {
    busy = false;
    document.documentElement.classList.remove("busy");
  }
}

// Showing

function show(answer) {
  clearTimeout(polling);
  live = answer.live;
  showCounts(answer.progress);
  if (answer.next === null) {
    notice(...nothingNow(live, answer.progress.done), answer.progress.done > 0);
    polling = setTimeout(poll, pollEvery(live));
    return;
  }
  view = answer.next;
  placed = [];
  by("notice").hidden = true;
  by("comparison").hidden = false;
  showPrompt(view.prompt);
  const clips = view.kind === "clip";
  const ranked = view.members.length > 2;
  const noun = clips ? "Clip" : "Response";
  by("question").textContent = ranked
    ? `Rank the ${view.members.length} ${noun.toLowerCase()}s, best first`
    : `Which ${noun.toLowerCase()} is better?`;
  const cards = by("cards");
  cards.dataset.count = view.members.length;
  cards.dataset.kind = view.kind;
  const made = view.members.map((member, place) => card(member, place, noun, ranked));
  cards.replaceChildren(...made.map((c) => c.element));
  player.show(made.flatMap((c) => c.videos));
  by("save-ranking").hidden = !ranked;
  showRanking();
  showKeys();
  scrollTo(0, 0);
  by("question").focus({ preventScroll: true });
  shownAt = Date.now() / 1000;
}

function showCounts({ done, left }) {
  const [text, max, value] = counts(live, done, left);
  by("count").textContent = text;
  Object.assign(by("meter"), { max, value });
}

function showPrompt(prompt) {
  by("prompt").hidden = prompt === null;
  by("prompt").querySelector(".card-foot")?.remove();
  if (prompt === null) return;
  const turns = prompt.map(({ role, text }) => {
    const turn = document.createElement("div");
    turn.className = "turn";
    if (role !== null) {
      const who = document.createElement("bdi");
      who.className = "role";
      who.textContent = role;
      turn.append(who);
    }
    const block = textBlock(text);
    turn.append(block.element, ...textTools(block, "the prompt"));
    return turn;
  });
  by("prompt-body").replaceChildren(...turns);
  by("prompt-body").scrollTop = 0;
}

function card(member, place, noun, ranked) {
  const name = `${noun} ${place + 1}`;
  const element = document.createElement("article");
  element.className = "card";
  element.dataset.place = place;
  const head = document.createElement("div");
  head.className = "card-head";
  const title = document.createElement("h2");
  title.className = "label";
  title.id = `card-${place}`;
  title.textContent = name;
  element.setAttribute("aria-labelledby", title.id);
  head.append(title);
  const videos = [];
  const foot = document.createElement("div");
  foot.className = "card-foot";
  let body;
  if (view.kind === "clip") {
    body = document.createElement("div");
    body.className = "screen";
    videos.push(video(member.id, name));
    body.append(videos[0]);
  } else {
    body = document.createElement("div");
    body.className = "untrusted";
    body.tabIndex = 0;
    body.setAttribute("role", "region");
    body.setAttribute("aria-label", name);
    const block = textBlock(member.text);
    body.append(block.element);
    foot.append(...textTools(block, name.toLowerCase()));
    if (member.cut) foot.append(`The rest of its ${member.length.toLocaleString("en")} characters is left out.`);
  }
  const choose = document.createElement("button");
  choose.type = "button";
  choose.className = "choose";
  const key = document.createElement("kbd");
  key.dataset.key = `choose-${place + 1}`;
  const word = document.createElement("span");
  word.textContent = ranked ? `${name} next` : `${name} is better`;
  choose.dataset.word = word.textContent;
  choose.append(word, key);
  choose.addEventListener("click", () => pick(place));
  element.append(head, body, foot, choose);
  return { element, videos };
}

function showRanking() {
  for (const element of by("cards").children) {
    const at = placed.indexOf(Number(element.dataset.place));
    if (at >= 0) element.dataset.rank = at + 1; else delete element.dataset.rank;
    const choose = element.querySelector(".choose");
    choose.disabled = at >= 0;
    choose.firstChild.textContent = at >= 0 ? `In place ${at + 1}` : choose.dataset.word;
  }
  by("save-ranking").disabled = placed.length < view.members.length;
}

// Judging

function pick(place) {
  if (view === null || place >= view.members.length || busy) return;
  if (view.members.length === 2) {
    const better = view.members[place].id;
    const other = view.members[1 - place].id;
    const noun = view.kind === "clip" ? "Clip" : "Response";
    send("prefer", [better, other], `${noun} ${place + 1} is better`);
    return;
  }
  if (placed.includes(place)) return;
  placed.push(place);
  const rest = view.members.map((_, i) => i).filter((i) => !placed.includes(i));
  if (rest.length === 1) placed.push(rest[0]);
  showRanking();
  const full = placed.length === view.members.length;
  say(full ? `Order: ${placed.map((p) => p + 1).join(", ")}. Enter saves it.` : `${place + 1} is in place ${placed.length}.`);
  if (full) by("save-ranking").focus({ preventScroll: true });
}

function unplace() {
  if (view === null || !placed.length) return;
  placed.pop();
  if (placed.length === view.members.length - 1) placed.pop(); // the last one had placed itself
  showRanking();
  say(placed.length ? `Order so far: ${placed.map((p) => p + 1).join(", ")}.` : "Nothing is placed.");
}

function send(kind, ranking, said) {
  if (view === null || busy) return;
  const body = {
    uuid: uuid(), labeller, assignment: view.assignment, kind, ranking, began: shownAt,
    ended: Math.max(shownAt, Date.now() / 1000),
  };
  working(async () => {
    try {
      show(await deliver("/api/judge", body, waiting));
      say(`Saved: ${said}.`);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 409) throw error;
      show(await persist("/api/next", { labeller }, waiting));
      say(error.message, "warn");
    }
  });
}

function undo() {
  if (placed.length) return unplace();
  if (busy || labeller === null) return;
  working(async () => {
    const answer = await deliver("/api/undo", { uuid: uuid(), labeller }, waiting);
    if (answer.undone) {
      show(answer);
      say("Undone: judge this one again.");
    } else {
      say("There is nothing to undo.");
    }
  });
}

function reveal() {
  if (view === null) return;
  const buttons = [...document.querySelectorAll(".reveal")];
  const on = buttons.some((b) => b.getAttribute("aria-pressed") === "false");
  for (const button of buttons) if ((button.getAttribute("aria-pressed") === "true") !== on) button.click();
  say(buttons.length ? (on ? "Invisible characters are shown." : "Invisible characters are hidden.") : "There are no invisible characters.");
}

// While there is nothing to judge, ask now and then; what the labeller does meanwhile goes first.
async function poll() {
  polling = setTimeout(poll, pollEvery(live));
  if (busy || document.querySelector("dialog[open]")) return;
  try {
    const answer = await post("/api/next", { labeller });
    if (busy || view !== null) return;
    if (answer.next === null) {
      if (answer.live !== null) stay(answer);
      return;
    }
    show(answer);
    say("New comparisons have come.");
  } catch (error) {
    if (error instanceof Refused) { clearTimeout(polling); failed(error); }
    else if (live !== null && view === null) ended();
  }
}

// Bring what a waiting page says up to date, without reading it out again where it is the same.
function stay(answer) {
  live = answer.live;
  showCounts(answer.progress);
  const [title, text] = nothingNow(live, answer.progress.done);
  if (by("notice-title").textContent !== title) notice(title, text, answer.progress.done > 0);
}

function ended() {
  const title = "The run has ended, or was stopped";
  if (by("notice-title").textContent === title) return;
  notice(title, "What you judged is saved. A run that is resumed prints a new link.");
}

by("tie").addEventListener("click", () => view && send("tie", view.members.map((m) => m.id), "equal"));
by("skip").addEventListener("click", () => view && send("skip", [], "skipped"));
by("undo").addEventListener("click", undo);
by("notice-undo").addEventListener("click", undo);
by("save-ranking").addEventListener("click", () => {
  if (view && placed.length === view.members.length) {
    send("rank", placed.map((p) => view.members[p].id), `order ${placed.map((p) => p + 1).join(", ")}`);
  }
});

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const action = keys.action(event);
  if (action === null) return;
  const [verb, number] = action.split("-");
  const does = { tie: () => by("tie").click(), skip: () => by("skip").click(), undo, reveal, unplace, play: () => player.toggle(), choose: () => pick(number - 1) };
  event.preventDefault();
  does[verb]();
});

// Keys

function showKeys() {
  document.documentElement.classList.toggle("keys-off", keys.off);
  for (const element of document.querySelectorAll("kbd[data-key]")) element.textContent = named(keys.map[element.dataset.key]);
}

function listKeys() {
  by("keys-off").checked = keys.off;
  by("keys-list").replaceChildren(...ACTIONS.map(([action, what]) => {
    const row = document.createElement("li");
    const label = document.createElement("span");
    label.textContent = what;
    const key = document.createElement("kbd");
    key.textContent = named(keys.map[action]);
    const change = document.createElement("button");
    change.type = "button";
    change.className = "small";
    change.textContent = "Change";
    change.setAttribute("aria-label", `Change the key for: ${what}`);
    change.addEventListener("click", () => listen(action, what, key, change));
    row.append(label, key, change);
    return row;
  }));
}

function listen(action, what, key, change) {
  change.textContent = "Press a key";
  by("keys-status").textContent = `Press the new key for: ${what}.`;
  const take = (event) => {
    if (["Shift", "Control", "Alt", "Meta", "CapsLock"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    end();
    if (event.key === "Escape" || event.key === "Tab") { by("keys-status").textContent = "Nothing was changed."; return; }
    const taken = event.ctrlKey || event.metaKey || event.altKey ? "a combination" : event.key === "Enter" ? "Save ranking" : keys.set(action, event.key);
    by("keys-status").textContent = taken === null ? `${what}: ${named(keys.map[action])}.` : `${named(event.key)} is taken by: ${taken}.`;
    key.textContent = named(keys.map[action]);
    showKeys();
  };
  const end = () => {
    removeEventListener("keydown", take, true);
    change.removeEventListener("blur", end);
    change.textContent = "Change";
  };
  addEventListener("keydown", take, true);
  change.addEventListener("blur", end);
}

by("open-keys").addEventListener("click", () => { listKeys(); by("keys-status").textContent = ""; by("keys-dialog").showModal(); });
by("keys-close").addEventListener("click", () => by("keys-dialog").close());
by("keys-reset").addEventListener("click", () => { keys.reset(); listKeys(); showKeys(); by("keys-status").textContent = "The keys are as they were."; });
by("keys-off").addEventListener("change", () => { keys.off = by("keys-off").checked; keys.keep(); showKeys(); });
by("open-name").addEventListener("click", () => { if (!busy) askName(); });

// Progress

function cell(tag, text) {
  const element = document.createElement(tag);
  if (tag === "th") element.scope = "row";
  const inside = document.createElement("bdi");
  inside.dir = "auto";
  inside.textContent = text;
  element.append(inside);
  return element;
}

const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);

by("open-progress").addEventListener("click", async () => {
  if (labeller === null) return;
  try {
    const { summary } = await post("/api/progress", { labeller });
    by("progress-text").textContent = `${summary.judged.toLocaleString("en")} judgements; ${summary.complete.toLocaleString("en")} of ${summary.items.toLocaleString("en")} comparisons have all their labels.`;
    by("progress-rows").replaceChildren(...summary.labellers.map((row) => {
      const line = document.createElement("tr");
      const repeated = row.repeats ? `${percent(row.consistent)} of ${row.repeats}` : "–";
      const time = row.seconds === null ? "–" : `${row.seconds.toFixed(1)} s`;
      line.append(cell("th", row.name), ...[row.judged, row.ties, row.skips].map((n) => cell("td", n.toLocaleString("en"))), cell("td", percent(row.left)), cell("td", repeated), cell("td", time));
      return line;
    }));
    by("progress-agreement").replaceChildren();
    by("progress-dialog").showModal();
    const { lines } = await post("/api/agreement", { labeller }); // takes seconds, the first time
    by("progress-agreement").replaceChildren(...lines.map((text) => {
      const line = document.createElement("li");
      line.textContent = text;
      return line;
    }));
  } catch (error) {
    if (error instanceof Refused) failed(error); else say("The server does not answer.", "warn");
  }
});
by("progress-close").addEventListener("click", () => by("progress-dialog").close());

begin();
