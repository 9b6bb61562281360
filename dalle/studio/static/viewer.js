// Large view of a picture: download, settings, variations, extensions, a mask to redraw, attention, nearest pictures.

import { getJson, imagePath, upload } from "./api.js";
import { $, element, keepFocus } from "./elements.js";
import { Mask } from "./mask.js";

const SUBTLY = 0.25; // shares of the tokens that are drawn anew
const STRONGLY = 0.75;
const EXTENSION = 0.25; // share of the model's grid that is added on one side
const HIDDEN_FACTS = new Set(["caption", "edit"]);

/** The dialog of one picture. actions: {edit(picture, caption, edit), reuse(picture), focus(picture)}. */
export class Viewer {
  constructor(model, actions) {
    Object.assign(this, { model, actions, dialog: $("viewer"), picture: null, mask: null });
    this.mask = new Mask($("mask"), () => this.showMaskState());
    const click = (id, act) => $(id).addEventListener("click", act);
    click("close", () => this.dialog.close());
    click("previous", () => this.step(-1));
    click("next", () => this.step(1));
    click("download", () => this.download());
    click("reuse", () => this.reuse());
    click("vary-subtly", () => this.vary(SUBTLY));
    click("vary-strongly", () => this.vary(STRONGLY));
    for (const button of $("extend").querySelectorAll("button")) {
      button.addEventListener("click", () => this.edit({ kind: "extend", direction: button.dataset.direction, amount: EXTENSION }));
    }
    click("mask-start", () => this.masking ? this.showMask(false) : this.beginMask());
    click("undo", () => this.mask.undo());
    click("redo", () => this.mask.redo());
    click("clear", () => this.mask.clear());
    click("inpaint", () => this.inpaint());
    $("brush").addEventListener("input", () => { this.mask.size = Number($("brush").value); });
    $("words").addEventListener("toggle", () => $("words").open ? this.showWords() : this.showHeat(null));
    $("nearest").addEventListener("toggle", () => $("nearest").open && this.showNearest());
    this.dialog.addEventListener("cancel", (event) => { // Esc leaves the mask first
      if (!this.masking) return;
      event.preventDefault();
      this.showMask(false);
      $("mask-start").focus();
    });
    this.dialog.addEventListener("close", () => this.actions.focus(this.picture));
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  get masking() { return !$("mask").hidden; }
  get pictures() { return this.picture.drawing.finished; }

  open(picture) {
    this.picture = picture;
    const { drawing } = picture;
    this.showMask(false);
    this.fail("");
    $("viewer-title").textContent = drawing.title;
    $("edit-caption").value = drawing.caption;
    $("viewer-image").src = picture.url ?? picture.image.src;
    $("viewer-image").alt = picture.image.alt;
    $("shape-note").hidden = picture.image.naturalWidth === picture.image.naturalHeight;
    const place = this.pictures.indexOf(picture);
    $("viewer-place").textContent = `${place + 1} of ${this.pictures.length}`;
    keepFocus(() => {
      $("previous").disabled = place <= 0;
      $("next").disabled = place >= this.pictures.length - 1;
    }, $("previous"), $("next"), $("close"));
    for (const id of ["words", "nearest"]) $(id).open = false;
    $("words").hidden = drawing.file !== null;
    $("nearest").hidden = $("words").hidden || !this.model.has_training_images;
    $("words-list").replaceChildren();
    $("nearest-list").replaceChildren();
    this.showHeat(null);
    this.showFacts({ ...drawing.settings, candidate: picture.candidate, score: picture.score });
    if (!this.dialog.open) this.dialog.showModal();
  }

  step(by) {
    const place = this.pictures.indexOf(this.picture) + by;
    if (this.pictures[place]) this.open(this.pictures[place]);
  }

  fail(message) {
    $("viewer-error").textContent = message;
  }

  showFacts(settings) {
    const { edit } = settings;
    const facts = Object.entries(settings).filter(([name, value]) => !HIDDEN_FACTS.has(name) && value !== null && typeof value !== "object");
    if (edit) facts.push(["edit", [edit.kind, edit.direction, edit.strength].filter(Boolean).join(" ")]);
    const text = (value) => typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : `${value}`;
    $("facts").replaceChildren(...facts.flatMap(([name, value]) => [
      element("dt", {}, name.replaceAll("_", "-")),
      element("dd", {}, text(value)),
    ]));
  }

  /** Save the picture's file, which holds all settings. */
  async download() {
    await this.picture.loaded;
    const { drawing, url, candidate } = this.picture;
    const words = drawing.title.toLowerCase().replace(/\.\w+$/, "").match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
    const seed = drawing.file ? "" : `-seed-${drawing.settings.seed}-candidate-${candidate}`;
    const name = `${words.join("-").slice(0, 60)}${seed}.png`;
    element("a", { href: url, download: name }).click();
  }

  reuse() {
    this.dialog.close();
    this.actions.reuse(this.picture);
  }

  vary(strength) {
    return this.edit({ kind: "vary", strength });
  }

  /** Draw a changed picture. The edit is sent with the picture's id. */
  async edit(edit) {
    const caption = $("edit-caption").value.trim();
    if (!caption) return this.failAt("edit-caption", "Type a caption for the changed picture first.");
    this.fail("");
    try {
      await this.actions.edit(this.picture, caption, edit);
      this.dialog.close();
    } catch (error) {
      this.fail(error.message);
    }
  }

  failAt(id, message) {
    this.fail(message);
    $(id).focus();
  }

  beginMask() {
    const { naturalWidth, naturalHeight } = $("viewer-image");
    this.showHeat(null);
    this.showMask(true);
    this.mask.size = Number($("brush").value);
    this.mask.start(naturalWidth, naturalHeight, Math.min(naturalWidth, naturalHeight) / this.model.grid);
    $("mask").focus({ preventScroll: true });
    $("stage").scrollIntoView({ block: "nearest" });
  }

  showMask(shown) {
    $("mask").hidden = $("mask-tools").hidden = !shown;
    this.dialog.classList.toggle("masking", shown);
    $("mask-start").ariaExpanded = String(shown);
    $("mask-start").textContent = shown ? "Leave the mask" : "Brush a mask";
  }

  showMaskState() {
    keepFocus(() => {
      $("undo").disabled = !this.mask.canUndo;
      $("redo").disabled = !this.mask.canRedo;
      $("clear").disabled = this.mask.empty;
    }, $("mask"));
  }

  changeBrush(by) {
    $("brush").value = Number($("brush").value) + by;
    this.mask.size = Number($("brush").value);
  }

  async inpaint() {
    if (this.mask.empty) return this.failAt("mask", "The mask is empty: brush over the part that is to be drawn again.");
    try {
      const { id } = await upload(await this.mask.toBlob());
      await this.edit({ kind: "inpaint", mask: id });
    } catch (error) {
      this.fail(error.message);
    }
  }

  showWords() {
    return this.explain("words", "attention", "Measuring.", ({ words }) => {
      $("words-list").replaceChildren(...words.map((each) => this.wordButton(each)));
      return "Choose a word to see where in the picture its tokens were attended to.";
    });
  }

  wordButton({ word, image }) {
    const button = element("button", { type: "button", ariaPressed: "false" }, word);
    button.addEventListener("click", () => this.showHeat(button.ariaPressed === "true" ? null : button, image));
    return button;
  }

  /** Show the heat map of a word's button over the picture; null: none. */
  showHeat(button, image = "data:,") {
    if (button) this.showMask(false);
    for (const each of $("words-list").children) each.ariaPressed = String(each === button);
    $("heat").hidden = !button;
    $("heat").src = image;
    $("heat").alt = button ? `Attention to “${button.textContent}”` : "";
  }

  showNearest() {
    return this.explain("nearest", "nearest", "Searching the training pictures.", (answer) => {
      $("nearest-list").replaceChildren(...answer.nearest.map(nearestItem));
      return `Of ${answer.training_images.toLocaleString("en")} training pictures.`;
    });
  }

  /** Ask the server about the picture. show: shows its answer, and returns the note above it. */
  async explain(name, route, waiting, show) {
    const { picture } = this;
    const note = (text) => { if (picture === this.picture) $(`${name}-note`).textContent = text; };
    note(waiting);
    try {
      const answer = await getJson(imagePath(picture.id, `/${route}`));
      if (picture === this.picture) note(show(answer));
    } catch (error) {
      note(error.message);
    }
  }
}

function nearestItem({ image, caption, distance, near_copy: nearCopy }) {
  const shown = typeof distance === "number" ? `distance ${distance.toFixed(3)}` : distance;
  const note = nearCopy ? [element("strong", {}, "Near copy")] : [];
  return element("li", {}, element("img", { src: image, alt: "" }), element("span", {}, `${caption}, ${shown}`), ...note);
}
