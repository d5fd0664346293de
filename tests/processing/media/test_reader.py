"""Media of a conversation: every kind in its order, with options of the request and of its part; faults are named."""

import dataclasses

import av
import numpy as np
import pytest

from omni_jax.config import from_hf
from omni_jax.processing.conversation import media as list_media
from omni_jax.processing.media import audio, video
from omni_jax.processing.media import reader as media
from omni_jax.processing.media.patches import PatchConfig, prepare, to_patches
from omni_jax.processing.media.reader import Reader
from omni_jax.processing.options import NAMES, OF_A_PART, SYNONYMS, MediaOptions, per_conversation
from omni_jax.processing.positions import interleave

SILENT, HEARD = MediaOptions(), MediaOptions(load_audio_from_video=True)


@pytest.fixture(scope="module")
def reader(tiny):
    return Reader(audio.FeatureConfig(), PatchConfig(), from_hf(tiny).thinker)


def user(*parts):
    return list_media([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}])


def picture(height=64, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def sound(seconds=1.0):
    return np.random.default_rng(0).normal(scale=0.1, size=int(16_000 * seconds)).astype(np.float32)


def test_each_kind_of_media_is_read_in_its_order(reader, films):
    """Images, clips and videos separately, each as from its own reader, with their placeholder runs."""
    film, config = str(films / "silent.mp4"), reader.thinker
    made = media.read(
        user({"image": picture()}, {"audio": sound()}, {"video": film}, {"image": picture(32, 320, 1)}, {"audio": sound(2)}),
        reader, SILENT,
    )  # fmt: skip
    assert [item.grid for item in made.images] == [(1, 4, 6), (1, 2, 20)]
    np.testing.assert_array_equal(made.images[1].patches, prepare(picture(32, 320, 1), reader.patches)[0])
    assert [clip.shape[1] for clip in made.mel] == [100, 200]
    (seen,) = made.videos
    clip = video.load(film, reader.patches, context=config.context)
    patches, grid = to_patches(clip.frames, reader.patches)
    np.testing.assert_array_equal(seen.patches, patches)
    assert (seen.grid, seen.seconds) == (grid, 2 * clip.interval)
    assert made.runs == {
        config.image_token: [6, 10],
        config.audio_token: [13, 26],
        config.video_token: [grid[0] * grid[1] * grid[2] // 4],
    }


def test_the_sound_of_a_video_is_a_clip_in_prompt_order(reader, films):
    """Its sound is the clip of the file's audio track, between the clips before and after it."""
    film, config = str(films / "sounding.mp4"), reader.thinker
    made = media.read(user({"audio": sound()}, {"video": film}, {"audio": sound(2)}), reader, HEARD)
    heard = audio.log_mel(audio.load(film), reader.sound)
    assert [clip.shape[1] for clip in made.mel] == [100, heard.shape[1], 200]
    np.testing.assert_array_equal(made.mel[1], heard)
    assert 300 <= heard.shape[1] <= 315
    (seen,), (run,) = made.videos, made.runs[config.video_token]
    mixed = interleave(seen.grid, seen.seconds, config.audio_encoder.tokens(heard.shape[1]), config)
    assert run == [config.audio_start, *mixed, config.audio_end]


def test_frame_times_come_from_the_file(reader, films):
    """30 frames at 10 a second: 6 of them at fps 2, spread over the 2.9 s from first to last."""
    (seen,) = media.read(user({"video": str(films / "silent.mp4")}), reader, SILENT).videos
    assert seen.grid[0] == 3
    assert seen.seconds == pytest.approx(2 * 2.9 / 5)


def test_a_part_of_a_video_is_cut_with_its_sound(reader, films):
    film = {"video": str(films / "sounding.mp4"), "video_start": 1.0, "video_end": 2.0, "nframes": 2}
    made = media.read(user(film), reader, HEARD)
    assert made.videos[0].grid[0] == 1
    assert made.videos[0].seconds == pytest.approx(2.0)
    assert made.mel[0].shape[1] == 100


def test_options_of_a_part_override_those_of_the_request(reader, films):
    """They override those of the request, under either name."""
    silent = {"video": str(films / "silent.mp4"), "use_audio_in_video": False, "nframes": 4}
    sounding = {"video": str(films / "sounding.mp4"), "max_pixels": 64 * 64}
    made = media.read(user(silent, sounding, {"image": picture(), "max_pixels": 1024}), reader, HEARD)
    assert [item.grid[0] for item in made.videos] == [2, 3]
    assert len(made.mel) == 1
    assert made.images[0].grid == (1, 2, 2)
    frames = {"video": np.stack([picture(), picture(seed=1)]), "sample_fps": 0.5}
    assert media.read(user(frames), reader, SILENT).videos[0].seconds == 4.0


def test_one_file_object_gives_pictures_and_sound(reader, films):
    by_path = media.read(user({"video": str(films / "sounding.mp4")}), reader, HEARD)
    with open(films / "sounding.mp4", "rb") as file:
        by_object = media.read(user({"video": file}), reader, HEARD)
        assert not file.closed
    by_bytes = media.read(user({"video": (films / "sounding.mp4").read_bytes()}), reader, HEARD)
    for other in (by_object, by_bytes):
        np.testing.assert_array_equal(other.mel[0], by_path.mel[0])
        np.testing.assert_array_equal(other.videos[0].patches, by_path.videos[0].patches)
        assert other.runs == by_path.runs


def test_the_sound_of_a_video_begins_with_its_pictures(reader, films, tmp_path):
    """A track that starts two seconds late becomes two seconds of silence and the same sound."""
    late = tmp_path / "late.mp4"
    with av.open(str(films / "sounding.mp4")) as given, av.open(str(late), "w") as made:
        copies = {track.index: made.add_stream_from_template(track) for track in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                shift = round(2 / packet.time_base) if packet.stream.type == "audio" else 0
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = copies[packet.stream_index]
                made.mux(packet)
    as_it_was, delayed = (
        media.read(user({"video": str(path)}), reader, HEARD).mel[0] for path in (films / "sounding.mp4", late)
    )
    assert delayed.shape[1] == pytest.approx(as_it_was.shape[1] + 200, abs=8)  # AAC's first frame is a lead-in
    assert delayed[:, :190].max() < delayed[:, 215:400].max() - 1


def test_videos_share_the_context(reader, films):
    config = reader.thinker
    small = dataclasses.replace(reader, thinker=dataclasses.replace(config, context=1_000))
    film = {"video": str(films / "silent.mp4")}
    for count in (1, 2, 3):
        made = media.read(user(*[film] * count), small, SILENT)
        assert sum(made.runs[config.video_token]) <= 1_000


def test_media_beyond_the_context_are_refused_before_decoding(reader, films, monkeypatch):
    """Each medium has the room that the media before it leave."""
    config = reader.thinker
    small = dataclasses.replace(reader, thinker=dataclasses.replace(config, context=130))

    def said(*parts, options=SILENT):
        with pytest.raises(ValueError, match=r"^message 0, part ") as error:
            media.read(user(*parts), small, options)
        return str(error.value)

    monkeypatch.setattr(media, "resize", None)  # this would take the memory
    large = {"image": picture(640, 960), "max_pixels": 10**8}
    assert said(large).endswith("640 x 960 pixels make 600 tokens, but the context has room for 130; lower max_pixels")
    assert "at least 11.0 s of sound, but the model's context has room for 10.0 s" in said({"audio": sound(11)})
    monkeypatch.undo()
    assert "has room for 124; lower" in said({"image": picture()}, large)
    assert "has room for 5.0 s" in said({"audio": sound(5)}, {"audio": sound(6)})
    film = {"video": str(films / "silent.mp4"), "nframes": 6, "resized_height": 160, "resized_width": 160}
    assert "part 1: with the media before it, it makes 150 tokens, but the context holds 130" in said(film, film)
    heard = {"video": str(films / "sounding.mp4"), "nframes": 6, "resized_height": 192, "resized_width": 192}
    assert "room for 1.7 s; take a part, by video_start and video_end" in said(heard, options=HEARD)


def test_progress_reports_a_video(reader, films):
    told = []
    media.read(user({"video": str(films / "silent.mp4")}), reader, SILENT, lambda *args: told.append(args))
    assert told
    done, total, name = told[-1]
    assert done == total
    assert name.endswith("silent.mp4")


@pytest.mark.parametrize(
    ("part", "options", "said"),
    [
        ({"image": b"GIF? no"}, SILENT, "part 0: image .bytes.: not an image"),
        ({"image": b""}, SILENT, "part 0: image .bytes.: is empty"),
        ({"video": b"no film"}, SILENT, "part 0: video .bytes.: not a video"),
        ({"video": np.zeros((0, 64, 96, 3), np.uint8)}, SILENT, "holds no frames"),
        ({"video": "FILMS/silent.mp4"}, HEARD, r"no audio track; leave load_audio_from_video \(use_audio_in_video\) out for it"),
        ({"video": np.zeros((2, 64, 96, 3), np.uint8)}, HEARD, "frames have no sound; give a video file"),
        ({"image": np.zeros((10, 2100, 3), np.uint8)}, SILENT, "200"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "max_pixels": "many"}, SILENT, "max_pixels is 'many'"),
        ({"video": "FILMS/silent.mp4", "nframes": 64}, SILENT, "nframes is 64"),
        ({"video": "FILMS/silent.mp4", "fps": 1, "nframes": 4}, SILENT, "nframes and fps exclude each other"),
        ({"video": "FILMS/silent.mp4", "use_audio_in_video": True, "load_audio_from_video": False}, SILENT, "but differ"),
    ],
)  # fmt: skip
def test_unusable_media_raise_one_line(reader, films, part, options, said):
    part = {key: value.replace("FILMS", str(films)) if isinstance(value, str) else value for key, value in part.items()}
    with pytest.raises(ValueError, match=said) as error:
        media.read(user(part), reader, options)
    assert str(error.value).startswith("message 0, part 0: ")
    assert "\n" not in str(error.value)


# --- options


def test_options_are_accepted_by_every_name():
    assert MediaOptions.named({"use_audio_in_video": True, "fps": 1}) == MediaOptions(load_audio_from_video=True, fps=1)
    assert MediaOptions(fps=3).override({"fps": None, "max_pixels": 5}) == MediaOptions(fps=3, max_pixels=5)
    assert set(OF_A_PART) < NAMES
    assert SYNONYMS.keys() < NAMES


def test_options_of_access_in_a_message_are_ignored():
    (item,) = user({"image": "a.png", "allow_private": True, "max_bytes": 1, "max_pixels": 4096, "detail": "high"})
    assert item.options == {"max_pixels": 4096}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 0}, "fps is 0 .expected more than 0."),
        ({"fps": float("nan")}, "fps is nan .expected a number."),
        ({"nframes": 2.5}, "nframes is 2.5 .expected a whole number."),
        ({"load_audio_from_video": "yes"}, "load_audio_from_video is 'yes' .expected True or False."),
        ({"min_pixels": 9, "max_pixels": 4}, "min_pixels 9 is above max_pixels 4"),
        ({"video_start": -1}, "video_start is -1 .expected at least 0."),
        ({"nframes": 4, "fps": 1.0}, "nframes and fps exclude each other"),
        ({"video_start": 3, "video_end": 1}, "video_start 3 is above video_end 1"),
        ({"resized_height": 64}, "resized_height and resized_width go together"),
        ({"max_pixels": -1, "timeout": 0}, "max_pixels is -1 .*; timeout is 0"),
    ],
)
def test_impossible_options_are_reported_at_once(options, said):
    with pytest.raises(ValueError, match=f"media options: .*{said}"):
        MediaOptions.named(options)


