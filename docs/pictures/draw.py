"""Draws the pictures of the concept pages as SVG files next to this one: `python docs/pictures/draw.py`."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

BLUE, GREEN, ORANGE, GREY, RED = "#dbe9fb", "#ddf2df", "#fdebd0", "#eeeeee", "#f9dcdc"
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    'font-family="sans-serif" font-size="13">\n<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#444"/></marker></defs>\n'
    '<rect width="{width}" height="{height}" fill="white"/>'
)


class Picture:
    """Shapes on a white ground, in the order in which they are drawn."""

    def __init__(self, width: int, height: int) -> None:
        self.shapes = [_HEAD.format(width=width, height=height)]

    def text(self, x: float, y: float, words: str, anchor: str = "start", color: str = "#222", size: int = 13) -> None:
        """Write one line whose baseline is at `y`."""
        self.shapes.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}" font-size="{size}">{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, words: str = "", color: str = BLUE) -> None:
        """Draw a rounded box with centred lines of text."""
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{color}" stroke="#666"/>'
        )
        lines = words.split("\n") if words else []
        first = y + height / 2 + 5 - 8.5 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + 17 * number, line, "middle")

    def arrow(self, x1: float, y1: float, x2: float, y2: float, dashed: bool = False) -> None:
        """Draw a straight arrow."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.shapes.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#444" stroke-width="1.4"{dashes} '
            'marker-end="url(#tip)"/>'
        )

    def line(self, points: list[tuple[float, float]], color: str = "#1f5fbf", width: float = 2) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>')

    def svg(self) -> str:
        """Return the file's content."""
        return "\n".join([*self.shapes, "</svg>\n"])


def stages() -> Picture:
    """A module's path through the stages, with the object that each hands on."""
    picture = Picture(960, 150)
    names = ["capture", "passes", "measure", "build the\nproblem", "solve", "emit", "run"]
    handed = ["joint graph", "step graph", "costs", "Problem", "Plan", "Program"]
    for number, name in enumerate(names):
        picture.box(15 + 136 * number, 40, 84, 56, name, GREEN if name == "solve" else BLUE)
    for number, name in enumerate(handed):
        picture.arrow(99 + 136 * number, 68, 151 + 136 * number, 68)
        picture.text(125 + 136 * number, 118, name, "middle", "#555", 12)
    picture.text(15, 22, "module, budget, sample inputs")
    picture.text(915, 22, "the same module, another forward", "end")
    picture.text(559, 143, "green: sees no torch", "start", "#555", 12)
    return picture


def capture() -> Picture:
    """One run on tensors without data, and the three things that it gives."""
    picture = Picture(760, 250)
    picture.box(20, 30, 150, 60, "module\n(a shadow copy)", GREY)
    picture.box(20, 150, 150, 60, "sample inputs\n(shapes, dtypes)", GREY)
    picture.box(240, 80, 200, 90, "one run under autograd\non tensors without data:\nforward, autograd.grad")
    picture.arrow(170, 60, 238, 105)
    picture.arrow(170, 180, 238, 145)
    picture.box(520, 15, 220, 60, "joint graph: each ATen call\nof forward and backward", GREEN)
    picture.box(520, 95, 220, 60, "guards: values to look up\nin the inputs of each call", ORANGE)
    picture.box(520, 175, 220, 60, "checks: decisions that the\nstep confirms while it runs", ORANGE)
    for y in (45, 125, 205):
        picture.arrow(440, 125, 518, y)
    return picture


def passes() -> Picture:
    """Dropout before and after its mask is packed."""
    picture = Picture(760, 270)
    for top, title, kept, reader, color in (
        (30, "before", "mask: 4 bytes\nfor each element", "multiply", RED),
        (155, "after `packed_masks`", "mask: 1 bit\nfor each element", "multiply\nby bits", GREEN),
    ):
        picture.text(20, top - 8, title, size=14)
        picture.box(20, top + 15, 120, 60, "activation", GREY)
        picture.box(200, top + 15, 120, 60, "dropout\n(same draws)")
        picture.box(400, top + 15, 150, 60, kept, color)
        picture.box(620, top + 15, 120, 60, reader)
        picture.arrow(140, top + 45, 198, top + 45)
        picture.arrow(320, top + 45, 398, top + 45)
        picture.arrow(550, top + 45, 618, top + 45)
    picture.text(260, 262, "forward", "middle", "#555")
    picture.text(475, 262, "kept until backward", "middle", "#555")
    picture.text(680, 262, "backward", "middle", "#555")
    return picture


def problem() -> Picture:
    """Operations and values of two layers, forward above and backward below."""
    picture = Picture(760, 300)
    picture.text(20, 24, "operations (boxes): seconds, working bytes.  values (green): bytes.", color="#555")
    for number, name in enumerate(("linear", "gelu", "loss")):
        x = 60 + 240 * number
        picture.box(x, 50, 110, 44, name)
        picture.box(x, 210, 110, 44, f"backward\nof {name}", ORANGE)
        if number < 2:
            picture.arrow(x + 110, 72, x + 142, 72)
            picture.box(x + 144, 56, 62, 32, ("h", "a")[number], GREEN)
            picture.arrow(x + 206, 72, x + 238, 72)
            picture.arrow(x + 238, 232, x + 112, 232)
    picture.arrow(235, 88, 330, 208, dashed=True)
    picture.arrow(475, 88, 580, 208, dashed=True)
    picture.text(312, 134, "read again by backward:", color="#555")
    picture.text(312, 151, "keep, encode or recompute?", color="#555")
    picture.line([(20, 185), (740, 185)], "#999", 1)
    picture.text(20, 180, "boundary between forward and backward", "start", "#555", 12)
    picture.text(20, 285, "resident throughout: parameters, buffers, inputs, existing .grad", color="#555")
    return picture


