// Requests to the studio's server: the token, errors as sentences, event streams, pictures as blob: URLs.

const TOKEN = "studio.token";
const LAST_EVENTS = new Set(["done", "cancelled", "failed"]);
const GONE = "The studio doesn't answer. Start it again with “dalle studio” and open the link that it prints; what you typed is kept.";
const NEW_LINK = "The studio wants another token: it was restarted, or this page was opened without its link. "
  + "Open the link that “dalle studio” printed last; what you typed is kept.";

/** Error with a sentence for the user. status: HTTP status; 0 if the server did not answer. */
export class StudioError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  /** True if the banner says what happened, so that no other place has to. */
  get connection() {
    return this.status === 0 || this.status === 401;
  }
}

/** Take the token from the link, and remove it from the address bar, so that no screenshot or bookmark holds it. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return false;
  sessionStorage.setItem(TOKEN, token);
  history.replaceState(null, "", location.pathname);
  return true;
}

let report = () => {};

/** Call `listener(sentence, status)` when the connection is lost, and `listener("", 200)` when the server answers. */
export function onConnection(listener) {
  report = listener;
}

/** Send a request with the token. Returns the response.
 *
 * Throws `StudioError` with the server's sentence.
 */
export async function request(path, { method = "GET", json, body, type, signal } = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ""}` };
  if (json !== undefined) [body, type] = [JSON.stringify(json), "application/json"];
  if (type) headers["Content-Type"] = type;
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (signal?.aborted) throw error;
    report(GONE, 0);
    throw new StudioError(GONE, 0);
  }
  if (response.status === 401) {
    report(NEW_LINK, 401);
    throw new StudioError(NEW_LINK, 401);
  }
  report("", response.status);
  if (!response.ok) throw await serverError(response);
  return response;
}

async function serverError(response) {
  const fallback = `The studio answered with an error (${response.status}). See its terminal.`;
  const { error } = await response.json().catch(() => ({}));
  return new StudioError(sentence(error?.message) || fallback, response.status);
}

/** Begin with a capital letter and end with a full stop. */
export function sentence(text = "") {
  const trimmed = text.trim();
  return trimmed && trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?”]$/.test(trimmed) ? "" : ".");
}

export const getJson = async (path) => (await request(path)).json();
export const postJson = async (path, json) => (await request(path, { method: "POST", json })).json();
export const upload = async (blob) => (await request("api/uploads",
  { method: "POST", body: blob, type: blob.type || "application/octet-stream" })).json();

/** Path of a picture; the id is opaque. */
export const imagePath = (id, rest = "") => `api/images/${encodeURIComponent(id)}${rest}`;

/** Fetch a picture. An <img> cannot send the token. */
export const getImage = async (id, rest = "") => (await request(imagePath(id, rest))).blob();

/** Yield a job's events, `{name, data}`, until the last one. Connects again if the stream breaks: the server repeats
 * the state so far. */
export async function* readEvents(job) {
  for (let failures = 0; failures < 6; failures++) {
    if (failures) await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** failures));
    try {
      const response = await request(`api/jobs/${encodeURIComponent(job)}/events`);
      for await (const event of parseEvents(response.body)) {
        failures = 0;
        yield event;
        if (LAST_EVENTS.has(event.name)) return;
      }
    } catch (error) {
      if (error instanceof StudioError && error.status) throw error; // an answer, not a lost connection
    }
  }
  throw new StudioError(GONE, 0);
}

async function* parseEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (buffer + value).split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) { // comments keep the connection alive
      const [, name, data] = block.match(/^event: (.+)\ndata: (.+)$/) ?? [];
      if (name) yield { name, data: JSON.parse(data) };
    }
  }
}
