"""Says what an error means that a forward or backward raised while it was captured, and what to do."""

from __future__ import annotations

_KEEP_OUT = "keep that part out of the rewritten module"
NESTED = (
    "lowtide plans dense tensors: pad the sequences (nn.TransformerEncoder has enable_nested_tensor=False), or "
    f"{_KEEP_OUT}"
)

# By what the text of an error contains, in lower case. The first that fits is said.
_MEANINGS = (
    (
        ("nestedtensor", "_nested_", "nestedint"),
        f"It makes a nested tensor, and {NESTED}",
    ),
    (
        ("unsupportedoperatorexception", "no fake impl", "could not find fake impl", "without a fake impl"),
        "The operation does not say which shapes it makes: register that with torch.library.register_fake, "
        f"or {_KEEP_OUT}",
    ),
    (
        ("data is not allocated", "data pointer", "cannot access storage", "doesn't have storage"),
        "That line reads a tensor's memory (a legacy constructor such as torch.FloatTensor of tensors, a kernel of its "
        "own that is no operation of torch, a data pointer), which is not there while a step is captured: compute with "
        f"operations of torch, or {_KEEP_OUT}",
    ),
)
_OTHERWISE = f"If the original raises this too, mend it there; if it does not, {_KEEP_OUT}"


def meaning_of(error: Exception) -> str:
    """One sentence or two on an error, by its type and text."""
    text = f"{type(error).__name__}: {error}".lower()
    for parts, meaning in _MEANINGS:
        if any(part in text for part in parts):
            return meaning
    return _OTHERWISE


def shown(error: Exception) -> str:
    """The error's type and the first line of its text: torch adds advice to some that does not hold here."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def about_sparse(operation: str, where: str, phase: str) -> str:
    """Why the step of an operation that gives a sparse tensor is refused."""
    if phase == "backward":
        return (
            f"a sparse gradient comes of {operation}, {where}: its size is not known before it is there; make the "
            "embedding with sparse=False (or gather with sparse_grad=False)"
        )
    return (
        f"{operation} makes a sparse tensor, {where}: how large it is depends on its values, and lowtide plans dense "
        f"ones; compute with a dense one, or {_KEEP_OUT}"
    )
