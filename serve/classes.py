"""The classes of a class-conditional model: how many, and what they are called."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SHOWN = 60  # characters of what somebody asked for


class Classes(BaseModel):
    """They are counted from 0; `names` has one for each of them, or is empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    count: int = Field(ge=1)
    names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.names and len(self.names) != self.count:
            raise ValueError(f"there are {len(self.names)} names of {self.count} classes")
        return self

    @property
    def allowed(self) -> str:
        """The numbers, for a sentence."""
        return f"0 to {self.count - 1}"

    def find(self, text: str) -> int:
        """The class with this name, in capitals or not, else with this number.

        Raises ValueError, with the end of a sentence about the text, if that is not one class.
        """
        wanted = text.strip().casefold()
        named = [i for i, name in enumerate(self.names) if name.casefold() == wanted]
        if len(named) > 1:
            numbers = ", ".join(map(str, named))
            raise ValueError(f"is the name of the classes {numbers}: say which by its number")
        if named:
            return named[0]
        if wanted.isascii() and wanted.isdecimal() and int(wanted[:20]) < self.count:
            return int(wanted)
        quoted = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
        names = ", or the name of one" if self.names else ""
        raise ValueError(f"is {quoted}, allowed is the number of a class, {self.allowed}{names}")
