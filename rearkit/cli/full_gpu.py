"""What to do about a GPU that is full, by what was running when it was."""

from __future__ import annotations

import traceback

from rearkit.errors import first_line

# By package: the key to change, of whatever a run can do.
REMEDIES = {
    "rearkit.fitting": "give a smaller [tokenizer.fit] batch",
    "rearkit.tokenization": "give a smaller [tokens] batch",
    "rearkit.training": "give a smaller [train] micro_batch (a step has as many samples, in more parts) or "
    "activation_checkpointing = true",
    "rearkit.sampling": "give a smaller [sample] batch",
    "rearkit.evaluation": "give a smaller [evaluate] batch",
}


def told_of_full_gpu(error: BaseException) -> str:
    """Return what to report of torch's error that a GPU is full, in one line; empty for any other error."""
    # By its name, which is the same in all versions of torch, and known without importing torch.
    if not any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return ""
    # The innermost: a training may be drawing pictures.
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [".".join(name.split(".")[:2]) for name in names]
    remedy = next((REMEDIES[name] for name in reversed(packages) if name in REMEDIES), "do less at once")
    # What follows is advice on torch's allocator.
    said = ". ".join(first_line(error).split(". ")[:3]).rstrip(".")
    return f"the GPU is full: {said}; {remedy}, or see what else runs on it"
