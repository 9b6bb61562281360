// One drawing: its job on the server, and its pictures, which fill in row by row and are then ordered best first.

import { getImage, postJson, readEvents, sentence, StudioError } from "./api.js";
import { element, plural } from "./elements.js";

let turn = Promise.resolve(); // of the drawings whose events are followed

/** Picture of a drawing, and its button in the grid. */
export class Picture {
  constructor(drawing, candidate) {
    Object.assign(this, { drawing, candidate, id: null, score: null, url: null, blob: null });
    this.image = element("img", { alt: "", draggable: false });
    this.bar = element("span", { className: "bar" });
    this.button = element("button", { type: "button", className: "picture" }, this.image, this.bar);
    this.label = element("span", { className: "label-of-picture" });
    this.element = element("li", {}, this.button, this.label);
    this.button.addEventListener("click", () => this.id && drawing.open(this));
    this.name("waiting");
  }

  get finished() {
    return this.id !== null;
  }

  name(state) {
    this.image.alt = `${this.drawing.title}: candidate ${this.candidate + 1}, ${state}`;
    this.button.ariaDisabled = String(!this.finished);
    this.button.classList.toggle("unfinished", !this.finished);
  }

  /** Show a preview in which the first `rows` of `grid` rows are drawn. */
  preview(source, rows, grid) {
    if (this.finished) return;
    this.image.src = source;
    this.image.dataset.rows = rows ?? "";
    this.bar.style.transform = `scaleX(${rows ? Math.min(1, rows / grid) : 0})`;
  }

  /** Fetch and show the finished picture's file. Once it is ranked, the file has its rank and score inside. */
  async finish(id) {
    this.id = id;
    this.name("finished");
    const request = this.newest = getImage(id);
    const blob = await request;
    if (request !== this.newest) return;
    this.dispose();
    this.blob = blob;
    this.url = URL.createObjectURL(blob);
    this.image.src = this.url;
    this.drawing.changed();
  }

  /** Free the memory of the file. */
  dispose() {
    if (this.url) URL.revokeObjectURL(this.url);
  }

  rank(place, count, score) {
    this.score = score;
    const scored = score !== null;
    this.label.textContent = scored ? `${place} · ${score.toFixed(3)}` : count > 1 ? `${place}` : "";
    this.label.title = scored ? "place and score" : "";
    this.image.alt = `${this.drawing.title}: ${place} of ${count}${scored ? `, score ${score.toFixed(3)}` : ""}`;
    this.element.classList.toggle("best", place === 1 && count > 1 && scored);
  }
}

/** A drawing, or an opened picture. listeners: {changed(drawing), open(picture)}. file: name of the opened file. */
export class Drawing {
  constructor(settings, grid, listeners, file = null) {
    Object.assign(this, { settings, grid, listeners, file, pictures: [], job: null, state: "waiting", status: "", note: "" });
    this.caption = settings.caption;
    this.title = file ?? this.caption;
    this.element = element("ul", { className: "pictures", role: "list", ariaLabel: `Pictures for ${this.title}` });
  }

  get running() {
    return this.state === "waiting" || this.state === "drawing";
  }

  get finished() {
    return this.pictures.filter((picture) => picture.finished);
  }

  open(picture) {
    this.listeners.open(picture);
  }

  changed() {
    this.listeners.changed(this);
  }

  say(status, state = this.state) {
    Object.assign(this, { status, state });
    this.changed();
  }

  /** Send the drawing to the server's queue. */
  async start() {
    this.job = (await postJson("api/jobs", this.settings)).job;
    this.say("Waiting for the model.");
  }

  /** Follow the job's events after those of earlier drawings: a browser opens at most six connections to a server. */
  followInTurn() {
    turn = turn.then(() => this.follow()).catch(reportError); // later drawings still have their turn
  }

  /** Follow the job's events until it ends. */
  async follow() {
    if (this.followed) return;
    this.followed = true;
    try {
      for await (const { name, data } of readEvents(this.job)) this.handle(name, data);
    } catch (error) {
      this.keepFinished();
      const lost = error.status === 404 ? "The studio no longer has this drawing: it was restarted meanwhile." : error.message;
      this.say(`Stopped. ${lost}`, "failed");
      if (!(error instanceof StudioError)) throw error;
    }
  }

  async cancel() {
    if (!this.running || this.cancelling) return;
    this.cancelling = true;
    this.say("Cancelling. Finished pictures are kept.");
    try {
      await postJson(`api/jobs/${encodeURIComponent(this.job)}/cancel`);
    } catch (error) {
      this.cancelling = false;
      if (!(error instanceof StudioError)) throw error;
      return this.say(error.message);
    }
    this.follow(); // it may still wait for its turn
  }

