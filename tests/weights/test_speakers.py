"""spk_dict.pt without torch: files of torch.save, assembled by hand, are read and written."""

from dataclasses import replace

import numpy as np
import pytest

from omni_jax.config.qwen2_5_omni import read
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config, tiny_speakers
from omni_jax.weights.speakers import FILE, read_speakers, write_speakers
from tests.support.torch_files import DATA, HOOKS, MEL, REBUILD, integer, mapping, save, storage, tensor, text


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE


def test_a_file_of_torch_save_is_read(path):
    found = read_speakers(save(path))
    assert list(found) == ["Ethan"]
    assert found["Ethan"].bos_token == 7
    np.testing.assert_array_equal(found["Ethan"].cond, [[0, 1]])
    np.testing.assert_array_equal(found["Ethan"].ref_mel, np.arange(10).reshape(1, 5, 2))
    for array in (found["Ethan"].cond, found["Ethan"].ref_mel):
        assert array.dtype == np.float32
        assert array.flags.writeable


def test_another_folder_name_in_the_archive_is_read(path):
    save(path, root="archive")
    assert list(read_speakers(path.parent)) == ["Ethan"]


def test_views_other_dtypes_and_devices_are_read(path):
    """A transposed view that begins within its storage, float16, an id in a tensor, and storages of a GPU."""
    data = {
        "0": np.arange(8, dtype="<f4").tobytes(),
        "1": np.arange(10, dtype="<f2").tobytes(),
        "2": np.array([9], "<i8").tobytes(),
    }
    voice = mapping(
        bos_token=tensor((), (), count=1, key="2", kind="LongStorage"),
        cond=tensor((1, 3), (1, 2), count=8, start=2),
        ref_mel=tensor((1, 5, 2), (10, 1, 5), count=10, key="1", kind="HalfStorage", device="cuda:0"),
    )
    found = read_speakers(save(path, mapping(Chelsie=voice), data))["Chelsie"]
    assert found.bos_token == 9
    np.testing.assert_array_equal(found.cond, [[2, 4, 6]])
    np.testing.assert_array_equal(found.ref_mel, np.arange(10).reshape(2, 5).T[None])


def test_bfloat16_is_read(path):
    data = {**DATA, "0": np.array([1.5, -2], "<f4").tobytes()[2:4] + np.array([-2], "<f4").tobytes()[2:4]}
    cond = tensor((1, 2), (2, 1), count=2, kind="BFloat16Storage")
    found = read_speakers(save(path, mapping(Ethan=mapping(bos_token=integer(7), cond=cond, ref_mel=MEL)), data))
    np.testing.assert_array_equal(found["Ethan"].cond, [[1.5, -2]])


def test_memo_opcodes_are_read(path):
    """torch.save memoises each object: BINPUT and BINGET, SETITEM for a single item, short integers."""
    body = b"}q\x00" + text("Ethan") + b"q\x01}q\x02" + text("bos_token") + b"K\x07s"
    body += text("cond") + REBUILD + b"q\x03(" + storage(2) + b"K\x00K\x01K\x02\x86K\x02K\x01\x86\x89" + HOOKS + b"tRs"
    body += text("ref_mel") + b"h\x03(" + storage(10, "1") + b"K\x00K\x01K\x05K\x02\x87M\x0a\x00K\x02K\x01\x87\x89"
    found = read_speakers(save(path, body + HOOKS + b"tRss"))
    assert found["Ethan"].bos_token == 7
    np.testing.assert_array_equal(found["Ethan"].ref_mel, np.arange(10).reshape(1, 5, 2))


@pytest.mark.parametrize("folder", [False, True])
def test_written_voices_are_read_back(tmp_path, folder):
    speakers = tiny_speakers()
    path = write_speakers(tmp_path if folder else tmp_path / "voices.pt", speakers)
    assert path.name == (FILE if folder else "voices.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = read_speakers(path)
    assert list(found) == list(speakers)
    for name, speaker in speakers.items():
        assert found[name].bos_token == speaker.bos_token
        np.testing.assert_array_equal(found[name].cond, speaker.cond)
        np.testing.assert_array_equal(found[name].ref_mel, speaker.ref_mel)


def test_equal_voices_are_written_as_equal_bytes(tmp_path):
    one, two = (write_speakers(tmp_path / name / FILE, tiny_speakers()) for name in map(folder(tmp_path), "ab"))
    assert one.read_bytes() == two.read_bytes()


def folder(parent):
    def make(name):
        (parent / name).mkdir()
        return name

    return make


def test_arrays_of_another_memory_order_are_written_by_value(path):
    speaker = replace(tiny_speakers()["Ethan"], ref_mel=np.asfortranarray(np.arange(12.0).reshape(1, 6, 2)))
    found = read_speakers(write_speakers(path, {"Ethan": speaker}))["Ethan"]
    np.testing.assert_array_equal(found.ref_mel, speaker.ref_mel)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bos_token": 512}, "speaker 'Ethan': bos_token 512 is outside the vocabulary of 512"),
        ({"cond": np.zeros((1, 23))}, "speaker 'Ethan': cond has 23 numbers, expected 24 as in config.json"),
        ({"ref_mel": np.zeros((1, 9, 80))}, "speaker 'Ethan': ref_mel has 80 mel bins, expected 16 as in config.json"),
        ({"ref_mel": np.zeros((1, 4, 16))}, "speaker 'Ethan': ref_mel has 4 frames, expected 5 or more"),
    ],
)
def test_voices_of_another_model_are_refused(path, change, words):
    config, speakers = read(tiny_qwen2_5_config()), tiny_speakers()
    assert list(read_speakers(write_speakers(path, speakers), config)) == list(speakers)
    write_speakers(path, speakers | {"Ethan": replace(speakers["Ethan"], **change)})
    assert list(read_speakers(path)) == list(speakers)
    with pytest.raises(ValueError, match=r"spk_dict\.pt: expected speakers of this model") as caught:
        read_speakers(path, config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shortest_voice_is_read(path):
    mel = np.zeros((1, 5, 16), np.float32)
    write_speakers(path, {"Ethan": replace(tiny_speakers()["Ethan"], ref_mel=mel)})
    assert read_speakers(path, read(tiny_qwen2_5_config()))["Ethan"].ref_mel.shape == (1, 5, 16)
