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
