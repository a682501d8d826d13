"""Does reading a file that somebody else made run nothing and read nothing else?"""

import contextlib
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from handmade import result

import mcr_lens
from mcr_lens import ResultSchemaError, TunedLens, load, save
from mcr_lens.readouts.translators import TunedLensFileError
from mcr_lens.sweep_store import read, write

pytestmark = pytest.mark.once


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def payload(mark) -> bytes:
    return pickle.dumps(Payload(mark))


def test_the_payload_works(mark, payload):
    """Or the tests below would show nothing."""
    pickle.loads(payload)
    assert mark.exists()


@pytest.mark.parametrize("name", ["a.nc", "a.safetensors", "a.pt"])
def test_a_pickle_by_another_name(tmp_path, mark, payload, name):
    file = tmp_path / name
    file.write_bytes(payload)
    with pytest.raises(ResultSchemaError, match=rf"^{file} cannot be read as netCDF \("):
        load(file)
    with pytest.raises(TunedLensFileError, match=rf"^{file} cannot be read as safetensors \("):
        TunedLens.load(file)
    with pytest.raises(ValueError, match=rf"^{file} cannot be read \("):
        read(file)
    assert not mark.exists()


def test_a_pickle_within_a_result(tmp_path, mark, payload):
    """In attributes, in a dataset of opaque bytes, and in the text of a prompt: bytes stay bytes."""
    file = save(result({"bos_norm": 1.0}), tmp_path / "a.nc")
    with h5py.File(file, "a") as inside:
        inside.attrs["model"] = np.void(payload)
        inside.attrs["pickle"] = payload.hex()
        inside["opaque"] = np.void(payload)
    with contextlib.suppress(ResultSchemaError):
        load(file)
    assert not mark.exists()
    ds = result({"bos_norm": 1.0})
    ds.attrs["pickle"] = payload.hex()
    ds["text"] = ("prompt", np.array([payload.hex()] * ds.sizes["prompt"], dtype=object))
    assert load(save(ds, file)).attrs["pickle"] == payload.hex() and not mark.exists()


def test_a_pickle_within_the_metadata_of_a_lens(tmp_path, mark, payload):
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "a.safetensors"
    about = {"format": "mcr_lens tuned lens 1", "training": payload.hex()}
    save_file({"weight": torch.zeros(2, 4, 4), "bias": torch.zeros(2, 4)}, file, metadata=about)
    with pytest.raises(TunedLensFileError, match="is a damaged tuned lens"):
        TunedLens.load(file)
    assert not mark.exists()


def external(inside: h5py.File, secret: Path) -> None:
    inside.create_dataset("secret", (8,), "u1", external=[(str(secret), 0, 8)])


def link(inside: h5py.File, secret: Path) -> None:
    inside["secret"] = h5py.ExternalLink(str(secret), "/a")


def virtual(inside: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((8,), "u1")
    layout[:] = h5py.VirtualSource(str(secret), "a", (8,))
    inside.create_virtual_dataset("secret", layout)


@pytest.mark.parametrize(
    ("plant", "said"),
    [(external, "'secret' is kept in other files"), (link, "'secret' points into another file, '"),
     (virtual, "'secret' is kept in other files")],
)  # fmt: skip
def test_a_result_that_would_read_other_files(tmp_path, plant, said):
    """HDF5 can name any file of the reader's machine as a part of itself."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as other:
        other["a"] = np.arange(8, dtype="u1")
    file = tmp_path / "a.nc"
    write(result({"bos_norm": 1.0}), file, "digest")
    with h5py.File(file, "a") as inside:
        plant(inside, secret)
    with pytest.raises(ResultSchemaError, match=rf"^{file} cannot be read as netCDF \({said}"):
        load(file)
    with pytest.raises(ValueError, match=rf"^{file} cannot be read \({said}"):
        read(file)


def test_verdicts_and_close_ups_beside_a_result(tmp_path, mark, payload):
    """What lies beside a result is read as JSON and netCDF, and as nothing else."""
    from mcr_lens.delivery import beside

    for name in ("close_up.nc", "conditions.nc", "verdicts.json"):
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(ValueError, match=name):
            beside(result({"bos_norm": 1.0}), tmp_path)
        (tmp_path / name).unlink()
    assert not mark.exists()


def remote(folder: Path, mark: Path) -> Path:
    """The folder of a model that brings code along, which leaves a mark."""
    from models import hugging_face

    model = hugging_face("llama")
    model.save_pretrained(folder)
    config = (folder / "config.json").read_text()
    known = '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},'
    own = config.replace("{", "{" + known, 1).replace('"model_type": "llama"', '"model_type": "own"')
    (folder / "config.json").write_text(own)
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


def test_code_of_a_model_runs_only_when_asked_for(tmp_path, mark, monkeypatch):
    """Neither door runs it, nor asks whoever sits there; with trust_remote_code the result says so."""
    from models import tokenizer

    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = remote(tmp_path / "model", mark)
    for door in (mcr_lens.load_model, mcr_lens.serve):
        with pytest.raises(mcr_lens.ModelLoadError, match=r"trust_remote_code|custom code") as seen:
            door(folder, tokenizer=tokenizer(), verbose=False)
        assert "\n" not in str(seen.value) and not mark.exists()
    trusted = mcr_lens.serve(folder, tokenizer(), trust_remote_code=True, verbose=False)
    ds = mcr_lens.measure(trusted, ["Some text."], ["bos_norm"], progress=False)
    assert mark.exists() and ds.attrs["trust_remote_code"] == "yes: code that came with the model was run"
    plain = mcr_lens.serve("demo", verbose=False)
    assert "trust_remote_code" not in mcr_lens.measure(plain, ["A."], ["bos_norm"], progress=False).attrs


def test_no_objects_come_out_of_a_file(tmp_path):
    """Text is text: what HDF5 calls objects are strings of variable length here."""
    ds = load(save(result({"bos_norm": 1.0}), tmp_path / "a.nc"))
    for name in ds.variables:
        if ds[name].dtype == object:
            assert {type(v) for v in ds[name].values.ravel().tolist()} == {str}, name
    assert isinstance(ds, xr.Dataset)