def test_the_more_specific_of_contradicting_options_wins():
    assert MediaOptions(fps=1).override({"nframes": 4}) == MediaOptions(nframes=4)
    assert MediaOptions(nframes=4).override({"sample_fps": 1}) == MediaOptions(fps=1)
    assert MediaOptions(min_pixels=900).override({"max_pixels": 400}) == MediaOptions(max_pixels=400)
    assert MediaOptions(max_pixels=400).override({"min_pixels": 900}) == MediaOptions(min_pixels=900)
    assert MediaOptions(max_pixels=400).override({"min_pixels": 100}) == MediaOptions(min_pixels=100, max_pixels=400)


def test_numpy_numbers_are_accepted():
    given = {"max_pixels": np.int64(4096), "fps": np.float32(2), "use_audio_in_video": np.True_}
    assert MediaOptions.named(given) == MediaOptions(max_pixels=4096, fps=2.0, load_audio_from_video=True)


def test_a_misspelt_option_beside_a_medium_is_reported():
    with pytest.raises(ValueError, match="message 0, part 0: unknown option max_pixles; did you mean max_pixels"):
        user({"image": "a.png", "max_pixles": 100})


def test_media_of_other_templates_are_read():
    written = [{"type": "image", "url": "a.png"}, {"type": "video", "path": "b.mp4"}, {"image": {"url": "c.png"}}]
    assert [(item.kind, item.source) for item in user(*written)] == [
        ("image", "a.png"),
        ("video", "b.mp4"),
        ("image", "c.png"),
    ]


def test_options_may_be_given_for_each_conversation():
    assert per_conversation(None, {"use_audio_in_video": np.array([True, False])}, 2)[0] == [HEARD, SILENT]
    rows, rest = per_conversation(
        MediaOptions(fps=1), {"use_audio_in_video": [True, False], "max_pixels": 9, "seed": 3}, 2
    )
    assert rows == [MediaOptions(fps=1, max_pixels=9, load_audio_from_video=heard) for heard in (True, False)]
    assert rest == {"seed": 3}
    with pytest.raises(
        ValueError, match="use_audio_in_video: expected one, or one for each of the 2 conversations, got 3"
    ):
        per_conversation(None, {"use_audio_in_video": [True] * 3}, 2)
    with pytest.raises(ValueError, match="media: expected MediaOptions, got dict"):
        per_conversation({"fps": 1}, {}, 1)
