"""What a picture shows: a prompt, or a class. Which of them a model is asked for is its task."""

from serve.classes import Classes
from serve.errors import FieldError, InvalidParametersError

Subject = str | int  # a prompt, or the number of a class


def fields_of(subject: Subject) -> dict[str, str | int]:
    """By the name that it has in a request, in a picture's metadata and in the log."""
    return {"prompt": subject} if isinstance(subject, str) else {"class_label": subject}


def subject_from_text(text: str, classes: Classes | None) -> Subject:
    """What a text asks for where there is no other field, as in OpenAI's API.

    Of a model with classes it is the name or the number of one. Raises InvalidParametersError.
    """
    if classes is None:
        return text
    try:
        return classes.find(text)
    except ValueError as error:
        raise InvalidParametersError.of(FieldError("prompt", str(error))) from None


def example_subject(number: int, classes: Classes | None) -> Subject:
    """One of many that a model can be tried with; they differ as far as there are classes."""
    return f"{number}" if classes is None else number % classes.count
