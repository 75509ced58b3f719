"""All documents of a path, as tests want them: the files in order, each to its end."""

from collections.abc import Iterator
from typing import Any

from deltasae_ray.corpus.chat import Chat
from deltasae_ray.corpus.documents import Document, documents_of
from deltasae_ray.corpus.files import files_of
from deltasae_ray.corpus.tally import Tally


def read_documents(
    path: str, text_field: str = "text", *, chat: Any = None, alpaca: bool = False, tally: Tally | None = None
) -> Iterator[Document]:
    """chat: a tokenizer, where rows are conversations."""
    for file in files_of(path):
        yield from documents_of(file, text_field, chat=Chat(chat, alpaca) if chat else None, tally=tally)
