"""The student's tokenizers as plain `tokenizers` files that need no transformers to be read."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.signature import TOKENS


def write_tokenizer(tokenizer: Any, file: Path) -> None:
    """Write a CLIP tokenizer that adds its own start and end and pads to 77 with its own pad token.

    It never truncates: a text that is too long comes out longer than 77, and the reader sees it.
    """
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.enable_padding(
        length=TOKENS, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token
    )
    plain.save(str(file), pretty=True)
