// The form's settings: reading, filling, checking, and keeping what was typed.

import { $, plural } from "./elements.js";

const DRAFT = "studio.draft";
const MAX_SEED = 2 ** 31 - 1;

export const randomSeed = () => Math.floor(Math.random() * MAX_SEED);
const nameOf = (field) => field.labels[0].textContent.trim().toLowerCase();

/** Settings of the form `form`, for the model that `model` (the answer of /api/model) describes. */
export class Settings {
  constructor(form) {
    this.form = form;
    this.fields = form.elements;
    this.numbers = [...form.querySelectorAll("input[type=number]")];
    form.addEventListener("input", () => this.changed());
  }

  /** Fit the form to the model. */
  useModel(model) {
    const { candidates, temperature, top_k, guidance, rerank, decoder } = this.fields;
    candidates.max = model.max_candidates;
    candidates.defaultValue = Math.min(8, model.max_candidates);
    top_k.max = model.codes;
    temperature.placeholder = model.temperature;
    guidance.placeholder = model.guidance;
    for (const option of rerank.options) {
      const needsClip = option.value === "clip" || option.value === "mixture";
      const needsCaptions = option.value === "caption_likelihood";
      option.hidden = option.disabled = (needsClip && !model.has_clip) || (needsCaptions && !model.scores_captions);
    }
    const own = [...rerank.options].find(({ value }) => value === model.rerank);
    rerank.options[0].textContent = `the model’s (${own.textContent})`;
    decoder.disabled = $("decoder-field").hidden = !model.has_decoder;
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
    const wrong = (field, message) => Object.assign(new Error(message), { field });
    if (!settings.caption) throw wrong(this.fields.caption, "Type a caption first, such as “a red apple”.");
    for (const field of this.numbers) {
      const { badInput, stepMismatch, rangeUnderflow, rangeOverflow } = field.validity;
      if (badInput) throw wrong(field, `The value of ${nameOf(field)} is not a number.`);
      if (stepMismatch) throw wrong(field, `Use a whole number for ${nameOf(field)}.`);
      if (rangeUnderflow) throw wrong(field, `Use at least ${field.min} for ${nameOf(field)}.`);
      if (rangeOverflow) throw wrong(field, `Use at most ${field.max} for ${nameOf(field)}.`);
      settings[field.name] = field.value === "" ? null : Number(field.value);
    }
    settings.candidates ??= Number(this.fields.candidates.defaultValue);
    settings.seed ??= randomSeed();
    settings.rerank = this.fields.rerank.value || null;
    settings.decoder = this.fields.decoder.checked;
    return settings;
  }

  /** Fill the form with the settings of a picture; those that the form or the model does not have are left out. */
  fill(settings) {
    const { caption, rerank, decoder } = this.fields;
    for (const field of [caption, ...this.numbers]) {
      if (field.name in settings) field.value = settings[field.name] ?? "";
    }
    if (settings.rerank !== undefined) rerank.value = settings.rerank ?? "";
    if (rerank.selectedOptions[0]?.disabled ?? true) rerank.value = "none";
    if (settings.decoder !== undefined) decoder.checked = settings.decoder && !decoder.disabled;
    this.changed();
  }

  /** Keep what was typed, for this tab and for the next one: a restarted server prints a new link. */
  changed() {
    const { caption, rerank, decoder } = this.fields;
    const draft = Object.fromEntries([caption, ...this.numbers, rerank].map(({ name, value }) => [name, value]));
    draft.decoder = decoder.checked;
    if (this.fitted) for (const storage of [sessionStorage, localStorage]) storage.setItem(DRAFT, JSON.stringify(draft));
    this.summarise();
  }

  /** Say the settings that differ from the defaults, where the panel is closed. */
  summarise() {
    const [candidates, ...others] = this.numbers;
    const changed = others.filter(({ value, defaultValue }) => value !== "" && value !== defaultValue);
    const parts = changed.map((field) => `${nameOf(field)} ${field.value}`);
    const count = plural(candidates.value || candidates.defaultValue, "candidate");
    $("settings-summary").textContent = [count, ...parts].join(" · ");
  }
}
