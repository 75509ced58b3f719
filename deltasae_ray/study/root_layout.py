"""The layout of a storage root: the number of the arrangement of its files, which only the version that reads
it may continue."""

from deltasae_ray.errors import LayoutError
from deltasae_ray.storage import Storage

LAYOUT_FILE = "layout.json"
LAYOUT = 2
"""Raise it when a change of the code could misread, or make twice, what earlier versions left below a
root."""


def check_layout(storage: Storage) -> None:
    """Refuses a root that another layout was written in; writes nothing.

    A root without a mark that holds a harvest or dictionaries is of layout 0, which had none.

    Raises:
        LayoutError: names the layout found, the layout needed, and what to do.
        StorageError: the mark cannot be read.
    """
    layout = _layout_of(storage)
    if layout is not None and layout != LAYOUT:
        which = "an earlier" if layout < LAYOUT else "a later"
        raise LayoutError(
            f"storage.root={storage.root} was made by {which} version: it has layout {layout}, and this"
            f" version needs layout {LAYOUT}. Give another storage.root, where the study is made anew, or"
            " continue this one with the version that made it"
        )


def mark_layout(storage: Storage) -> None:
    """Marks a root that was checked with this layout, before the first harvest is written there."""
    if not storage.exists(LAYOUT_FILE):
        storage.write_json(LAYOUT_FILE, {"layout": LAYOUT})


def _layout_of(storage: Storage) -> int | None:
    if storage.exists(LAYOUT_FILE):
        layout = storage.read_json(LAYOUT_FILE)["layout"]
        if type(layout) is not int or layout < 0:
            raise LayoutError(
                f"{storage.path(LAYOUT_FILE)} says layout {layout!r:.40}, which is no number of a layout:"
                f" this version needs layout {LAYOUT}. Delete the file if this version made all of the root,"
                " else give another storage.root"
            )
        return layout
    return (
        0
        if storage.exists("study.json") or storage.folders("harvest") or storage.folders("dictionaries")
        else None
    )
