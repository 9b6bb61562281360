// The page: connects the form, the drawings, the history, the large view, dropped files and the keyboard.

import { getJson, onConnection, request, StudioError, takeToken, upload } from "./api.js";
import { Drawing } from "./drawing.js";
import { $, element, keepFocus } from "./elements.js";
import { History } from "./history.js";
import { moveAmong, runShortcut, singleKeys, typing, useSingleKeys } from "./keyboard.js";
import { randomSeed, Settings } from "./settings.js";
import { Viewer } from "./viewer.js";

const RETRY = 3000; // milliseconds between two questions whether the server is back
const MAX_UPLOAD = 20e6; // bytes, as the server's MAX_UPLOAD_BYTES

const settings = new Settings($("form"));
const drawings = new History($("history"), showDrawing);
let model = null;
let viewer = null;
const listeners = {
  open: (picture) => viewer.open(picture),
  changed(drawing) {
    drawings.update(drawing);
    if (drawing === drawings.current) showStatus(drawing);
  },
};

// connection

let retry = null;

onConnection((sentence, status) => {
  $("banner").hidden = !sentence;
  if ($("banner").textContent !== sentence) $("banner").textContent = sentence;
  clearTimeout(retry);
  if (status === 0) retry = setTimeout(() => request("api/model").catch(() => {}), RETRY);
});

async function connect() {
  try {
    model = await getJson("api/model");
  } catch (error) {
    if (!error.connection) fail(error);
    return;
  }
  settings.useModel(model);
  const size = ` · ${model.image_size} × ${model.image_size} pixels`;
  $("model").replaceChildren(model.name, element("span", { className: "detail" }, size));
  showExamples(model.examples);
  $("limits").replaceChildren(...model.limits.map((text) => element("li", {}, text)));
  $("limits-box").hidden = model.limits.length === 0;
  if (viewer) return;
  viewer = new Viewer(model, { edit: startEdit, reuse: reuseSettings, focus: focusPicture });
  drawings.restore(model.grid, listeners);
}

window.addEventListener("hashchange", () => takeToken() && connect()); // the new link, opened in this tab

// form

function showExamples(examples) {
  $("examples").replaceChildren(...examples.map((caption) => {
    const button = element("button", { type: "button" }, caption);
    button.addEventListener("click", () => {
      settings.fill({ caption });
      $("caption").focus();
    });
    return element("li", {}, button);
  }));
}

function fail(error) {
  $("error").textContent = error instanceof StudioError && error.connection ? "" : error.message;
  for (const field of $("form").elements) field.removeAttribute("aria-invalid");
  const named = error.field ?? $("form").elements[error.message.match(/^(\w+)[=:]/)?.[1].toLowerCase()];
  const field = named ?? (error.status ? $("caption") : null);
  if (!field) return;
  if (field !== $("caption")) $("settings").open = true;
  if (named) field.setAttribute("aria-invalid", "true");
  field.focus();
}

async function submit() {
  fail({ message: "" });
  if (!model) await connect();
  if (!model) return;
  try {
    await start(settings.read());
  } catch (error) {
    fail(error);
  }
}

/** Send a drawing to the server and show it. Throws `StudioError` if the server refuses it. */
async function start(values) {
  const drawing = new Drawing(values, model.grid, listeners);
  const focused = document.activeElement;
  $("draw").disabled = true;
  try {
    await drawing.start();
  } finally {
    $("draw").disabled = false;
    if (focused === $("draw")) focused.focus(); // a button loses it while it is disabled
  }
  drawings.add(drawing);
  drawing.followInTurn();
}

/** Draw a changed version of a picture with the form's settings. */
async function startEdit(picture, caption, edit) {
  const values = { ...settings.read(caption), edit: { ...edit, image: picture.id } };
  try {
    await start(values);
  } catch (error) {
    if (error.status !== 404 || !picture.blob) throw error;
    picture.id = (await upload(picture.blob)).id; // the server was restarted and has forgotten the picture
    await start({ ...values, edit: { ...edit, image: picture.id } });
  }
}

/** Fill the form with a drawing's settings. leftOut: names of others that its file has. Returns a sentence that says so. */
function fillForm({ settings: found, title }, leftOut = []) {
  settings.fill(found);
  const edited = found.edit || leftOut.includes("edit");
  const others = leftOut.filter((name) => name !== "edit").map((name) => name.replaceAll("_", "-"));
  const missing = [edited && "the edit", found.decoder && !model.has_decoder && "the diffusion decoder", ...others].filter(Boolean);
  return `The settings of “${title}” are in the form${missing.length ? `, without ${new Intl.ListFormat("en").format(missing)}` : ""}.`;
}

