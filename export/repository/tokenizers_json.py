"""The student's tokenizers as plain `tokenizers` files that need no transformers to be read."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.signature import TOKENS


def write_tokenizer(tokenizer: Any, file: Path, length: int = TOKENS) -> None:
    """Write a tokenizer that adds its own start and end and pads to `length` by its own pad token.

    It never truncates: a text that is too long comes out longer, and the reader sees it.
    """
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.enable_padding(
        length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token
    )
    plain.save(str(file), pretty=True)
