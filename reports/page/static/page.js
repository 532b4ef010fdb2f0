"use strict";
// What all panels share: the data of the page, its figures, and who waits for them.

const models = {};
const panels = [];

function read(id) {
  const held = document.getElementById(id);
  return held ? JSON.parse(held.textContent) : null;
}

function byId(id) {
  return document.getElementById(id);
}

/** An element with its text, class and attributes. */
function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Offer a text as a file. */
function download(name, type, text) {
  const link = element("a", "", { href: `data:${type};charset=utf-8,${encodeURIComponent(text)}`, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

/** Fill a select with [value, text] pairs, keeping its choice where it is still offered. */
function offer(select, choices) {
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => element("option", text, { value })));
  if (choices.some(([value]) => String(value) === chosen)) select.value = chosen;
}

/** Choose the nth entry of a select that has as many. */
function preselect(select, place) {
  if (select.options.length > place) select.selectedIndex = place;
}

/** A model within a figure, by its name. */
function part(figure, name) {
  return models[figure].document.get_model_by_name(name);
}

/** Text of a number, or a dash for none. */
function printed(value, digits) {
  return value === null || value === undefined ? "-" : Number(value).toFixed(digits);
}

async function draw() {
  Bokeh.set_log_level("error"); // it warns of every chart whose lines the reader has all hidden
  for (const [name, item] of Object.entries(read("figures"))) {
    const before = Bokeh.documents.length;
    await Bokeh.embed.embed_item(item, name);
    models[name] = Bokeh.documents[before].roots()[0];
  }
  for (const start of panels) start();
  document.documentElement.dataset.ready = "yes";
}

document.addEventListener("DOMContentLoaded", draw);
