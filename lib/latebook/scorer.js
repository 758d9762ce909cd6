/* How the search orders what it finds: pages that explain come before the library's names. */
var Scorer = {
  score: ([docname, , , , score]) => score - (docname.startsWith("book/library/") ? 100 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
