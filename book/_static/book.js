/* A box that scrolls on its own is a stop of the keyboard, or its end could not be reached. */
(function () {
  function mark() {
    for (const box of document.querySelectorAll("main *")) {
      if (box.scrollWidth <= box.clientWidth || box.closest("mjx-assistive-mml")) continue;
      if (/auto|scroll/.test(getComputedStyle(box).overflowX)) box.tabIndex = 0;
    }
  }
  function rendered() {
    const math = window.MathJax && MathJax.startup && MathJax.startup.promise;
    return math ? math.then(mark) : mark();
  }
  addEventListener("load", rendered);
  addEventListener("resize", mark);
})();

/* Paper is light, whatever the mode of the page. */
(function () {
  const root = document.documentElement;
  let before = "";
  addEventListener("beforeprint", function () {
    before = before || root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", function () {
    root.dataset.theme = before;
    before = "";
  });
})();

/* On a narrow screen a figure of several panels is opened at full size by a tap, and closed by one. */
addEventListener("DOMContentLoaded", function () {
  const narrow = matchMedia("(max-width: 768px)");
  for (const image of document.querySelectorAll("main .cell_output img, main figure img")) {
    if (image.closest(".latephase-frames, a")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.textContent = "full size";
    button.addEventListener("click", function () { enlarge(image); });
    const caption = image.closest("figure")?.querySelector("figcaption");
    (caption || image.parentElement).append(button);
    image.addEventListener("click", function () { if (narrow.matches) enlarge(image); });
  }
  function enlarge(image) {
    const shown = document.createElement("dialog"), close = document.createElement("button");
    const copy = image.cloneNode();
    close.textContent = "close";
    copy.removeAttribute("style");
    copy.removeAttribute("id");
    shown.className = "enlarged bd-article";
    shown.setAttribute("aria-label", image.alt.slice(0, 100));
    shown.append(close, copy);
    shown.addEventListener("click", function () { shown.close(); });
    shown.addEventListener("close", function () { shown.remove(); });
    document.body.append(shown);
    shown.showModal();
  }
});
