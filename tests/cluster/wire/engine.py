"""What mongomock lacks for a server: hash indexes, the list of what a command changed, and a limit on sizes.

It reaches into private parts of mongomock 4.3, which the constraints of this project pin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bson
import mongomock.store
from bson import ObjectId
from mongomock.collection import Collection
from mongomock.filtering import filter_applies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Document = dict[str, Any]
SCALARS = (str, int, float, bool, ObjectId)


class IndexedStore(mongomock.store.CollectionStore):
    """Documents of one collection, found by the first field of any index without looking at the others."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.fields: dict[str, dict[Any, dict[Any, None]]] = {}
        self.entries: dict[Any, list[tuple[str, Any]]] = {}
        self.images: dict[Any, bytes] = {}
        self.order: dict[Any, int] = {}
        self.changed: dict[Any, None] = {}

    def __setitem__(self, key: Any, value: Document) -> None:
        super().__setitem__(key, value)
        self.order.setdefault(key, len(self.order))
        self.changed[key] = None
        self._enter(key)  # at once: unique indexes are checked before the command ends

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        self.changed[key] = None

    def create_index(self, index_name: str, index_dict: Document) -> None:
        super().create_index(index_name, index_dict)
        field = index_dict["key"][0][0]
        if field != "_id" and field not in self.fields:
            self.fields[field] = {}
            for key in self._documents:
                self._enter(key)

    def drop(self) -> None:
        super().drop()
        for held in (self.fields, self.entries, self.images, self.order, self.changed):
            held.clear()

    def take_changes(self, limit: int) -> Iterator[tuple[Any, bytes | None]]:
        """Return what has changed since the last call, by identity; None for what is gone.

        Documents above the limit go back to what they were, and ValueError names the size of the first.
        """
        changed, self.changed = list(self.changed), {}
        images = {key: bson.encode(self._documents[key]) for key in changed if key in self._documents}
        too_large = [len(image) for image in images.values() if len(image) > limit]
        if too_large:
            for key in changed:
                self._restore(key)
            raise ValueError(f"object is too large: {too_large[0]} bytes, the limit is {limit}")
        for key in changed:
            image = images.get(key)
            if image == self.images.get(key):
                continue
            self._enter(key)
            if image is None:
                del self.images[key]
            else:
                self.images[key] = image
            yield key, image

    def candidates(self, criteria: Document) -> Iterable[Document]:
        """Return documents among which are all that match, in the order of their insertion."""
        best: dict[Any, None] | None = None
        for field, wanted in _equalities(criteria):
            if field == "_id":
                found = {value: None for value in wanted if value in self._documents}
            elif field in self.fields:
                found = {key: None for value in wanted for key in self.fields[field].get(value, ())}
            else:
                continue
            if best is None or len(found) < len(best):
                best = found
        if best is None:
            return list(self._documents.values())
        keys = sorted((key for key in best if key in self._documents), key=self.order.__getitem__)
        return [self._documents[key] for key in keys]

    def _restore(self, key: Any) -> None:
        before = self.images.get(key)
        if before is not None:
            self._documents[key] = bson.decode(before)
        else:
            self._documents.pop(key, None)
        self._enter(key)

    def _enter(self, key: Any) -> None:
        for field, value in self.entries.pop(key, ()):
            self.fields[field][value].pop(key, None)
        document = self._documents.get(key)
        if document is not None:
            found = [(field, value) for field in self.fields for value in set(_values(document, field.split(".")))]
            for field, value in found:
                self.fields[field].setdefault(value, {})[key] = None
            self.entries[key] = found


def _values(value: Any, path: list[str]) -> Iterator[Any]:
    """Yield what a path of field names leads to, through lists as MongoDB does."""
    if isinstance(value, list):
        for item in value:
            yield from _values(item, path)
        if path and path[0].isdigit() and int(path[0]) < len(value):
            yield from _values(value[int(path[0])], path[1:])
    elif not path:
        if isinstance(value, SCALARS):
            yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def _equalities(criteria: Document) -> Iterator[tuple[str, list[Any]]]:
    """Yield the fields of which a filter says what they equal, and those values."""
    for field, condition in criteria.items():
        if field == "$and":
            for part in condition:
                yield from _equalities(part)
        elif isinstance(condition, SCALARS):
            yield field, [condition]
        elif isinstance(condition, dict):
            wanted = condition.get("$in", [condition["$eq"]] if "$eq" in condition else None)
            if wanted is not None and all(isinstance(value, SCALARS) for value in wanted):
                yield field, wanted


def _iter_documents(self: Collection, criteria: Document) -> Iterator[Document]:
    if self._store.is_empty:
        filter_applies(criteria, {})  # a filter is checked even if nothing is there
    return (document for document in self._store.candidates(criteria) if filter_applies(criteria, document))


def _noting(apply: Callable[..., None]) -> Callable[..., None]:
    def noting(self: Collection, document: Document, *args: Any) -> None:
        apply(self, document, *args)
        self._store.changed[document["_id"]] = None
        self._store._enter(document["_id"])

    return noting


def install() -> None:
    """Let mongomock use these collections; once per process."""
    mongomock.store.CollectionStore = IndexedStore
    Collection._iter_documents = _iter_documents
    Collection._apply_update_document = _noting(Collection._apply_update_document)
    Collection._apply_update_pipeline = _noting(Collection._apply_update_pipeline)
