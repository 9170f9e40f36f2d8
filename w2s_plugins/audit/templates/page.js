"use strict";
const audit = JSON.parse(document.getElementById("audit").textContent);
const place = "w2s-audit-" + audit.id;
const at = (id) => document.getElementById(id);
const images = audit.keys.map((key, i) => ({ key, candidates: audit.candidates[i], source: audit.sources[i] }));
const known = new Set(audit.keys);
const numbered = audit.classes.some((name) => /[0-9]/.test(name));
let given = [];  // [key, label] of each answer, the newest last
let filter = null;  // the typed letters, once there are any or / was typed

// answers are kept in the browser, if it lets a page from the disk do that
function load() {
  try {
    // those to this draw, or else to earlier ones, count for more than those that were read from a file
    const read = (id) => JSON.parse(localStorage.getItem("w2s-audit-" + id) || "null");
    const kept = read(audit.id) || audit.earlier.flatMap((id) => read(id) || []);
    given = [...new Map([...audit.given, ...kept])];
    given = given.filter(([key, label]) => known.has(key) && (audit.classes.includes(label) || label === audit.unsure));
    // what is there is not written again: it may not be the newest that another page has written
    localStorage.setItem("w2s-audit", "");
  } catch (error) {
    given = audit.given;
    at("kept").textContent = "This browser keeps no answers: download them before you close the page.";
  }
}

function keep() {
  try {
    // of images that are not on this page, because it was made again with fewer, answers stay
    const others = JSON.parse(localStorage.getItem(place) || "[]").filter(([key]) => !known.has(key));
    localStorage.setItem(place, JSON.stringify([...others, ...given]));
  } catch (error) { /* said when the page was opened */ }
}

function current() {
  const answered = new Set(given.map(([key]) => key));
  return images.find((image) => !answered.has(image.key));
}

const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

// the two candidates, then all classes; those alone that have the typed letters, and first those that begin with them
function choices(image) {
  const order = [...new Set([...image.candidates, ...audit.classes.keys()])].map((number) => audit.classes[number]);
  if (!filter) return order;
  const typed = plain(filter);
  const rank = (name) => (plain(name) === typed ? 0 : plain(name).startsWith(typed) ? 1 : 2);
  return order.filter((name) => plain(name).includes(typed)).sort((a, b) => rank(a) - rank(b));
}

function answer(label) {
  const image = current();
  if (!image) return;
  given.push([image.key, label]);
  filter = null;
  keep();
  show();
}

function undo() {
  given.pop();
  filter = null;
  keep();
  show();
}

function save() {
  const labels = new Map(given);
  const quoted = (text) => '"' + String(text).replaceAll('"', '""') + '"';
  const rows = images.map(({ key }) => [quoted(key), labels.has(key) ? quoted(labels.get(key)) : "", audit.id].join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([audit.by + ",label,audit\n", rows.join("\n"), "\n"], { type: "text/csv" }));
  link.download = "answers-" + audit.id + ".csv";
  link.click();
}

function show() {
  const image = current();
  at("count").textContent = given.length + " of " + images.length + " answered";
  at("progress").max = images.length;
  at("progress").value = given.length;
  at("done").hidden = Boolean(image);
  at("image").hidden = !image;
  at("unsure").disabled = !image;
  at("undo").disabled = !given.length;
  if (image) {
    at("image").src = image.source;
    at("image").alt = "image " + (given.length + 1);
  }
  at("typed").textContent = filter === null ? "\u00a0" : "with “" + filter + "”:";
  const buttons = (image ? choices(image) : []).map((name, place) => {
    const button = document.createElement("button");
    const key = (place + 1) % 10;  // 0 is the tenth
    if (place < 10 && !(filter !== null && numbered)) button.append(Object.assign(document.createElement("kbd"), { textContent: key }));
    button.append(name);
    button.addEventListener("click", () => answer(name));
    return button;
  });
  at("classes").replaceChildren(...buttons);
}

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "s") {
    event.preventDefault();
    save();
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const image = current();
  const found = image ? choices(image) : [];
  const digit = /^[0-9]$/.test(event.key) && !(filter !== null && numbered);
  if (event.key === "ArrowLeft" || (event.key === "Backspace" && filter === null)) undo();
  else if (!image) return;
  else if (event.key === "?") answer(audit.unsure);
  else if (event.key === "Enter" && filter) {
    if (found.length) answer(found[0]);
  } else if (digit) {
    const place = (Number(event.key) + 9) % 10;
    if (found[place] !== undefined) answer(found[place]);
  } else {
    if (event.key === "Backspace") filter = filter.slice(0, -1) || null;
    else if (event.key === "Escape") filter = null;
    else if (event.key === "/" && filter === null) filter = "";
    else if (event.key.length === 1 && (event.key !== " " || filter)) filter = (filter || "") + event.key;
    else return;
    show();
  }
  event.preventDefault();
});
at("unsure").addEventListener("click", () => answer(audit.unsure));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
load();
show();
