// Reads what the server put into the page and shows it; everything else is fetched later.
import { showFleet } from "./fleet.js";
import { showModel } from "./model.js";

const first = JSON.parse(document.getElementById("first").textContent);
const main = document.querySelector("main");
if (first.page === "fleet") showFleet(main, first.data);
else showModel(main, first.data.model, first.data);
