"""Which subject a request names, and what is wrong with it for the model that it goes to."""

from serve.classes import Classes
from serve.errors import FieldError
from serve.schemas import GenerateRequest
from serve.subject import Subject


def subject_of(request: GenerateRequest) -> Subject:
    """What a request asks for that has been checked."""
    subject = request.prompt if request.class_label is None else request.class_label
    assert subject is not None, "the request was not checked"
    return subject


def subject_errors(
    request: GenerateRequest, classes: Classes | None, label: str, max_chars: int
) -> list[FieldError]:
    """What is wrong with a request to the model `label`, which has classes or none."""
    if classes is None:
        return _prompt_errors(request, label, max_chars)
    errors = []
    if request.prompt is not None:
        detail = f"is not supported: {label} draws classes, {classes.allowed}, by class_label"
        errors.append(FieldError("prompt", detail))
    if request.class_label is None:
        detail = f"is required, as {label} draws classes: {classes.allowed}"
        errors.append(FieldError("class_label", detail))
    elif request.class_label >= classes.count:
        detail = f"is {request.class_label}, {label} has the classes {classes.allowed}"
        errors.append(FieldError("class_label", detail))
    return errors


def _prompt_errors(request: GenerateRequest, label: str, max_chars: int) -> list[FieldError]:
    errors = []
    if request.class_label is not None:
        detail = f"is not supported: {label} has no classes, it draws what a prompt says"
        errors.append(FieldError("class_label", detail))
    if request.prompt is None:
        errors.append(FieldError("prompt", "is required"))
    elif len(request.prompt) > max_chars:
        detail = f"has {len(request.prompt)} characters, allowed are {max_chars}"
        errors.append(FieldError("prompt", detail))
    return errors