function reuseSettings({ drawing }) {
  $("status").textContent = fillForm(drawing);
  $("caption").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("caption").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return; // Enter also ends a word of an input method
  event.preventDefault();
  submit();
});
$("seed-dice").addEventListener("click", () => settings.fill({ seed: randomSeed() }));
$("seed-reuse").addEventListener("click", () => settings.fill({ seed: drawings.lastSeed }));
$("settings-reset").addEventListener("click", () => settings.reset());

// pictures

function showDrawing(drawing) {
  $("pictures").replaceChildren(drawing.element);
  $("history-empty").hidden = true;
  showStatus(drawing);
}

function showStatus(drawing) {
  const text = [drawing.status, drawing.note].filter(Boolean).join(" ");
  if ($("status").textContent !== text) $("status").textContent = text; // a screen reader says each change
  $("status").classList.toggle("failed", drawing.state === "failed");
  keepFocus(() => { $("cancel").hidden = !drawing.running; }, drawing.pictures[0]?.button, $("caption"));
}

function focusPicture(picture) {
  const target = picture?.button.isConnected ? picture.button : $("cancel").hidden ? $("caption") : $("cancel");
  target.focus();
}

$("cancel").addEventListener("click", () => drawings.current?.cancel());
$("pictures").addEventListener("keydown", (event) => {
  moveAmong(event, drawings.current.pictures.map((picture) => picture.button));
});

// pictures from files

/** Open a picture from a file: its settings fill the form, and it can be edited. */
async function openFile(file) {
  fail({ message: "" });
  if (!model) return;
  if (file.size > MAX_UPLOAD) return fail(new Error(`“${file.name}” is larger than 20 MB. Scale it down first.`));
  $("status").textContent = `Opening “${file.name}”.`;
  try {
    const { id, settings: found, left_out: leftOut } = await upload(file);
    const values = { ...found, caption: found?.caption ?? $("caption").value.trim() };
    const drawing = new Drawing(values, model.grid, listeners, file.name);
    await drawing.rank([{ id, candidate: found?.candidate ?? 0 }]);
    const settingsNote = found ? fillForm(drawing, leftOut) : `“${file.name}” has no settings inside.`;
    drawing.say(`${settingsNote} Choose the picture to edit it.`, "done");
    drawings.add(drawing);
    drawing.pictures[0]?.button.focus();
  } catch (error) {
    $("status").textContent = "";
    fail(error);
  }
}

$("open-file").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files[0]) openFile($("file").files[0]);
  $("file").value = "";
});
for (const name of ["dragenter", "dragover"]) {
  window.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
}
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
window.addEventListener("drop", (event) => {
  $("drop").hidden = true;
  const file = event.dataTransfer?.files[0];
  if (!file) return; // text, which a field takes
  event.preventDefault();
  $("viewer").close();
  openFile(file);
});

window.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (typing(event) && event.clipboardData.types.includes("text/plain")) return; // some programs copy text as a picture too
  if (file && !$("viewer").open) openFile(file);
});

// keyboard

const pageKeys = {
  "/": () => $("caption").focus(),
  s: () => { $("settings").open = !$("settings").open; },
  h: () => $("history").querySelector("button")?.focus(),
  o: () => $("file").click(),
  "?": () => $("help").showModal(),
};
const viewerKeys = {
  d: () => $("download").click(),
  r: () => $("reuse").click(),
  v: () => $("vary-subtly").click(),
  V: () => $("vary-strongly").click(),
  e: () => $("extend").querySelector("button").focus(),
  m: () => $("mask-start").click(),
  "[": () => viewer.changeBrush(-1),
  "]": () => viewer.changeBrush(1),
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if ($("help").open) return;
  if (!$("viewer").open) {
    if (event.key === "Escape") drawings.current?.cancel();
    else runShortcut(event, pageKeys);
    return;
  }
  const control = event.ctrlKey || event.metaKey;
  if (viewer.masking && control && event.target.id !== "edit-caption" && "zyZY".includes(event.key)) {
    event.preventDefault();
    if (event.key === "z") viewer.mask.undo();
    else viewer.mask.redo();
  } else if (["ArrowLeft", "ArrowRight"].includes(event.key) && !viewer.masking && event.target.matches("dialog, #close, #previous, #next")) {
    viewer.step(event.key === "ArrowLeft" ? -1 : 1);
  } else {
    runShortcut(event, viewerKeys);
  }
});

$("open-help").addEventListener("click", () => $("help").showModal());
$("help").querySelector("[data-close]").addEventListener("click", () => $("help").close());
$("single-keys").checked = singleKeys();
$("single-keys").addEventListener("change", () => useSingleKeys($("single-keys").checked));

takeToken();
$("caption").focus();
connect();
