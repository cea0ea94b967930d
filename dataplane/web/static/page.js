// Follows what happens: the server sends each section whole when it has changed. Without this
// script every page works the same, as of the moment it was loaded.
"use strict";

document.documentElement.classList.add("scripted");

const live = document.body.dataset.live;
const asOf = document.getElementById("as-of");

// A section is replaced only if nothing in it is being used; who reads it keeps their place.
function replace(place, html) {
  if (!place || place.innerHTML === html) return;
  const scrolled = [...place.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  const active = document.activeElement;
  const used = place.contains(active) ? active.getAttribute("href") || active.className : null;
  place.innerHTML = html;
  place.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = scrolled[i] || 0; });
  if (used === null) return;
  for (const other of place.querySelectorAll("a, .scroll")) {
    if ((other.getAttribute("href") || other.className) === used) { other.focus(); return; }
  }
}

function follow() {
  const source = new EventSource(live);
  source.addEventListener("section", (event) => {
    const { name, html } = JSON.parse(event.data);
    replace(document.getElementById("live-" + name), html);
  });
  source.addEventListener("state", (event) => {
    const { status, sequence, time } = JSON.parse(event.data);
    const badge = document.getElementById("status");
    badge.textContent = status;
    badge.className = "badge " + status;
    asOf.textContent = "live, " + time;
    document.title = "dataplane: " + status;
    const slider = document.getElementById("at");
    const follows = slider.value === slider.max;
    slider.max = sequence;
    if (follows && document.activeElement !== slider) {
      slider.value = sequence;
      say(slider, "now, fact " + sequence);
    }
  });
  source.onerror = () => { asOf.textContent = "no connection, trying again"; };
}

function say(slider, text) {
  document.getElementById("at-says").textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

// Says where the slider is at once, and when that was as soon as the server has said it.
async function sayWhere(slider) {
  const where = slider.value;
  const text = "fact " + where + " of " + slider.max;
  say(slider, text);
  const answer = await fetch("/moment?at=" + where);
  if (!answer.ok) return;
  const { time } = await answer.json();
  if (slider.value === where) say(slider, text + ", " + time);
}

function travel() {
  const slider = document.getElementById("at");
  if (!slider) return;
  slider.addEventListener("input", () => { sayWhere(slider).catch(() => {}); });
  slider.addEventListener("change", () => {
    if (slider.value === slider.max) location.assign("/");
    else location.assign("/?at=" + slider.value);
  });
}

if (live) follow();
travel();
