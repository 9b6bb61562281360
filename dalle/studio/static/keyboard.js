// Keyboard: arrow keys among pictures, and shortcuts of a single letter.

const SINGLE_KEYS = "studio.single-keys";

/** Move the focus among the buttons of a grid of pictures. Returns true if it moved. */
export function moveAmong(event, buttons) {
  const place = buttons.indexOf(document.activeElement);
  if (place < 0) return false;
  const tops = buttons.map((button) => button.getBoundingClientRect().top);
  const columns = Math.max(1, tops.filter((top) => Math.abs(top - tops[0]) < 8).length);
  const last = buttons.length - 1;
  const targets = { ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - columns, ArrowDown: place + columns, Home: 0, End: last };
  const target = targets[event.key];
  if (target === undefined) return false;
  event.preventDefault();
  buttons[target]?.focus();
  return true;
}

/** True while letters are typed into a field. */
export function typing(event) {
  return event.target instanceof HTMLTextAreaElement || event.target instanceof HTMLSelectElement
    || (event.target instanceof HTMLInputElement && !["checkbox", "range"].includes(event.target.type));
}

/** Run the shortcut of a key. shortcuts: {key: function}. The user can switch them off (WCAG 2.1.4). */
export function runShortcut(event, shortcuts) {
  if (typing(event) || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !singleKeys()) return;
  const act = shortcuts[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

export const singleKeys = () => localStorage.getItem(SINGLE_KEYS) !== "off";

export function useSingleKeys(on) {
  localStorage.setItem(SINGLE_KEYS, on ? "on" : "off");
}
