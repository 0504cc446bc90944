// What a person may tell driftd to do: asked for in a dialog, with a reason and the token of the configuration.
import { h } from "./dom.js";

const TOKEN = "driftd-token", ACTOR = "driftd-actor";

// `field`: one more thing to say, a word of the body: { name, label, and options [value, text] or a placeholder }.
export function ask(title, path, { explain, field, done }) {
  const token = h("input", { type: "password", name: "token", autocomplete: "off", required: true, value: sessionStorage.getItem(TOKEN) });
  const actor = h("input", { name: "actor", autocomplete: "username", value: sessionStorage.getItem(ACTOR), placeholder: "your name, for the record" });
  const why = h("input", { name: "reason", placeholder: "for the record" });
  const more = field && (field.options
    ? h("select", { name: field.name }, field.options.map(([value, text]) => h("option", { value }, text)))
    : h("input", { name: field.name, placeholder: field.placeholder }));
  const answer = h("p", { class: "answer", role: "status" });
  const send = h("button", { class: "primary", type: "submit" }, title);
  const dialog = h(
    "dialog",
    { "aria-label": title },
    h(
      "form",
      { method: "dialog" },
      h("h2", {}, title),
      h("p", { class: "soft" }, explain),
      more ? h("label", {}, field.label, more) : "",
      h("label", {}, "Reason", why),
      h("label", {}, "Who", actor),
      h("label", {}, "Token (http.token of the configuration; kept for this tab)", token),
      answer,
      h("menu", {}, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), send),
    ),
  );
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    answer.textContent = "…";
    try {
      const given = await post(path, token.value, { reason: why.value, actor: actor.value || "status page", ...(more?.value ? { [field.name]: more.value } : {}) });
      sessionStorage.setItem(TOKEN, token.value);
      sessionStorage.setItem(ACTOR, actor.value);
      answer.textContent = given.decision || "Done.";
      send.remove();
      done();
    } catch (error) {
      answer.textContent = error.message;
      send.disabled = false;
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

async function post(path, token, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const given = await answer.json();
  if (!answer.ok) throw new Error(given.error || `${answer.status} ${answer.statusText}`);
  return given;
}
