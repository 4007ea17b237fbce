"use strict";
(() => {
  // click an image to enlarge it
  const dialog = document.querySelector("dialog");
  for (const button of document.querySelectorAll(".sides button")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      dialog.querySelector("img").src = image.src;
      dialog.querySelector("img").alt = image.alt;
      dialog.querySelector("img").className = image.className;
      dialog.querySelector("h3").textContent = image.alt;
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

{% include "sort.js" %}

{% include "chart.js" %}
})();
