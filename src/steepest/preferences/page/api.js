// Talking to the server. A judgement has its uuid before it is sent, and is kept until the server says that it is on
// disk: sent again after a lost answer or a reload, it still counts once.

const OUTBOX = "steepest-outbox";
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    credentials: "same-origin",
    cache: "no-store",
  });
  let data = {};
  try { data = await answer.json(); } catch { /* the status says it */ }
  if (!answer.ok) throw new Refused(answer.status, typeof data.error === "string" ? data.error : `status ${answer.status}`);
  return data;
}

// Repeat a request until the server has answered it, whatever happens to single answers.
export async function persist(path, body, waiting) {
  for (let wait = 250; ; wait = Math.min(4000, wait * 2)) {
    try {
      return await post(path, body);
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
      waiting(error);
      await pause(wait);
    }
  }
}

export function unsent() {
  try { return JSON.parse(sessionStorage.getItem(OUTBOX) ?? "null"); } catch { return null; }
}

export async function deliver(path, body, waiting) {
  sessionStorage.setItem(OUTBOX, JSON.stringify({ path, body }));
  try {
    const answer = await persist(path, body, waiting);
    sessionStorage.removeItem(OUTBOX);
    return answer;
  } catch (error) {
    if (error.status !== 401) sessionStorage.removeItem(OUTBOX); // a new link lets it be sent after all
    throw error;
  }
}

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID(); // absent where the page is neither local nor encrypted
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
