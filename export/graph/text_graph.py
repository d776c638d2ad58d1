"""The graph of a text model's family."""

from export.graph.module import OneStepGraph
from export.graph.sd_module import SdGraph
from export.model.families import SDXL
from export.model.student import Student

TextGraph = OneStepGraph | SdGraph


def text_graph(student: Student) -> TextGraph:
    """SDXL's, or that of Stable Diffusion 1.x and 2.x."""
    return OneStepGraph(student) if student.family is SDXL else SdGraph(student)
