"""Which files of a tuned lens are refused?"""

import torch
from odd_things import folder, lens_file, tensors
from world import Case

import mcr_lens as mcr

# fmt: off
CASES = [
    Case("a lens that is not there", lambda w: mcr.TunedLens.load(w.folder / "none.safetensors"),
         FileNotFoundError, "is not a file"),
    Case("a lens in a folder", lambda w: mcr.TunedLens.load(w.folder), FileNotFoundError, "is not a file"),
    Case("a lens in an empty file", lambda w: mcr.TunedLens.load(w.file("empty.safetensors", b"")),
         mcr.TunedLensFileError, "cannot be read as safetensors ("),
    Case("a lens in half a file",
         lambda w: mcr.TunedLens.load(w.file("half.safetensors", w.lens_file.read_bytes()[:500])),
         mcr.TunedLensFileError, "cannot be read as safetensors ("),
    Case("a lens with a huge head", lambda w: mcr.TunedLens.load(w.file("huge.safetensors", b"\xff" * 64)),
         mcr.TunedLensFileError, "cannot be read as safetensors ("),
    Case("a lens without a bias",
         lambda w: mcr.TunedLens.load(tensors(w, "biasless", {"weight": torch.zeros(1, 2, 2)}, "{}")),
         mcr.TunedLensFileError, "cannot be read as safetensors ("),
    Case("a lens of whole numbers",
         lambda w: mcr.TunedLens.load(lens_file(w, "whole", weight=torch.zeros(1, 2, 2).long())),
         mcr.TunedLensFileError, "is a damaged tuned lens (weight came as torch.int64"),
    Case("a lens whose note is a list", lambda w: mcr.TunedLens.load(lens_file(w, "listed", "[]")),
         mcr.TunedLensFileError, "is a damaged tuned lens (training came as list"),
    Case("a lens saved where no folder is", lambda w: w.tuned.save(w.folder / "none" / "lens.safetensors"),
         FileNotFoundError, "is not a folder; create it first"),
    Case("a lens saved over a folder", lambda w: w.tuned.save(folder(w, "taken.safetensors")),
         IsADirectoryError, "is a folder; name a file in it"),
]
# fmt: on
