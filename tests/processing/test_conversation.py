"""The accepted content of conversations, its spellings, and errors for other content."""

from types import SimpleNamespace

import numpy as np
import pytest

from omni_jax.processing.conversation import SPOKEN_SYSTEM, Media, check, media, read, speaks
from omni_jax.processing.media import audio


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_media_are_read_in_prompt_order_in_every_spelling():
    samples = np.zeros(3, np.float32)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": "a.wav"},
                {"type": "text", "text": "and"},
                {"type": "audio_url", "audio_url": {"url": "b.wav"}},
                {"audio_url": "c.wav"},
                {"type": "audio", "audio_url": "d.wav"},
                {"type": "image", "image": b"png", "text": None},
            ],
        },
        {"role": "assistant", "content": "Yes."},
        {
            "role": "user",
            "content": [{"video": "v.mp4"}, {"image_url": {"url": "i.png"}}, {"audio": (samples, 16000)}],
        },
    ]
    found = media(conversation)
    assert found[:-1] == [
        Media("audio", "a.wav", "message 1, part 0"),
        Media("audio", "b.wav", "message 1, part 2"),
        Media("audio", "c.wav", "message 1, part 3"),
        Media("audio", "d.wav", "message 1, part 4"),
        Media("image", b"png", "message 1, part 5"),
        Media("video", "v.mp4", "message 3, part 0"),
        Media("image", "i.png", "message 3, part 1"),
    ]
    assert found[-1].kind == "audio"
    assert isinstance(found[-1].source, tuple)
    assert found[-1].source[0] is samples


ENCODED = "data:audio;base64,UklGRg=="
SPELLINGS = {
    "OpenAI's sound": ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}, "audio", ENCODED),
    "DashScope's sound": ({"type": "input_audio", "input_audio": {"data": "https://x.org/a.wav"}}, "audio", "https://x.org/a.wav"),
    "DashScope's base64": ({"type": "input_audio", "input_audio": {"data": "data:;base64,Uk=="}}, "audio", "data:;base64,Uk=="),
    "a sound without its dict": ({"type": "input_audio", "input_audio": "UklGRg=="}, "audio", ENCODED),
    "a sound without its type": ({"input_audio": {"data": "UklGRg=="}}, "audio", ENCODED),
    "base64 in lines": ({"type": "audio", "base64": "Ukl\nGRg==\n"}, "audio", ENCODED),
    "OpenAI's picture": ({"type": "image_url", "image_url": {"url": "https://x.org/i.png", "detail": "low"}}, "image", "https://x.org/i.png"),
    "a picture of the newer API": ({"type": "input_image", "image_url": "i.png"}, "image", "i.png"),
    "words of the newer API": ({"type": "input_text", "text": "Hi"}, None, None),
    "Transformers' base64": ({"type": "image", "base64": "UklGRg=="}, "image", "data:image;base64,UklGRg=="),
    "Transformers' url": ({"type": "image", "url": "i.png"}, "image", "i.png"),
    "Transformers' path": ({"type": "video", "path": "v.mp4"}, "video", "v.mp4"),
    "Transformers' sound": ({"type": "audio", "url": "a.wav", "path": None}, "audio", "a.wav"),
    "vLLM's video": ({"type": "video_url", "video_url": {"url": "v.mp4"}, "uuid": "7"}, "video", "v.mp4"),
    "an undecoded row": ({"type": "audio", "audio": {"bytes": b"RIFF", "path": "a.wav"}}, "audio", b"RIFF"),
    "a row of a path": ({"type": "image", "image": {"bytes": None, "path": "i.png"}}, "image", "i.png"),
    "Gradio's file": ({"type": "audio", "audio": {"path": "a.wav", "orig_name": "b.wav", "meta": {}}}, "audio", "a.wav"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPELLINGS)
def test_spellings_of_other_libraries_are_read(case):
    part, kind, source = SPELLINGS[case]
    found = [(item.kind, item.source) for item in media(user(part))]
    assert found == ([] if kind is None else [(kind, source)])


def test_a_decoded_recording_of_a_data_set_keeps_its_rate():
    array = np.zeros(3, np.float32)
    for given in (array, array.tolist()):
        row = {"array": given, "sampling_rate": 44_100, "path": "a.wav"}
        ((samples, rate),) = [item.source for item in media(user({"type": "audio", "audio": row}))]
        assert rate == 44_100
        np.testing.assert_array_equal(samples, array)


def test_an_array_may_have_a_url_or_path_beside_it():
    picture = np.zeros((64, 64, 3), np.uint8)
    for name in ("url", "path", "base64"):
        (found,) = media(user({"type": "image", "image": picture, name: "x"}))
        assert found.source is picture


def test_a_single_part_is_read_as_a_list_of_one():
    part = {"type": "audio", "audio": "a.wav"}
    assert media([{"role": "user", "content": part}]) == media(user(part))


