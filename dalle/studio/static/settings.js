// The form's settings: reading, filling, checking, and keeping what was typed.

import { $, plural } from "./elements.js";

const DRAFT = "studio.draft";
const MAX_SEED = 2 ** 31 - 1;
const NUMBERS = ["candidates", "keep", "temperature", "top_k", "top_p", "min_p", "guidance", "seed"];
const NAMES = { candidates: "candidates", keep: "keep the best", temperature: "temperature", top_k: "top-k",
  top_p: "top-p", min_p: "min-p", guidance: "guidance", seed: "seed" };
const WHOLE = new Set(["candidates", "keep", "top_k", "seed"]);

export const randomSeed = () => Math.floor(Math.random() * MAX_SEED);

/** Settings of the form `form`, for the model that `model` (the answer of /api/model) describes. */
export class Settings {
  constructor(form) {
    this.form = form;
    this.fields = form.elements;
    this.lastSeed = null;
    form.addEventListener("input", () => this.changed());
  }

  /** Fit the form to the model. */
  useModel(model) {
    this.fields.candidates.max = model.max_candidates;
    this.fields.candidates.defaultValue = Math.min(8, model.max_candidates);
    this.fields.top_k.max = model.codes;
    this.fields.guidance.placeholder = model.guidance ?? 1;
    for (const option of this.fields.rerank.options) {
      const needsClip = option.value === "clip" || option.value === "mixture";
      option.hidden = option.disabled = needsClip && !model.has_clip;
      option.defaultSelected = option.value === (model.has_clip ? "clip" : "none");
    }
    $("decoder-field").hidden = !model.has_decoder;
    if (this.fitted) return; // the server was restarted: what was typed stays
    this.fitted = true;
    const draft = sessionStorage.getItem(DRAFT) ?? localStorage.getItem(DRAFT);
    const typed = this.fields.caption.value; // while the model was asked for
    this.reset();
    if (draft) this.fill(JSON.parse(draft));
    if (typed) this.fill({ caption: typed });
  }

  /** Set everything but the caption to the defaults. */
  reset() {
    const caption = this.fields.caption.value;
    this.form.reset();
    this.fields.caption.value = caption;
    this.changed();
  }

  /** Read the form as a request of a drawing; an empty seed becomes a random one. An edit has its own caption.
   *
   * Throws `Error` with a sentence, and the field in `field`, for a value that cannot be sent.
   */
  read(caption = this.fields.caption.value) {
    const settings = { caption: caption.trim().replace(/\s+/g, " ") };
    if (!settings.caption) throw this.wrong("caption", "Type a caption first, such as “a red apple”.");
    for (const name of NUMBERS) {
      const field = this.fields[name];
      const text = field.value.trim();
      if (field.validity.badInput) throw this.wrong(name, `The value of ${NAMES[name]} is not a number.`);
      settings[name] = text === "" ? null : Number(text);
      if (text === "") continue;
      if (WHOLE.has(name) && !Number.isInteger(settings[name])) throw this.wrong(name, `Use a whole number for ${NAMES[name]}.`);
      if (field.validity.rangeUnderflow) throw this.wrong(name, `Use at least ${field.min} for ${NAMES[name]}.`);
      if (field.validity.rangeOverflow) throw this.wrong(name, `Use at most ${field.max} for ${NAMES[name]}.`);
    }
    settings.candidates ??= Number(this.fields.candidates.defaultValue);
    settings.temperature ??= 1;
    settings.seed ??= randomSeed();
    this.lastSeed = settings.seed;
    settings.rerank = this.fields.rerank.value;
    settings.decoder = this.fields.decoder.checked;
    return settings;
  }

  /** Fill the form with the settings of a picture; names that the form does not have are left out. */
  fill(settings) {
    for (const name of ["caption", ...NUMBERS]) {
      if (name in settings) this.fields[name].value = settings[name] ?? "";
    }
    if (settings.rerank !== undefined) this.fields.rerank.value = settings.rerank ?? "none";
    if (this.fields.rerank.selectedIndex < 0) this.fields.rerank.value = "none";
    if (settings.decoder !== undefined) this.fields.decoder.checked = Boolean(settings.decoder);
    this.changed();
  }

  wrong(name, message) {
    return Object.assign(new Error(message), { field: this.fields[name] });
  }

  /** Keep what was typed, for this tab and for the next one: a restarted server prints a new link. */
  changed() {
    const draft = { caption: this.fields.caption.value };
    for (const name of NUMBERS) draft[name] = this.fields[name].value;
    draft.rerank = this.fields.rerank.value;
    draft.decoder = this.fields.decoder.checked;
    if (this.fitted) for (const storage of [sessionStorage, localStorage]) storage.setItem(DRAFT, JSON.stringify(draft));
    this.summarise();
  }

  /** Say the settings that differ from the defaults, where the panel is closed. */
  summarise() {
    const parts = [plural(this.fields.candidates.value || this.fields.candidates.defaultValue, "candidate")];
    for (const name of NUMBERS.slice(1)) {
      const { value, defaultValue } = this.fields[name];
      if (value !== defaultValue && value !== "") parts.push(`${NAMES[name]} ${value}`);
    }
    $("settings-summary").textContent = parts.join(" · ");
  }
}
