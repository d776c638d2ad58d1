"""What can be wrong with an export, one class per thing; the message is a sentence for the user."""


class ExportError(Exception):
    """Anything the user can put right; the command line prints it and exits non-zero."""


class StudentError(ExportError):
    """The student directory is missing, incomplete, or of a kind that is not supported."""


class ParityError(ExportError):
    """The ONNX graph does not draw the pictures that torch draws."""


class RepositoryError(ExportError):
    """The model repository cannot take the version, or holds one that is not whole."""


class EngineError(ExportError):
    """A TensorRT engine cannot be built, refitted or opened here, or is not for this place."""


class SizeError(ExportError):
    """A size of pictures is not written as one, or is not one that the student can draw."""


class PrecisionError(ExportError):
    """A part cannot be kept in the number type that was asked for."""


class DecoderError(ExportError):
    """The other decoder is missing, of an unknown kind, or does not fit the student's latents."""
