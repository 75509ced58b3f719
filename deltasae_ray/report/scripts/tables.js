// Tables that sort, filter and search: TanStack Table keeps their state, these functions draw it.
"use strict";

/**
 * A table in `host`.
 *
 * columns: {id, head, term, value(row), cell(row), numeric, wide}; `value` sorts and is searched.
 * options: {caption, rows, size, sort, onOpen, isOpen}
 */
function dataTable(host, columns, options) {
  let state = {
    sorting: options.sort ?? [],
    globalFilter: "",
    pagination: { pageIndex: 0, pageSize: options.size ?? 25 },
    columnPinning: { left: [], right: [] },
    columnFilters: [],
    columnVisibility: {},
    columnOrder: [],
    rowSelection: {},
    expanded: {},
    grouping: [],
  };
  const table = TanStack.createTable({
    data: options.rows,
    columns: columns.map((column) => ({
      id: column.id,
      accessorFn: (row) => present(column.value(row)),
      sortingFn: compareRows,
      sortUndefined: "last",
    })),
    state,
    onStateChange: (update) => {
      state = typeof update === "function" ? update(state) : update;
      table.setOptions((previous) => ({ ...previous, state }));
      draw();
    },
    globalFilterFn: (row, _column, words) =>
      words.every((word) => (options.text ?? rowText)(row.original).includes(word)),
    getColumnCanGlobalFilter: () => true,
    getCoreRowModel: TanStack.getCoreRowModel(),
    getFilteredRowModel: TanStack.getFilteredRowModel(),
    getSortedRowModel: TanStack.getSortedRowModel(),
    getPaginationRowModel: TanStack.getPaginationRowModel(),
    renderFallbackValue: null,
  });

  const texts = new WeakMap();
  function rowText(row) {
    if (!texts.has(row))
      texts.set(
        row,
        columns
          .map((c) => c.value(row) ?? "")
          .join(" ")
          .toLowerCase(),
      );
    return texts.get(row);
  }

  const heads = columns.map((column) => headOf(column, table));
  const body = el("tbody");
  const range = el("span", { role: "status" });
  const back = pageButton("Previous", () => table.previousPage());
  const on = pageButton("Next", () => table.nextPage());
  const shown = el(
    "table",
    {},
    el("caption", {}, options.caption ?? ""),
    el("thead", {}, el("tr", {}, ...heads)),
    body,
  );
  const pager = el("div", { class: "pager" }, back, on, range);
  host.replaceChildren(
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.caption }, shown),
    pager,
  );

  function draw() {
    const rows = table.getRowModel().rows;
    body.replaceChildren(...rows.map((row) => rowNode(row.original, columns, options)));
    heads.forEach((head, i) => {
      const sorted = table.getColumn(columns[i].id).getIsSorted();
      if (sorted) head.setAttribute("aria-sort", sorted === "asc" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const total = table.getFilteredRowModel().rows.length;
    const first = state.pagination.pageIndex * state.pagination.pageSize;
    range.textContent = total
      ? `${first + 1} to ${first + rows.length} of ${count(total)}`
      : "nothing matches";
    back.disabled = !table.getCanPreviousPage();
    on.disabled = !table.getCanNextPage();
    pager.hidden = total <= state.pagination.pageSize && total === options.rows.length;
  }
  draw();
  return {
    draw,
    /** Keeps the rows that hold all words. */
    search: (text) => {
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      table.setGlobalFilter(words.length ? words : "");
    },
    setRows: (rows) => {
      options.rows = rows;
      table.setOptions((previous) => ({ ...previous, data: rows }));
      table.setPageIndex(0);
      draw();
    },
  };
}

/** What is missing stands last in either order. */
const present = (value) => (value === null || value === "" ? undefined : value);

function compareRows(a, b, id) {
  const [x, y] = [a.getValue(id), b.getValue(id)];
  if (typeof x === "number" && typeof y === "number") return x - y;
  return String(x).localeCompare(String(y), "en", { numeric: true });
}

function headOf(column, table) {
  const sort = el(
    "button",
    {
      type: "button",
      class: "sort",
      "data-term": column.term in DATA.glossary ? column.term : null,
      on: { click: () => table.getColumn(column.id).toggleSorting() },
    },
    column.head,
  );
  return el("th", { scope: "col", class: column.numeric ? "n" : null }, sort);
}

function rowNode(row, columns, options) {
  const cells = columns.map((column) => {
    const shown = column.cell ? column.cell(row) : column.value(row);
    return el("td", { class: column.numeric ? "n" : column.wide ? "w" : null }, shown ?? "–");
  });
  if (!options.onOpen) return el("tr", {}, ...cells);
  const open = (event) => !event.target.closest("button, a") && options.onOpen(row);
  const current = options.isOpen?.(row) ? "true" : null;
  return el("tr", { class: "opens", "aria-current": current, on: { click: open } }, ...cells);
}

function pageButton(text, run) {
  return el("button", { type: "button", class: "plain", on: { click: run } }, text);
}
