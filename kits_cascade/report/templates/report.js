(function () {
  "use strict";
  var one = function (selector, root) { return (root || document).querySelector(selector); };
  var all = function (selector, root) { return Array.prototype.slice.call((root || document).querySelectorAll(selector)); };

  function compare(a, b) {
    var x = parseFloat(a), y = parseFloat(b);
    if (!isNaN(x) && !isNaN(y)) { return x - y; }
    if (!isNaN(x)) { return -1; }
    if (!isNaN(y)) { return 1; }
    return a.localeCompare(b);
  }

  // Tables: a click on a head sorts, another turns the order round.
  all("table.sortable").forEach(function (table) {
    all("th[data-sort]", table).forEach(function (head) {
      head.tabIndex = 0;
      var sort = function () {
        var column = Array.prototype.indexOf.call(head.parentNode.children, head);
        var up = head.getAttribute("aria-sort") !== "ascending";
        all("th[aria-sort]", table).forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0];
        var value = function (row) { var cell = row.children[column]; return cell.dataset.value || cell.textContent.trim(); };
        all("tr", body).sort(function (a, b) { return (up ? 1 : -1) * compare(value(a), value(b)); })
          .forEach(function (row) { body.appendChild(row); });
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  });

  function go(name) {
    var card = document.getElementById("case-" + name);
    if (card) { card.hidden = false; card.scrollIntoView({ block: "start" }); }
  }
  all("[data-case]").forEach(function (element) {
    element.addEventListener("click", function () { go(element.dataset.case); });
  });

  // Cards: order, search, outlines.
  var cards = one("#cards"), order = one("#order"), search = one("#search");
  if (order) {
    order.addEventListener("change", function () {
      var parts = order.value.split(" "), sign = parts[1] === "down" ? -1 : 1;
      all(".case", cards).sort(function (a, b) { return sign * compare(a.dataset[parts[0]], b.dataset[parts[0]]); })
        .forEach(function (card) { cards.appendChild(card); });
    });
  }
  if (search) {
    search.addEventListener("input", function () {
      var wanted = search.value.trim().toLowerCase();
      all(".case", cards).forEach(function (card) { card.hidden = card.dataset.name.toLowerCase().indexOf(wanted) < 0; });
    });
  }
  all("input[data-hide]").forEach(function (box) {
    box.addEventListener("change", function () { document.body.classList.toggle(box.dataset.hide, !box.checked); });
  });
})();