def solvers() -> Picture:
    """The four steps of the rockmate solver, and the frontier from which budgets are answered."""
    picture = Picture(760, 330)
    for number, words in enumerate(
        ("cut into layers\nand windows", "block schedules\nof each layer", "nested schedules\nof the chain", "polish")
    ):
        picture.box(15 + 190 * number, 20, 150, 54, words)
        if number:
            picture.arrow(-25 + 190 * number, 47, 13 + 190 * number, 47)
    picture.arrow(660, 74, 660, 110)
    picture.text(655, 128, "candidates of all solvers, simulated", "end", "#555")
    picture.arrow(90, 300, 720, 300)
    picture.arrow(90, 300, 90, 130)
    picture.text(405, 322, "peak bytes", "middle")
    picture.text(98, 142, "extra time")
    steps = [(120, 160), (170, 160), (170, 205), (250, 205), (250, 240), (360, 240), (360, 272), (520, 272)]
    picture.line([*steps, (520, 298), (700, 298)])
    bound = [(120, 190), (170, 214), (250, 246), (360, 276), (520, 297)]
    picture.line(bound, "#c0392b", 1.5)
    picture.text(390, 175, "lower envelope: the plan for each budget", color="#1f5fbf")
    picture.text(118, 292, "proven lower bound", color="#c0392b")
    for x, y in ((210, 190), (300, 215), (330, 180), (430, 245), (470, 210), (600, 270)):
        picture.shapes.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="#999"/>')
    return picture


def encodings() -> Picture:
    """The path of a code's error from a kept value to the gradients."""
    picture = Picture(780, 260)
    picture.box(20, 30, 110, 54, "value\n32 bits", GREY)
    picture.box(190, 30, 110, 54, "encode")
    picture.box(360, 30, 130, 54, "code\n1 to 8 bits", GREEN)
    picture.box(550, 30, 110, 54, "decode")
    for x in (130, 300, 490):
        picture.arrow(x, 57, x + 58, 57)
    picture.arrow(605, 84, 605, 138)
    picture.text(615, 114, "value + error", color="#b9770e")
    for number, name in enumerate(("kernels of\nbackward", "their gain", "gradients")):
        picture.box(550 - 205 * number, 140, 130, 54, name, ORANGE)
        if number:
            picture.arrow(755 - 205 * number, 167, 682 - 205 * number, 167)
    picture.text(20, 170, "variance added", color="#b9770e")
    picture.text(20, 230, "The added variance of all chosen codes stays below error_budget (0.01) times", size=14)
    picture.text(20, 250, "the gradient's own variance between batches. Forward reads no approximate value.", size=14)
    return picture


def code_generation() -> Picture:
    """Blocks of one class that share the generated functions."""
    picture = Picture(760, 250)
    picture.text(20, 24, "the schedule, block by block")
    for number, name in enumerate(("embed", "layer 0", "layer 1", "layer 2", "head")):
        color = GREEN if "layer" in name else GREY
        picture.box(20, 40 + 40 * number, 120, 30, name, color)
    picture.box(250, 70, 210, 50, "def layer_forward(…)", GREEN)
    picture.box(250, 140, 210, 50, "def layer_backward(…)", GREEN)
    for number in range(3):
        y = 95 + 40 * number
        picture.arrow(140, y, 248, 95)
        picture.arrow(140, y, 248, 165, dashed=True)
    picture.box(540, 70, 200, 50, "recompute, compute,\nfree: plain Python")
    picture.box(540, 140, 200, 50, "numbers in which layers\ndiffer are arguments")
    picture.arrow(460, 95, 538, 95)
    picture.arrow(460, 165, 538, 165)
    picture.text(250, 225, "one pair of functions for all blocks of a class", color="#555")
    return picture


def running() -> Picture:
    """A step at run time: nodes of autograd's graph, and the bytes alive over it."""
    picture = Picture(780, 300)
    names = ["link 1", "link 2", "link 3", "loss", "link 3", "link 2", "link 1"]
    for number, name in enumerate(names):
        color = GREY if name == "loss" else BLUE if number < 3 else ORANGE
        picture.box(20 + 108 * number, 34, 82, 40, name, color)
        if number:
            picture.arrow(-6 + 108 * number, 54, 18 + 108 * number, 54)
    picture.text(20, 22, "forward: each link keeps its values on the call's tape")
    picture.text(760, 22, "backward: recompute, read, free, accumulate .grad", "end")
    picture.arrow(20, 270, 765, 270)
    picture.arrow(20, 270, 20, 95)
    picture.text(28, 105, "bytes alive")
    picture.line([(20, 115), (760, 115)], "#c0392b", 1.5)
    picture.text(760, 109, "budget", "end", "#c0392b")
    bytes_alive = [(20, 235), (60, 215), (100, 222), (168, 190), (208, 198), (276, 165), (318, 172), (384, 150)]
    after = [(430, 118), (470, 160), (510, 150), (560, 122), (590, 180), (650, 150), (690, 205), (740, 195), (760, 235)]
    picture.line([*bytes_alive, *after])
    picture.text(28, 262, "parameters, buffers and inputs are resident", color="#555", size=12)
    picture.text(760, 290, "time of one step", "end", "#555", 12)
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "stages": stages,
    "capture": capture,
    "passes": passes,
    "problem": problem,
    "solvers": solvers,
    "encodings": encodings,
    "code-generation": code_generation,
    "running": running,
}


def main() -> None:
    """Write all pictures."""
    for name, draw in PICTURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
