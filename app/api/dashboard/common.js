// What both pages need: the session, the theme, and building elements. Text becomes text and never markup.
"use strict";

const TOKEN = "mnemosine.token";
const THEME = "mnemosine.theme";

/** An element with attributes and children; strings become text nodes. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, String(value));
  }
  made.append(...children.flat().filter((child) => child != null && child !== false).map((child) => child instanceof Node ? child : String(child)));
  return made;
}

const byId = (id) => document.getElementById(id);

// The token lives as long as this tab: a reload keeps it, another tab and a restart of the browser do not have it. No
// cookie is set, so no other site can use it.
const session = {
  get token() { return sessionStorage.getItem(TOKEN); },
  set token(value) { value ? sessionStorage.setItem(TOKEN, value) : sessionStorage.removeItem(TOKEN); },
  started: () => {},
  ended: () => {},
};

/** A request as the signed-in user. Ends the session where the server does not know it any more. */
async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), Authorization: `Bearer ${session.token}` };
  // Not for a post: a browser would add `Cache-Control: no-cache`, which asks agents for a fresh answer.
  const cache = options.method ? "default" : "no-store";
  const reply = await fetch(path, { ...options, headers, credentials: "omit", cache });
  if (reply.status === 401) {
    endSession("Your session has expired. Please sign in again.");
    throw new SessionEnded();
  }
  if (!reply.ok) throw new Error(await problemOf(reply));
  return reply;
}

class SessionEnded extends Error {}

async function problemOf(reply) {
  try {
    const problem = await reply.json();
    return problem.detail || problem.title || `The server answered ${reply.status}.`;
  } catch {
    return `The server answered ${reply.status}.`;
  }
}

function endSession(why = "") {
  session.token = null;
  byId("sign-in-error").textContent = why;
  byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
  session.ended();
  byId("username").focus();
}

function startSession() {
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = false;
  byId("sign-in-error").textContent = "";
  session.started();
}

function watchSignIn() {
  byId("sign-in").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      const reply = await fetch("/api/v1/auth/token", { method: "POST", body: new URLSearchParams(new FormData(form)), credentials: "omit" });
      if (!reply.ok) {
        byId("sign-in-error").textContent = reply.status === 401 ? "The user name or the password is wrong." : await problemOf(reply);
        byId("password").select();
        return;
      }
      session.token = (await reply.json()).access_token;
      form.reset();
      startSession();
    } catch {
      byId("sign-in-error").textContent = "The server cannot be reached.";
    } finally {
      button.disabled = false;
    }
  });
  byId("sign-out").addEventListener("click", () => endSession());
  session.token ? startSession() : endSession();
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const theme = {
  get isDark() { return (localStorage.getItem(THEME) || (dark.matches ? "dark" : "light")) === "dark"; },
  changed: () => {},
};

function showTheme() {
  document.documentElement.dataset.theme = theme.isDark ? "dark" : "light";
  byId("theme").textContent = theme.isDark ? "☀ Light" : "☾ Dark";
  byId("theme").setAttribute("aria-label", theme.isDark ? "Switch to the light theme" : "Switch to the dark theme");
  theme.changed();
}

byId("theme").addEventListener("click", () => {
  localStorage.setItem(THEME, theme.isDark ? "light" : "dark");
  showTheme();
});
dark.addEventListener("change", showTheme);

// How numbers are written.
const write = {
  number: (value, digits = 0) => value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }),
  ms: (value) => value == null ? "–" : value === 0 ? "0 ms" : value >= 10000 ? `${(value / 1000).toFixed(1)} s` : value >= 1000 ? `${(value / 1000).toFixed(2)} s` : value >= 10 ? `${value.toFixed(0)} ms` : `${value.toFixed(2)} ms`,
  percent: (ratio) => ratio == null ? "–" : `${(ratio * 100).toFixed(ratio > 0 && ratio < 0.1 ? 1 : 0)} %`,
  usd: (value) => value == null ? "–" : value !== 0 && Math.abs(value) < 0.01 ? `$${value.toPrecision(2)}` : `$${value.toFixed(2)}`,
  bytes: (value) => {
    let unit = 0;
    while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
    return `${value.toFixed(value < 10 && unit ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
  },
  duration: (seconds) => seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`,
  time: (iso) => new Date(iso).toLocaleTimeString("en-GB"),
};
