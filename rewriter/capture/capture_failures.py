"""Explain errors that forward or backward raised during capture, and what to do about them."""

from __future__ import annotations

_KEEP_OUT = "keep that part out of the rewritten module"
NESTED = (
    "lowtide plans dense tensors: pad the sequences (nn.TransformerEncoder has enable_nested_tensor=False), or "
    f"{_KEEP_OUT}"
)

# Explanations by parts of an error's text, in lower case. The first match is used.
_MEANINGS = (
    (
        ("nestedtensor", "_nested_", "nestedint"),
        f"It makes a nested tensor, and {NESTED}",
    ),
    (
        ("unsupportedoperatorexception", "no fake impl", "could not find fake impl", "without a fake impl"),
        "The operation has no fake kernel, so the shapes of its results are unknown: register one with "
        f"torch.library.register_fake, or {_KEEP_OUT}",
    ),
    (
        ("data is not allocated", "data pointer", "cannot access storage", "doesn't have storage"),
        "That line reads a tensor's memory (a legacy constructor such as torch.FloatTensor of tensors, a custom kernel "
        "that is not a torch operation, a data pointer), which does not exist during capture: compute with torch "
        f"operations, or {_KEEP_OUT}",
    ),
)
_OTHERWISE = f"If the original raises this too, fix it there; if it does not, {_KEEP_OUT}"


def meaning_of(error: Exception) -> str:
    """Return one or two sentences that explain an error, by its type and text."""
    text = f"{type(error).__name__}: {error}".lower()
    for parts, meaning in _MEANINGS:
        if any(part in text for part in parts):
            return meaning
    return _OTHERWISE


def shown(error: Exception) -> str:
    """Return the error's type and the first line of its text: torch's further advice may not apply here."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def about_sparse(operation: str, where: str, phase: str) -> str:
    """Return why a step with an operation that returns a sparse tensor is refused."""
    if phase == "backward":
        return (
            f"a sparse gradient comes from {operation}, {where}: its size is not known in advance; make the "
            "embedding with sparse=False (or gather with sparse_grad=False)"
        )
    return (
        f"{operation} makes a sparse tensor, {where}: its size depends on its values, and lowtide plans dense "
        f"tensors; compute with a dense one, or {_KEEP_OUT}"
    )