  /** Show one event of the job. A reconnected stream repeats the state so far, so each can come twice. */
  handle(name, data) {
    if (name === "queued" && data.position > 0) {
      this.say(`Waiting: ${plural(data.position, "drawing")} before this one.`);
    } else if (name === "started") {
      this.addPictures(data.candidates);
      const known = (index) => (data.nearest_words?.[index]?.length ? ` (nearest known: ${data.nearest_words[index].join(", ")})` : "");
      const unknown = (data.unknown_words ?? []).map((word, index) => `“${word}”${known(index)}`).join(", ");
      this.note = unknown && `The model has never seen ${unknown}.`;
      if (!this.cancelling) this.say(`Drawing ${plural(data.candidates, "picture")}.`, "drawing");
    } else if (name === "partial") {
      this.addPictures(data.first + data.images.length);
      data.images.forEach((image, index) => this.candidate(data.first + index).preview(image, data.rows, this.grid));
    } else if (name === "image") {
      this.addPictures(data.candidate + 1);
      const picture = this.candidate(data.candidate);
      if (picture && !picture.finished) this.finishPicture(picture, data.id);
      if (this.running && !this.cancelling) this.say(`${this.finished.length} of ${this.pictures.length} finished.`, "drawing");
    } else if (name === "ranked") {
      this.rank(data.images);
    } else if (name === "done") {
      const ordered = this.pictures.length > 1 && this.pictures[0].score !== null ? ", best first" : "";
      this.say(`${plural(this.pictures.length, "picture")} in ${data.seconds.toFixed(1)} s${ordered}.`, "done");
    } else if (name === "cancelled") {
      this.say(data.kept ? `Cancelled. ${plural(data.kept, "finished picture")} kept.` : "Cancelled before a picture was finished.", "cancelled");
    } else if (name === "failed") {
      this.keepFinished();
      this.say(sentence(data.message), "failed");
    }
  }

  candidate(number) {
    return this.pictures.find((picture) => picture.candidate === number);
  }

  addPictures(count) {
    if (this.ranked) return;
    for (let number = this.pictures.length; number < count; number++) {
      const picture = new Picture(this, number);
      this.pictures.push(picture);
      this.element.append(picture.element);
    }
  }

  finishPicture(picture, id) {
    picture.loaded = picture.finish(id).catch((error) => {
      if (picture.id !== id || !this.pictures.includes(picture)) return; // ranked meanwhile, and decoded anew or not kept
      if (error.status === 404) { // after a restart of the server, or the oldest of very many pictures
        this.pictures = this.pictures.filter((each) => each !== picture);
        picture.element.remove();
      }
      this.say(error.message);
    });
  }

  /** Order the pictures as the server ranked them; those that it did not keep go. Resolves when all are fetched. */
  rank(images) {
    this.ranked = true;
    const pictures = images.map(({ id, candidate, score }, index) => {
      const picture = this.candidate(candidate) ?? new Picture(this, candidate);
      this.finishPicture(picture, id);
      picture.rank(index + 1, images.length, score ?? null);
      return picture;
    });
    const focused = this.pictures.find((picture) => picture.button === document.activeElement);
    for (const picture of this.pictures) if (!pictures.includes(picture)) picture.dispose();
    this.pictures = pictures;
    this.element.replaceChildren(...pictures.map((picture) => picture.element));
    if (focused) (pictures.includes(focused) ? focused : pictures[0])?.button.focus();
    this.changed();
    return Promise.all(pictures.map((picture) => picture.loaded));
  }

  keepFinished() {
    if (this.ranked) return;
    this.pictures = this.finished;
    this.element.replaceChildren(...this.pictures.map((picture) => picture.element));
  }

  dispose() {
    for (const picture of this.pictures) picture.dispose();
  }

  /** Return what another load of this page needs to show the drawing again. */
  save() {
    const pictures = this.finished.map(({ id, candidate, score }) => ({ id, candidate, score }));
    const { settings, file, state, status, note, job } = this;
    return { settings, file, state, status, note, job, pictures };
  }

  /** Build a drawing from what `save` returned. */
  static restore(saved, grid, listeners) {
    const { settings, file, pictures, ...rest } = saved;
    const drawing = Object.assign(new Drawing(settings, grid, listeners, file), rest);
    if (drawing.running) drawing.followInTurn();
    else drawing.rank(pictures);
    return drawing;
  }
}
