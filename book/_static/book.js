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
  addEventListener("toggle", mark, true);  // of a fold, which has had no size
})();

/* Paper is light, whatever the mode of the page, and its answers are open. */
(function () {
  const root = document.documentElement;
  let before = "", opened = [];
  addEventListener("beforeprint", function () {
    before = before || root.dataset.theme;
    root.dataset.theme = "light";
    opened = [...opened, ...document.querySelectorAll("details.folded:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", function () {
    root.dataset.theme = before;
    before = "";
    for (const fold of opened.splice(0)) fold.open = false;
  });
})();

/* A fold opens where an address leads into it. */
(function () {
  function open() {
    const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = at?.closest("details:not([open])");
    if (!fold) return;
    fold.open = true;
    at.scrollIntoView();
  }
  addEventListener("load", open);
  addEventListener("hashchange", open);
})();

/* What a term or a symbol means is shown beside it: under a pointer, and where the keyboard stops.
   A symbol leads nowhere else, so that a finger, or a key, shows it too. */
addEventListener("DOMContentLoaded", function () {
  const points = matchMedia("(hover: hover)");
  let tip = null, at = null, leaving = 0;
  function hide() {
    clearTimeout(leaving);
    tip?.classList.remove("shown");
    tip = null;
  }
  function leave() { leaving = setTimeout(hide, 200); }
  function place() {
    if (!tip) return;
    const { left, top, bottom } = at.getClientRects()[0];
    const most = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(left, most))}px`;
    tip.style.top = `${bottom + tip.offsetHeight < innerHeight ? bottom : top - tip.offsetHeight}px`;
  }
  function show(link) {
    hide();
    at = link;
    tip = document.getElementById(link.getAttribute("aria-describedby"));
    tip.classList.add("shown");
    place();
  }
  for (const link of document.querySelectorAll("[aria-describedby^=tip-]")) {
    link.addEventListener("mouseenter", function () { if (points.matches) show(link); });
    link.addEventListener("mouseleave", leave);
    link.addEventListener("focus", function () { if (link.matches(":focus-visible")) show(link); });
    link.addEventListener("blur", hide);
    if (link.matches("a")) continue;
    link.addEventListener("click", function () { show(link); });
    link.addEventListener("keydown", function (event) {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (tip) hide(); else show(link);
    });
  }
  for (const shown of document.querySelectorAll(".tips > div")) {
    shown.addEventListener("mouseenter", function () { clearTimeout(leaving); });
    shown.addEventListener("mouseleave", leave);
  }
  addEventListener("keydown", function (event) { if (event.key === "Escape") hide(); });
  addEventListener("pointerdown", function (event) {
    if (!event.target.closest("[aria-describedby^=tip-], .tips")) hide();
  });
  addEventListener("scroll", place, { passive: true });
});

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
    (caption || image.closest(".cell_output, figure")).append(button);
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