def test_the_role_developer_is_read_as_system():
    (message, content), *_ = read([{"role": "developer", "content": "Be brief."}, *user({"text": "Hi"})])
    assert (message["role"], content) == ("system", "Be brief.")
    assert speaks([{"role": "developer", "content": SPOKEN_SYSTEM}])


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ([], "no messages"),
        ("hello", "expected a list of messages"),
        ({"role": "user", "content": "hello"}, "expected a list of messages"),
        (["hello"], "message 0: expected a dict"),
        ([{"role": "robot", "content": "hi"}], "unknown role 'robot'"),
        ([{"content": "hi"}], "unknown role None"),
        ([{"role": "user"}], "message 0: no content"),
        ([{"role": "assistant", "content": None}], "message 0: no content"),
        ([{"role": "user", "content": []}], "got an empty one"),
        ([{"role": "user", "content": np.zeros(2)}], "got ndarray"),
        (user("hi"), "message 0, part 0: expected a dict"),
        (user({"type": "smell", "smell": "rose"}), "unknown content type 'smell'"),
        (user({"type": ["text"], "text": "hi"}), "unknown content type"),
        (user({"type": "audio"}), "no payload under audio or audio_url"),
        (user({"type": "audio", "audio": ""}), "no payload under audio or audio_url"),
        (user({"type": "image_url", "image_url": {"url": ""}}), "no payload under image or image_url"),
        (user({"type": "video", "audio": "a.wav"}), "no payload under video or video_url"),
        (user({"type": "text"}), "no payload under text"),
        (user({}), "no payload under text or audio"),
        (user({"type": "text", "text": "a", "audio": "a.wav"}), "holds text and audio"),
        (user({"type": "text", "text": 3}), "expected text as a string, got int"),
        ([{"role": np.zeros(2), "content": "hi"}], "unknown role float64 [2]"),
        ([{"role": "user", "content": ("a.wav",)}], "a tuple of strings, as Gradio has for a file"),
        ([{"role": "user", "content": ("a.wav", None)}], "a tuple of strings, as Gradio has for a file"),
        (user("hi"), 'expected a dict such as {"type": "text", "text": "..."}, got str'),
        (user({"type": "input_audio"}), "no payload under audio or audio_url or input_audio for type 'input_audio'"),
        (user({"type": "input_audio", "input_audio": {"data": ""}}), "no payload under"),
        (
            user({"type": "input_audio", "input_audio": {"data": 3}}),
            "data: expected base64 or a URL as a string, got int",
        ),
        (
            user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "pcm16"}}),
            "format 'pcm16': samples without",
        ),
        (user({"type": "input_audio", "input_audio": {"format": "wav"}}), "got one with format"),
        (
            user({"type": "audio", "audio": {}}),
            "audio: expected a dict with url, path, bytes, base64, data, or array and",
        ),
        (user({"type": "audio", "audio": {"array": np.zeros(3)}}), "with its sampling_rate beside it"),
        (user({"type": "image", "image": {"array": np.zeros(3), "sampling_rate": 3}}), "an array in a dict is sound"),
        (user({"type": "image", "image": np.zeros(3), "image_url": np.zeros(3)}), "holds image and image_url"),
        (user({"type": "text", "url": "a"}), "no payload under text"),
        (user({"url": "a.wav"}), "no payload under text or audio"),
        (user({"type": "x" * 1000}), "unknown content type 'xxx"),
        ([{"role": "assistant", "content": "", "reasoning_content": 3}], "expected reasoning_content"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}], "expected tool_calls"),
    ],
)
def test_a_faulty_conversation_raises_one_line(conversation, said):
    for use in (check, media):
        with pytest.raises(ValueError, match=r"^conversation: ") as error:
            use(conversation)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


def test_all_faults_are_reported_at_once():
    conversation = [
        {"role": "robot", "content": "hi"},
        *user({"type": "text", "text": "ok"}, {"type": "smell"}),
        7,
    ]
    with pytest.raises(ValueError, match=r"message 0: .*message 1, part 1: .*message 2: "):
        check(conversation)


def test_many_faults_are_reported_in_one_short_line():
    with pytest.raises(ValueError, match=r"message 0: .*and [0-9]+ more") as error:
        check([{"role": "robot" * 100, "content": "hi"}] * 1000)
    assert len(str(error.value)) < 500


def test_raw_base64_is_distinguished_from_a_path():
    for length in (100, 5000):  # a file that does not exist, and a name that no system can open
        with pytest.raises(ValueError, match='base64 stands in a data: URL, or under "base64" in its part') as error:
            audio.load("UklG" * (length // 4))
        assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"no such file; expected the path of a sound file$"):
        audio.load("nowhere/" * 20 + "a.wav")


def test_samples_are_read_from_a_data_sets_decoder():
    class AudioDecoder:
        def get_all_samples(self):
            return SimpleNamespace(data=np.ones((2, 800), np.float32), sample_rate=8_000)

    (found,) = media(user({"type": "audio", "audio": AudioDecoder()}))
    np.testing.assert_allclose(audio.load(found.source)[500:1000], 1, atol=1e-2)
