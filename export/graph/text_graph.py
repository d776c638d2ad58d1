"""The graph of a text model's family."""

from export.graph.module import OneStepGraph
from export.graph.sd3_module import Sd3Graph, Sd3T5Graph
from export.graph.sd_module import SdGraph
from export.model.families import SD, SDXL
from export.model.student import Student

TextGraph = OneStepGraph | SdGraph | Sd3Graph | Sd3T5Graph


def text_graph(student: Student) -> TextGraph:
    """SDXL's, that of Stable Diffusion 1.x and 2.x, or SD 3's with its T5 or without."""
    family = student.family
    if family is SDXL:
        return OneStepGraph(student)
    if family is SD:
        return SdGraph(student)
    return Sd3T5Graph(student) if "text_encoder_3" in family.encoders else Sd3Graph(student)
