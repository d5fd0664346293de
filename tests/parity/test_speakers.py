"""spk_dict.pt between torch and us: we read files of torch.save as torch.load does, and torch reads ours."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from omni_jax.testing.qwen2_5_omni import tiny_speakers
from omni_jax.weights.speakers import FILE, read_speakers, write_speakers


def equal(found, wanted):
    assert list(found) == list(wanted)
    for name, voice in wanted.items():
        assert found[name].bos_token == int(voice["bos_token"])
        for part in ("cond", "ref_mel"):
            ours, theirs = getattr(found[name], part), voice[part].float().numpy()
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def voices():
    """As published: an id, an embedding [1, 192] and 400 mel frames for each of two voices."""
    seed = torch.Generator().manual_seed(0)
    return {
        name: {
            "bos_token": token,
            "cond": torch.randn(1, 192, generator=seed),
            "ref_mel": torch.randn(1, 400, 80, generator=seed),
        }
        for name, token in (("Chelsie", 151872), ("Ethan", 151870))
    }


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype).split(".")[1]
)
def test_voices_saved_by_torch_are_read(tmp_path, voices, dtype):
    for voice in voices.values():
        voice["cond"], voice["ref_mel"] = voice["cond"].to(dtype), voice["ref_mel"].to(dtype)
    torch.save(voices, tmp_path / FILE)
    equal(read_speakers(tmp_path), torch.load(tmp_path / FILE, weights_only=True))


def test_other_forms_of_torch_save_are_read(tmp_path, voices):
    """Ordered dictionaries, views of one storage, parameters' data, an id in a tensor, a name beyond ASCII."""
    shared = torch.arange(4000.0)
    voices = OrderedDict(voices)
    voices["Ethan"] = OrderedDict(voices["Ethan"])
    voices["Chelsie"]["cond"] = shared[7:199][None]
    voices["Ethan"]["cond"] = shared.view(2, 2000).T[:192, 1][None]
    voices["Chelsie"]["ref_mel"] = shared.view(1, 80, 50).transpose(1, 2)
    voices["Chelsie"]["bos_token"] = torch.tensor(151872)
    voices["Ænne"] = dict(voices["Ethan"], cond=torch.nn.Parameter(shared[None, :192]).data)
    torch.save(voices, tmp_path / FILE)
    equal(read_speakers(tmp_path), torch.load(tmp_path / FILE, weights_only=True))


def test_the_format_before_zip_archives_is_refused(tmp_path, voices):
    torch.save(voices, tmp_path / FILE, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"spk_dict\.pt: .* no zip archive"):
        read_speakers(tmp_path)


def test_a_module_saved_by_torch_is_refused(tmp_path, voices):
    torch.save({"Ethan": torch.nn.Linear(2, 2)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"names torch\.nn\.modules\.linear\.Linear, which may run code"):
        read_speakers(tmp_path)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_our_voices(tmp_path, mmap):
    speakers = tiny_speakers()
    path = write_speakers(tmp_path, speakers)
    found = torch.load(path, weights_only=True, mmap=mmap)
    equal(speakers, found)
    for voice in found.values():
        assert type(voice["bos_token"]) is int
        assert voice["cond"].dtype == voice["ref_mel"].dtype == torch.float32
